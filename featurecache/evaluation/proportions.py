"""95 % intervals of a proportion, also of one whose number of rows is not whole."""

from __future__ import annotations

import numpy as np
from scipy.special import betainc, betaincinv

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
