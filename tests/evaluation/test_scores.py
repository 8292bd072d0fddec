import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, ks_2samp
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from featurecache.errors import TaskError
from featurecache.evaluation.intervals import bootstrap, intervals, summaries, wilson
from featurecache.evaluation.scores import confusion, per_class, score

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
    scores = score(y_true, y_pred, n_classes, n_resamples=50)
    figures = [scores.accuracy, scores.balanced_accuracy, scores.macro_f1]
    np.testing.assert_allclose(figures, _sklearn(y_true, y_pred), rtol=1e-12)
    for name in ("accuracy", "balanced_accuracy", "macro_f1"):
        low, value, high = (getattr(scores, name + end) for end in ("_low", "", "_high"))
        assert 0 <= low <= value <= high <= 1
    json.dumps(scores.to_json(), allow_nan=False)


def _imperfect(n=60, seed=0):
    rng = np.random.default_rng(seed)
    y_true = rng.choice(4, size=n, p=[0.5, 0.3, 0.15, 0.05])
    return y_true, np.where(rng.random(n) < 0.7, y_true, rng.integers(0, 4, n))


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_bootstrap_of_cells_is_the_bootstrap_of_rows():
    y_true, y_pred = _imperfect()
    rng = np.random.default_rng(1)
    rows = [rng.integers(0, len(y_true), len(y_true)) for _ in range(300)]
    slow = np.array([_sklearn(y_true[i], y_pred[i]) for i in rows])
    fast = bootstrap(confusion(y_true, y_pred, 4), random_state=0, n_resamples=6000)
    for column in range(3):
        assert ks_2samp(slow[:, column], fast[:, column]).pvalue > 0.01
    np.testing.assert_allclose(slow.mean(axis=0), fast.mean(axis=0), atol=0.01)
    np.testing.assert_allclose(slow.std(axis=0), fast.std(axis=0), rtol=0.12)


def test_bootstrap_does_not_depend_on_its_block_size(monkeypatch):
    matrix = confusion(*_imperfect(), 4)
    whole = bootstrap(matrix, random_state=3, n_resamples=100)
    monkeypatch.setattr("featurecache.evaluation.intervals._CELLS_AT_ONCE", 70)
    np.testing.assert_array_equal(whole, bootstrap(matrix, random_state=3, n_resamples=100))


@pytest.mark.parametrize(("k", "n"), [(0, 5), (5, 5), (3, 10), (199, 200)])
def test_wilson_is_scipys(k, n):
    expected = binomtest(k, n).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose(wilson(k, n), (expected.low, expected.high), atol=1e-12)


@pytest.mark.parametrize("all_right", [True, False])
def test_certainty_is_not_claimed(all_right):
    y = np.repeat([0, 1, 2], [50, 40, 10])
    scores = score(y, y if all_right else (y + 1) % 3, 3)
    expected = binomtest(100 * all_right, 100).proportion_ci(0.95, method="wilson")
    assert (scores.accuracy_low, scores.accuracy_high) == pytest.approx((expected.low, expected.high))
    for name in ("accuracy", "balanced_accuracy", "macro_f1"):
        width = getattr(scores, f"{name}_high") - getattr(scores, f"{name}_low")
        assert 0.03 < width < 0.5


def test_one_class_all_right():
    low, high = intervals(np.array([[20, 0], [0, 0]]), random_state=0, n_resamples=10)
    assert (low < 1).all()
    assert (high == 1).all()


def test_intervals_cover_the_truth():
    rng = np.random.default_rng(0)
    hits = 0
    for right in rng.binomial(80, 0.8, size=150):
        low, high = intervals(np.array([[right, 80 - right], [0, 0]]), random_state=0, n_resamples=300)
        hits += bool(low[0] <= 0.8 <= high[0])
    assert hits >= 130


def test_per_class_is_a_row_for_each_class():
    rows = per_class(np.array([0, 0, 1]), np.array([0, 1, 1]), ["a", "b", "never"])
    assert rows[0] == {"class": "a", "n": 2, "precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3)}
    assert rows[2] == {"class": "never", "n": 0, "precision": 0.0, "recall": 0.0, "f1": 0.0}


@pytest.mark.parametrize(
    ("y_true", "y_pred", "message"),
    [
        ([], [], "there are no rows to score"),
        ([0, 1], [0], "2 labels cannot be compared with 1 predictions"),
        ([0, 3], [0, 1], r"a label is not a class index in 0\.\.2"),
        ([0, 1], [0, -1], "a prediction is not a class index"),
        ([0.0], [0], "a label is not a class index"),
    ],
)
def test_messages(y_true, y_pred, message):
    with pytest.raises(TaskError, match=message):
        confusion(np.array(y_true), np.array(y_pred), 3)
