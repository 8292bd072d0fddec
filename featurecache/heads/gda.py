"""``gda``: one Gaussian for each class, with a covariance that all share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cho_factor, cho_solve, eigh
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import validate_data

from featurecache.heads.checks import REAL_TYPES, check_prior_rows, checked_labels
from featurecache.heads.head import ANY_FIT_BYTES, NUM_FOLDS, Setting
from featurecache.heads.preparation import PRIOR_ROWS, shrunk_scaler
from featurecache.heads.solver.classifier import ProbabilisticClassifier, for_raw_features
from featurecache.specs import TaskKind

# Share of the mean variance that is added to all: without it, the covariance of equal features has no inverse.
_LEAST_SHRINKAGE = 1e-6
# Of residuals in float64 that are computed at a time.
_BLOCK_BYTES = 64 << 20

# n rows, D features, K classes


class GaussianDiscriminant(ProbabilisticClassifier):
    """Linear discriminant analysis: Gaussians that share one covariance, shrunk as Ledoit and Wolf found best.

    On cached features it equals adapters that are trained by gradient descent (Wang et al., "A Hard-to-Beat Baseline
    for Training-Free CLIP-based Adaptation", ICLR 2024). Unlike scikit-learn's ``LinearDiscriminantAnalysis``, the
    shrinkage is found for the residuals of all classes together (Ledoit & Wolf, "A well-conditioned estimator for
    large-dimensional covariance matrices", J. Multivariate Anal. 88, 2004), so that classes may have a single row.

    Parameters
    ----------
    standardize : bool
        Divide features by their standard deviations first, so that the shrinkage is the same in all units.
    prior_rows : float
        Of the variances by which they are divided: each is drawn to the mean of all, as by so many more rows that have
        it. With few rows a feature's own variance is mostly chance.

    Attributes
    ----------
    classes_ : ndarray (n_classes,)
    coef_, intercept_ : ndarray, float64
        As in `LinearClassifier`: the log density of each class, but for a constant.
    shrinkage_ : float
        Share of the scaled identity in the covariance.

    Notes
    -----
    The covariance is ``a R'R + b I`` with the residuals ``R`` (n, D). Where features outnumber rows, its inverse is
    taken in the space of the rows, ``(I - R' (R R' + b/a I)^-1 R) / b`` (Woodbury), so that nothing of D x D numbers is
    ever held; the result is the same.
    """

    kinds: ClassVar[frozenset[TaskKind]] = frozenset({"classification"})
    relative_seconds: ClassVar[float] = 4.0

    defaults: ClassVar[Setting] = {"prior_rows": PRIOR_ROWS}

    def __init__(self, *, standardize: bool = True, prior_rows: float = 0.0) -> None:
        self.standardize = standardize
        self.prior_rows = prior_rows

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
        check_prior_rows(self.prior_rows)
        scaler = StandardScaler(with_mean=False, with_std=False).fit(rows)
        if self.standardize:
            scaler = shrunk_scaler(rows, prior_rows=self.prior_rows)
        rows = scaler.transform(rows)
        counts = np.bincount(y_index)
        means = np.stack([rows[y_index == k].mean(axis=0, dtype=np.float64) for k in range(len(counts))])
        solve = _in_row_space if rows.shape[0] < rows.shape[1] else _in_feature_space
        weights_DK, self.shrinkage_ = solve(rows, means, y_index)
        intercept = np.log(counts / counts.sum()) - 0.5 * (weights_DK.T * means).sum(axis=1)
        return self._fitted(*for_raw_features(weights_DK.T, intercept, scaler.mean_, scaler.scale_))

    @classmethod
    def memory_needed(cls, n_samples: int, n_features: int, n_outputs: int) -> int:
        """Return bytes for n_samples rows, n_features and n_outputs; see `HeadMixin.memory_needed`."""
        # scikit-learn's scaler takes a copy in float64, and the rows of a fold are one more.
        rows = 24 * n_samples * n_features
        # Of features or of rows, whichever are fewer: features squared are not held where they outnumber the rows.
        products = 24 * min(n_samples, n_features) ** 2
        return ANY_FIT_BYTES + rows + products

    @classmethod
    def seconds_needed(cls, n_samples: int, n_features: int, n_outputs: int) -> float:
        """Return seconds for n_samples rows, n_features and n_outputs; see `HeadMixin.seconds_needed`."""
        least, most = sorted((n_samples, n_features))
        return (NUM_FOLDS * 0.8 + 1) * (5e-11 * most * least**2 + 1e-10 * least**3)


def _in_feature_space(
    rows: NDArray[Any], means_KD: NDArray[np.float64], y: NDArray[np.int64]
) -> tuple[NDArray[np.float64], float]:
    """Return the inverse covariance times each mean, (D, K), and the shrinkage, by products of features."""
    num_rows, num_features = rows.shape
    covariance, fourth = np.zeros((num_features,) * 2), 0.0
    step = max(_BLOCK_BYTES // (num_features * rows.itemsize), 1)
    for start in range(0, num_rows, step):
        some = slice(start, start + step)
        residuals = rows[some] - means_KD[y[some]].astype(rows.dtype)
        covariance += residuals.T @ residuals
        fourth += float(((residuals.astype(np.float64) ** 2).sum(axis=1) ** 2).sum())
    covariance /= num_rows
    square = float(np.einsum("ij,ij->", covariance, covariance))
    shrinkage, least = _shrinkage(square, float(np.trace(covariance)), fourth, num_rows, num_features)
    covariance *= 1 - shrinkage
    covariance[np.diag_indices_from(covariance)] += least
    factor = cho_factor(covariance, lower=True, overwrite_a=True, check_finite=False)
    return cho_solve(factor, means_KD.T), shrinkage


def _in_row_space(
    rows: NDArray[Any], means_KD: NDArray[np.float64], y: NDArray[np.int64]
) -> tuple[NDArray[np.float64], float]:
    """Return what `_in_feature_space` does, by products of rows: for fewer rows than features."""
    num_rows, num_features = rows.shape
    gram = np.zeros((num_rows,) * 2)
    means_in_rows = np.zeros((num_rows, len(means_KD)))
    for some, residuals in _columns(rows, means_KD, y):
        gram += residuals @ residuals.T
        means_in_rows += residuals @ means_KD[:, some].T
    trace, fourth = float(np.trace(gram)) / num_rows, float((np.diag(gram) ** 2).sum())
    square = float(np.einsum("ij,ij->", gram, gram)) / num_rows**2
    shrinkage, least = _shrinkage(square, trace, fourth, num_rows, num_features)
    # Not divided by the share of the residuals: they have none where all is shrunk.
    share = (1 - shrinkage) / num_rows
    lengths, axes = eigh(gram, overwrite_a=True, check_finite=False)
    curvature = share / (share * lengths.clip(min=0.0) + least)
    mixed = axes @ (curvature[:, None] * (axes.T @ means_in_rows))
    weights_DK = np.empty((num_features, len(means_KD)))
    for some, residuals in _columns(rows, means_KD, y):
        weights_DK[some] = (means_KD[:, some].T - residuals.T @ mixed) / least
    return weights_DK, shrinkage


def _columns(
    rows: NDArray[Any], means_KD: NDArray[np.float64], y: NDArray[np.int64]
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Yield some features at a time, with the residuals of all rows there, (n, some) float64."""
    step = max(_BLOCK_BYTES // (8 * len(rows)), 1)
    for start in range(0, rows.shape[1], step):
        some = slice(start, start + step)
        yield some, rows[:, some] - means_KD[:, some][y]


def _shrinkage(square: float, trace: float, fourth: float, num_rows: int, num_features: int) -> tuple[float, float]:
    """Return the share that Ledoit and Wolf give to the scaled identity, and what is added to all variances with it.

    Parameters
    ----------
    square, trace : float
        Squared Frobenius norm and trace of the covariance.
    fourth : float
        Sum of the fourth powers of the lengths of the residuals.
    """
    variance, shrinkage = trace / num_features, 0.0
    if num_features > 1:
        distance = (square - 2 * variance * trace + num_features * variance**2) / num_features
        error = min((fourth / num_rows - square) / (num_features * num_rows), distance)
        shrinkage = error / distance if error > 0 else 0.0
    # Where no class has two rows that differ, all directions are alike.
    return shrinkage, shrinkage * variance + (_LEAST_SHRINKAGE * variance if variance > 0 else 1.0)
