"""Labels and numbers that are not known for all samples: no part in fitting, none in judging."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, mean_absolute_error, r2_score

from featurecache.errors import HeadError, TaskError
from featurecache.evaluation.measures import OfLabels, measure_of
from featurecache.evaluation.number_measure import OfNumbers
from featurecache.evaluation.search import evaluate_head
from featurecache.heads.bundle import load_head, save_head
from featurecache.heads.fitting import fit_estimator, fit_folds
from featurecache.heads.head import NamedHead
from featurecache.heads.logistic import LogisticProbe
from featurecache.heads.probability import predict_outputs
from featurecache.heads.registry import list_heads, make_head

pytestmark = pytest.mark.usefixtures("few_settings")

KINDS = ("multilabel", "regression")
CASES = [(kind, head) for kind in KINDS for head in list_heads(kind=kind)]
MISSING = {"multilabel": -1, "regression": np.nan}


def rows(kind: str, n: int, seed: int, *, unknown: float = 0.3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features, what is known of them, and what is true."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 6)).astype(np.float32)
    true = X @ np.random.default_rng(9).normal(size=(6, 3)) + 0.2 * rng.normal(size=(n, 3))
    true = (true > 0.4).astype(np.int64) if kind == "multilabel" else 100 + 20 * true
    return X, np.where(rng.random((n, 3)) < unknown, MISSING[kind], true), true


def known(y: np.ndarray) -> np.ndarray:
    return y >= 0 if y.dtype.kind == "i" else np.isfinite(y)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_each_output_is_fitted_on_the_rows_where_it_is_known(kind, name, tmp_path):
    X, y, _ = rows(kind, 300, 0)
    head = make_head(name, kind=kind)
    fit_estimator(head, X, y)
    answers = predict_outputs(head, X)
    assert answers.shape == (300, 3)
    assert np.isfinite(answers).all()
    for k in range(3):
        mine = known(y[:, k])
        alone = make_head(name, kind=kind)
        # Twice the same: some heads take a single column for classes.
        fit_estimator(alone, X[mine], y[mine][:, [k, k]])
        expected = predict_outputs(alone, X)[:, 0]
        if name in ("logistic", "mlp"):  # features are standardised by all rows, and steps shared
            assert np.corrcoef(answers[:, k], expected)[0, 1] > 0.95
        else:
            np.testing.assert_allclose(answers[:, k], expected, rtol=1e-5, atol=1e-6)
    save_head(tmp_path / "head", head, {})
    np.testing.assert_array_equal(predict_outputs(load_head(tmp_path / "head")[0], X), answers)


def test_logistic_regression_is_exactly_that_of_the_known_rows():
    X, y, _ = rows("multilabel", 200, 1)
    together = LogisticProbe(C=0.3, standardize=False).fit(X.astype(np.float64), y)
    for k in range(3):
        mine = known(y[:, k])
        alone = LogisticProbe(C=0.3, standardize=False).fit(X[mine].astype(np.float64), y[mine, k])
        np.testing.assert_allclose(together.coef_[k], alone.coef_[0], rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(together.intercept_[k], alone.intercept_[0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_fold_that_holds_all_that_is_known_leaves_an_answer(kind, name):
    X, y, _ = rows(kind, 60, 2)
    fold = np.arange(60) % 3
    y[fold != 0, 1] = MISSING[kind]
    for _, estimators in fit_folds(make_head(name, kind=kind), [{}], X, y, fold):
        assert len(estimators) == 3
        for estimator in estimators:
            assert np.isfinite(predict_outputs(estimator, X)).all()


@pytest.mark.parametrize(
    ("kind", "name", "names"),
    [(*each, ("train", "validation", "test")) for each in CASES]
    # Five folds of a network take seconds, and nothing in the protocol depends on the head.
    + [(*each, ("train", "test")) for each in CASES if each[1] != "mlp"],
)
def test_every_head_under_every_protocol(kind, name, names):
    parts = {part: rows(kind, 120, seed)[:2] for seed, part in enumerate(names)}
    result, measure = evaluate_head(name, parts, 3, kind=kind), measure_of(kind, 3)
    _, y, true = rows(kind, 120, len(names) - 1)
    figures = result.test.to_json()
    assert figures[measure.primary] == pytest.approx(measure.score(y, result.y_pred))
    for figure in measure.titles:
        assert figures[f"{figure}_low"] <= figures[figure] <= figures[f"{figure}_high"]
    json.dumps(result.to_json(), allow_nan=False)
    if name != "mean":
        assert measure.score(true, result.y_pred) > 0.75


def test_unknown_is_not_negative():
    """Where positives are unknown more often, to take that for a no costs what the head is for."""
    X, _, true = rows("multilabel", 600, 3, unknown=0)
    hidden = (np.random.default_rng(0).random(true.shape) < 0.7) & (true == 1)
    test = rows("multilabel", 600, 4, unknown=0)[:2]
    scores = []
    for missing in (-1, 0):
        y = np.where(hidden, missing, true)
        result = evaluate_head("ridge", {"train": (X, y), "test": test}, 3, kind="multilabel")
        scores.append(result.test["macro_f1"])
    assert scores[0] > scores[1] + 0.2


@given(seed=st.integers(0, 10_000), number=st.integers(3, 40), levels=st.sampled_from([3, 1000]))
@settings(max_examples=30)
def test_figures_are_those_of_the_known_cells(seed, number, levels):
    rng = np.random.default_rng(seed)
    y = np.where(rng.random((number, 3)) < 0.4, -1, rng.integers(0, 2, (number, 3)))
    y[:2] = [[1, 0, 1], [0, 1, 1]]
    answers = rng.integers(0, levels, (number, 3)) / levels
    measure = OfLabels(3)
    each = [(y[y[:, k] >= 0, k], answers[y[:, k] >= 0, k]) for k in range(3)]
    found = measure.point(y, answers)
    assert found[0] == pytest.approx(np.mean([average_precision_score(*one) for one in each]))
    flat, of_flat = (np.concatenate(values) for values in zip(*each, strict=True))
    assert found[1] == pytest.approx(f1_score(flat, of_flat > 0.5, zero_division=0.0))
    assert found[2] == pytest.approx(np.mean([f1_score(a, b > 0.5, zero_division=0.0) for a, b in each]))
    judged = (y >= 0).any(axis=1)
    right = ((answers > 0.5) == (y == 1)) | (y < 0)
    assert found[3] == pytest.approx(right[judged].all(axis=1).mean())
    assert measure.weighted(y, answers)(np.ones((1, number)))[0] == pytest.approx(found)
    values = np.where(y < 0, np.nan, rng.normal(size=y.shape))
    numbers, said = OfNumbers(3), rng.normal(size=y.shape)
    each = [(values[y[:, k] >= 0, k], said[y[:, k] >= 0, k]) for k in range(3)]
    found = numbers.point(values, said)
    assert found[0] == pytest.approx(np.mean([r2_score(*a) for a in each]))
    assert found[1::2] == pytest.approx([mean_absolute_error(*a) for a in each])
    assert numbers.weighted(values, said)(np.ones((1, number)))[0] == pytest.approx(found)


@pytest.mark.parametrize("kind", KINDS)
def test_an_output_that_no_row_of_a_part_knows_has_no_figures_there(kind):
    parts = {part: rows(kind, 90, seed)[:2] for seed, part in enumerate(("train", "test"))}
    parts["test"][1][:, 2] = MISSING[kind]
    result, measure = evaluate_head("ridge", parts, 3, kind=kind), measure_of(kind, 3)
    *others, last = measure.per_output(parts["test"][1], result.y_pred, list("abc"))
    name = "average_precision" if kind == "multilabel" else "r2"
    assert last[name] is None
    assert last["n"] == 0
    assert np.mean([each[name] for each in others]) == pytest.approx(result.test[measure.primary])
    parts["train"][1][:, 1] = MISSING[kind]
    with pytest.raises(TaskError, match="2 of 3 is not known for any of 90 train rows"):
        evaluate_head("ridge", parts, 3, kind=kind)


def test_a_head_that_cannot_say_so_refuses():
    parts = {part: rows("multilabel", 60, seed)[:2] for seed, part in enumerate(("train", "test"))}
    strange = NamedHead("strange", LogisticProbeOfOld(), lambda n: [{}])
    with pytest.raises(HeadError, match="'strange' needs all labels or numbers of a sample, and some of these are not"):
        evaluate_head(strange, parts, 3, kind="multilabel")


class LogisticProbeOfOld(LogisticProbe):
    takes_unknown = False
