"""What fitted heads predict for samples, each seen as one view or as the mean of its probabilities over several."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import softmax

from featurecache.evaluation.split_data import SplitData


def per_view(data: SplitData, predict: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return what a function of rows predicts for each view of each sample, (n_samples, n_views, n_outputs)."""
    # Features on disk come block by block; what is predicted from them fits into memory.
    found = [predict(rows) for rows in data.eval_blocks()]
    whole = found[0] if len(found) == 1 else np.concatenate(found)
    return whole.reshape(len(data), data.eval_views.shape[1], -1)


def calibrated(decisions: np.ndarray, temperature: float) -> np.ndarray:
    """Return class probabilities (n_samples, n_classes) of decision values (n_samples, n_views, n_classes)."""
    return np.asarray(softmax(decisions / temperature, axis=2).mean(axis=1))
