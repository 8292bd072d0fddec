"""Which of several heads to trust on samples without labels: the one that answers near neighbours alike.

Over 12 pairs of domains and three networks that was right where the scores of the literature (entropy, mutual
information, circular validation) were not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from featurecache.evaluation.intervals import mean_interval
from featurecache.heads.adaptation import Floats, standard_scale

MOST_OF_ONE_CLASS: Final = 0.85
"""Where a larger share gets one class, neighbours agree on the rest by chance, and nothing is told by them."""
_NEIGHBOURS = 5
_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far near neighbours get the same class from a head, beside the first of several heads.

    Attributes
    ----------
    value : float
        Mean over the samples; see `agreement`.
    difference, low, high : float
        Of that from the first head, with an interval that holds for all heads together; infinite ends where there are
        too few samples for one.
    num_changed : int
        Samples that get another class than from the first head.
    """

    value: float
    difference: float
    low: float
    high: float
    num_changed: int

    @property
    def difference_text(self) -> str:
        """The difference from the first head, for people."""
        if not self.num_changed:
            return "the same answers"
        interval = f"{self.low:+.3f} to {self.high:+.3f}" if np.isfinite(self.low) else "no interval"
        return f"{self.difference:+.3f} ({interval})"


def choose_by_agreement(
    X: NDArray[Any], predictions: Sequence[NDArray[np.int64]], alike: NDArray[np.int64] | None = None
) -> tuple[int, list[Agreement], bool]:
    """Return which of several heads to take, how far neighbours agree for each, and whether the target tells nothing.

    The first is taken unless the one with the highest agreement is above it by more than chance, or where the first
    gives most samples one class: such a target tells nothing.

    Parameters
    ----------
    X : ndarray (n, d)
        Samples.
    predictions : sequence of ndarray of int64 (n,)
        The classes that each head gives them.
    alike : ndarray of int64 (n,), optional
        Samples with the same number are near-copies, which count as one.
    """
    shares = [agreement(X, classes, alike) for classes in predictions]
    # The best of several looks better by chance: each interval is as wide as holds for all of them.
    level = 1 - 0.05 / max(len(predictions) - 1, 1)
    found = []
    for classes, share in zip(predictions, shares, strict=True):
        low, high = mean_interval(share - shares[0], alike, level=level) or (-np.inf, np.inf)
        difference = float((share - shares[0]).mean())
        changed = int((classes != predictions[0]).sum())
        found.append(Agreement(float(share.mean()), difference, low, high, changed))
    best = int(np.argmax([score.value for score in found]))
    is_of_one_class = bool(np.bincount(predictions[0]).max(initial=0) > MOST_OF_ONE_CLASS * len(X))
    is_borne_out = found[best].low > 0 and not is_of_one_class
    return (best if is_borne_out else 0), found, is_of_one_class


def agreement(X: NDArray[Any], classes: NDArray[np.int64], alike: NDArray[np.int64] | None = None) -> Floats:
    """Return how far the nearest neighbours of each sample get the same class, beyond chance, (n,).

    The mean is a kappa (Cohen, "A coefficient of agreement for nominal scales", 1960): 1 where neighbours always agree,
    0 where they agree as often as any two samples do, so that one class for all is no agreement.

    Parameters
    ----------
    X : ndarray (n, d)
        Target samples as they are, so that all methods are told by the same neighbours.
    classes : ndarray of int64 (n,)
        What a head predicts for them.
    alike : ndarray of int64 (n,), optional
        Samples with the same number are near-copies, and no neighbours of each other.
    """
    own = np.arange(len(X)) if alike is None else alike
    mean, scale = standard_scale(np.asarray(X, np.float64))
    rows = (X - mean) / scale
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    count, shares = min(_NEIGHBOURS, len(rows) - 1), np.empty(len(rows))
    for start in range(0, len(rows), _BLOCK):
        cosine = rows[start : start + _BLOCK] @ rows.T
        mine, stop = own[start : start + _BLOCK], start + len(cosine)
        # Neither the sample itself nor a near-copy: they get its class from any head.
        cosine[mine[:, None] == own] = -np.inf
        nearest = np.argpartition(-cosine, count - 1, axis=1)[:, :count]
        able = np.take_along_axis(cosine, nearest, axis=1) > -np.inf
        same = (classes[nearest] == classes[start:stop, None]) & able
        shares[start:stop] = same.sum(axis=1) / np.maximum(able.sum(axis=1), 1)
    of_class = np.bincount(classes) / len(classes)
    expected = float(np.sum(of_class**2))
    # One class for all: agreement is as expected, and the quotient is not defined.
    if expected >= 1 - 1e-12:
        return np.zeros(len(rows))
    return np.asarray((shares - of_class[classes]) / (1 - expected))
