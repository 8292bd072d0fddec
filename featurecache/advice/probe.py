"""A linear probe in closed form: ridge regression, predicted out of fold for every regularisation at once.

A linear smoother with a quadratic penalty gives the prediction of a fold that it has not seen from a single fit on all
rows: the error out of fold is ``(I - H_SS)^-1`` times the error in the fold S, where H is the hat matrix (Cook &
Weisberg, "Residuals and Influence in Regression", 1982, 2.2; for ridge regression with an intercept that is not
penalised as well). So one eigendecomposition serves all folds and all penalties. Features are centred and scaled on all
rows, which uses no target.

The penalty of each fold is chosen on the predictions for the other folds, by their squared error.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from featurecache.heads.preparation import scaled

Floats = NDArray[np.float64]
PENALTIES = np.logspace(-3.5, 2.5, 11)
"""Relative to the mean eigenvalue of the covariance, so that they mean the same for any number of features."""
_LEAST_EIGENVALUE = 1e-10
"""Of the largest: below it there is only rounding."""


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """Predictions of a linear probe.

    Attributes
    ----------
    out_of_fold : ndarray of float64 (n, n_outputs)
        Of fits that have not seen the fold of a row.
    in_sample : ndarray of float64 (n, n_outputs)
        Of the fit on all rows, with the penalty that most folds chose.
    penalty : float
    """

    out_of_fold: Floats
    in_sample: Floats
    penalty: float


def linear_probe(X: NDArray[np.floating], Y: Floats, folds: NDArray[np.int64]) -> Probe:
    """Fit a probe and predict every row out of fold.

    Parameters
    ----------
    X : ndarray (n, d)
        Features.
    Y : ndarray of float64 (n, n_outputs)
        Targets; classes as columns of 0 and 1 (`one_hot`).
    folds : ndarray of int (n,)
        From 0 on.
    """
    rows = scaled(X)
    vectors, values = _axes(rows)
    centre = Y.mean(axis=0)
    projected = vectors.T @ (Y - centre)
    penalties = PENALTIES * (max(float(np.sum(values)), 1e-300) / max(len(values), 1))
    members = [np.flatnonzero(folds == number) for number in np.unique(folds)]
    found = np.empty((len(penalties), *Y.shape))
    for index, penalty in enumerate(penalties):
        shrink = values / (values + penalty)
        residual = Y - centre - vectors @ (shrink[:, None] * projected)
        for fold in members:
            of_fold = vectors[fold]
            # The intercept is the mean: one more direction, without a penalty.
            hat = (of_fold * shrink) @ of_fold.T + 1.0 / len(Y)
            error = linalg.solve(np.eye(len(fold)) - hat, residual[fold], assume_a="pos")
            found[index, fold] = Y[fold] - error
    squared = ((found - Y) ** 2).sum(axis=2)
    out_of_fold, chosen = np.empty(Y.shape), np.empty(len(members), np.int64)
    total = squared.sum(axis=1)
    for number, fold in enumerate(members):
        # The last of equals: the strongest penalty.
        outside = total - squared[:, fold].sum(axis=1) if len(members) > 1 else total
        chosen[number] = len(penalties) - 1 - int(np.argmin(outside[::-1]))
        out_of_fold[fold] = found[chosen[number], fold]
    penalty = float(penalties[int(np.median(chosen))])
    in_sample = centre + vectors @ ((values / (values + penalty))[:, None] * projected)
    return Probe(out_of_fold, in_sample, penalty)


def _axes(rows: Floats) -> tuple[Floats, Floats]:
    """Return the left singular vectors (n, r) of centred rows, and the squares of the singular values."""
    n, d = rows.shape
    # By the smaller of the two Gram matrices: both have the same eigenvalues.
    if n <= d:
        values, vectors = linalg.eigh(rows @ rows.T)
    else:
        values, right = linalg.eigh(rows.T @ rows)
        vectors = rows @ right
    kept = values > _LEAST_EIGENVALUE * max(float(values[-1]), 1e-300)
    values, vectors = values[kept], vectors[:, kept]
    if n > d:
        vectors = vectors / np.sqrt(values)
    return vectors, values


def one_hot(y: NDArray[np.int64], n_classes: int) -> Floats:
    """Return class indices (n,) as columns of 0 and 1, (n, n_classes)."""
    return np.eye(n_classes)[y]


def predict_new(X: NDArray[np.floating], Y: Floats, X_new: NDArray[np.floating], penalty: float) -> Floats:
    """Fit a probe on all rows and predict others.

    Parameters
    ----------
    X : ndarray (n, d)
    Y : ndarray of float64 (n, n_outputs)
    X_new : ndarray (m, d)
        Scaled as the rows that are fitted on.
    penalty : float
        `Probe.penalty`.
    """
    whole = X.astype(np.float64)
    mean = whole.mean(axis=0)
    rows = scaled(whole)
    # The scale of each feature, from what scaling made of it.
    spread, after = np.sqrt(((whole - mean) ** 2).sum(axis=0)), np.sqrt((rows**2).sum(axis=0))
    scale = np.divide(after, spread, out=np.zeros_like(after), where=spread > 0)
    others = (X_new - mean) * scale
    centre = Y.mean(axis=0)
    if len(rows) <= rows.shape[1]:
        kernel = rows @ rows.T
        kernel[np.diag_indices_from(kernel)] += penalty
        coefficients = rows.T @ linalg.solve(kernel, Y - centre, assume_a="pos")
    else:
        covariance = rows.T @ rows
        covariance[np.diag_indices_from(covariance)] += penalty
        coefficients = linalg.solve(covariance, rows.T @ (Y - centre), assume_a="pos")
    return np.asarray(centre + others @ coefficients)
