"""What fitted heads say of samples, each seen as one view or as the mean of its probabilities over several."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import softmax
from sklearn.base import BaseEstimator

from featurecache.evaluation.parts import Part
from featurecache.heads.probability import answers_for, decision_values, fit_temperature, predict_proba


def probabilities(estimator: BaseEstimator, part: Part, temperature: float, n_classes: int) -> np.ndarray:
    """Return class probabilities (n_samples, n_classes) float64, the mean over what a sample is judged on."""
    return _said_of(part, lambda rows: predict_proba(estimator, rows, temperature, n_classes)).mean(axis=1)


def said(estimator: BaseEstimator, part: Part) -> np.ndarray:
    """Return what a head says of labels or numbers, (n_samples, n_outputs) float64: the mean over a sample's views."""
    return _said_of(part, lambda rows: answers_for(estimator, rows)).mean(axis=1)


def predictions(estimator: BaseEstimator, part: Part, temperature: float, n_classes: int) -> np.ndarray:
    """Return class indices (n_samples,) int64."""
    if part.several:
        return probabilities(estimator, part, temperature, n_classes).argmax(axis=1)
    return _said_of(part, lambda rows: np.asarray(estimator.predict(rows), np.int64))[:, 0, 0]


def decisions(estimator: BaseEstimator, part: Part, n_classes: int) -> np.ndarray:
    """Return decision values (n_samples, n_views, n_classes) float64."""
    return _said_of(part, lambda rows: decision_values(estimator, rows, n_classes))


def _said_of(part: Part, say: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return what is said of the rows of each sample, (n_samples, n_views, n_outputs)."""
    found = [say(rows) for rows in part.rows_to_judge()]
    whole = found[0] if len(found) == 1 else np.concatenate(found)
    return whole.reshape(len(part), part.judged.shape[1], -1)


def temperature_of(values: np.ndarray, y: np.ndarray) -> float:
    """Return the temperature that suits decision values (n_samples, n_views, n_classes), each view a row."""
    return fit_temperature(values.reshape(-1, values.shape[2]), np.repeat(y, values.shape[1]))


def most_probable(values: np.ndarray, temperature: float) -> np.ndarray:
    """Return the class of the greatest mean probability over the views, (n_samples,) int64."""
    return softmax(values / temperature, axis=2).mean(axis=1).argmax(axis=1)
