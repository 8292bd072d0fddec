"""With groups, folds keep them whole, and intervals and verdicts know that rows of one group are alike."""

from __future__ import annotations

import numpy as np
import pytest

from featurecache.errors import TaskError
from featurecache.evaluation.comparison import compare
from featurecache.evaluation.scores import score
from featurecache.evaluation.search import evaluate_head
from featurecache.evaluation.selection import fold_numbers
from featurecache.evaluation.split_data import SplitData

pytestmark = pytest.mark.usefixtures("few_settings")


@pytest.mark.parametrize("counts", [(40, 40), (40, 7), (40, 1)])
def test_folds_keep_groups_whole(counts):
    y = np.repeat([0, 1], counts)
    groups = np.random.default_rng(0).integers(0, 9, len(y))
    fold = fold_numbers(y, groups, random_state=0)
    assert all(len(set(fold[groups == group])) == 1 for group in set(groups))
    assert set(fold[fold >= 0]) == set(range(5))
    assert set(y[fold < 0]) == ({0, 1} if counts[1] == 1 else set())


def test_one_group_cannot_be_divided():
    with pytest.raises(TaskError, match="all samples to fit on are of one group"):
        fold_numbers(np.array([0, 1, 0, 1]), np.zeros(4, int), random_state=0)


def test_groups_of_one_row_are_rows():
    rng = np.random.default_rng(0)
    y, y_pred = rng.integers(0, 3, 200), rng.integers(0, 3, 200)
    assert score(y, y_pred, 3, groups=np.arange(200)) == score(y, y_pred, 3)
    # And pairs that have nothing to do with each other are nearly so.
    pairs, plain = score(y, y_pred, 3, groups=np.arange(200) // 2), score(y, y_pred, 3)
    for end in ("accuracy_low", "accuracy_high", "balanced_accuracy_low", "macro_f1_high"):
        assert getattr(pairs, end) == pytest.approx(getattr(plain, end), abs=0.02)


def test_bounds_do_not_depend_on_the_order_of_rows():
    rng = np.random.default_rng(0)
    y, y_pred, groups = rng.integers(0, 3, 200), rng.integers(0, 3, 200), rng.integers(0, 12, 200)
    order = rng.permutation(200)
    one, other = score(y, y_pred, 3, groups=groups), score(y[order], y_pred[order], 3, groups=groups[order])
    assert one.to_json() == pytest.approx(other.to_json(), rel=1e-12)


def test_few_groups_have_no_interval():
    y = np.tile([0, 1], 50)
    few, enough = (score(y, y, 2, groups=np.arange(100) % count) for count in (4, 5))
    assert few.accuracy == 1
    assert (few.accuracy_low, few.accuracy_high, few.macro_f1_low) == (None,) * 3
    assert enough.accuracy_low < 0.9


def test_one_large_group_among_small_ones_counts_as_hardly_more_than_one():
    y = np.tile([0, 1], 100)
    groups = np.concatenate([np.zeros(190, int), np.arange(1, 11)])
    alike = np.arange(200) % 11
    assert score(y, y, 2, groups=groups).accuracy_low < score(y, y, 2, groups=alike).accuracy_low - 0.1


def grouped(rng: np.random.Generator, truth: float, num_groups: int = 40, size: int = 10) -> tuple:
    """Rows that are right or wrong by whole groups, nearly."""
    groups = np.repeat(np.arange(num_groups), size)
    easy = rng.beta(truth * 2, (1 - truth) * 2, num_groups)
    return groups, (rng.random(len(groups)) < easy[groups]).astype(int)


def test_intervals_cover_the_truth_where_rows_of_a_group_are_alike():
    rng = np.random.default_rng(1)
    by_groups = by_rows = 0
    for _ in range(100):
        groups, right = grouped(rng, 0.8)
        y = np.zeros(len(right), int)
        known = score(y, 1 - right, 2, groups=groups)
        plain = score(y, 1 - right, 2)
        by_groups += known.accuracy_low <= 0.8 <= known.accuracy_high
        by_rows += plain.accuracy_low <= 0.8 <= plain.accuracy_high
    assert by_groups >= 90
    assert by_rows < 80  # what it would say without


def test_verdicts_are_rarely_wrong_where_rows_of_a_group_are_alike():
    rng = np.random.default_rng(2)
    wrong = {"groups": 0, "rows": 0}
    for _ in range(200):
        groups, first = grouped(rng, 0.8)
        _, second = grouped(rng, 0.8)
        y = np.ones(len(groups), int)
        wrong["groups"] += compare(y, first, second, groups).verdict in ("better", "worse")
        wrong["rows"] += compare(y, first, second).verdict in ("better", "worse")
    assert wrong["groups"] <= 20
    assert wrong["rows"] > 50


def test_a_clear_difference_is_seen():
    groups = np.repeat(np.arange(60), 5)
    y = np.ones(300, int)
    first, second = np.ones(300, int), (np.arange(300) % 5 > 0).astype(int)
    found = compare(y, first, second, groups)
    assert (found.verdict, found.difference) == ("better", pytest.approx(0.2))
    assert found.low <= 0.2 <= found.high
    assert found.p_value < 1e-6
    assert compare(y, second, first, groups).verdict == "worse"
    few = groups < 20
    other = np.where(np.arange(300) == 7, 0, first)
    assert compare(y[few], first[few], other[few], groups[few]).verdict == "cannot tell"  # twenty groups say little
    assert compare(y, first, other, groups).verdict == "cannot tell"
    assert compare(y, first, first, groups).verdict == "the same answers"
    assert compare(y, first, second, np.zeros(300, int)).verdict == "cannot tell"


def test_settings_are_chosen_on_groups_that_are_held_out():
    """Copies of one row in train would let one neighbour win; whole groups held out show that it learns nothing."""
    rng = np.random.default_rng(0)
    X = np.repeat(rng.normal(size=(40, 5)), 6, axis=0).astype(np.float32)
    y = np.repeat(rng.integers(0, 2, 40), 6)
    groups = np.repeat(np.arange(40), 6)
    whole = SplitData(y=y, fit_views=X[:, None], eval_views=X[:, None], groups=groups)
    parts = {"train": whole.take(np.arange(180)), "test": whole.take(np.arange(180, 240))}
    honest = evaluate_head("knn", parts, 2)
    blind = {name: SplitData(y=p.y, fit_views=p.fit_views, eval_views=p.eval_views) for name, p in parts.items()}
    fooled = evaluate_head("knn", blind, 2)
    assert fooled.selection_accuracy > 0.95
    assert honest.selection_accuracy < 0.75


def unbalanced(rng: np.random.Generator, rows: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """One class in twenty is rare, and overlaps with the other."""
    y = (rng.random(rows) < 0.08).astype(int)
    X = rng.normal(size=(rows, 6)).astype(np.float32)
    X[:, 0] += 1.3 * y
    return X, y


@pytest.mark.parametrize(
    ("head", "names"),
    [(head, ("train", "validation", "test")) for head in ("logistic", "linear_svm", "mlp", "rbf_svm")]
    + [("logistic", ("train", "test"))],
)
def test_balanced_heads_find_the_rare_class(head, names):
    rng = np.random.default_rng(0)
    parts = {name: unbalanced(rng) for name in names}
    plain, balanced = (evaluate_head(head, parts, 2, balanced=each) for each in (False, True))
    assert balanced.test.balanced_accuracy > plain.test.balanced_accuracy + 0.1
    assert balanced.test.accuracy < plain.test.accuracy
    assert balanced.balanced
    y, y_pred = balanced.selection_y, balanced.selection_pred
    recalls = [np.mean(y_pred[y == label] == label) for label in (0, 1)]
    assert balanced.selection_score == pytest.approx(np.mean(recalls))
    assert plain.selection_score == pytest.approx(plain.selection_accuracy)


def test_balanced_verdicts_weigh_classes_alike():
    y = np.repeat([0, 1], [900, 100])
    first, second = np.zeros(1000, int), y.copy()
    second[:200] = 1  # 200 of 900 lost, 100 of 100 won
    assert compare(y, first, second).verdict == "better"
    found = compare(y, first, second, balanced=True)
    assert (found.verdict, found.difference) == ("worse", pytest.approx((200 / 900 - 1) / 2))
    few = np.arange(0, 1000, 10)  # ten rows of the rare class say little
    other = np.where(np.arange(1000) == 10, 1, first)
    assert compare(y[few], first[few], other[few], balanced=True).verdict == "cannot tell"
    assert compare(y, first, other, balanced=True).verdict == "cannot tell"
    assert compare(y, first, first, balanced=True).verdict == "the same answers"


def test_balanced_verdicts_are_rarely_wrong():
    rng = np.random.default_rng(3)
    wrong = 0
    for _ in range(200):
        y = (rng.random(500) < 0.1).astype(int)
        first, second = (np.where(rng.random(500) < 0.8, y, 1 - y) for _ in range(2))
        wrong += compare(y, first, second, balanced=True).verdict in ("better", "worse")
    assert wrong <= 18
