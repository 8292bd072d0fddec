"""The bootstrap by weights: how often each resample holds each sample, and what is computed from that at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.stats import t as student_t

from featurecache.evaluation.intervals import PRIOR_CORRELATION, PRIOR_ERRORS, Z95, clopper_pearson

# 32 MB of weights at a time, whatever the number of samples.
_NUMBERS_AT_ONCE = 4_000_000
# The ends of a 95 % interval are then the 50th draws from either side, which hardly move with the seed.
_RESAMPLES = 2000


def weights_of_resamples(num_samples: int, groups: np.ndarray | None, random_state: int) -> Iterator[np.ndarray]:
    """Yield how often each resample holds each sample, (R, num_samples) float64.

    Parameters
    ----------
    num_samples : int
    groups : ndarray of int (num_samples,), or None
        Samples with the same number are drawn together.
    random_state : int
    """
    rng = np.random.default_rng(random_state)
    indices = np.arange(num_samples) if groups is None else np.unique(groups, return_inverse=True)[1]
    count = int(indices.max()) + 1
    at_once = max(1, _NUMBERS_AT_ONCE // num_samples)
    for start in range(0, _RESAMPLES, at_once):
        # How often each unit is drawn, which is all that a score needs, without drawing one by one.
        times = rng.multinomial(count, np.full(count, 1 / count), size=min(at_once, _RESAMPLES - start))
        yield times[:, indices].astype(np.float64)


def num_units(num_samples: int, groups: np.ndarray | None) -> int:
    """Return how many things are drawn: samples, or groups."""
    return num_samples if groups is None else len(np.unique(groups))


def expanded(point: Any, ends: np.ndarray, count: int) -> tuple[Any, Any]:
    """Return percentiles made as much wider as Student's t is, and as few units vary too little among themselves.

    Parameters
    ----------
    point : float or ndarray
        Scores of the samples themselves.
    ends : ndarray (2, ...)
        Percentiles of the resamples, low and high.
    count : int
        Units that were drawn.

    Notes
    -----
    Hesterberg, "What teachers should know about the bootstrap", The American Statistician 69, 2015, section 5.3.
    """
    low, high = ends
    if count < 2:
        return low, high
    # Percentiles of few units are too narrow twice: by the normal quantile, and by the divisor n of their spread.
    factor = float(student_t.ppf(0.975, count - 1)) / Z95 * np.sqrt(count / (count - 1))
    return point - factor * np.maximum(point - low, 0.0), point + factor * np.maximum(high - point, 0.0)


def bounds_of_share(point: float, error: float, size: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a score that lies between 0 and 1, also where all resamples are alike.

    Parameters
    ----------
    point : float
        The score.
    error : float
        Standard deviation of the resamples.
    size : float
        How many right or wrong predictions the score is of.
    count : int
        Units that were drawn.

    Notes
    -----
    As `featurecache.evaluation.intervals.group_intervals`: the score is a proportion of as many rows as give it the
    variance of the resamples, and before errors are seen, as many as predictions of one unit that correlate by 0.25
    give. So no bound jumps between no error and one.
    """
    seen, prior = point * (1 - point), PRIOR_ERRORS / size
    rows = (seen + prior) / (error**2 * count / (count - 1) + prior * unseen_variance(size, count))
    rows *= 1 - seen / (seen + prior) * (1 - (Z95 / float(student_t.ppf(0.975, count - 1))) ** 2)
    low, high = clopper_pearson(point * rows, rows)
    return float(low), float(high)


def unseen_variance(size: float, count: int) -> float:
    """Return the variance that one wrong answer in ``size`` would have, of ``count`` units whose answers are alike."""
    return (1 + max(size / count - 1, 0.0) * PRIOR_CORRELATION) / size


def ranked(y: np.ndarray, predictions: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the order from the greatest prediction on, what holds in that order, and where runs of equal ones end.

    Parameters
    ----------
    y, predictions : ndarray (n,)
        Of one label.
    known : ndarray of bool (n,)
        Only these samples are in the order.
    """
    indices = np.flatnonzero(known)
    order = indices[np.argsort(-predictions[indices], kind="stable")]
    ends = np.append(np.flatnonzero(np.diff(predictions[order])), len(order) - 1)
    return order, y[order].astype(np.float64), ends


def average_precision(weights: np.ndarray, order: np.ndarray, holds: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return average precision for weights (R, n), as scikit-learn defines it; NaN where no sample holds.

    Parameters
    ----------
    weights : ndarray (R, n)
        How often each resample holds each sample.
    order, holds, ends : ndarray
        From `ranked`.
    """
    drawn = weights[:, order]
    hits, seen = np.cumsum(drawn * holds, axis=1)[:, ends], np.cumsum(drawn, axis=1)[:, ends]
    total = hits[:, -1:]
    # No hit so far is a precision of 0, not of 0 / 0.
    precision = hits / np.maximum(seen, 1e-300)
    gained = np.diff(hits, axis=1, prepend=0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((precision * gained).sum(axis=1) / total[:, 0])
