"""Features of a source domain made like those of a target domain that has no labels, in several ways.

Each method gives two maps: one for the source samples that a head is fitted on, one for target samples; the second is
affine, so that a linear head takes it up into its coefficients and needs nothing else later.

Which way to trust is told by `featurecache.evaluation.agreement`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from featurecache.errors import MissingExtraError, RequestError
from featurecache.heads.preparation import PRIOR_ROWS, shrunk_variance
from featurecache.wording import counted

Floats = NDArray[np.float64]
METHODS: Final = ("source", "standardize", "coral", "subspace", "transport")
NUM_AXES: Final = 20
"""Of subspaces: few enough that a hundred target samples tell them."""


@dataclass(frozen=True, slots=True, eq=False)
class Adaptation:
    """What a method made of two domains.

    Attributes
    ----------
    method : str
    of_source : callable
        Takes source samples (n, d) and returns what a head is fitted on, (n, k).
    mean : ndarray (d,)
    matrix : ndarray (d, k)
        Of target samples a head sees ``(X - mean) @ matrix``.
    """

    method: str
    of_source: Callable[[NDArray[Any]], Floats]
    mean: Floats
    matrix: Floats

    def of_target(self, X: NDArray[Any]) -> Floats:
        """Return what a head sees of target samples (n, d), (n, k)."""
        return np.asarray((X - self.mean) @ self.matrix)

    def unfold(self, coef: Floats, intercept: Floats) -> tuple[Floats, Floats]:
        """Return coefficients and intercept for target samples as they come, of a linear head for adapted ones.

        Parameters
        ----------
        coef : ndarray (n_outputs, k)
        intercept : ndarray (n_outputs,)
        """
        unfolded = coef @ self.matrix.T
        return unfolded, intercept - unfolded @ self.mean


def fit_adaptation(method: str, X: NDArray[Any], y: NDArray[np.int64], target: NDArray[Any]) -> Adaptation:
    """Fit a method to two domains.

    Parameters
    ----------
    method : str
        One of `METHODS`. ``source`` leaves features as they are: what every other method has to beat. ``standardize``
        standardises each domain by itself, and all that follow begin with that. ``coral`` gives the source the
        covariance of the target (Sun, Feng & Saenko, "Return of frustratingly easy domain adaptation", AAAI 2016,
        algorithm 1). ``subspace`` turns the main axes of the source to those of the target (Fernando et al.,
        "Unsupervised visual domain adaptation using subspace alignment", ICCV 2013, equation 3). ``transport`` moves
        the source onto the target by optimal transport that keeps classes together (Courty et al., "Optimal transport
        for domain adaptation", PAMI 39, 2017; the library POT).
    X : ndarray (n, d)
        Source samples.
    y : ndarray of int64 (n,)
        Their classes, which only ``transport`` uses.
    target : ndarray (m, d)
        Target samples.

    Raises
    ------
    RequestError
        An unknown method, or fewer than two target samples.
    MissingExtraError
        ``transport`` without the extra ``adapt``.
    """
    if method not in METHODS:
        raise RequestError(f"unknown way to adapt {method!r}; known: auto, {', '.join(METHODS)}")
    if len(target) < 2:
        raise RequestError(
            f"the target domain has {counted(len(target), 'sample')} with features; adapting takes two at least"
        )
    X, target, d = X.astype(np.float64), target.astype(np.float64), X.shape[1]
    if method == "source":
        return Adaptation(method, lambda rows: np.asarray(rows, np.float64), np.zeros(d), np.eye(d))
    (mean, scale), (mean_t, scale_t) = standard_scale(X), standard_scale(target)
    standard, standard_t = (X - mean) / scale, (target - mean_t) / scale_t
    of_target = np.diag(1 / scale_t)
    if method == "transport":
        moved = _transport(standard, y, standard_t)
        return Adaptation(method, lambda rows: moved((rows - mean) / scale), mean_t, of_target)
    if method == "standardize":
        return Adaptation(method, lambda rows: (rows - mean) / scale, mean_t, of_target)
    if method == "coral":
        matrix = (_power(standard, -0.5) @ _power(standard_t, 0.5)) / scale[:, None]
    else:
        count = min(NUM_AXES, d, len(X) - 1, len(target) - 1)
        axes, axes_t = (np.linalg.svd(rows, full_matrices=False)[2][:count].T for rows in (standard, standard_t))
        matrix, of_target = (axes / scale[:, None]) @ (axes.T @ axes_t), axes_t / scale_t[:, None]
    return Adaptation(method, lambda rows: (rows - mean) @ matrix, mean_t, of_target)


def _transport(X: Floats, y: NDArray[np.int64], target: Floats) -> Callable[[Floats], Floats]:
    """Return what moves standardised rows of the source onto those of the target, samples of one class together."""
    if find_spec("ot") is None:
        raise MissingExtraError("POT, which --adapt transport needs,", "adapt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own code, when that is compiled first
        domains = import_module("ot.da")
    plan = domains.SinkhornLpl1Transport(reg_e=0.1, reg_cl=0.1, norm="max", max_iter=10)
    with warnings.catch_warnings():
        # A plan that has not settled is judged as it is, like any other.
        warnings.filterwarnings("ignore", "Sinkhorn did not converge", UserWarning)
        plan.fit(Xs=X, ys=y, Xt=target)
    return lambda rows: np.asarray(plan.transform(Xs=rows))


def able_methods() -> list[str]:
    """Return the methods that work with what is installed."""
    return [name for name in METHODS if name != "transport" or find_spec("ot") is not None]


def corrected_prior(
    proba: NDArray[np.float64], prior: NDArray[np.float64], *, max_iter: int = 1000, tol: float = 1e-8
) -> NDArray[np.float64]:
    """Return the shares of classes in a target domain by expectation maximisation, (n_classes,).

    Right only where domains differ in nothing else: classes look alike in both, and probabilities are calibrated
    (Saerens, Latinne & Decaestecker, "Adjusting the outputs of a classifier to new a priori probabilities", Neural
    Computation 14, 2002, equations 2.9 and 2.10).

    Parameters
    ----------
    proba : ndarray (n, n_classes)
        Of target samples.
    prior : ndarray (n_classes,)
        Shares of the classes among the samples that the head was fitted on.
    max_iter : int
    tol : float
        Largest change of a share at which it ends.
    """
    shares = prior.copy()
    for _ in range(max_iter):
        weighted = proba * (shares / prior)
        # A row to whose classes the shares leave nothing has no part.
        weighted /= np.maximum(weighted.sum(axis=1, keepdims=True), 1e-300)
        before, shares = shares, weighted.mean(axis=0)
        if np.abs(shares - before).max() < tol:
            break
    return shares


def shares_by_confusion(
    confusion: NDArray[np.float64], predicted: NDArray[np.float64], prior: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the shares of classes in a target domain from what a head confuses, (n_classes,).

    Right only where classes look alike in both domains (Lipton, Wang & Smola, "Detecting and correcting for label shift
    with black box predictors", ICML 2018, equation 4); shares are not negative, and sum to one.

    Parameters
    ----------
    confusion : ndarray (n_classes, n_classes)
        Joint shares of predicted (rows) and true class, out of fold on the source.
    predicted : ndarray (n_classes,)
        Shares of the classes predicted in the target.
    prior : ndarray (n_classes,)
        Of the source.
    """
    from scipy.optimize import nnls

    # Not the inverse of the confusion: shares from that may be negative.
    ratios, _ = nnls(confusion, predicted)
    shares = ratios * prior
    return np.asarray(shares / shares.sum()) if shares.sum() > 0 else prior


def shifted_intercept(
    intercept: Floats, shares: NDArray[np.float64], prior: NDArray[np.float64], classes: Sequence[int]
) -> Floats:
    """Return the intercept of a logistic head for other shares of the classes.

    Parameters
    ----------
    intercept : ndarray (n_classes,) or (1,)
        Of two classes there may be one for both.
    shares, prior : ndarray (n_classes,)
        In the target, and among the samples that it was fitted on.
    classes : sequence of int
        Which classes the head knows, in the order of its intercepts.
    """
    # A class that no target sample seems to have keeps a share above zero, and its intercept stays finite.
    change = np.log(np.maximum(shares, 1e-6)[list(classes)]) - np.log(np.maximum(prior, 1e-6)[list(classes)])
    return intercept + (change[1:] - change[:1] if len(intercept) == 1 and len(change) == 2 else change)


def standard_scale(X: Floats) -> tuple[Floats, Floats]:
    """Return mean and scale of each feature of samples (n, d), variances of few samples drawn to their mean."""
    variance = X.var(axis=0)
    # What rounding leaves of a constant feature is no variance.
    varies = variance > 1e-12 * max(float(variance.max(initial=0.0)), 1e-300)
    if not varies.any():
        return X.mean(axis=0), np.ones(X.shape[1])
    scale = np.sqrt(np.asarray(shrunk_variance(variance, varies, float(len(X)), PRIOR_ROWS)))
    return X.mean(axis=0), np.where(varies, scale, 1.0)


def _power(rows: Floats, exponent: float) -> Floats:
    """Return a power of the covariance of centred rows, with the identity added as the paper does."""
    covariance = rows.T @ rows / max(len(rows) - 1, 1)
    values, vectors = np.linalg.eigh(covariance + np.eye(len(covariance)))
    return np.asarray((vectors * values**exponent) @ vectors.T)
