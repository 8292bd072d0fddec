"""How far probabilities can be taken at their word."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn import metrics

NUM_BINS = 10


def calibration(y: np.ndarray, proba: np.ndarray) -> dict[str, Any]:
    """Compare the probabilities of a head's predictions with how often they are right.

    Parameters
    ----------
    y : ndarray of shape (n_samples,), class indices
    proba : ndarray of shape (n_samples, n_classes)
        Rows sum to one; of samples that nothing was fitted on.

    Returns
    -------
    dict
        ``log_loss`` in nats; ``expected_calibration_error``, the mean difference between the probability of the
        prediction and the share of right predictions, over bins of about as many samples each (Guo et al., "On
        Calibration of Modern Neural Networks", ICML 2017, equation 3; equal bins after Nguyen & O'Connor, EMNLP 2015);
        and those bins:
        ``{"n", "probability", "right"}``, from the least certain to the most.
    """
    confidence, right = proba.max(axis=1), proba.argmax(axis=1) == y
    bins = []
    for indices in np.array_split(np.argsort(confidence, kind="stable"), min(NUM_BINS, len(y))):
        stated, observed = float(confidence[indices].mean()), float(right[indices].mean())
        bins.append({"n": len(indices), "probability": stated, "right": observed})
    error = sum(each["n"] * abs(each["probability"] - each["right"]) for each in bins) / len(y)
    return {"log_loss": log_loss(y, proba), "expected_calibration_error": float(error), "bins": bins}


def log_loss(y: np.ndarray, proba: np.ndarray) -> float:
    """Return the mean log loss in nats of probabilities (n_samples, n_classes); finite also for certain mistakes."""
    clipped = np.clip(proba, 1e-15, None)
    return float(metrics.log_loss(y, clipped / clipped.sum(axis=1, keepdims=True), labels=np.arange(proba.shape[1])))
