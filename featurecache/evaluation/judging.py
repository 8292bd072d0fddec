"""What fitted heads say of samples, each seen as one view or as the mean of its probabilities over several."""

from __future__ import annotations

import numpy as np
from scipy.special import softmax
from sklearn.base import BaseEstimator

from featurecache.evaluation.parts import Part
from featurecache.heads.probability import answers_for, decision_values, fit_temperature, predict_proba


def probabilities(estimator: BaseEstimator, part: Part, temperature: float, n_classes: int) -> np.ndarray:
    """Return class probabilities (n_samples, n_classes) float64, the mean over what a sample is judged on."""
    n_samples, n_views, n_features = part.judged.shape
    rows = part.judged.reshape(n_samples * n_views, n_features)
    return predict_proba(estimator, rows, temperature, n_classes).reshape(n_samples, n_views, -1).mean(axis=1)


def said(estimator: BaseEstimator, part: Part) -> np.ndarray:
    """Return what a head says of labels or numbers, (n_samples, n_outputs) float64: the mean over a sample's views."""
    n_samples, n_views, n_features = part.judged.shape
    return (
        answers_for(estimator, part.judged.reshape(n_samples * n_views, n_features))
        .reshape(n_samples, n_views, -1)
        .mean(axis=1)
    )


def predictions(estimator: BaseEstimator, part: Part, temperature: float, n_classes: int) -> np.ndarray:
    """Return class indices (n_samples,) int64."""
    if part.several:
        return probabilities(estimator, part, temperature, n_classes).argmax(axis=1)
    return np.asarray(estimator.predict(part.judged[:, 0]), dtype=np.int64)


def decisions(estimator: BaseEstimator, part: Part, n_classes: int) -> np.ndarray:
    """Return decision values (n_samples, n_views, n_classes) float64."""
    n_samples, n_views, n_features = part.judged.shape
    rows = part.judged.reshape(n_samples * n_views, n_features)
    return decision_values(estimator, rows, n_classes).reshape(n_samples, n_views, n_classes)


def temperature_of(values: np.ndarray, y: np.ndarray) -> float:
    """Return the temperature that suits decision values (n_samples, n_views, n_classes), each view a row."""
    return fit_temperature(values.reshape(-1, values.shape[2]), np.repeat(y, values.shape[1]))


def most_probable(values: np.ndarray, temperature: float) -> np.ndarray:
    """Return the class of the greatest mean probability over the views, (n_samples,) int64."""
    return softmax(values / temperature, axis=2).mean(axis=1).argmax(axis=1)
