"""Means of paired differences with intervals: of rows, or of groups of rows that are alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from featurecache.evaluation.intervals import LEAST_GROUPS, standard_error

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

    @property
    def figures(self) -> dict[str, Any]:
        """Mean and interval as a `Finding` takes them."""
        return {"figure": self.mean, "low": self.low, "high": self.high}


def mean_difference(
    values: NDArray[np.float64], groups: NDArray[np.int64] | None = None, *, level: float = 0.95
) -> Difference:
    """Return the mean of differences of rows, with Student's interval over rows or groups.

    The mean over groups is a ratio of sums (Cochran, "Sampling Techniques", 1977, 9A). The square of the largest
    difference is added once, so that rows which never differ are not told equal for certain. Of fewer than five rows or
    groups there is no interval: its ends are infinite.

    Parameters
    ----------
    values : ndarray (n,)
    groups : ndarray of int (n,), optional
    level : float
        Of the interval.
    """
    mean, n = float(values.mean()), len(values)
    count = n if groups is None else len(np.unique(groups))
    if count < LEAST_GROUPS:
        return Difference(mean, -np.inf, np.inf, np.inf, n, count, np.inf)
    # Of differences that are all 0, the largest that a score can have.
    largest = float(np.abs(values).max()) or 1.0
    squares = standard_error(values, groups) ** 2 + (largest / n) ** 2
    # As of a sample: the variance of few units is too small by that factor.
    error = float(np.sqrt(count / (count - 1) * squares))
    critical = float(student_t.ppf(0.5 + level / 2, count - 1))
    detectable = (critical + float(student_t.ppf(POWER, count - 1))) * error
    return Difference(mean, mean - critical * error, mean + critical * error, error, n, count, detectable)


def in_words(mean: float, low: float, high: float, *, sign: str = "") -> str:
    """Write a mean with its interval; where there is none, that.

    Parameters
    ----------
    mean, low, high : float
    sign : str
        ``+`` for a sign before each number.
    """
    if not (np.isfinite(low) and np.isfinite(high)):
        return f"{mean:{sign}.3f} (no interval: fewer than {LEAST_GROUPS} rows or groups)"
    return f"{mean:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"
