"""Heads on several taps of a cache: one table, and each row of it is what that tap alone gives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import write_cache

from featurecache.cli import main
from featurecache.errors import HeadError, RequestError
from featurecache.evaluation.training import train_heads
from featurecache.progress import Silent
from featurecache.store.store import FeatureStore

pytestmark = pytest.mark.usefixtures("few_settings")

TAPS = ("stem.0:avg", "stem.2:avg", "pre_logits:none")
HEADS = ("logistic", "ridge", "knn")


class Counting(Silent):
    count = 0

    def advance(self, count: int, *, bad: int = 0) -> None:
        self.count += count


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """A cache of three taps, two of them with as many features; training changes nothing in it."""
    return FeatureStore.open(write_cache(tmp_path_factory.mktemp("training"), *TAPS))


@pytest.mark.parametrize("memory", [None, 1], ids=["in memory", "on disk"])
def test_several_taps_are_one_table_of_what_each_gives_alone(store: FeatureStore, memory: int | None) -> None:
    task, sets = store.task("colour"), [store.find(tap=tap) for tap in TAPS]
    heads = HEADS if memory is None else HEADS[:2]
    report = train_heads(store, task, sets, heads, memory=memory, n_jobs=1)
    scores = [each.result.selection_score for each in report.heads]
    assert scores == sorted(scores, reverse=True)
    found = {(each.feature_set.tap, each.result.head): each.result for each in report.heads}
    assert len(found) == len(report.heads) == len(TAPS) * len(heads)
    for feature_set in sets:
        for each in train_heads(store, task, [feature_set], heads, memory=memory, n_jobs=1).heads:
            ours, theirs = found[feature_set.tap, each.result.head], each.result
            assert (ours.params, ours.validation, ours.test) == (theirs.params, theirs.validation, theirs.test)
            np.testing.assert_allclose(ours.proba, theirs.proba, rtol=1e-6, atol=1e-9)


def test_memory_that_holds_each_tap_but_not_all_leaves_no_head_out(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featurecache.evaluation.training.list_heads", lambda **which: list(HEADS))
    task, sets = store.task("colour"), [store.find(tap=tap) for tap in TAPS[:2]]
    num_numbers = 60 * sets[0].open().view_shape[0]
    for memory, able in (
        (4 * num_numbers, HEADS),
        (4 * num_numbers - 1, ("logistic", "ridge")),
    ):
        report = train_heads(store, task, sets, memory=memory, n_jobs=1)
        assert sorted(each.result.head for each in report.heads) == sorted([*able, *able])
        assert set(report.heads_left_out) == set(HEADS) - set(able)


def test_a_head_that_was_named_and_needs_too_much_is_refused(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featurecache.evaluation.configuring._LEAST_BUDGET", 0)
    task, sets = store.task("colour"), [store.find(tap=TAPS[0])]
    with pytest.raises(HeadError, match=r"^head 'ridge' needs about .* GB of memory.*; choose another head, or fewer"):
        train_heads(store, task, sets, ["ridge"], memory=1, n_jobs=1)


def test_a_tap_that_is_refused_costs_no_fit(store: FeatureStore) -> None:
    done = Counting()
    most = store.find(tap=TAPS[0]).open().view_shape[0]
    larger = next(tap for tap in TAPS if store.find(tap=tap).open().view_shape[0] > most)
    sets = [store.find(tap=TAPS[0]), store.find(tap=larger)]
    with pytest.raises(RequestError, match=rf"tap '{larger}' has \d+ numbers per sample; pool it"):
        train_heads(store, store.task("colour"), sets, ["ridge"], progress=done, max_numbers=most)
    assert not done.count


def test_a_dear_head_is_left_out_and_said_unless_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = str(write_cache(tmp_path, per_class=12))
    monkeypatch.setattr("featurecache.evaluation.configuring.MAX_SECONDS", 0.0)
    for module in ("training", "plan"):
        monkeypatch.setattr(f"featurecache.evaluation.{module}.list_heads", lambda **which: ["rbf_svm", "logistic"])
    capsys.readouterr()
    train, sweep = ["train", cache, "--task", "colour", "--quiet"], ["sweep", cache, "--quiet"]
    assert main(train) == 0
    said = capsys.readouterr()
    assert "head rbf_svm is left out: it would take about 1 s; name it with --head rbf_svm to train it" in said.err
    assert "logistic" in said.out
    assert main([*train, "--json", "--head", "rbf_svm"]) == 0
    assert [result["head"] for result in json.loads(capsys.readouterr().out)["results"]] == ["rbf_svm"]
    assert main(sweep) == 0
    assert "head rbf_svm is left out on pre_logits:none, task colour: it would take about" in capsys.readouterr().err
    assert main([*sweep, "--json", "--head", "rbf_svm"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["error"] is None
    monkeypatch.setattr("featurecache.evaluation.training.list_heads", lambda **which: ["rbf_svm"])
    assert main(train) == 2
    assert "no head can be fitted on these features (rbf_svm would take about 1 s" in capsys.readouterr().err
