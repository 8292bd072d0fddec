"""A training fits only what has changed, and what it takes up is what it would have found."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import COLOURS, RUNTIME, TINY, write_cache, write_image

import featurecache as fc
from featurecache.cli import main
from featurecache.deployment.kept import keep_head
from featurecache.deployment.saved import open_head
from featurecache.evaluation import search as searching
from featurecache.evaluation.refit import is_fitted
from featurecache.evaluation.trained_head import HeadResult, reported_rows
from featurecache.evaluation.training import TrainingReport
from featurecache.progress import Silent
from featurecache.store.store import FeatureStore
from featurecache.store.verify import verify

HEADS = ("logistic", "knn", "ridge")
TAPS = ("pre_logits:none", "stem.0:avg")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return write_cache(tmp_path, "stem.0:avg", "pre_logits:none", per_class=12)


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the heads that are searched, as they are."""
    names: list[str] = []
    search = searching.search

    def noted(head: object, *arguments: object) -> HeadResult:
        names.append(head.name)  # type: ignore[attr-defined]
        return search(head, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(searching, "search", noted)
    return names


def train(cache: Path, *heads: object, taps: tuple[str, ...] = TAPS[:1], **options: object) -> TrainingReport:
    store = FeatureStore.open(cache)
    sets = [store.find(tap=tap) for tap in taps]
    options = {"n_jobs": 1, "take_up": True, "task": "colour", **options}
    return fc.train_heads(store, store.task(options.pop("task")), sets, heads, **options)


def assert_same(first: TrainingReport, second: TrainingReport) -> None:
    assert len(first.heads) == len(second.heads)
    for one, other in zip(first.heads, second.heads, strict=True):
        for field in dataclasses.fields(HeadResult):
            if field.name in ("estimator", "is_kept", *(() if other.result.is_kept else ("seconds",))):
                continue
            ours, theirs = getattr(one.result, field.name), getattr(other.result, field.name)
            if isinstance(ours, np.ndarray):
                np.testing.assert_array_equal(ours, theirs)
                assert ours.dtype == theirs.dtype
            else:
                assert ours == theirs, field.name


def test_what_is_taken_up_is_what_was_found(cache: Path, searched: list[str]) -> None:
    first = train(cache, *HEADS, taps=TAPS)
    assert len(searched) == 6
    second = train(cache, *HEADS, taps=TAPS)
    assert len(searched) == 6
    assert_same(first, second)
    assert all(head.result.is_kept and not is_fitted(head.result.estimator) for head in second.heads)
    first_json, second_json = ({**report.to_json(), "results": None} for report in (first, second))
    assert first_json == second_json
    # A head is kept from it as from the first, either fit.
    store, (rows, _) = FeatureStore.open(cache), reported_rows(second.best)
    X = second.best.feature_set.open().read(rows).astype(np.float32)
    for keep in ("refitted", "evaluated"):
        saved = [open_head(keep_head(store, "a", report.best, keep=keep)) for report in (first, second)]
        np.testing.assert_allclose(*(head.probabilities(X) for head in saved), atol=1e-7)
        assert saved[0].meta["fitted_on"] == saved[1].meta["fitted_on"]
    np.testing.assert_allclose(saved[1].probabilities(X), first.best.result.proba, atol=1e-7)


class Stops(Silent):
    """A progress of somebody who stops a training once one head is ready."""

    def advance(self, count: int, *, bad: int = 0) -> None:
        raise KeyboardInterrupt


def test_a_training_that_is_stopped_goes_on_where_it_was(cache: Path, searched: list[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(cache, *HEADS, progress=Stops())
    assert len(searched) == 1
    found = train(cache, *HEADS)
    assert sorted(searched) == sorted(HEADS)
    assert [head.result.head for head in found.heads if head.result.is_kept] == searched[:1]


def test_only_what_is_new_is_fitted(cache: Path, searched: list[str]) -> None:
    train(cache, "ridge")
    train(cache, "ridge", "knn")
    assert searched == ["ridge", "knn"]
    train(cache, "ridge", taps=TAPS)
    assert searched == ["ridge", "knn", "ridge"]


@pytest.mark.parametrize("change", ["seed", "balanced", "labels", "splits", "version", "views of a plain set"])
def test_whatever_a_result_depends_on_makes_it_another(
    cache: Path, searched: list[str], change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(cache, "ridge")
    options: dict[str, object] = {}
    photos, again = cache.parent / "photos", ["task", "add", str(cache), "colour", "--from-folders", "--replace"]
    extract = ["extract", str(photos), "--cache", str(cache), "--backbone", TINY, "--tap", "pre_logits", *RUNTIME]
    if change == "seed":
        options["random_state"] = 1
    elif change == "balanced":
        options["balanced"] = True
    elif change == "labels":
        write_image(photos / "red" / "more.png", COLOURS["red"], seed=99)
        assert main(extract) == 0
        assert main(again) == 0
    elif change == "splits":
        assert main([*again[:-1], "--random-state", "5", "--replace"]) == 0
    elif change == "version":
        versions = {"scikit-learn": "0"}
        monkeypatch.setattr("featurecache.evaluation.kept_results.installed_versions", lambda names: versions)
    else:
        assert main([*extract, "--views", "2"]) == 0
        options["tta"] = True
    train(cache, "ridge", **options)
    assert searched == ["ridge", "ridge"]


def test_heads_of_somebody_are_fitted_each_time(cache: Path, searched: list[str]) -> None:
    from featurecache.deployment.python_heads import python_head

    for _ in range(2):
        train(cache, python_head("python:own_heads:tree"))
    assert len(searched) == 2
    assert not (cache / "searches").exists()


@pytest.mark.parametrize("damage", ["other bytes", "another shape", "another split"])
def test_a_damaged_record_is_fitted_again(cache: Path, searched: list[str], damage: str) -> None:
    from featurecache.records import encode_record

    first = train(cache, "ridge")
    (path,) = (cache / "searches").iterdir()
    body = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("format", "version", "digest")}
    if damage == "other bytes":
        path.write_bytes(path.read_bytes().replace(b"ridge", b"rigde", 1))
    elif damage == "another shape":
        body["selection_index"]["shape"] = [7]
        path.write_bytes(encode_record("search", body))
    else:
        path.write_bytes(encode_record("search", {**body, "reported": "nowhere"}))
    assert bool(verify(FeatureStore.open(cache)).problems) == (damage == "other bytes")
    assert_same(first, train(cache, "ridge"))
    assert len(searched) == 2
    assert not verify(FeatureStore.open(cache)).problems


@pytest.mark.parametrize("kind", ["multilabel", "regression"])
def test_labels_and_numbers_too(cache: Path, searched: list[str], kind: str) -> None:
    photos, table = cache.parent / "photos", cache.parent / "table.csv"
    named = [(path.relative_to(photos), path.parent.name, int(path.stem)) for path in sorted(photos.rglob("*.png"))]
    lines = [f"{path},{colour},{COLOURS[colour][0] + number}" for path, colour, number in named]
    table.write_text("\n".join(["path,label,redness", *lines]))
    column = "label" if kind == "multilabel" else "redness"
    labels = fc.labels_from_csv(table, kind=kind, label_column=column, root=photos)
    FeatureStore.open(cache).add_task("other", labels)
    assert_same(train(cache, "ridge", task="other"), train(cache, "ridge", task="other"))
    assert searched == ["ridge"]


def test_old_results_are_forgotten(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featurecache.store.notes._MOST_RECORDS", 2)
    train(cache, *HEADS)
    assert len(list((cache / "searches").iterdir())) == 2


def test_run_says_what_it_took_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cache(tmp_path, per_class=8)
    command = ["run", str(tmp_path / "photos"), "--cache", str(tmp_path / "c"), "--backbone", TINY, *RUNTIME]
    command += ["--head", "ridge", "--head", "knn"]
    assert main(command) == 0
    capsys.readouterr()
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "2 of 2 heads were fitted by an earlier training, and nothing has changed since" in out
    assert "nothing changed: the same head, setting and figures" in out
    assert "Since the training before" in (tmp_path / "c" / "report.html").read_text()
