"""What fitted heads predict for samples, each seen as one view or as the mean of its probabilities over several."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import softmax
from sklearn.base import BaseEstimator

from featurecache.evaluation.split_data import SplitData
from featurecache.heads.probability import decision_values, has_decisions, predict_proba


def split_proba(estimator: BaseEstimator, data: SplitData, temperature: float, n_classes: int) -> np.ndarray:
    """Return class probabilities, the mean over the views of a sample.

    Parameters
    ----------
    estimator : classifier
        Fitted on class indices ``0..n_classes-1``.
    data : SplitData
    temperature : float
        Divides the decision values.
    n_classes : int

    Returns
    -------
    ndarray (n_samples, n_classes), float64
    """
    return per_view(data, lambda rows: predict_proba(estimator, rows, temperature, n_classes)).mean(axis=1)


def split_classes(estimator: BaseEstimator, data: SplitData, temperature: float, n_classes: int) -> np.ndarray:
    """Return class indices (n_samples,) int64; see `split_proba` for the parameters.

    Parameters
    ----------
    estimator, data, temperature, n_classes
        As for `split_proba`.
    """
    if data.has_several_views:
        return split_proba(estimator, data, temperature, n_classes).argmax(axis=1)
    # Not the greatest probability: heads without probabilities would need a temperature for that.
    return per_view(data, lambda rows: np.asarray(estimator.predict(rows), np.int64))[:, 0, 0]


def per_view(data: SplitData, predict: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return what a function of rows predicts for each view of each sample, (n_samples, n_views, n_outputs)."""
    # Features on disk come block by block; what is predicted from them fits into memory.
    found = [predict(rows) for rows in data.eval_blocks()]
    whole = found[0] if len(found) == 1 else np.concatenate(found)
    return whole.reshape(len(data), data.eval_views.shape[1], -1)


def decisions_of(estimator: BaseEstimator, data: SplitData, n_classes: int) -> np.ndarray | None:
    """Return decision values, (n_samples, n_views, n_classes) float64; None of a head without probabilities.

    Parameters
    ----------
    estimator : classifier
    data : SplitData
    n_classes : int
    """
    if not has_decisions(estimator):
        return None
    return per_view(data, lambda rows: decision_values(estimator, rows, n_classes))


def calibrated(decisions: np.ndarray, temperature: float) -> np.ndarray:
    """Return class probabilities (n_samples, n_classes) of decision values (n_samples, n_views, n_classes)."""
    return np.asarray(softmax(decisions / temperature, axis=2).mean(axis=1))
