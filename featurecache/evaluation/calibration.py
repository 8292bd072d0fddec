"""How far probabilities can be taken at their word."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from sklearn import metrics

NUM_BINS = 10


@dataclass(frozen=True, slots=True)
class Bin:
    """Samples whose predictions have about the same probability."""

    n: int
    probability: float
    """Mean of the probabilities of their predictions."""
    right: float
    """Share of their predictions that are right."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """How the probabilities of predictions compare with how often these are right.

    Attributes
    ----------
    log_loss : float
        In nats.
    expected_calibration_error : float
        Mean difference between the probability of the prediction and the share of right predictions, over bins of about
        as many samples each (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3; equal bins
        after Nguyen & O'Connor, EMNLP 2015).
    bins : list of Bin
        From the least certain to the most.
    """

    log_loss: float
    expected_calibration_error: float
    bins: list[Bin]

    def to_json(self) -> dict[str, object]:
        """Return plain JSON values."""
        return asdict(self)


def calibration(y: np.ndarray, proba: np.ndarray) -> Calibration:
    """Compare the probabilities of a head's predictions with how often they are right.

    Parameters
    ----------
    y : ndarray of shape (n_samples,), class indices
    proba : ndarray of shape (n_samples, n_classes)
        Rows sum to one; of samples that nothing was fitted on.
    """
    confidence, right = proba.max(axis=1), proba.argmax(axis=1) == y
    # As many samples in each bin: with bins of equal width, nearly all samples of a good head lie in the last one.
    groups = np.array_split(np.argsort(confidence, kind="stable"), min(NUM_BINS, len(y)))
    bins = [Bin(len(some), float(confidence[some].mean()), float(right[some].mean())) for some in groups]
    error = sum(bin_.n * abs(bin_.probability - bin_.right) for bin_ in bins) / len(y)
    return Calibration(log_loss(y, proba), float(error), bins)


def log_loss(y: np.ndarray, proba: np.ndarray) -> float:
    """Return the mean log loss in nats of probabilities (n_samples, n_classes); finite also for certain mistakes."""
    # One certain mistake would cost infinity, and hide all others.
    clipped = np.clip(proba, 1e-15, None)
    return float(metrics.log_loss(y, clipped / clipped.sum(axis=1, keepdims=True), labels=np.arange(proba.shape[1])))
