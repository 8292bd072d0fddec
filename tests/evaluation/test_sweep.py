"""The summary of a sweep: means, intervals and comparisons of divisions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student_t

from featurecache.errors import RequestError
from featurecache.evaluation.plan import Plan
from featurecache.evaluation.summary import COLUMNS, SweepRow, summarise, uncompared

MAP = {"kind": "multilabel", "measure": "mean_average_precision"}
R2 = {"kind": "regression", "measure": "r2"}
BALANCED = {"measure": "balanced_accuracy", "balanced": True}


def row(score: float | None, **changes: Any) -> SweepRow:
    known: dict[str, Any] = {
        "task": "colour", "kind": "classification", "measure": "accuracy", "backbone": "b", "fingerprint": "f",
        "tap": "t", "dtype": "float16", "views": None, "evaluated_on": "plain", "head": "knn", "balanced": False,
        "seed": 0, "fold": None, "num_folds": None, "shots": None, "share": None, "split": "fold", "n_train": 80,
        "n_available": 80, "n": 20, "seconds": 1.0,
    }  # fmt: skip
    known |= {name: value for name, value in changes.items() if name not in ("score_low", "score_high")}
    scores = {}
    if score is not None:
        measure = known["measure"]
        scores = {"accuracy": score, measure: score}
        scores[f"{measure}_low"] = changes.get("score_low", score - 0.1)
        scores[f"{measure}_high"] = changes.get("score_high", score + 0.05)
    return SweepRow(**known, scores=scores)


@pytest.mark.parametrize("changes", [{}, BALANCED, MAP, R2])
def test_one_division_keeps_its_own_interval(changes):
    (line,) = summarise([row(0.8, **changes)])
    assert (line.score, line.low, line.high) == (0.8, pytest.approx(0.7), pytest.approx(0.85))
    assert line.accuracy == (0.8 if line.kind == "classification" else None)
    assert line.against_best is None


def test_folds_get_the_corrected_resampled_t_interval():
    values = [0.8, 0.85, 0.75, 0.9, 0.8]
    (line,) = summarise([row(value, fold=k, num_folds=5) for k, value in enumerate(values)])
    half = student_t.ppf(0.975, 4) * math.sqrt(np.var(values, ddof=1) * (1 / 5 + 20 / 80))
    assert line.score == line.accuracy == pytest.approx(np.mean(values))
    assert (line.low, line.high) == (pytest.approx(0.82 - half), pytest.approx(min(0.82 + half, 1)))
    assert line.num_resamplings == 5


@pytest.mark.parametrize("changes", [MAP, R2])
def test_figures_of_other_kinds_end_where_they_can(changes):
    """No average precision is below 0, but an R2 may be as far below as it likes."""
    rows = [row(value, fold=k, num_folds=3, **changes) for k, value in enumerate([0.05, 0.9, 0.1])]
    (line,) = summarise(rows)
    half = student_t.ppf(0.975, 2) * math.sqrt(np.var([0.05, 0.9, 0.1], ddof=1) * (1 / 3 + 20 / 80))
    assert line.low == (0.0 if changes is MAP else pytest.approx(0.35 - half))
    assert line.high == 1.0


def test_draws_judged_on_one_part_add_its_own_sampling():
    values = [0.6, 0.7, 0.65]
    (line,) = summarise([row(v, seed=k, split="validation", shots=1, n_train=3) for k, v in enumerate(values)])
    draws = student_t.ppf(0.975, 2) * math.sqrt(np.var(values, ddof=1) / 3)
    sampling = 1.959964 * math.sqrt(0.65 * 0.35 / 20)
    assert line.high - line.score == pytest.approx(math.hypot(draws, sampling), rel=1e-5)


@pytest.mark.parametrize("changes", [BALANCED, MAP, R2])
def test_what_is_no_share_takes_the_sampling_from_its_own_intervals(changes):
    values = [0.6, 0.7, 0.65]
    (line,) = summarise([row(v, seed=k, split="validation", share=0.1, **changes) for k, v in enumerate(values)])
    draws = student_t.ppf(0.975, 2) * math.sqrt(np.var(values, ddof=1) / 3)
    assert line.high - line.score == pytest.approx(math.hypot(draws, 0.15 / 2), rel=1e-5)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """Few labels drawn, all judged on one part: both kinds of chance together."""
    rng = np.random.default_rng(0)
    truth, hits, trials = 0.7, 0, 400
    for _ in range(trials):
        part = rng.normal(0, math.sqrt(truth * (1 - truth) / 200))  # this part is easier or harder
        values = truth + part + rng.normal(0, 0.03, 5)
        rows = [row(float(v), seed=k, split="validation", shots=5, n_train=15, n=200) for k, v in enumerate(values)]
        (line,) = summarise(rows)
        hits += line.low <= truth <= line.high
    assert 0.92 <= hits / trials <= 1.0


@pytest.mark.parametrize("changes", [{}, MAP, R2])
def test_all_alike_is_no_certainty(changes):
    (line,) = summarise([row(1.0, score_high=1.0, fold=k, num_folds=5, **changes) for k in range(5)])
    assert line.high == 1.0
    assert line.low <= 0.9


def test_lines_are_compared_with_the_best_of_their_contest():
    rows = []
    for fold in range(5):
        noise = 0.02 * fold
        rows += [
            row(0.7 + noise, fold=fold, num_folds=5, head="logistic"),
            row(0.5 + noise, fold=fold, num_folds=5, head="majority"),
            row(0.69 + noise + 0.03 * (-1) ** fold, fold=fold, num_folds=5, head="knn"),
            row(0.9, fold=fold, num_folds=5, head="majority", task="another"),
        ]
    lines = {(line.task, line.head): line for line in summarise(rows)}
    assert lines["colour", "logistic"].against_best is None
    assert lines["colour", "majority"].against_best == "worse"
    assert lines["colour", "knn"].against_best == "cannot tell"
    assert lines["another", "majority"].against_best is None
    assert uncompared(list(lines.values())) == []
    (line,) = uncompared(summarise([row(0.7), row(0.6, head="majority"), row(None, head="gda", error="no")]))
    assert line.head == "majority"


def test_an_r2_is_compared_with_the_best_also_below_zero():
    rows = [
        row(value + 0.001 * fold, fold=fold, num_folds=5, head=head, **R2)
        for head, value in (("knn", -3.0), ("ridge", 0.0), ("mean", -0.5), ("mlp", 0.5))
        for fold in range(5)
    ]
    rows.append(row(None, head="failed", error="no", **R2))
    lines = summarise(rows)
    assert [line.head for line in lines] == ["mlp", "ridge", "mean", "knn", "failed"]
    assert [line.against_best for line in lines] == [None, "worse", "worse", "worse", None]


@pytest.mark.parametrize("changes", [MAP, R2])
def test_on_one_part_a_difference_must_exceed_what_that_part_leaves_open(changes):
    def verdict(difference: float) -> str | None:
        rows = [
            row(score, head=head, seed=seed, split="validation", share=0.1, **changes)
            for head, score in (("mlp", 0.8), ("knn", 0.8 - difference))
            for seed in range(5)
        ]
        return {line.head: line.against_best for line in summarise(rows)}["knn"]

    # Each interval is 0.15 wide, so that of the difference reaches 0.15 / 2 * sqrt(2) to each side.
    assert verdict(0.10) == "cannot tell"
    assert verdict(0.11) == "worse"


def test_kinds_are_never_ranked_against_each_other():
    """Also where somebody puts figures of two kinds, or two measures, under one name."""
    rows = [
        row(value, head="knn", fold=fold, num_folds=3, **changes)
        for fold in range(3)
        for value, changes in ((0.9, {}), (0.5, BALANCED), (0.4, MAP), (-1.0, R2))
    ]
    lines = summarise(rows)
    assert {line.measure for line in lines} == {"accuracy", "balanced_accuracy", "mean_average_precision", "r2"}
    assert [line.against_best for line in lines] == [None] * 4


@given(
    scores=st.lists(st.floats(0, 1), min_size=1, max_size=5),
    below=st.floats(-1e-15, 0.3),
    above=st.floats(-1e-15, 0.3),
    changes=st.sampled_from([{}, BALANCED, MAP, R2]),
    split=st.sampled_from(["fold", "held out", "validation", "test"]),
    n=st.integers(1, 50),
    alike=st.booleans(),
)
@settings(max_examples=100)
def test_bounds_hold_their_score(scores, below, above, changes, split, n, alike):
    """Also where rounding left the bounds of a division beside its score."""
    scores = [scores[0]] * len(scores) if alike else scores
    rows = [
        row(score, seed=k, split=split, n=n, score_low=score - below, score_high=min(score + above, 1.0), **changes)
        for k, score in enumerate(scores)
    ]
    (line,) = summarise(rows)
    assert line.low <= line.score <= line.high


def test_fewer_labels_come_before_more_and_all_come_last():
    rows = [row(0.5, shots=shots, split="validation") for shots in (None, 10, 5, 100)]
    assert [line.shots for line in summarise(rows)] == [5, 10, 100, None]


def test_heads_that_failed_are_counted():
    rows = [row(0.8, seed=0), row(None, seed=1, error="no"), row(None, head="gda", error="no")]
    lines = {line.head: line for line in summarise(rows)}
    assert (lines["knn"].num_resamplings, lines["knn"].num_failed) == (1, 1)
    assert (lines["gda"].score, lines["gda"].num_failed) == (None, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": []}, "at least one seed"),
        ({"num_folds": 1}, "folds must be 2 or more, got 1"),
        ({"num_folds": 3, "on_test": True}, "folds divide train and validation samples, so test is never used"),
        ({"shots": [3, 0]}, "shots must be 1 or more, got 0"),
        ({"shares": [0.5, 1.5]}, r"shares must be above 0 and at most 1, got 1\.5"),
    ],
)
def test_plans_that_make_no_sense(changes, message):
    with pytest.raises(RequestError, match=message):
        Plan(**({"heads": ["knn"]} | changes))


def test_a_row_is_the_same_after_it_was_kept():
    for each in (row(0.8, views=3, share=0.5), row(None, error="no"), row(0.6, **MAP)):
        values = each.to_json()
        assert tuple(values) == COLUMNS
        assert SweepRow.from_json(values) == each
