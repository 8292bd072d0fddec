"""Two heads on the same rows: better, equivalent, worse, or not to be told apart."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from scipy.stats import binomtest
from scipy.stats import t as student_t

from featurecache.evaluation.intervals import LEAST_GROUPS, Z95, holding
from featurecache.evaluation.metrics import balanced_weights
from featurecache.wording import counted

Verdict = Literal["better", "equivalent", "worse", "cannot tell", "the same answers"]

# One of a hundred samples: less is hardly a reason to take another head.
EQUIVALENT_WITHIN = 0.01


@dataclass(frozen=True, slots=True)
class Comparison:
    """A head against another one.

    Attributes
    ----------
    difference : float
        Accuracy of the first less that of the second, or balanced accuracy.
    low, high : float
        95 % interval for matched proportions: Wald's, with half a row added to each of the four counts (Agresti & Min,
        "Simple improved confidence intervals for comparing matched proportions", Statistics in Medicine 24, 2005).
    p_value : float
        Of McNemar's exact test (McNemar, Psychometrika 12, 1947); of rows in groups see `compare`.
    verdict : str
        ``better`` or ``worse`` where the interval leaves out zero, else ``equivalent`` where it lies within one point
        (`EQUIVALENT_WITHIN`) of zero, else ``cannot tell``; ``the same answers`` where all predictions are equal.
    rows_needed : int or None
        Of ``cannot tell`` in a table (`featurecache.evaluation.table_verdicts`): about how many rows would tell.
    """

    difference: float
    low: float
    high: float
    p_value: float
    verdict: Verdict
    rows_needed: int | None = None

    @property
    def text(self) -> str:
        """The verdict for people."""
        if self.rows_needed is None:
            return self.verdict
        return f"cannot tell: about {counted(self.rows_needed, 'row')} would"

    def to_json(self) -> dict[str, object]:
        """Return plain JSON values; bounds that are infinite, as of a single group, are None."""
        return {name: None if value in (-np.inf, np.inf) else value for name, value in asdict(self).items()}


def compare(
    y: np.ndarray, first: np.ndarray, second: np.ndarray, groups: np.ndarray | None = None, *, balanced: bool = False
) -> Comparison:
    """Compare what two heads predicted for the same rows.

    Parameters
    ----------
    y : ndarray (n,)
        Class indices.
    first, second : ndarray (n,)
        Predictions of rows that neither head was fitted on.
    groups : ndarray (n,), optional
        Rows of one group are alike. Then interval and p value are those of Student's t for the mean over groups, as a
        ratio of sums (Cochran, "Sampling Techniques", 1977, section 9A).
    balanced : bool
        Compare balanced accuracies: each class has the same total weight. Rows are then groups of one.

    Notes
    -----
    With groups or balanced classes, half a win and half a loss are added to the squares, so that heads which never
    differ are not told equal for certain.
    """
    if balanced or (groups is not None and len(np.unique(groups)) < len(groups)):
        return _compare_groups(y, first, second, np.arange(len(y)) if groups is None else groups, balanced=balanced)
    won = int(np.sum((first == y) & (second != y)))
    lost = int(np.sum((first != y) & (second == y)))
    # Half a row more in each of the four counts.
    n = len(y) + 2.0
    centre = (won - lost) / n
    half = Z95 * float(np.sqrt(max(won + lost + 1.0 - (won - lost) ** 2 / n, 0.0))) / n
    # Heads that never differ leave nothing to test.
    p_value = float(binomtest(won, won + lost).pvalue) if won + lost else 1.0
    difference = (won - lost) / len(y)
    low, high = holding(difference, max(centre - half, -1.0), min(centre + half, 1.0))
    verdict = verdict_of(low, high, are_equal=np.array_equal(first, second))
    return Comparison(difference, low, high, p_value, verdict)


def _compare_groups(
    y: np.ndarray, first: np.ndarray, second: np.ndarray, groups: np.ndarray, *, balanced: bool
) -> Comparison:
    won = (first == y).astype(np.float64) - (second == y)
    _, indices = np.unique(groups, return_inverse=True)
    weight = balanced_weights(y) if balanced else np.ones(len(y))
    won_G, size_G = np.bincount(indices, weights=weight * won), np.bincount(indices, weights=weight)
    # Weights of balanced classes are rounded, and a mean of -1 may come out below it.
    mean, count = float(np.clip(won_G.sum() / len(y), -1.0, 1.0)), len(size_G)
    if count < 2:
        return Comparison(mean, -1.0, 1.0, 1.0, "cannot tell")
    # Half a win and half a loss, of the heaviest sample: heads that never differ are not equal for certain.
    squares = float(np.sum((won_G - mean * size_G) ** 2)) + float(np.max(weight)) ** 2
    return _by_students_t(mean, squares, len(y), count, most=1.0, are_equal=np.array_equal(first, second))


def _by_students_t(
    mean: float, squares: float, n: int, count: int, *, most: float, are_equal: bool = False
) -> Comparison:
    """Compare by the mean of differences of ``n`` rows in so many groups, from their sum of squares."""
    error = np.sqrt(count / (count - 1) * squares) / n
    half = float(student_t.ppf(0.975, count - 1) * error)
    p_value = float(2 * student_t.sf(abs(mean) / error, count - 1)) if error else 1.0
    low, high = holding(mean, max(mean - half, -most), min(mean + half, most))
    return Comparison(mean, low, high, p_value, verdict_of(low, high, are_equal=are_equal))


def compare_rows(first: np.ndarray, second: np.ndarray, groups: np.ndarray | None, *, most: float) -> Comparison:
    """Compare two heads by what each row adds to the metric of each, by Student's t for the mean of the differences.

    Parameters
    ----------
    first, second : ndarray (n,)
        As `Measure.row_scores` returns them.
    groups : ndarray of int (n,), or None
        Rows of one group are alike.
    most : float
        No two scores are further apart.
    """
    won = first - second
    unit = np.arange(len(won)) if groups is None else np.unique(groups, return_inverse=True)[1]
    mean, n, count = float(won.mean()), len(won), int(unit.max()) + 1
    if count < LEAST_GROUPS:
        return Comparison(mean, -most, most, 1.0, "cannot tell")
    # Half a win and half a loss of the heaviest row, as in `compare`.
    heaviest = max(float(np.abs(won).max()), float(np.ptp(first)), float(np.ptp(second)))
    squares = float(np.sum(np.bincount(unit, weights=won - mean) ** 2)) + heaviest**2
    return _by_students_t(mean, squares, n, count, most=most)


def verdict_of(low: float, high: float, *, are_equal: bool = False) -> Verdict:
    """Put an interval of a difference into a word; see `Comparison`.

    Parameters
    ----------
    low, high : float
    are_equal : bool
        Both heads predict the same for every row.
    """
    # Equal predictions are no finding about how heads differ, however many rows there are.
    if are_equal:
        return "the same answers"
    if low > 0:
        return "better"
    if high < 0:
        return "worse"
    return "equivalent" if max(-low, high) <= EQUIVALENT_WITHIN else "cannot tell"


def is_within_chance(gain: np.ndarray, groups: np.ndarray | None, *, standard_errors: float = 1.0) -> bool:
    """Tell whether a mean gain is at most one standard error above zero, or so many.

    Parameters
    ----------
    gain : ndarray (n_samples,)
        By how much one of two predictions of a sample is better.
    groups : ndarray of int (n_samples,), or None
        Samples of one group err together, and count as one.
    standard_errors : float
    """
    unit = np.arange(len(gain)) if groups is None else np.unique(groups, return_inverse=True)[1]
    total = np.bincount(unit, weights=gain)
    if len(total) < 2:
        return True
    return bool(total.mean() <= standard_errors * total.std(ddof=1) / np.sqrt(len(total)) + 1e-12)
