"""Heads in closed form: one Gaussian for each class with a covariance that all share, and the nearest class mean."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cho_factor, cho_solve
from sklearn.covariance import ledoit_wolf
from sklearn.utils.validation import validate_data

from featurecache.heads.checks import REAL_TYPES, checked_labels
from featurecache.heads.linear.classifier import LinearClassifier, ProbabilisticClassifier

_LEAST_SHRINKAGE = 1e-6


class GaussianDiscriminant(ProbabilisticClassifier):
    """Linear discriminant analysis: Gaussians that share one covariance, shrunk as Ledoit and Wolf found best.

    On cached features it equals adapters that are trained by gradient descent (Wang et al., "A Hard-to-Beat Baseline
    for Training-Free CLIP-based Adaptation", ICLR 2024). Unlike scikit-learn's ``LinearDiscriminantAnalysis``, the
    shrinkage is found for the residuals of all classes together (Ledoit & Wolf, "A well-conditioned estimator for
    large-dimensional covariance matrices", J. Multivariate Anal. 88, 2004), so that classes may have a single row.

    Attributes
    ----------
    classes_ : ndarray (n_classes,)
    coef_, intercept_ : ndarray, float64
        As in `LinearClassifier`: the log density of each class, but for a constant.
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
        rows, y = validate_data(self, X, y, dtype=REAL_TYPES)
        self.classes_, y_index = checked_labels(y)
        means, counts = _class_means(rows, y_index, len(self.classes_))
        residuals = rows - means[y_index].astype(rows.dtype)
        covariance, self.shrinkage_ = ledoit_wolf(residuals, assume_centered=True)
        covariance = covariance.astype(np.float64)
        variance = float(np.trace(covariance)) / len(covariance)
        # Where no class has two rows that differ, all directions are alike.
        covariance[np.diag_indices_from(covariance)] += _LEAST_SHRINKAGE * variance if variance > 0 else 1.0
        weights_DK = cho_solve(cho_factor(covariance), means.T)
        return self._fitted(weights_DK.T, np.log(counts / counts.sum()) - 0.5 * (weights_DK.T * means).sum(axis=1))


class NearestMean(LinearClassifier):
    """The class whose mean is nearest.

    On features less their mean, normalised, this is SimpleShot (Wang et al., 2019, arXiv:1911.04623, "CL2N").

    Attributes
    ----------
    classes_ : ndarray (n_classes,)
    coef_, intercept_ : ndarray, float64
        As in `LinearClassifier`: how much nearer than the origin each mean is, squared.
    """

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit; see `GaussianDiscriminant.fit`."""
        rows, y = validate_data(self, X, y, dtype=REAL_TYPES)
        self.classes_, y_index = checked_labels(y)
        means, _ = _class_means(rows, y_index, len(self.classes_))
        # The squared distance, less what is the same for all classes, and negated.
        return self._fitted(2.0 * means, -(means**2).sum(axis=1))


def _class_means(
    rows: NDArray[Any], y: NDArray[np.int64], num_classes: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    means = np.stack([rows[y == place].mean(axis=0, dtype=np.float64) for place in range(num_classes)])
    return means, np.bincount(y, minlength=num_classes)
