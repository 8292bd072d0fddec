"""Probabilities of samples, each seen as one view or as the mean of its probabilities over several."""

from __future__ import annotations

import numpy as np
from scipy.special import softmax


def calibrated(decisions: np.ndarray, temperature: float) -> np.ndarray:
    """Return class probabilities (n_samples, n_classes) of decision values (n_samples, n_views, n_classes)."""
    return np.asarray(softmax(decisions / temperature, axis=2).mean(axis=1))
