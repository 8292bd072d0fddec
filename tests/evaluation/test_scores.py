import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from featurecache.errors import TaskError
from featurecache.evaluation.class_measure import OfClasses
from featurecache.evaluation.intervals import (
    Cells,
    clopper_pearson,
    effective_sizes,
    intervals,
    mid_p,
    summaries,
    wilson,
)
from featurecache.evaluation.scores import confusion, score

pytestmark = pytest.mark.quick


@st.composite
def predictions(draw):
    n_classes, n = draw(st.integers(1, 6)), draw(st.integers(1, 40))
    labels = st.lists(st.integers(0, n_classes - 1), min_size=n, max_size=n)
    return np.array(draw(labels)), np.array(draw(labels)), n_classes


def _sklearn(y_true, y_pred):
    return [
        accuracy_score(y_true, y_pred),
        balanced_accuracy_score(y_true, y_pred),
        f1_score(y_true, y_pred, average="macro", zero_division=0.0),
    ]


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true", "ignore:A single label was found")
@settings(max_examples=30, deadline=None)
@given(predictions())
def test_figures_are_those_of_sklearn(case):
    y_true, y_pred, n_classes = case
    matrix = confusion(y_true, y_pred, n_classes)
    counted = summaries(matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0))
    np.testing.assert_allclose(counted, _sklearn(y_true, y_pred), rtol=1e-12)
    scores = score(y_true, y_pred, n_classes)
    figures = [scores.accuracy, scores.balanced_accuracy, scores.macro_f1]
    np.testing.assert_allclose(figures, _sklearn(y_true, y_pred), rtol=1e-12)
    for name in ("accuracy", "balanced_accuracy", "macro_f1"):
        low, value, high = (getattr(scores, name + end) for end in ("_low", "", "_high"))
        if low is None or high is None:
            assert name != "accuracy"
            assert np.bincount(y_true, minlength=n_classes).min() < 5
        else:
            assert 0 <= low <= value <= high <= 1
    json.dumps(scores.to_json(), allow_nan=False)


def imperfect(n: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y_true = rng.choice(4, size=n, p=[0.4, 0.3, 0.2, 0.1])
    return y_true, np.where(rng.random(n) < 0.7, y_true, rng.integers(0, 4, n))


def every_cell(y_true: np.ndarray, y_pred: np.ndarray, n_classes: int) -> tuple[np.ndarray, Cells]:
    indices = np.arange(n_classes)
    cells = Cells(np.repeat(indices, n_classes), np.tile(indices, n_classes), n_classes)
    return confusion(y_true, y_pred, n_classes).reshape(1, -1), cells


def test_a_row_more_moves_a_score_by_its_influence():
    counts, cells = every_cell(*imperfect(2000), 4)
    found = effective_sizes(counts, cells)
    for cell in range(16):
        more = counts + (np.arange(16) == cell)
        moved = effective_sizes(more, cells).point[0] - found.point[0]
        np.testing.assert_allclose(moved, found.influence[0, :, cell], atol=2e-5)
    np.testing.assert_allclose(found.influence[0] @ counts[0], 0, atol=1e-12)


def test_a_size_is_that_of_the_variance_of_resamples():
    """The variance of a proportion of so many rows is that of the bootstrap over rows."""
    counts, cells = every_cell(*imperfect(3000), 4)
    found = effective_sizes(counts, cells)
    draws = np.random.default_rng(1).multinomial(3000, counts[0] / 3000, size=4000)
    variance = effective_sizes(draws, cells).point.var(axis=0)
    np.testing.assert_allclose(found.point[0] * (1 - found.point[0]) / found.size[0], variance, rtol=0.12)


def test_equal_classes_are_as_many_rows_as_there_are():
    counts, cells = every_cell(np.repeat([0, 1], 100), np.repeat([0, 1, 0, 1], [90, 10, 10, 90]), 2)
    size = effective_sizes(counts, cells).size[0]
    assert size[0] == 200
    assert size[1:] == pytest.approx([200, 200], rel=0.05)


def test_cells_that_are_zero_do_not_matter():
    y_true, y_pred = imperfect()
    matrix = confusion(y_true, np.where(y_true == 3, 3, y_pred), 4)
    labels, predictions = np.nonzero(matrix)
    some = intervals(matrix[None, labels, predictions], Cells(labels, predictions, 4))
    every = intervals(*every_cell(y_true, np.where(y_true == 3, 3, y_pred), 4))
    np.testing.assert_allclose(some, every, rtol=1e-12)


@pytest.mark.parametrize(("k", "n"), [(0, 5), (5, 5), (3, 10), (199, 200)])
def test_wilson_is_scipys(k, n):
    expected = binomtest(k, n).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose(wilson(k, n), (expected.low, expected.high), atol=1e-12)


@pytest.mark.parametrize(("k", "n"), [(0, 5), (5, 5), (3, 10), (199, 200)])
def test_clopper_pearson_is_scipys(k, n):
    expected = binomtest(k, n).proportion_ci(0.95, method="exact")
    np.testing.assert_allclose(clopper_pearson(k, n), (expected.low, expected.high), atol=1e-9)


@pytest.mark.parametrize(("k", "n"), [(1, 5), (3, 10), (9, 10), (199, 200)])
def test_mid_p_leaves_half_of_what_was_seen_to_either_side(k, n):
    low, high = mid_p(k, n)
    assert binom.sf(k, n, low) + binom.pmf(k, n, low) / 2 == pytest.approx(0.025, abs=1e-6)
    assert binom.cdf(k, n, high) - binom.pmf(k, n, high) / 2 == pytest.approx(0.025, abs=1e-6)


def test_mid_p_of_all_or_none_has_one_end():
    assert mid_p(20, 20) == (pytest.approx(0.05 ** (1 / 20), abs=1e-6), 1.0)
    assert mid_p(0, 20) == (0.0, pytest.approx(1 - 0.05 ** (1 / 20), abs=1e-6))


@pytest.mark.parametrize("n", [10, 20, 50, 200, 1000])
def test_mid_p_covers_every_accuracy(n):
    """Exactly, over all that can happen; Wilson covers 0.84 near 1."""
    low, high = mid_p(np.arange(n + 1), n)
    for shares, least in (np.linspace(0.5, 0.99, 99), 0.915), (np.array([0.5, 0.8, 0.9, 0.95, 0.99]), 0.93):
        probability = binom.pmf(np.arange(n + 1), n, shares[:, None])
        holds = (low <= shares[:, None] + 1e-12) & (shares[:, None] - 1e-12 <= high)
        assert (probability * holds).sum(axis=1).min() > least


@pytest.mark.parametrize("all_right", [True, False])
def test_certainty_is_not_claimed(all_right):
    y = np.repeat([0, 1, 2], [50, 40, 10])
    scores = score(y, y if all_right else (y + 1) % 3, 3)
    for name in ("accuracy", "balanced_accuracy", "macro_f1"):
        width = getattr(scores, f"{name}_high") - getattr(scores, f"{name}_low")
        assert 0.02 < width < 0.5


def test_bounds_move_little_with_one_error():
    y = np.repeat([0, 1, 2], [500, 400, 100])
    one_wrong = np.where(np.arange(1000) == 3, 1, y)
    perfect, nearly = score(y, y, 3), score(y, one_wrong, 3)
    groups = np.arange(1000) % 40
    perfect_G, nearly_G = score(y, y, 3, groups=groups), score(y, one_wrong, 3, groups=groups)
    for name in ("accuracy_low", "balanced_accuracy_low", "macro_f1_low"):
        assert 0 <= getattr(perfect, name) - getattr(nearly, name) < 0.006
        assert abs(getattr(perfect_G, name) - getattr(nearly_G, name)) < 0.02


def test_few_rows_of_a_class_have_no_interval():
    y = np.repeat([0, 1], [40, 4])
    scores = score(y, y, 2)
    assert 0.9 < scores.accuracy_low < 1
    assert (scores.balanced_accuracy_low, scores.balanced_accuracy_high, scores.macro_f1_low) == (None,) * 3
    assert score(np.repeat([0, 1], [40, 5]), np.repeat([0, 1], [40, 5]), 2).balanced_accuracy_low < 1
    assert score(y[:40], y[:40], 2).macro_f1_low is None  # a class that was never seen


def test_per_class_is_a_row_for_each_class():
    rows = OfClasses(3).per_output(np.array([0, 0, 1]), np.array([0, 1, 1]), ["a", "b", "never"])
    assert rows[0] == {"class": "a", "n": 2, "precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3)}
    assert rows[2] == {"class": "never", "n": 0, "precision": 0.0, "recall": 0.0, "f1": 0.0}


@pytest.mark.parametrize(
    ("y_true", "y_pred", "message"),
    [
        ([], [], "there are no rows to score"),
        ([0, 1], [0], "2 labels cannot be compared with 1 prediction"),
        ([0, 3], [0, 1], r"a label is not a class index in 0\.\.2"),
        ([0, 1], [0, -1], "a prediction is not a class index"),
        ([0.0], [0], "a label is not a class index"),
    ],
)
def test_messages(y_true, y_pred, message):
    with pytest.raises(TaskError, match=message):
        confusion(np.array(y_true), np.array(y_pred), 3)
