"""A training says what changed since the one before, on the samples that both heads were evaluated on."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import COLOURS, RUNTIME, TINY, write_cache, write_image

import featurecache as fc
from featurecache.cli import main
from featurecache.evaluation.changes import Changes
from featurecache.evaluation.history import remember_training
from featurecache.evaluation.trained_head import reported_rows
from featurecache.evaluation.training import TrainingReport
from featurecache.store.history import MAX_HISTORY
from featurecache.store.repair import repair
from featurecache.store.store import FeatureStore
from featurecache.store.verify import verify


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return write_cache(tmp_path, per_class=12)


def train(cache: Path, *heads: str, task: str = "colour") -> tuple[TrainingReport, Changes | None]:
    store = FeatureStore.open(cache)
    report = fc.train_heads(store, store.task(task), store.feature_sets(), heads, n_jobs=1)
    return report, remember_training(store, report)


def extract_again(cache: Path) -> None:
    photos = str(cache.parent / "photos")
    assert main(["extract", photos, "--cache", str(cache), "--backbone", TINY, *RUNTIME, "--quiet"]) == 0
    assert main(["task", "add", str(cache), "colour", "--from-folders", "--replace"]) == 0


def test_the_first_has_nothing_before_it_and_an_equal_one_says_so(cache: Path) -> None:
    _, first = train(cache, "ridge")
    assert first is None
    _, second = train(cache, "ridge")
    assert second is not None
    assert (second.number, second.times_reported, second.is_same_choice) == (2, 2, True)
    assert second.score_before == second.score_now
    assert second.comparison is not None
    assert second.comparison.verdict == "the same answers"
    assert second.lines()[1] == "nothing changed: the same head, setting and figures"
    json.dumps(second.to_json())


def test_another_head_is_compared_on_the_samples_that_both_judged(cache: Path) -> None:
    before, _ = train(cache, "ridge")
    for number in range(10):
        write_image(cache.parent / "photos" / "red" / f"more{number}.png", COLOURS["red"], seed=500 + number)
    extract_again(cache)
    now, changes = train(cache, "nearest_mean")
    assert changes is not None
    # The slow and obvious way: by the names of the files.
    samples = FeatureStore.open(cache).samples
    answers = []
    for report in (before, now):
        rows, y = reported_rows(report.best)
        answers.append(dict(zip(samples.uris_of(rows), zip(y, report.best.result.y_pred, strict=True), strict=True)))
    shared = answers[0].keys() & answers[1].keys()
    assert changes.num_shared == len(shared) > 0
    assert changes.score_before == pytest.approx(np.mean([y == pred for y, pred in (answers[0][k] for k in shared)]))
    assert changes.score_now == pytest.approx(np.mean([y == pred for y, pred in (answers[1][k] for k in shared)]))
    assert not changes.is_same_choice
    text = "\n".join(changes.lines())
    assert "chose ridge (" in text
    assert "labelled samples 36 -> 46" in text
    assert "; nearest_mean (" in text or "; nearest_mean on" in text


def test_classes_go_by_their_names_and_other_labels_are_counted(cache: Path) -> None:
    report, _ = train(cache, "ridge")
    photos = cache.parent / "photos"
    for number in range(12):
        write_image(photos / "amber" / f"{number}.png", (250, 180, 20), seed=900 + number)
    extract_again(cache)
    _, changes = train(cache, "ridge")
    assert changes is not None
    assert changes.num_relabelled == 0  # although every class index has moved by one
    assert changes.score_before == pytest.approx(report.best.result.test.accuracy, abs=0.2)
    assert changes.score_before > 0.5
    rows, _ = reported_rows(report.best)
    moved = FeatureStore.open(cache).samples.uris_of(rows)[0]
    target = photos / "green" if not moved.startswith("green") else photos / "red"
    shutil.move(photos / moved, target / "moved.png")
    extract_again(cache)
    _, changes = train(cache, "ridge")
    assert changes is not None
    assert changes.num_relabelled == 1  # its split is kept with its content
    assert f", 1 of the {changes.num_shared} that both were evaluated on with another label" in "\n".join(
        changes.lines()
    )


def test_labels_and_numbers_have_a_history_too(cache: Path) -> None:
    store, photos = FeatureStore.open(cache), cache.parent / "photos"
    table = cache.parent / "numbers.csv"
    paths = sorted(photos.rglob("*.png"))
    lines = [f"{path.relative_to(photos)},{COLOURS[path.parent.name][0]},{path.parent.name}" for path in paths]
    table.write_text("\n".join(["path,redness,label", *lines]))
    store.add_task("redness", fc.labels_from_csv(table, kind="regression", label_column="redness", root=photos))
    store.add_task("tags", fc.labels_from_csv(table, kind="multilabel", root=photos))
    for task in ("redness", "tags"):
        train(cache, "ridge", task=task)
        _, changes = train(cache, "ridge", task=task)
        assert changes is not None
        assert changes.score_before == pytest.approx(changes.score_now)
        assert changes.num_relabelled == 0
        json.dumps(changes.to_json(), allow_nan=False)


def test_the_command_line_tells_and_info_shows_the_history(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", str(cache), "--task", "colour", "--quiet"]
    assert main([*command, "--head", "ridge"]) == 0
    out = capsys.readouterr().out
    assert "were used this once" in out
    assert "the one before" not in out
    assert main([*command, "--head", "knn"]) == 0
    out = capsys.readouterr().out
    assert "training 2 on this task; the one before, of 20" in out
    assert "have been looked at in 2 trainings" in out
    assert main([*command, "--head", "knn", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["changes"]["same_choice"] is True
    assert main(["info", str(cache)]) == 0
    out = capsys.readouterr().out
    assert "trainings of task colour" in out
    assert out.count("knn") >= 2
    assert main(["info", str(cache), "--json"]) == 0
    history = json.loads(capsys.readouterr().out)["tasks"][0]["history"]
    assert [training["head"] for training in history] == ["ridge", "knn", "knn"]


def test_a_history_that_cannot_be_used_costs_no_training(cache: Path) -> None:
    train(cache, "ridge")
    shard = next((cache / "history" / "colour" / "shards").iterdir())
    assert not verify(FeatureStore.open(cache), level="blocks").problems
    data = bytearray(shard.read_bytes())
    record = json.loads(next((cache / "history" / "colour" / "commits").iterdir()).read_text())
    data[record["arrays"]["target"]["offset"]] ^= 1
    shard.write_bytes(data)
    report, changes = train(cache, "ridge")
    assert changes is None
    assert [warning.kind for warning in report.warnings] == ["history"]
    assert "cannot be compared with earlier ones" in report.warnings[0].text
    (problem,) = verify(FeatureStore.open(cache)).problems
    assert problem.where.startswith("history/colour/shards")
    repaired = repair(FeatureStore.open(cache))
    assert "figures of an earlier training are lost" in repaired[0].action
    assert not verify(FeatureStore.open(cache)).problems
    report, changes = train(cache, "ridge")
    assert not report.warnings


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_may_not_be_written_is_trained_on(cache: Path) -> None:
    cache.chmod(0o555)
    try:
        report, changes = train(cache, "ridge")
    finally:
        cache.chmod(0o755)
    assert changes is None
    assert [warning.kind for warning in report.warnings] == ["history"]


def test_old_trainings_are_forgotten(cache: Path) -> None:
    store, (report, _) = FeatureStore.open(cache), train(cache, "ridge")
    history = store.history("colour")
    first = history.last()
    assert first is not None
    for _ in range(MAX_HISTORY + 2):
        history.add(first.about, first.ids, first.targets, first.predictions, first.is_reported)
    assert len(history.abouts()) == MAX_HISTORY
    last = remember_training(store, report)
    assert last is not None
    assert last.number == MAX_HISTORY + 4
