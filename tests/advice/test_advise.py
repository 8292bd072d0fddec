"""Advice about a task of a cache: every answer has what it promises, by the function and on the command line."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from conftest import COLOURS, RUNTIME, TINY, write_cache, write_image

import featurecache as fc
from featurecache.advice import evidence
from featurecache.advice.commands import Commands
from featurecache.advice.diagnosis import diagnosis_finding
from featurecache.advice.evidence import gather
from featurecache.advice.finding import TOPICS, summary
from featurecache.cli import main
from featurecache.errors import RequestError
from featurecache.store.store import FeatureStore


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three colours, two taps of a network, the same untrained, pixels and a histogram."""
    folder = tmp_path_factory.mktemp("advice")
    cache = write_cache(folder, "stem.0:avg", "pre_logits:none", per_class=20)
    extract = ["extract", str(folder / "photos"), "--cache", str(cache), *RUNTIME, "--backbone"]
    assert main([*extract, TINY, "--init", "random", "--weights-seed", "3", "--tap", "pre_logits:none"]) == 0
    assert main([*extract, "pixels:8"]) == 0
    assert main([*extract, "colours"]) == 0
    return cache


def test_every_answer_has_a_figure_its_basis_and_n(cache: Path) -> None:
    findings = fc.advise(cache, "colour")
    assert [finding.question for finding in findings][-5:] == ["when", "what", "how", "more_data", "diagnosis"]
    assert findings[0].question == "soundness"
    for finding in findings:
        assert isinstance(finding, fc.Finding)
        assert finding.n > 0
        assert finding.text
        assert finding.basis
        assert "\n" not in finding.text
        if finding.low is not None:
            assert finding.low <= finding.figure <= finding.high
        json.dumps(finding.to_json(), allow_nan=False)
    when = next(finding for finding in findings if finding.question == "when")
    names = {"untrained" if name.endswith(", untrained") else name for name in when.details["arms"]}
    assert names == {"colours", "largest class", "pixels:8", "untrained"}
    assert when.details["missing"] == {}
    # The classes are colours: a histogram is as good as any network.
    assert when.verdict in ("hurts", "cannot tell")


def test_what_was_held_out_for_testing_is_not_looked_at(cache: Path, tmp_path: Path) -> None:
    store = FeatureStore.open(cache)
    task = store.task("colour")
    evidence = gather(task, store.feature_sets())
    tested = task.rows(store.feature_sets()[0].open(), "test")[0]
    assert not np.isin(tested, evidence.rows).any()
    assert len(evidence.rows) + len(tested) == 60
    few = gather(task, store.feature_sets(), max_rows=30)
    assert (len(few.rows), few.num_left_out) == (30, 18)


def test_the_same_question_has_the_same_answer_on_any_number_of_threads(cache: Path) -> None:
    one, two = (fc.advise(cache, "colour", only=["what", "more_data"], n_jobs=jobs) for jobs in (1, 2))
    assert [finding.to_json() for finding in one] == [finding.to_json() for finding in two]


def test_the_command_line_prints_answers_and_one_document(
    cache: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    status, out, _ = call("advise", cache, "--task", "colour", "--wide", "--quiet")
    assert status == 0
    assert "When: does transfer help here?" in out
    assert "less the best" in out
    assert f"next: featurecache train {cache} --task colour --tap" in out
    status, out, _ = call("advise", cache, "--task", "colour", "--json", "--quiet")
    findings = json.loads(out)["findings"]
    assert {finding["question"] for finding in findings} <= set(TOPICS)
    keys = {"question", "verdict", "text", "figure", "low", "high", "n", "basis", "next_command", "details"}
    assert all(keys <= finding.keys() for finding in findings)
    status, out, _ = call("advise", cache, "--task", "colour", "--only", "diagnosis", "--target-domain", "validation")
    assert "mismatch" in out
    assert "Would more" not in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "why"], "unknown question 'why'; known: soundness, when"),
        (
            ["--target-domain", "webcam"],
            "has a path that fits 'webcam'; name a pattern of paths, such as 'webcam/*', or a split (validation, test)",
        ),
        (["--task", "colours"], "unknown task 'colours'"),
    ],
)
def test_requests_that_make_no_sense_are_one_line(
    cache: Path, call: Callable[..., tuple[int, str, str]], options: list[str], message: str
) -> None:
    command = ["advise", cache, *([] if "--task" in options else ["--task", "colour"]), *options]
    status, _, err = call(*command)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1


def test_a_cache_without_a_pretrained_network_is_told_what_to_do(tmp_path: Path) -> None:
    write_image(tmp_path / "p" / "a" / "1.png", COLOURS["red"], seed=1)
    write_image(tmp_path / "p" / "b" / "1.png", COLOURS["blue"], seed=2)
    for number in range(2, 12):
        write_image(tmp_path / "p" / "ab"[number % 2] / f"{number}.png", COLOURS["red"], seed=number)
    settings = fc.ExtractionSettings(runtime="torch", batch_size=4)
    store = fc.extract(tmp_path / "p", tmp_path / "c", backbone="pixels:8", settings=settings)
    store.add_task("t", fc.labels_from_folders())
    with pytest.raises(RequestError, match="no features of a pretrained network; run `featurecache extract` first"):
        fc.advise(store, "t")


def test_copies_stop_the_other_answers(tmp_path: Path) -> None:
    """The same photographs five times over, with labels that are coin flips."""
    generator = np.random.default_rng(0)
    for photo in range(30):
        pixels = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        for copy in range(5):
            _write_copy(tmp_path / "p" / "ab"[photo % 2] / f"{photo}-{copy}.png", pixels, seed=copy)
    settings = fc.ExtractionSettings(runtime="torch", batch_size=8)
    store = fc.extract(tmp_path / "p", tmp_path / "c", backbone=TINY, settings=settings)
    store.add_task("t", fc.labels_from_folders())
    # In few features of few photographs the folds decide whether memory shows beyond chance.
    findings = fc.advise(store, "t", random_state=1)
    copies = next(finding for finding in findings if finding.verdict == "near-copies")
    assert copies.details["num_across"] > 10
    assert "near-copies of others" in copies.text
    assert copies.is_fatal
    assert {finding.question for finding in findings} == {"soundness"}
    assert fc.advise(store, "t", only=["when"])[0].question == "when"


def test_another_feature_set_changes_no_figure_of_the_first(tmp_path: Path) -> None:
    settings = fc.ExtractionSettings(runtime="torch", batch_size=8)
    rng = np.random.default_rng(0)
    for number in rng.permutation(40).tolist():  # so that the task and the rows are in another order
        write_image(tmp_path / "p" / "ab"[number % 2] / f"{number}.png", tuple(rng.integers(0, 256, 3)), seed=number)
    store = fc.extract(tmp_path / "p", tmp_path / "c", backbone=TINY, settings=settings)
    names = sorted(path.relative_to(tmp_path / "p") for path in (tmp_path / "p").rglob("*.png"))
    table = tmp_path / "t.csv"
    rows = [f"{name},{name.parent.name}" for name in rng.permutation(np.array(names, object))]
    table.write_text("path,label\n" + "\n".join(rows))
    store.add_task("t", fc.labels_from_csv(table))
    before = gather(store.task("t"), store.feature_sets())
    fc.extract(tmp_path / "p", tmp_path / "c", backbone="pixels:8", settings=settings)
    store = fc.FeatureStore.open(tmp_path / "c")
    after = gather(store.task("t"), store.feature_sets())
    assert len(after.arms) == 2
    assert after.rows.tolist() == before.rows.tolist()
    assert (after.y.tolist(), after.folds.tolist()) == (before.y.tolist(), before.folds.tolist())


def _write_copy(path: Path, pixels: np.ndarray, *, seed: int) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    large = np.kron(pixels, np.ones((8, 8, 1))).astype(np.int64)
    noise = np.random.default_rng(seed).integers(-3, 4, large.shape)
    Image.fromarray(np.clip(large + noise, 0, 255).astype(np.uint8)).save(path)


def test_labels_and_numbers_have_advice_too(cache: Path) -> None:
    store, photos = FeatureStore.open(cache), cache.parent / "photos"
    table = cache.parent / "numbers.csv"
    paths = sorted(photos.rglob("*.png"))
    lines = [f"{path.relative_to(photos)},{COLOURS[path.parent.name][0]},{path.parent.name}" for path in paths]
    table.write_text("\n".join(["path,redness,label", *lines]))
    names = set(store.task_names())
    if "redness" not in names:
        store.add_task("redness", fc.labels_from_csv(table, kind="regression", label_column="redness", root=photos))
        store.add_task("tags", fc.labels_from_csv(table, kind="multilabel", root=photos))
    for task in ("redness", "tags"):
        findings = fc.advise(store, task)
        assert {"when", "what", "more_data", "diagnosis"} <= {finding.question for finding in findings}
        json.dumps([finding.to_json() for finding in findings], allow_nan=False)


def test_three_lines_begin_with_what_is_unsound() -> None:
    def finding(question: Any, verdict: str, **more: Any) -> fc.Finding:
        return fc.Finding(question=question, verdict=verdict, text=f"{question} {verdict}", n=1, basis="", **more)

    findings = [
        finding("soundness", "none found"),
        finding("soundness", "constant features", details={"warning": "constant_features"}),
        finding("soundness", "near-copies", figure=0.0, low=-0.1, high=0.1),
        finding("more_data", "helps"),
        finding("when", "cannot tell", next_command="featurecache extract"),
        finding("what", "best", next_command="featurecache train"),
        finding("soundness", "classes missing"),
        finding("soundness", "shortcut", is_fatal=True),
    ]
    assert summary(findings, 9) == [
        "soundness shortcut",
        "soundness classes missing",
        "what best: featurecache train",
        "when cannot tell: featurecache extract",
        "soundness near-copies",
        "more_data helps",
    ]
    assert len(summary(findings)) == 3


def test_pixels_and_colours_are_taken_only_where_they_are_named(cache: Path) -> None:
    store = FeatureStore.open(cache)
    assert {found.identity.backbone for found in store.select_sets()} == {TINY}
    assert store.find(backbone="pixels:8").is_baseline
    assert [found.identity.backbone for found in store.select_sets(backbone="colours")] == ["colours"]


def test_a_domain_is_a_split_or_a_pattern_of_paths(cache: Path) -> None:
    by_split, by_path = (
        fc.advise(cache, "colour", only=["diagnosis"], target_domain=domain)[0] for domain in ("validation", "red/00*")
    )
    assert "validation" in by_split.details["errors"]
    assert by_split.n == 48
    store = FeatureStore.open(cache)
    task = store.task("colour")
    names = store.samples.uris_of(store.samples.rows_of(task.ids[task.splits != 2]))
    target = [name for name in names if name.startswith("red/00")]
    assert by_path.details["errors"]["red/00*"]["n"] == len(target) > 3
    assert by_path.n == 48  # those of the target among them
    with pytest.raises(RequestError, match="no other sample of task 'colour' for fitting has a path that fits"):
        fc.advise(cache, "colour", target_domain="*")


def test_every_command_that_is_named_can_be_typed(
    tmp_path: Path, call: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also beside the same tap of an untrained network, of another type, and of views."""
    few = ["ridge", "nearest_mean", "majority"]  # all heads are trained elsewhere
    monkeypatch.setattr("featurecache.evaluation.training.list_heads", lambda **which: few)
    cache = write_cache(tmp_path, "stem.0:avg", "pre_logits:none", per_class=15)
    photos = tmp_path / "photos"
    extract = ["extract", photos, "--cache", cache, *RUNTIME, "--backbone", TINY]
    for more in (["--init", "random", "--weights-seed", 3], ["--dtype", "float32"], ["--views", 2]):
        assert call(*extract, "--tap", "pre_logits:none", *more)[0] == 0
    store = FeatureStore.open(cache)
    commands = Commands(store, "colour", photos)
    sets = [found for found in store.feature_sets() if found.num_views is None]
    named = {
        finding.next_command
        for domain in (None, "validation")
        for finding in fc.advise(cache, "colour", source=photos, target_domain=domain)
    }
    for found in sets:
        named |= {commands.train(found), commands.deeper(found), commands.extract(found, "blocks")}
        named.add(commands.extract(found, found.tap, "--views", "8"))
        named |= set(commands.without_transfer(found).values())
    assert len(sets) == 4
    # The table of labels is the reader's own; see below.
    for command in sorted(filter(None, named - {commands.label})):
        status, _, err = call(*shlex.split(command)[1:], *(["--runtime", "torch"] if " extract " in command else []))
        assert status == 0, (command, err)
    for found in sets:  # and it trains on that set alone
        status, out, err = call(*shlex.split(commands.train(found))[1:], "--head", "ridge", "--json")
        assert status == 0, err
        (result,) = json.loads(out)["results"]
        assert (result["tap"], result["dtype"], result["fingerprint"]) == (found.tap, found.dtype, found.fingerprint)


def test_commands_say_what_has_to_be_filled_in(cache: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    store = FeatureStore.open(cache)
    found = store.find(tap="stem.0:avg")
    from_file = dataclasses.replace(found, about=msgspec.structs.replace(found.about, weights_source="file a.pth"))
    assert "--weights FILE" in Commands(store, "colour").extract(from_file, "blocks")
    assert Commands(store, "colour").extract(found, "blocks").startswith("featurecache extract SOURCE --cache")
    mails = Commands(store, "colour", "mails.tsv", ("--text-column", "2", "--no-header"))
    assert mails.extract(found, "blocks").startswith(
        "featurecache extract mails.tsv --text-column 2 --no-header --cache"
    )
    in_memory = dataclasses.replace(found, identity=dataclasses.replace(found.identity, backbone="module:Net"))
    assert "--backbone python:MODULE:FACTORY" in Commands(store, "colour").extract(in_memory, "blocks")
    assert "--backbone python:MODULE:FACTORY" in Commands(store, "colour").without_transfer(in_memory)["untrained"]
    status, _, err = call(*shlex.split(Commands(store, "colour").label)[1:])
    assert (status, "LABELS.csv" in err) == (2, True)  # the table is all that is missing


def test_three_groups_have_no_intervals_and_the_document_is_whole(
    tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    cache = write_cache(tmp_path, per_class=15)
    photos, table = tmp_path / "photos", tmp_path / "patients.csv"
    paths = sorted(photos.rglob("*.png"))
    lines = ["path,label,patient,split"]
    for number, path in enumerate(paths):
        split = "test" if number % 4 == 3 else "train"
        lines.append(f"{path.relative_to(photos)},{path.parent.name},p{number % 4},{split}")
    table.write_text("\n".join(lines))
    store = FeatureStore.open(cache)
    store.add_task("grouped", fc.labels_from_csv(table, group_column="patient", root=photos))
    status, out, err = call("advise", cache, "--task", "grouped", "--quiet")
    assert status == 0, err
    assert "there are 4 groups" in out
    assert "no interval: fewer than 5 rows or groups" in out
    assert "inf" not in out.replace("information", "")
    status, out, _ = call("advise", cache, "--task", "grouped", "--json", "--quiet")
    assert status == 0
    findings = json.loads(out)["findings"]
    assert all(finding["low"] is None for finding in findings if finding["question"] in ("how", "diagnosis"))


@pytest.mark.parametrize("per_class", [2, 4])
def test_a_handful_of_samples_is_answered_or_refused_in_one_line(
    tmp_path: Path, call: Callable[..., tuple[int, str, str]], per_class: int
) -> None:
    cache = write_cache(tmp_path / "with space", per_class=per_class + 3)
    status, out, err = call("advise", cache, "--task", "colour", "--quiet")
    assert status == 0, err
    assert "cannot tell whether more labels would help: needs about" in out


def test_a_second_call_fits_no_probe_again_and_says_the_same(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = [finding.to_json() for finding in fc.advise(cache, "colour")]
    kept = sorted((cache / "probes").iterdir())
    assert kept
    assert all("featurecache" not in path.read_text().partition("out_of_fold")[2] for path in kept)  # no command

    def refit(*args: object) -> None:
        raise AssertionError("it was fitted again")

    monkeypatch.setattr(evidence, "linear_probe", refit)
    assert [finding.to_json() for finding in fc.advise(cache, "colour")] == before
    with pytest.raises(AssertionError, match="fitted again"):
        fc.advise(cache, "colour", random_state=1)  # other folds
    monkeypatch.undo()
    # What is damaged, or of other rows, is computed again.
    first, *others = kept
    first.write_text(first.read_text()[:-40])
    for path in others:
        document = json.loads(path.read_text())
        document["out_of_fold"]["shape"] = document["in_sample"]["shape"] = [1, 1]
        path.write_text(json.dumps(document))
    assert [finding.to_json() for finding in fc.advise(cache, "colour")] == before


def test_errors_of_all_splits_stand_beside_each_other(cache: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    """Each by a fit that has not seen it, and those of the test split only where somebody asks."""
    (finding,) = fc.advise(cache, "colour", only=["diagnosis"])
    assert list(finding.details["errors"]) == ["largest class", "in sample", "out of fold", "train-dev", "dev"]
    assert "overfitting to dev" not in finding.details["gaps"]
    (finding,) = fc.advise(cache, "colour", only=["diagnosis"], look_at_test=True)
    errors = finding.details["errors"]
    assert errors["test"]["n"] == FeatureStore.open(cache).task("colour").counts()["test"]
    assert finding.details["gaps"]["overfitting to dev"]["gap"] == errors["test"]["error"] - errors["dev"]["error"]
    _, out, _ = call("advise", cache, "--task", "colour", "--only", "diagnosis", "--wide", "--look-at-test", "--quiet")
    assert "train-dev" in out


def test_a_dev_set_that_choices_were_fitted_to_is_named() -> None:
    rng = np.random.default_rng(0)
    errors = {name: (rng.random(400) < share).astype(float) for name, share in {"dev": 0.05, "test": 0.2}.items()}
    fitted = (rng.random(400) < 0.04).astype(float)
    finding = diagnosis_finding(
        fitted, fitted, np.ones(400), others={name: (values, None) for name, values in errors.items()}
    )
    assert finding.verdict == "overfitting to dev"
    assert "a larger dev set" in finding.text
