"""From what a head computes to class probabilities, calibrated by one temperature.

The softmax of a head's decision values, or of the logarithms of its probabilities, divided by one number, keeps the
predicted class. That number is where the log loss on rows not used for training is least: temperature scaling, Guo et
al., "On Calibration of Modern Neural Networks", ICML 2017, section 4.2.

Probabilities of samples, each seen as one view or as the mean of its probabilities over several.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from sklearn.base import BaseEstimator

from featurecache.errors import HeadError
from featurecache.heads.head import HeadMixin

LEAST_PROBABILITY = 1e-12
"""Below, a logarithm would say more of rounding than of a class."""

_NEAR_ONE = 0.7
_MOST_ROWS = 10_000
"""A temperature is fitted to: more say the same of it to a hundredth, and of the log loss to 0.0001."""
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
        Divides the decision values, or the logarithms of probabilities. None means 1.
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
    if temperature != 1.0 or needs_temperature(estimator):
        return softmax(decision_values(estimator, X, n_classes) / temperature, axis=1)
    _check_has_probabilities(estimator)
    proba = _aligned(estimator, estimator.predict_proba(X), n_classes, missing=0.0)
    return proba / proba.sum(axis=1, keepdims=True)


def has_margins(estimator: BaseEstimator) -> bool:
    """Tell whether the softmax of a classifier's decision values is its probabilities."""
    # What others have written may have probabilities that are no softmax of its decision values.
    own = isinstance(estimator, HeadMixin) or not hasattr(estimator, "predict_proba")
    return own and hasattr(estimator, "decision_function")


def has_decisions(estimator: BaseEstimator) -> bool:
    """Tell whether a classifier has probabilities, or decision values to make them of."""
    return hasattr(estimator, "predict_proba") or hasattr(estimator, "decision_function")


def predict_outputs(estimator: BaseEstimator, X: np.ndarray) -> np.ndarray:
    """Return labels or numbers of a head for them, (n_samples, n_outputs) float64: probabilities where there are."""
    found = estimator.predict_proba(X) if hasattr(estimator, "predict_proba") else estimator.predict(X)
    if isinstance(found, list):  # of scikit-learn's own, for each label the probabilities of its absence and presence
        found = np.stack([proba[:, -1] for proba in found], axis=1)
    return np.asarray(found, np.float64).reshape(len(X), -1)


def decision_values(estimator: BaseEstimator, X: np.ndarray, n_classes: int) -> np.ndarray:
    """Return what a softmax makes probabilities of, (n_samples, n_classes) float64.

    Margins of heads that have them; logarithms of the probabilities of others, not below that of `LEAST_PROBABILITY`.
    A class that was not trained on has minus infinity.

    Parameters
    ----------
    estimator, X, n_classes
        As for `predict_proba`.
    """
    if has_margins(estimator):
        values = np.asarray(estimator.decision_function(X), dtype=np.float64)
    else:
        _check_has_probabilities(estimator)
        values = np.log(np.maximum(estimator.predict_proba(X), LEAST_PROBABILITY))
    if values.ndim == 1:
        # Half each way: the softmax of the two columns is then the sigmoid of the one margin.
        values = np.stack([-values / 2, values / 2], axis=1)
    return _aligned(estimator, values, n_classes, missing=-np.inf)


def fit_temperature(
    decisions: np.ndarray, y: np.ndarray, weight: np.ndarray | None = None, *, near_one: bool = False
) -> float:
    """Return the temperature with the least log loss.

    Parameters
    ----------
    decisions : ndarray of shape (n_samples, n_classes) or (n_samples, n_views, n_classes), float64
        Decision values of rows that the head was not trained on, as `decision_values` returns them.
    y : ndarray of shape (n_samples,), class indices
    weight : ndarray of shape (n_samples,), optional
    near_one : bool
        Few rows do not move it far from 1, for heads whose setting was chosen by the log loss on the same rows.

    Returns
    -------
    float
        Between 0.001 and 1000; 1.0 where no row's class was among the trained ones.

    Notes
    -----
    Of n rows that are all right, the temperature that fits best is the smallest there is, and makes every prediction
    certain. So targets are as if half a row of n + 1 had been wrong, after Platt ("Probabilistic outputs for support
    vector machines", 1999, section 2.2), with Jeffreys' prior instead of his. ``near_one`` has instead a prior of the
    logarithm of the temperature: normal, with mean 0 and standard deviation `_NEAR_ONE`.
    """
    num_samples, step = len(y), -(-decisions[..., 0].size // _MOST_ROWS)
    by_view = decisions.reshape(-1, decisions.shape[-1])
    num_views = len(by_view) // max(num_samples, 1)
    by_view, sample = by_view[::step], np.repeat(np.arange(num_samples), num_views)[::step]
    of_label = by_view[np.arange(len(sample)), y[sample]]
    usable = np.isfinite(of_label)
    if not usable.any():
        return 1.0
    values, of_label, sample = by_view[usable], of_label[usable], sample[usable]
    share = np.ones(len(sample)) if weight is None else weight[sample]
    share = share / share.sum()
    known = np.isfinite(values)
    num_classes = known.sum(axis=1)
    others = (np.where(known, values, 0.0).sum(axis=1) - of_label) / np.maximum(num_classes - 1, 1)
    doubt = np.where(num_classes > 1, 0.0 if near_one else 0.5 / (num_samples + 1.0), 0.0)
    pull = 0.5 / (_NEAR_ONE**2 * num_samples) if near_one else 0.0
    # Below the greatest of its row: powers of e are at most one then, and their sum at least.
    top = values.max(axis=1)
    values, target = values - top[:, None], share @ ((1 - doubt) * of_label + doubt * others - top)

    def log_loss(log_temperature: float) -> float:
        scale = np.exp(-log_temperature)
        normaliser = np.log(np.exp(values * scale).sum(axis=1))
        return float(share @ normaliser - target * scale) + pull * log_temperature**2

    found = minimize_scalar(log_loss, bounds=_LOG_TEMPERATURE_BOUNDS, method="bounded", options={"xatol": 1e-8})
    return float(np.exp(found.x))


def _check_has_probabilities(estimator: BaseEstimator) -> None:
    if not hasattr(estimator, "predict_proba"):
        raise HeadError(
            f"a {type(estimator).__name__} has neither predict_proba nor decision_function; wrap it in scikit-learn's "
            "CalibratedClassifierCV, or choose another head"
        )


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


def calibrated(decisions: np.ndarray, temperature: float) -> np.ndarray:
    """Return class probabilities (n_samples, n_classes) of decision values (n_samples, n_views, n_classes)."""
    return np.asarray(softmax(decisions / temperature, axis=2).mean(axis=1))
