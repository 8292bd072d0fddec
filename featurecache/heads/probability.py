"""From what a head computes to class probabilities: the head's own, or its margins made honest by one temperature.

Heads without probabilities (the support vector machines and ridge) give decision values. Their softmax, with the
values divided by one number, keeps the predicted class and is calibrated by choosing that number where the log loss
on rows not used for training is least: temperature scaling, Guo et al., "On Calibration of Modern Neural Networks",
ICML 2017, section 4.2.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, softmax
from sklearn.base import BaseEstimator

from featurecache.errors import HeadError

# Beyond these probabilities are zeros and ones, or all alike, in the digits that are printed.
_LOG_TEMPERATURE_BOUNDS = (np.log(1e-3), np.log(1e3))


def needs_temperature(estimator: BaseEstimator) -> bool:
    """Tell whether the head has decision values but no probabilities of its own."""
    return not hasattr(estimator, "predict_proba") and hasattr(estimator, "decision_function")


def predict_proba(estimator: BaseEstimator, X: np.ndarray, temperature: float | None, n_classes: int) -> np.ndarray:
    """Return class probabilities, one column per class index.

    Parameters
    ----------
    estimator : classifier
        Fitted on class indices ``0..n_classes-1``.
    X : ndarray of shape (n_samples, n_features)
    temperature : float or None
        Divides the decision values; not used by heads that have probabilities of their own. None means 1.
    n_classes : int

    Returns
    -------
    ndarray of shape (n_samples, n_classes), float64
        Rows sum to one. A class that was missing from the training rows has probability zero.

    Raises
    ------
    HeadError
        The temperature is not positive, or the head knows classes that are not in ``0..n_classes-1``.
    """
    temperature = 1.0 if temperature is None else temperature
    if not (np.isfinite(temperature) and temperature > 0):
        raise HeadError(f"temperature must be positive and finite, got {temperature!r}; fit it with fit_temperature")
    if needs_temperature(estimator):
        return softmax(decision_values(estimator, X, n_classes) / temperature, axis=1)
    if not hasattr(estimator, "predict_proba"):
        raise HeadError(
            f"a {type(estimator).__name__} has neither predict_proba nor decision_function; wrap it in scikit-learn's "
            "CalibratedClassifierCV, or choose another head"
        )
    proba = _aligned(estimator, estimator.predict_proba(X), n_classes, missing=0.0)
    return proba / proba.sum(axis=1, keepdims=True)


def predict_outputs(estimator: BaseEstimator, X: np.ndarray) -> np.ndarray:
    """Return labels or numbers of a head for them, (n_samples, n_outputs) float64: probabilities where there are."""
    found = estimator.predict_proba(X) if hasattr(estimator, "predict_proba") else estimator.predict(X)
    if isinstance(found, list):  # of scikit-learn's own, for each label the probabilities of its absence and presence
        found = np.stack([proba[:, -1] for proba in found], axis=1)
    return np.asarray(found, np.float64).reshape(len(X), -1)


def decision_values(estimator: BaseEstimator, X: np.ndarray, n_classes: int) -> np.ndarray:
    """Return decision values as (n_samples, n_classes) float64; minus infinity for a class never trained on.

    Parameters
    ----------
    estimator, X, n_classes
        As for `predict_proba`.
    """
    values = np.asarray(estimator.decision_function(X), dtype=np.float64)
    if values.ndim == 1:
        # Half each way: the softmax of the two columns is then the sigmoid of the one margin.
        values = np.stack([-values / 2, values / 2], axis=1)
    return _aligned(estimator, values, n_classes, missing=-np.inf)


def fit_temperature(decisions: np.ndarray, y: np.ndarray) -> float:
    """Return the temperature with the least log loss.

    Parameters
    ----------
    decisions : ndarray of shape (n_samples, n_classes), float64
        Decision values of rows that the head was not trained on, as `decision_values` returns them.
    y : ndarray of shape (n_samples,), class indices

    Returns
    -------
    float
        Between 0.001 and 1000; 1.0 where no row's class was among the trained ones.
    """
    of_label = decisions[np.arange(len(y)), y]
    usable = np.isfinite(of_label)
    if not usable.any():
        return 1.0
    decisions, of_label = decisions[usable], of_label[usable]

    def log_loss(log_temperature: float) -> float:
        scale = np.exp(-log_temperature)
        return float(np.mean(logsumexp(decisions * scale, axis=1) - of_label * scale))

    return float(np.exp(minimize_scalar(log_loss, bounds=_LOG_TEMPERATURE_BOUNDS, method="bounded").x))


def _aligned(estimator: BaseEstimator, values: np.ndarray, n_classes: int, *, missing: float) -> np.ndarray:
    classes = np.asarray(estimator.classes_)
    if classes.dtype.kind not in "iu" or classes.min() < 0 or classes.max() >= n_classes:
        raise HeadError(
            f"the head was fitted on classes {classes.tolist()[:5]}, not on indices 0..{n_classes - 1}; "
            "encode the labels as class indices before fitting"
        )
    aligned = np.full((len(values), n_classes), missing, dtype=np.float64)
    aligned[:, classes] = values
    return aligned
