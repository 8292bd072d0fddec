"""The summary of a sweep: means, intervals and comparisons of divisions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import t as student_t

from featurecache.errors import RequestError, UnknownNameError
from featurecache.evaluation.sweep import COLUMNS, Plan, summarise


def row(accuracy: float | None, **changes: Any) -> dict[str, Any]:
    known = {
        "task": "colour", "backbone": "b", "fingerprint": "f", "tap": "t", "dtype": "float16", "judged_on": "plain",
        "head": "knn", "balanced": False, "seed": 0, "part": "fold", "n_train": 80, "n": 20, "seconds": 1.0,
        "accuracy": accuracy,
    }  # fmt: skip
    if accuracy is not None:
        known |= {"accuracy_low": accuracy - 0.1, "accuracy_high": accuracy + 0.05}
    return dict.fromkeys(COLUMNS) | known | changes


def test_one_division_keeps_its_own_interval():
    (line,) = summarise([row(0.8)])
    assert (line["accuracy"], line["low"], line["high"]) == (0.8, pytest.approx(0.7), pytest.approx(0.85))
    assert line["against_best"] is None


def test_folds_get_the_corrected_resampled_t_interval():
    values = [0.8, 0.85, 0.75, 0.9, 0.8]
    (line,) = summarise([row(value, fold=k, num_folds=5) for k, value in enumerate(values)])
    half = student_t.ppf(0.975, 4) * math.sqrt(np.var(values, ddof=1) * (1 / 5 + 20 / 80))
    assert line["accuracy"] == pytest.approx(np.mean(values))
    assert (line["low"], line["high"]) == (pytest.approx(0.82 - half), pytest.approx(min(0.82 + half, 1)))
    assert line["divisions"] == 5


def test_draws_judged_on_one_part_add_its_own_sampling():
    values = [0.6, 0.7, 0.65]
    (line,) = summarise([row(v, seed=k, part="validation", shots=1, n_train=3) for k, v in enumerate(values)])
    draws = student_t.ppf(0.975, 2) * math.sqrt(np.var(values, ddof=1) / 3)
    sampling = 1.959964 * math.sqrt(0.65 * 0.35 / 20)
    assert line["high"] - line["accuracy"] == pytest.approx(math.hypot(draws, sampling), rel=1e-5)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """Few labels drawn, all judged on one part: both kinds of chance together."""
    rng = np.random.default_rng(0)
    truth, hits, trials = 0.7, 0, 400
    for _ in range(trials):
        part = rng.normal(0, math.sqrt(truth * (1 - truth) / 200))  # this part is easier or harder
        values = truth + part + rng.normal(0, 0.03, 5)
        rows = [row(float(v), seed=k, part="validation", shots=5, n_train=15, n=200) for k, v in enumerate(values)]
        (line,) = summarise(rows)
        hits += line["low"] <= truth <= line["high"]
    assert 0.92 <= hits / trials <= 1.0


def test_all_alike_is_no_certainty():
    (line,) = summarise([row(1.0, fold=k, num_folds=5) for k in range(5)])
    assert line["high"] == 1.0
    assert line["low"] < 0.9


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
    lines = {(line["task"], line["head"]): line for line in summarise(rows)}
    assert lines["colour", "logistic"]["against_best"] is None
    assert lines["colour", "majority"]["against_best"] == "worse"
    assert lines["colour", "knn"]["against_best"] == "cannot tell"
    assert lines["another", "majority"]["against_best"] is None


def test_heads_that_failed_are_counted():
    rows = [row(0.8, seed=0), row(None, seed=1, error="no"), row(None, head="gda", error="no")]
    lines = {line["head"]: line for line in summarise(rows)}
    assert (lines["knn"]["divisions"], lines["knn"]["failed"]) == (1, 1)
    assert (lines["gda"]["accuracy"], lines["gda"]["failed"]) == (None, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": []}, "at least one head and one seed"),
        ({"num_folds": 1}, "folds must be 2 or more, got 1"),
        ({"num_folds": 3, "look_at_test": True}, "folds divide train and validation samples, so they never look at"),
        ({"shots": [3, 0]}, "shots must be 1 or more, got 0"),
        ({"shares": [0.5, 1.5]}, r"shares must be above 0 and at most 1, got 1\.5"),
    ],
)
def test_plans_that_make_no_sense(changes, message):
    with pytest.raises(RequestError, match=message):
        Plan(**({"heads": ["knn"]} | changes))


def test_an_unknown_head_fails_before_anything_is_fitted():
    with pytest.raises(UnknownNameError, match="did you mean 'knn'"):
        Plan(heads=["knm"])
