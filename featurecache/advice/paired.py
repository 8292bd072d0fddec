"""Means of paired differences with intervals: of rows, or of groups of rows that are alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

POWER = 0.8
"""Of the least difference that could have been found."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean with its interval.

    Attributes
    ----------
    mean, low, high : float
    error : float
        Standard error.
    n, num_units : int
        Rows, and groups of them that are alike.
    detectable : float
        The least true difference that would have been found in four of five samples of this size.
    """

    mean: float
    low: float
    high: float
    error: float
    n: int
    num_units: int
    detectable: float


def mean_difference(
    values: NDArray[np.float64], groups: NDArray[np.int64] | None = None, *, level: float = 0.95
) -> Difference:
    """Return the mean of differences of rows, with Student's interval over rows or groups.

    The mean over groups is a ratio of sums (Cochran, "Sampling Techniques", 1977, 9A). The square of the largest
    difference is added once, so that rows which never differ are not told equal for certain.

    Parameters
    ----------
    values : ndarray (n,)
    groups : ndarray of int (n,), optional
    level : float
        Of the interval.
    """
    unit = np.arange(len(values)) if groups is None else np.unique(groups, return_inverse=True)[1]
    total, size = np.bincount(unit, weights=values), np.bincount(unit).astype(np.float64)
    mean, count = float(values.mean()), len(total)
    if count < 2:
        return Difference(mean, -np.inf, np.inf, np.inf, len(values), count, np.inf)
    largest = max(float(np.abs(values).max()), 1e-12) if np.any(values) else 1.0
    squares = float(np.sum((total - mean * size) ** 2)) + largest**2
    error = float(np.sqrt(count / (count - 1) * squares) / len(values))
    critical = float(student_t.ppf(0.5 + level / 2, count - 1))
    detectable = (critical + float(student_t.ppf(POWER, count - 1))) * error
    return Difference(mean, mean - critical * error, mean + critical * error, error, len(values), count, detectable)
