"""Two heads on the same rows: better, equivalent, worse, or not to be told apart."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from scipy.stats import binomtest

Verdict = Literal["better", "equivalent", "worse", "cannot tell"]

EQUIVALENT_WITHIN = 0.01
_Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Comparison:
    """A head against another one.

    Attributes
    ----------
    difference : float
        Accuracy of the first less that of the second.
    low, high : float
        95 % interval for matched proportions: Wald's, with half a row added to each of the four counts (Agresti & Min,
        "Simple improved confidence intervals for comparing matched proportions", Statistics in Medicine 24, 2005).
    p_value : float
        Of McNemar's exact test (McNemar, Psychometrika 12, 1947).
    verdict : str
        ``better`` or ``worse`` where the interval leaves out zero, else ``equivalent`` where it lies within one point
        (`EQUIVALENT_WITHIN`) of zero, else ``cannot tell``.
    """

    difference: float
    low: float
    high: float
    p_value: float
    verdict: Verdict

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def compare(y: np.ndarray, first: np.ndarray, second: np.ndarray) -> Comparison:
    """Compare what two heads predicted for the same rows.

    Parameters
    ----------
    y : ndarray (n,)
        Class indices.
    first, second : ndarray (n,)
        Predictions of rows that neither head was fitted on.
    """
    won = int(np.sum((first == y) & (second != y)))
    lost = int(np.sum((first != y) & (second == y)))
    n = len(y) + 2.0
    centre = (won - lost) / n
    half = _Z95 * float(np.sqrt(max(won + lost + 1.0 - (won - lost) ** 2 / n, 0.0))) / n
    p_value = float(binomtest(won, won + lost).pvalue) if won + lost else 1.0
    low, high = max(centre - half, -1.0), min(centre + half, 1.0)
    return Comparison((won - lost) / len(y), low, high, p_value, verdict_of(low, high))


def verdict_of(low: float, high: float) -> Verdict:
    """Put an interval of a difference into a word; see `Comparison`."""
    if low > 0:
        return "better"
    if high < 0:
        return "worse"
    return "equivalent" if max(-low, high) <= EQUIVALENT_WITHIN else "cannot tell"
