"""95 % intervals of accuracy, balanced accuracy and macro F1, computed from the confusion matrix alone.

The three scores depend on the rows only through the confusion matrix, and drawing n rows with replacement changes
that matrix into a multinomial draw of its cells. So the bootstrap over rows (Efron, 1979; percentile interval) is
done on the non-zero cells, exactly, without touching a row.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import sparse

Z95 = 1.959963984540054
"""Standard deviations of a normal distribution on either side that hold 95 %."""
# 16 MB of counts at a time.
_CELLS_AT_ONCE = 2_000_000


def holding(value: float, low: float, high: float) -> tuple[float, float]:
    """Return bounds moved so far that they hold the value they are about.

    Parameters
    ----------
    value, low, high : float

    Notes
    -----
    Bounds and value are often computed along different ways, so that rounding, or means of different things, may leave
    the value just outside.
    """
    return min(low, value), max(high, value)


def summaries(correct: np.ndarray, actual: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return accuracy, balanced accuracy and macro F1 from counts per class.

    Classes that occur neither as label nor as prediction are left out of macro F1, and those that do not occur as a
    label out of balanced accuracy, as scikit-learn does.

    Parameters
    ----------
    correct, actual, predicted : ndarray of shape (..., n_classes)
        Rows of each class that are right, that are there, and that were predicted.

    Returns
    -------
    ndarray of shape (..., 3), float64
    """
    accuracy = correct.sum(axis=-1) / actual.sum(axis=-1)
    balanced = _mean_where(correct, actual)
    macro_f1 = _mean_where(2 * correct, actual + predicted)
    return np.stack([accuracy, balanced, macro_f1], axis=-1)


def intervals(matrix: np.ndarray, *, random_state: int, n_resamples: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the lower and upper 95 % bounds of accuracy, balanced accuracy and macro F1.

    The percentile bootstrap over rows, widened where needed to hold the observed score. When every row or no row is
    right, all resamples are alike and the bootstrap claims certainty; then accuracy gets its Wilson score interval
    (Wilson, 1927), and the others are computed from a table in which the recall of each class is moved to its own
    Wilson bound, with the errors spread evenly over the other classes. Moving all classes at once is conservative.

    Parameters
    ----------
    matrix : ndarray of shape (n_classes, n_classes), int64
        Rows are labels, columns predictions; at least one row was counted.
    random_state : int
        Of the bootstrap.
    n_resamples : int

    Returns
    -------
    (low, high) : two ndarrays of shape (3,), float64
    """
    point = summaries(matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0))
    # All resamples would be alike, and claim certainty.
    if point[0] in (0.0, 1.0):
        other = _wilson_extreme(matrix, all_right=bool(point[0]))
        return np.minimum(point, other), np.maximum(point, other)
    draws = bootstrap(matrix, random_state=random_state, n_resamples=n_resamples)
    low, high = np.percentile(draws, [2.5, 97.5], axis=0)
    return np.minimum(low, point), np.maximum(high, point)


def group_cells(y_true: np.ndarray, y_pred: np.ndarray, groups: np.ndarray, n_classes: int) -> sparse.csr_array:
    """Return how often each group has each (label, prediction), (n_groups, n_classes * n_classes) int64.

    Parameters
    ----------
    y_true, y_pred : ndarray of shape (n_samples,), class indices
    groups : ndarray of int (n_samples,)
    n_classes : int
    """
    numbers, indices = np.unique(groups, return_inverse=True)
    cells = np.asarray(y_true, np.int64) * n_classes + np.asarray(y_pred, np.int64)
    shape = (len(numbers), n_classes * n_classes)
    return sparse.coo_array((np.ones(len(cells), np.int64), (indices, cells)), shape=shape).tocsr()


def group_intervals(
    cells: sparse.csr_array, n_classes: int, *, random_state: int, n_resamples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return bounds as `intervals` does, from a bootstrap that draws whole groups (Davison & Hinkley, 1997, 3.8).

    Where all rows are right, or none is, each group counts as one row in the Wilson interval.

    Parameters
    ----------
    cells : sparse array of shape (n_groups, n_classes * n_classes)
        From `group_cells`.
    n_classes : int
    random_state : int
        Of the bootstrap.
    n_resamples : int
    """
    whole = np.asarray(cells.sum(axis=0)).reshape(n_classes, n_classes)
    point = summaries(whole.diagonal(), whole.sum(axis=1), whole.sum(axis=0))
    n_groups = cells.shape[0]
    if point[0] in (0.0, 1.0) or n_groups == 1:
        low, high = wilson(round(float(point[0]) * n_groups), n_groups)
        return np.minimum(point, low), np.maximum(point, high)
    # Most entries of a large matrix are empty, and no resample fills them.
    used = np.flatnonzero(whole.ravel())
    right, label_of, prediction_of = _count_maps(used // n_classes, used % n_classes, n_classes)
    compact, rng, draws = cells[:, used], np.random.default_rng(random_state), []
    at_once = max(1, _CELLS_AT_ONCE // max(n_groups, len(used)))
    for start in range(0, n_resamples, at_once):
        times = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=min(at_once, n_resamples - start))
        drawn = times @ compact
        draws.append(summaries(drawn @ right, drawn @ label_of, drawn @ prediction_of))
    low, high = np.percentile(np.concatenate(draws), [2.5, 97.5], axis=0)
    return np.minimum(low, point), np.maximum(high, point)


def bootstrap(matrix: np.ndarray, *, random_state: int, n_resamples: int) -> np.ndarray:
    """Return accuracy, balanced accuracy and macro F1 of resampled rows, shape (n_resamples, 3), float64.

    Parameters
    ----------
    matrix : ndarray of shape (n_classes, n_classes), int64
        As for `intervals`.
    random_state : int
    n_resamples : int
    """
    labels, predictions = np.nonzero(matrix)
    right, label_of, prediction_of = _count_maps(labels, predictions, len(matrix))
    blocks = [
        summaries(draws @ right, draws @ label_of, draws @ prediction_of)
        for draws in _draws(matrix[labels, predictions], random_state, n_resamples)
    ]
    return np.concatenate(blocks)


def wilson(successes: np.ndarray | int, n: np.ndarray | int) -> tuple[np.ndarray, np.ndarray]:
    """Return the Wilson 95 % score interval of a proportion; arguments broadcast."""
    share, z2 = np.asarray(successes) / np.asarray(n), Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * np.sqrt(share * (1 - share) / n + z2 / (4 * np.square(n)))
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)


def _mean_where(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    # Classes that do not occur have no recall, not one of 0.
    there = denominator > 0
    ratios = numerator / np.where(there, denominator, 1)
    return np.sum(ratios, axis=-1, where=there) / there.sum(axis=-1)


def _draws(cells: np.ndarray, random_state: int, n_resamples: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(random_state)
    n, at_once = int(cells.sum()), max(1, _CELLS_AT_ONCE // len(cells))
    for start in range(0, n_resamples, at_once):
        yield rng.multinomial(n, cells / n, size=min(at_once, n_resamples - start))


def _count_maps(labels: np.ndarray, predictions: np.ndarray, n_classes: int) -> tuple[sparse.csr_array, ...]:
    n_cells = len(labels)

    def indicator(classes: np.ndarray, weights: np.ndarray) -> sparse.csr_array:
        return sparse.csr_array((weights, (np.arange(n_cells), classes)), shape=(n_cells, n_classes))

    ones = np.ones(n_cells, dtype=np.int64)
    right = indicator(labels, (labels == predictions).astype(np.int64))
    return right, indicator(labels, ones), indicator(predictions, ones)


def _wilson_extreme(matrix: np.ndarray, *, all_right: bool) -> np.ndarray:
    actual = matrix.sum(axis=1).astype(np.float64)
    n, there = actual.sum(), actual > 0
    bound = wilson(n, n)[0] if all_right else wilson(0, n)[1]
    recall = np.zeros(len(actual))
    recall[there] = wilson(actual[there], actual[there])[0] if all_right else wilson(0, actual[there])[1]
    correct = recall * actual
    if all_right:
        missed, others = actual - correct, max(int(there.sum()) - 1, 1)
        strays = np.where(there, missed.sum() - missed, 0.0) / others
    else:
        strays = ((1 - recall)[:, None] * matrix).sum(axis=0)
    moved = summaries(correct, actual, correct + strays)
    return np.array([float(bound), moved[1], moved[2]])
