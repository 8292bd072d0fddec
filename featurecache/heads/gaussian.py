"""Heads in closed form: one Gaussian for each class with a covariance that all share, and the nearest class mean."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.covariance import ledoit_wolf
from sklearn.utils.validation import check_is_fitted, validate_data

from featurecache.heads.linear.checks import checked_labels

_LEAST_SHRINKAGE = 1e-6


class GaussianDiscriminant(ClassifierMixin, BaseEstimator):
    """Linear discriminant analysis: Gaussians that share one covariance, shrunk as Ledoit and Wolf found best.

    On cached features it equals adapters that are trained by gradient descent (Wang et al., "A Hard-to-Beat Baseline
    for Training-Free CLIP-based Adaptation", ICLR 2024). Unlike scikit-learn's ``LinearDiscriminantAnalysis``, the
    shrinkage is found for the residuals of all classes together (Ledoit & Wolf, "A well-conditioned estimator for
    large-dimensional covariance matrices", J. Multivariate Anal. 88, 2004), so that classes may have a single row.

    Attributes
    ----------
    classes_ : ndarray (n_classes,)
    coef_ : ndarray (n_classes, n_features), float64
    intercept_ : ndarray (n_classes,), float64
    shrinkage_ : float
        Share of the scaled identity in the covariance.
    """

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : array-like of shape (n_samples,)

        Raises
        ------
        ValueError
            Data that scikit-learn's estimators refuse too.
        """
        rows, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
        self.classes_, y_index = checked_labels(y)
        means, counts = _class_means(rows, y_index, len(self.classes_))
        residuals = rows - means[y_index].astype(rows.dtype)
        covariance, self.shrinkage_ = ledoit_wolf(residuals, assume_centered=True)
        covariance = covariance.astype(np.float64)
        variance = float(np.trace(covariance)) / len(covariance)
        # Where no class has two rows that differ, all directions are alike.
        covariance[np.diag_indices_from(covariance)] += _LEAST_SHRINKAGE * variance if variance > 0 else 1.0
        self.coef_ = cho_solve(cho_factor(covariance), means.T).T
        self.intercept_ = np.log(counts / counts.sum()) - 0.5 * (self.coef_ * means).sum(axis=1)
        return self

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return log densities up to a constant, (n_samples, n_classes); for two classes their difference."""
        values = self._values(X)
        return values[:, 1] - values[:, 0] if len(self.classes_) == 2 else values

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the probability of each class, (n_samples, n_classes)."""
        return np.asarray(softmax(self._values(X), axis=1))

    def predict_log_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the logarithm of the probability of each class."""
        return np.log(np.maximum(self.predict_proba(X), np.finfo(np.float64).tiny))

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the most probable class, (n_samples,)."""
        values = self._values(X)
        return np.asarray(self.classes_[values.argmax(axis=1)])

    def _values(self, X: ArrayLike) -> NDArray[np.float64]:
        check_is_fitted(self)
        rows = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        return np.asarray(rows @ self.coef_.T + self.intercept_)


class NearestMean(ClassifierMixin, BaseEstimator):
    """The class whose mean is nearest.

    On features less their mean, normalised, this is SimpleShot (Wang et al., 2019, arXiv:1911.04623, "CL2N").

    Attributes
    ----------
    classes_ : ndarray (n_classes,)
    means_ : ndarray (n_classes, n_features), float64
    """

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit; see `GaussianDiscriminant.fit`."""
        rows, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
        self.classes_, y_index = checked_labels(y)
        self.means_, _ = _class_means(rows, y_index, len(self.classes_))
        return self

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return how much nearer than the origin each mean is, squared, (n_samples, n_classes), or the difference."""
        values = self._values(X)
        return values[:, 1] - values[:, 0] if len(self.classes_) == 2 else values

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the class of the nearest mean, (n_samples,)."""
        values = self._values(X)
        return np.asarray(self.classes_[values.argmax(axis=1)])

    def _values(self, X: ArrayLike) -> NDArray[np.float64]:
        check_is_fitted(self)
        rows = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        return np.asarray(2.0 * (rows @ self.means_.T) - (self.means_**2).sum(axis=1))


def _class_means(
    rows: NDArray[Any], y: NDArray[np.int64], num_classes: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    means = np.stack([rows[y == place].mean(axis=0, dtype=np.float64) for place in range(num_classes)])
    return means, np.bincount(y, minlength=num_classes)
