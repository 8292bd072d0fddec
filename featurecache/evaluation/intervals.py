"""95 % intervals of accuracy, balanced accuracy and macro F1.

Each score is taken for a proportion: of as many rows as give a proportion the variance that the score has. Of accuracy
these are the rows themselves; of balanced accuracy, whose classes have few rows or many, and of macro F1 they follow
from how much each row moves the score. Where rows come in groups, they are fewer by the design effect (Kish, "Survey
Sampling", 1965; Korn & Graubard, Survey Methodology 24, 1998). The percentile bootstrap, which was here before, covers
0.75 to 0.85 near 1, with rare classes and with few groups; `python scripts/trials coverage` tells what these cover.

95 % intervals of a proportion, also of one whose number of rows is not whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.special import betainc, betaincinv
from scipy.stats import t as student_t

Z95 = 1.959963984540054
"""Standard deviations of a normal distribution on either side that hold 95 %."""
# The bounds are then exact to 1e-6, mostly to 1e-8.
_STEPS = 20


def wilson(successes: np.ndarray | float, n: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """Return the Wilson 95 % score interval of a proportion; arguments broadcast."""
    share, z2 = np.asarray(successes) / np.asarray(n), Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * np.sqrt(share * (1 - share) / n + z2 / (4 * np.square(n)))
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)


def clopper_pearson(successes: np.ndarray | float, n: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """Return the exact 95 % interval of a proportion (Clopper & Pearson, Biometrika 26, 1934); arguments broadcast."""
    x, n = np.broadcast_arrays(np.asarray(successes, np.float64), np.asarray(n, np.float64))
    # The ends of the range have no quantile, and need none.
    low = np.where(x > 0, betaincinv(np.maximum(x, 1e-9), n - x + 1, 0.025), 0.0)
    high = np.where(x < n, betaincinv(x + 1, np.maximum(n - x, 1e-9), 0.975), 1.0)
    return low, high


def mid_p(
    successes: np.ndarray | float, n: np.ndarray | float, *, observed: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mid-P 95 % interval of a proportion; arguments broadcast.

    Parameters
    ----------
    successes, n : float or ndarray
    observed : float
        How much of the probability of what was observed counts as more extreme; 1 gives Clopper and Pearson's.

    Notes
    -----
    Half of the probability of what was observed counts as more extreme (Berry & Armitage, "Mid-P confidence intervals",
    The Statistician 44, 1995). Of the rows of a proportion it covers at least 0.929 from 10 rows on, for shares from
    0.5 to 0.99, with at most 1.09 times Wilson's width, where Wilson's own covers 0.84 near the ends.
    """
    x, n = np.broadcast_arrays(np.asarray(successes, np.float64), np.asarray(n, np.float64))
    # No row right leaves no lower bound but 0, all right no upper one but 1.
    low, high = _solve_tail(x, n, 0.025, observed), _solve_tail(x, n, 0.975, 1 - observed)
    return np.where(x > 0, low, 0.0), np.where(x < n, high, 1.0)


def _solve_tail(x: np.ndarray, n: np.ndarray, target: float, observed: float) -> np.ndarray:
    """Return where `_tail` is ``target``: between where either of its parts is."""
    # One that is less than the other in every case, so that the signs at both ends differ.
    low = np.where(x > 0, betaincinv(np.maximum(x, 1e-9), n - x + 1, target), 0.0)
    high = np.where(x < n, betaincinv(x + 1, np.maximum(n - x, 1e-9), target), 1.0)
    at_low, at_high = (_tail(x, n, share, observed) - target for share in (low, high))
    for _ in range(_STEPS):
        # The Illinois method: a secant whose end that stays is drawn nearer by halves.
        span = at_high - at_low
        middle = np.where(span > 0, low - at_low * (high - low) / np.where(span > 0, span, 1.0), low)
        at_middle = _tail(x, n, middle, observed) - target
        is_low = at_middle < 0
        low, high = np.where(is_low, middle, low), np.where(is_low, high, middle)
        at_low, at_high = np.where(is_low, at_middle, at_low / 2), np.where(is_low, at_high / 2, at_middle)
    return middle


def _tail(x: np.ndarray, n: np.ndarray, share: np.ndarray, observed: float) -> np.ndarray:
    """Return the probability of more than ``x`` successes, and of that of ``x`` the share ``observed``."""
    as_many = np.where(x > 0, betainc(np.maximum(x, 1e-9), n - x + 1, share), 1.0)
    more = np.where(x < n, betainc(x + 1, np.maximum(n - x, 1e-9), share), 0.0)
    return observed * as_many + (1 - observed) * more


LEAST_ROWS = 5
"""Balanced accuracy and macro F1 have no interval where a class has fewer rows: one row of it weighs too much."""
LEAST_GROUPS = 5
"""No score has an interval where there are fewer groups: how much they differ cannot be told."""

# Of the probability of what was observed, which counts as more extreme. Half of it (mid-P) covers 0.929 of 20 rows with
# a share of 0.475; this is 1 % wider.
_OBSERVED = 0.55
# Errors that are added to each class, and as many right rows: a class of which all rows are right could have errors.
# Half an error covers 0.91 with classes of 80, 15 and 5 %, two hardly more than one.
_PSEUDO_ERRORS = 1.0
# A variance of binomial rows is known better than one of as many normal ones; with 1 it would be Welch's.
_DEGREES_OF_BINOMIAL = 2.5
# What is assumed of groups before errors are seen, which counts as much as so many errors: without it, 50 groups that
# are nearly all right cover 0.82 of accuracies of 0.99 where rows of a group correlate by 0.3.
PRIOR_CORRELATION, PRIOR_ERRORS = 0.25, 2.0


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


@dataclass(frozen=True, slots=True)
class Cells:
    """Which cells of a confusion matrix are counted: all, or those that are not zero.

    Attributes
    ----------
    labels, predictions : ndarray of int (n_cells,)
        Class indices.
    n_classes : int
    """

    labels: np.ndarray
    predictions: np.ndarray
    n_classes: int

    @property
    def right(self) -> np.ndarray:
        """Which cells are right, (n_cells,) float64."""
        return (self.labels == self.predictions).astype(np.float64)

    def per_class(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return how many are right, are there and were predicted of each class, three (n_matrices, n_classes) float64.

        Parameters
        ----------
        counts : ndarray (n_matrices, n_cells)
        """
        counts, ones = counts.astype(np.float64), np.ones(len(self.labels))
        indices, shape = np.arange(len(ones)), (len(ones), self.n_classes)
        of_label = sparse.csr_array((ones, (indices, self.labels)), shape=shape)
        of_prediction = sparse.csr_array((ones, (indices, self.predictions)), shape=shape)
        return (counts * self.right) @ of_label, counts @ of_label, counts @ of_prediction


@dataclass(frozen=True, slots=True)
class EffectiveSizes:
    """Accuracy, balanced accuracy and macro F1 of several confusion matrices as proportions.

    Attributes
    ----------
    point : ndarray (n_matrices, 3)
    size : ndarray (n_matrices, 3)
        Rows of a proportion with the same variance; NaN where a class has too few rows for an interval.
    influence : ndarray (n_matrices, 3, n_cells)
        How much one row of a cell moves the score; the sum over all rows is zero.
    weight : ndarray (n_matrices, 3, n_cells)
        How much a row of a cell counts in the score.
    """

    point: np.ndarray
    size: np.ndarray
    influence: np.ndarray
    weight: np.ndarray


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
    found = [correct.sum(axis=-1) / actual.sum(axis=-1)]
    for numerator, denominator in ((correct, actual), (2 * correct, actual + predicted)):
        # Classes that do not occur have no recall, not one of 0.
        there = denominator > 0
        ratios = numerator / np.where(there, denominator, 1)
        found.append(np.sum(ratios, axis=-1, where=there) / there.sum(axis=-1))
    return np.stack(found, axis=-1)


def effective_sizes(counts: np.ndarray, cells: Cells) -> EffectiveSizes:
    """Return the three scores as proportions.

    Parameters
    ----------
    counts : ndarray of int (n_matrices, n_cells)
        Rows of each cell; at least one row in each matrix.
    cells : Cells

    Notes
    -----
    The variance of balanced accuracy is that of a mean of independent proportions, with the degrees of freedom of
    Satterthwaite (Biometrics Bulletin 2, 1946); that of macro F1 is the delta method's. Both are computed with an error
    and a right row added to each class, and the rows of each class scaled back to as many as there are.
    """
    correct, actual, predicted = cells.per_class(counts)
    point = summaries(correct, actual, predicted)
    # Enough rows of every class, or there is no size: divisors need not be looked after one by one.
    enough = (actual >= LEAST_ROWS).all(axis=1)
    actual = np.maximum(actual, 1.0)
    n = counts.sum(axis=1, dtype=np.float64)
    size = np.stack([n, _balanced_size(correct, actual), _f1_size(counts, cells, correct, actual)], axis=1)
    size[~enough, 1:] = np.nan
    labels, predictions, right = cells.labels, cells.predictions, cells.right
    recall, both = correct / actual, np.maximum(actual + predicted, 1.0)
    of_row = 1 / (cells.n_classes * actual)
    taken = 2 * correct / both**2  # from the F1 of a class, by one label or prediction more
    influence = np.stack(
        [
            (right - point[:, :1]) / n[:, None],
            (right - recall[:, labels]) * of_row[:, labels],
            (2 * right / both[:, labels] - taken[:, labels] - taken[:, predictions]) / cells.n_classes,
        ],
        axis=1,
    )
    weight = np.stack([np.broadcast_to(1 / n[:, None], counts.shape), *[of_row[:, labels]] * 2], axis=1)
    return EffectiveSizes(point, size, influence, weight)


def intervals(counts: np.ndarray, cells: Cells) -> tuple[np.ndarray, np.ndarray]:
    """Return the lower and upper 95 % bounds of accuracy, balanced accuracy and macro F1 of independent rows.

    The mid-P interval of a proportion of `effective_sizes`.

    Parameters
    ----------
    counts : ndarray of int (n_matrices, n_cells)
        Rows of each cell; at least one row in each matrix.
    cells : Cells

    Returns
    -------
    (low, high) : two ndarrays of shape (n_matrices, 3), float64
        NaN for balanced accuracy and macro F1 where a class has fewer than `LEAST_ROWS` rows.
    """
    found = effective_sizes(counts, cells)
    low, high = mid_p(found.point * found.size, found.size, observed=_OBSERVED)
    return np.where(np.isnan(found.size), np.nan, low), np.where(np.isnan(found.size), np.nan, high)


def group_intervals(rows: np.ndarray, starts: np.ndarray, cells: Cells) -> tuple[np.ndarray, np.ndarray]:
    """Return bounds as `intervals` does, of rows that are alike within groups.

    The Clopper-Pearson interval of a proportion whose rows are fewer by the design effect: the variance of a sum over
    groups against that of as many independent rows.

    Parameters
    ----------
    rows : ndarray of int (n_matrices, n_rows)
        Cell of each row, group by group.
    starts : ndarray of int (n_groups,)
        Index of the first row of each group.
    cells : Cells

    Returns
    -------
    (low, high) : two ndarrays of shape (n_matrices, 3), float64
        NaN where there are fewer than `LEAST_GROUPS` groups, and as for `intervals`.

    Notes
    -----
    Until errors are seen, nothing is known of how they are spread; then rows of a group are taken to correlate by 0.25,
    which weighs as much as two errors do. So the bounds do not jump between no error and one. Student's t takes the
    place of the normal distribution as far as the variance is known from the spread between groups alone.
    """
    if len(starts) < LEAST_GROUPS:
        return np.full((len(rows), 3), np.nan), np.full((len(rows), 3), np.nan)
    counts = np.stack([np.bincount(matrix, minlength=len(cells.labels)) for matrix in rows])
    found, index = effective_sizes(counts, cells), rows[:, None, :]
    moved = np.add.reduceat(np.take_along_axis(found.influence, index, axis=2), starts, axis=2)
    weights = np.add.reduceat(np.take_along_axis(found.weight, index, axis=2), starts, axis=2) ** 2
    # As many groups of one weight; of one that weighs more than all others, hardly more than one.
    n_groups = np.maximum(weights.sum(axis=2) ** 2 / (weights**2).sum(axis=2), 1.5)
    between = (moved**2).sum(axis=2) * n_groups / (n_groups - 1)
    within = (counts[:, None, :] * found.influence**2).sum(axis=2)
    prior = PRIOR_ERRORS / found.size**2
    rows_a_group = weights.sum(axis=2) / (counts[:, None, :] * found.weight**2).sum(axis=2)
    expected = 1 + (rows_a_group - 1) * PRIOR_CORRELATION
    design_effect = np.maximum((between + prior * expected) / (within + prior), 1.0)
    seen = (1 - 1 / design_effect) * within / (within + prior)
    size = found.size / design_effect * (1 - seen * (1 - (Z95 / student_t.ppf(0.975, n_groups - 1)) ** 2))
    low, high = clopper_pearson(found.point * size, size)
    return np.where(np.isnan(size), np.nan, low), np.where(np.isnan(size), np.nan, high)


def standard_error(rows: np.ndarray, groups: np.ndarray | None) -> float:
    """Return the standard error of the mean of rows (n,), of which those with the same number are alike."""
    unit = np.arange(len(rows)) if groups is None else np.unique(groups, return_inverse=True)[1]
    return float(np.sqrt(np.sum(np.bincount(unit, weights=rows - rows.mean()) ** 2))) / len(rows)


def mean_interval(rows: np.ndarray, groups: np.ndarray | None, *, level: float = 0.95) -> tuple[float, float] | None:
    """Return the ends of the interval of a mean of rows (n,), by Student's t; None of too few rows or groups."""
    count = len(rows) if groups is None else len(np.unique(groups))
    if count < LEAST_GROUPS:
        return None
    error = standard_error(rows, groups) * float(np.sqrt(count / (count - 1)))
    half = float(student_t.ppf(0.5 + level / 2, count - 1)) * error
    return float(rows.mean()) - half, float(rows.mean()) + half


def _balanced_size(correct: np.ndarray, actual: np.ndarray) -> np.ndarray:
    recall = (correct + _PSEUDO_ERRORS) / (actual + 2 * _PSEUDO_ERRORS)
    of_class = recall * (1 - recall) / actual / recall.shape[1] ** 2
    variance, mean = of_class.sum(axis=1), recall.mean(axis=1)
    degrees = _DEGREES_OF_BINOMIAL * variance**2 / (of_class**2 / np.maximum(actual - 1, 1)).sum(axis=1)
    return mean * (1 - mean) / variance * (Z95 / student_t.ppf(0.975, degrees)) ** 2


def _f1_size(counts: np.ndarray, cells: Cells, correct: np.ndarray, actual: np.ndarray) -> np.ndarray:
    n_classes, added, others = cells.n_classes, _PSEUDO_ERRORS, max(cells.n_classes - 1, 1)
    scale = actual / (actual + 2 * added)
    scaled = counts * scale[:, cells.labels]
    correct = (correct + added) * scale
    # The errors that are added are spread evenly over the other classes.
    missed = added * scale
    predicted = cells.per_class(scaled)[2] + missed + (missed.sum(axis=1, keepdims=True) - missed) / others
    both = actual + predicted
    taken, given = 2 * correct / both**2, 2 / both
    moves = cells.right * given[:, cells.labels] - taken[:, cells.labels] - taken[:, cells.predictions]
    taken_by_others = (taken.sum(axis=1, keepdims=True) - taken) / others
    squares_of_others = ((taken**2).sum(axis=1, keepdims=True) - taken**2) / others
    of_added = (given - 2 * taken) ** 2 + taken**2 + 2 * taken * taken_by_others + squares_of_others
    variance = (scaled * moves**2).sum(axis=1) + (missed * of_added).sum(axis=1)
    mean = (2 * correct / both).mean(axis=1)
    return mean * (1 - mean) / (variance / n_classes**2)
