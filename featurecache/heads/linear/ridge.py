"""Ridge regression on class indicators or numbers: every strength, and what rows get when left out, in closed form.

With ``X = U diag(sqrt(e)) Q'`` (centred, standardised, rows times the roots of their weights) the fitted values for the
strength ``a`` are ``H y`` with ``H = U diag(e / (e + a)) U' + w w' / sum(w^2)``, the last part being the intercept. A
row that is left out has the residual ``r_i / (1 - H_ii)``, rows of a fold ``(I - H_SS)^-1 r_S``: no fit is repeated
(Allen, "The relationship between variable selection and data augmentation", Technometrics 16, 1974; for the folds,
Cook & Weisberg, "Residuals and Influence in Regression", 1982).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cho_factor, cho_solve, eigh, svd
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin, clone
from sklearn.metrics import r2_score
from sklearn.utils.validation import check_is_fitted, validate_data

from featurecache.heads.checks import (
    REAL_TYPES,
    check_prior_rows,
    checked_labels,
    checked_strengths,
    checked_weight,
    fold_of_rows,
    is_small,
    with_weight,
)
from featurecache.heads.linear.classifier import LinearClassifier, named
from featurecache.heads.preparation import shrunk_variance

_BLOCK_BYTES = 32 << 20
_ROWS_FOR_SHIFT = 256

Real = NDArray[np.floating[Any]]


class _Ridge(BaseEstimator):
    """Strengths, and what is left out to choose from them."""

    streams: ClassVar[bool] = True
    side_by_side: ClassVar[frozenset[str]] = frozenset({"alpha"})
    """Parameters in which settings may differ that are fitted side by side."""

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        alphas: Sequence[float] | None = None,
        cv: Any = None,
        standardize: bool = True,
        prior_rows: float = 0.0,
        random_state: int | None = 0,
    ) -> None:
        self.alpha = alpha
        self.alphas = alphas
        self.cv = cv
        self.standardize = standardize
        self.prior_rows = prior_rows
        self.random_state = random_state

    def _divided(
        self, rows: Any, y: NDArray[Any], sample_weight: ArrayLike | None, groups: ArrayLike | None, *, classes: bool
    ) -> list[Any]:
        """Return weights, rows, what is said of them and their folds, without rows that have no weight."""
        search = self.alphas is not None and self.cv is not None
        fold = fold_of_rows(self.cv, y, groups, self.random_state, classes=classes) if search else None
        return with_weight(checked_weight(sample_weight, rows), rows, y, fold)

    def _chosen(
        self, rows: Real, targets: Real, weight: Any, fold: NDArray[np.int64] | None, score: Callable[[Real], float]
    ) -> System:
        """Solve for all rows, and choose the strength of the best score of what each row gets when it is left out."""
        alphas = checked_strengths(self.alpha if self.alphas is None else self.alphas, "alpha")[::-1]
        system, self.alpha_ = self._system(rows, targets, weight), alphas[0]
        if self.alphas is not None:
            outcomes = list(system.left_out(alphas) if fold is None else system.held_out(alphas, fold))
            self.scores_ = np.array([score(values) for values in outcomes])
            best = int(self.scores_.argmax())
            self.alpha_, self.held_out_ = alphas[best], outcomes[best].astype(np.float64)
        return system

    def _systems(
        self, X: Real, targets: Real, fold: NDArray[np.int64], weight: NDArray[np.float64] | None
    ) -> list[System]:
        """Return the system of all rows but those of each fold, or of all."""
        held_out = np.unique(fold[fold >= 0])
        if isinstance(X, np.memmap):  # a row without weight is as good as none, and nothing is copied
            whole = np.ones(len(fold)) if weight is None else weight
            weights: list[Any] = [np.where(fold == each, 0.0, whole) for each in held_out] or [weight]
            return [self._system(X, targets, each).forget_rows() for each in weights]
        kept = [fold != each for each in held_out] or [np.ones(len(fold), bool)]
        return [
            self._system(X[each], targets[each], None if weight is None else weight[each]).forget_rows()
            for each in kept
        ]

    def _system(self, rows: Real, targets: Real, weight: Any) -> System:
        check_prior_rows(self.prior_rows)
        precise = rows.astype(np.float64, copy=False) if is_small(*rows.shape) else rows
        return System(precise, targets, weight, standardize=self.standardize, prior_rows=self.prior_rows)


class RidgeProbe(_Ridge, LinearClassifier):
    """Ridge regression on class indicators (+1 and -1), on standardised features; the greatest value names the class.

    Parameters
    ----------
    alpha : float
        Strength of the penalty, as in scikit-learn's ``RidgeClassifier``. Not used when ``alphas`` is given.
    alphas : sequence of float, optional
        Strengths to choose from by the accuracy on left-out rows; of equals the largest. All of them together cost
        little more than one.
    cv : None, int, splitter or iterable of (train, test)
        What is left out: each row by itself (None), or folds. Features are standardised once, by all rows.
    standardize : bool
        Without it, features are only centred.
    prior_rows : float
        As for `LogisticProbe`.
    random_state : int or None
        Of the folds.

    Attributes
    ----------
    classes_ : ndarray (n_classes,)
    coef_ : ndarray (n_classes, n_features) or (1, n_features), float64
        For features as they come, not standardised.
    intercept_ : ndarray (n_classes,) or (1,), float64
    alpha_ : float
    scores_ : ndarray (n_strengths,)
        Accuracy on left-out rows of each strength, from the largest to the smallest.
    held_out_ : ndarray (n_samples, n_classes) or (n_samples, 1), float64
        What each row gets from the chosen strength when it is left out.
    """

    def fit(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None, groups: ArrayLike | None = None
    ) -> Self:
        """Fit; see `LogisticProbe.fit` for the parameters.

        Raises
        ------
        ValueError
            Data or parameters that scikit-learn's estimators refuse too.
        """
        rows, y = validate_data(self, X, y, dtype=REAL_TYPES, order="C")
        weight, rows, y, fold = self._divided(rows, np.asarray(y), sample_weight, groups, classes=True)
        self.classes_, y_index = checked_labels(y)

        def accuracy(values: Real) -> float:
            return float(np.average(named(values) == y_index, weights=weight))

        system = self._chosen(rows, _targets(y_index, len(self.classes_)), weight, fold, accuracy)
        return self._solved(system, self.alpha_)

    def fit_folds(
        self,
        X: NDArray[Any],
        y: NDArray[Any],
        fold: NDArray[np.int64],
        settings: Sequence[Mapping[str, Any]],
        sample_weight: NDArray[np.float64] | None = None,
    ) -> Iterator[tuple[dict[str, Any], list[RidgeProbe]]]:
        """Fit all settings and all folds from one decomposition of each fold; see `LinearProbe.fit_folds`."""
        self.n_features_in_ = X.shape[1]
        self.classes_, y_index = checked_labels(y)
        systems = self._systems(X, _targets(y_index, len(self.classes_)), fold, sample_weight)
        for alpha in (setting["alpha"] for setting in settings):
            fitted = [clone(self).set_params(alpha=alpha) for _ in systems]
            for estimator, system in zip(fitted, systems, strict=True):
                estimator.n_features_in_, estimator.classes_ = self.n_features_in_, self.classes_
                estimator._solved(system, alpha)
            yield {"alpha": alpha}, fitted

    def _solved(self, system: System, alpha: float) -> Self:
        self.alpha_, weights_DK = alpha, system.weights(alpha)
        return self._fitted(weights_DK, system.target_mean - system.mean @ weights_DK)


class RidgeRegressor(MultiOutputMixin, RegressorMixin, _Ridge):
    """Ridge regression on standardised features, of one number or several; see `RidgeProbe` for the parameters.

    Attributes
    ----------
    coef_ : ndarray (n_targets, n_features) or, for targets in one dimension, (n_features,), float64
        For features as they come.
    intercept_ : ndarray (n_targets,) or float
    alpha_ : float
    scores_ : ndarray (n_strengths,)
        Coefficient of determination on left-out rows of each strength, from the largest to the smallest; the mean over
        targets.
    held_out_ : ndarray (n_samples, n_targets), float64
        What each row gets from the chosen strength when it is left out.
    """

    coef_: Real
    intercept_: Real | float

    def fit(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None, groups: ArrayLike | None = None
    ) -> Self:
        """Fit; ``y`` is (n_samples,) or (n_samples, n_targets). See `LogisticProbe.fit` for the others.

        Raises
        ------
        ValueError
            Data or parameters that scikit-learn's estimators refuse too.
        """
        rows, y = validate_data(self, X, y, dtype=REAL_TYPES, order="C", multi_output=True, y_numeric=True)
        numbers = np.asarray(y, np.float64)
        weight, rows, numbers, fold = self._divided(rows, numbers, sample_weight, groups, classes=False)
        seen = slice(None) if fold is None else fold >= 0

        def determination(values: Real) -> float:
            return float(
                r2_score(_column(numbers)[seen], values[seen], sample_weight=None if weight is None else weight[seen])
            )

        system = self._chosen(rows, _column(numbers), weight, fold, determination)
        return self._solved(system, self.alpha_, flat=numbers.ndim == 1)

    def fit_folds(
        self,
        X: NDArray[Any],
        y: NDArray[Any],
        fold: NDArray[np.int64],
        settings: Sequence[Mapping[str, Any]],
        sample_weight: NDArray[np.float64] | None = None,
    ) -> Iterator[tuple[dict[str, Any], list[RidgeRegressor]]]:
        """Fit all settings and all folds from one decomposition of each fold; see `LinearProbe.fit_folds`."""
        systems = self._systems(X, _column(y.astype(np.float64)), fold, sample_weight)
        for alpha in (setting["alpha"] for setting in settings):
            fitted = [clone(self).set_params(alpha=alpha) for _ in systems]
            for estimator, system in zip(fitted, systems, strict=True):
                estimator.n_features_in_ = X.shape[1]
                estimator._solved(system, alpha, flat=y.ndim == 1)
            yield {"alpha": alpha}, fitted

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the numbers, (n_samples,) or (n_samples, n_targets)."""
        check_is_fitted(self)
        rows = validate_data(self, X, reset=False, dtype=REAL_TYPES)
        return np.asarray((rows @ self.coef_.T.astype(rows.dtype)).astype(np.float64) + self.intercept_)

    def _solved(self, system: System, alpha: float, *, flat: bool) -> Self:
        self.alpha_, weights_DT = alpha, system.weights(alpha)
        intercept_T = system.target_mean - system.mean @ weights_DT
        if flat:
            self.coef_, self.intercept_ = weights_DT[:, 0].copy(), float(intercept_T[0])
        else:
            self.coef_, self.intercept_ = weights_DT.T.copy(), intercept_T
        return self


class System:
    """The normal equations of weighted rows, in the axes in which they are uncorrelated.

    Parameters
    ----------
    X : ndarray (n_samples, n_features)
    targets : ndarray (n_samples, n_outputs), float64
    weight : ndarray (n_samples,), optional
    standardize : bool
        Divide features by their standard deviations; centred they are in any case.
    prior_rows : float
        See `shrunk_variance`.
    """

    def __init__(
        self, X: Real, targets: Real, weight: Real | None, *, standardize: bool, prior_rows: float = 0.0
    ) -> None:
        self._X = X
        self._root = None if weight is None else np.sqrt(weight)
        self._total = float(len(X) if weight is None else weight.sum())
        self.target_mean = np.average(targets, axis=0, weights=weight)
        self._targets = self._rooted(targets - self.target_mean, slice(None))

        self._standardize, self._prior_rows = standardize, prior_rows
        if 2 * len(X) <= X.shape[1]:
            self._of_few_rows()
        else:
            self._of_many_rows()
        self._moment = self._axes.T @ self._moment_D

    def _of_few_rows(self) -> None:
        """Find the axes of the rows themselves: in no other direction does any of them vary."""
        X = self._X.astype(np.float64, copy=False)
        weight = None if self._root is None else self._root**2
        self.mean = np.average(X, axis=0, weights=weight)
        centred = X - self.mean
        self._scale = self._scale_of(np.average(centred**2, axis=0, weights=weight))
        Z = self._rooted(centred / self._scale, slice(None))
        self._moment_D = Z.T @ self._targets
        _, lengths, axes = svd(Z, full_matrices=False, overwrite_a=True, check_finite=False)
        self._variance, self._axes = _above_rounding(lengths**2, self._X.dtype), axes.T

    def _of_many_rows(self) -> None:
        """Find the axes from products of features, a block of rows at a time."""
        X = self._X
        shift = X[:: max(len(X) // _ROWS_FOR_SHIFT, 1)].mean(axis=0)
        gram, moment = np.zeros((X.shape[1],) * 2), np.zeros((X.shape[1], self._targets.shape[1]))
        sums = np.zeros(X.shape[1])
        for rows in self._blocks():
            Z = self._rooted(X[rows] - shift, rows)
            gram += Z.T @ Z
            moment += Z.T @ self._targets[rows].astype(X.dtype)
            sums += Z.sum(axis=0) if self._root is None else self._root[rows].astype(X.dtype) @ Z
        offset = sums / self._total
        self.mean = shift + offset
        self._scale = self._scale_of(np.diag(gram) / self._total - offset**2)
        self._gram = (gram - self._total * np.outer(offset, offset)) / np.outer(self._scale, self._scale)
        self._moment_D = moment / self._scale[:, None]
        self._variance, self._axes = _decomposed(self._gram.copy(), X.dtype)

    def _scale_of(self, variance: Real) -> Real:
        if not self._standardize:
            return np.ones(len(variance))
        flat = variance <= (1e-9 * self.mean) ** 2
        shrunk = shrunk_variance(variance, ~flat, self._total, self._prior_rows)
        return np.where(flat, 1.0, np.sqrt(np.maximum(shrunk, 0.0)))

    def forget_rows(self) -> Self:
        """Let go of all that only left-out rows need."""
        self._X, self._targets, self._gram = self._X[:0], self._targets[:0], np.zeros((0, 0))
        return self

    def weights(self, alpha: float) -> Real:
        """Return the weights for features as they come, (n_features, n_outputs) float64."""
        return self._axes @ (self._moment / (self._variance + alpha)[:, None]) / self._scale[:, None]

    def left_out(self, alphas: Sequence[float]) -> Iterator[Real]:
        """Return for each strength what each row gets when it is left out, (n_samples, n_outputs)."""
        num_rows, num_outputs = self._targets.shape
        inverse = 1.0 / (self._variance[:, None] + np.array(alphas))
        stacked = (self._moment[:, None, :] * inverse[:, :, None]).reshape(len(self._moment), -1)
        dtype = self._X.dtype
        fitted, own = np.empty((num_rows, len(alphas), num_outputs), dtype), np.empty((num_rows, len(alphas)), dtype)
        axes, stacked, inverse = (each.astype(dtype) for each in (self._axes / self._scale[:, None], stacked, inverse))
        for rows in self._blocks():
            rotated = self._rooted(self._X[rows] - self.mean.astype(dtype), rows) @ axes
            fitted[rows] = (rotated @ stacked).reshape(-1, len(alphas), num_outputs)
            own[rows] = np.square(rotated, out=rotated) @ inverse
        own += (self._root_of(slice(None)) ** 2 / self._total)[:, None].astype(dtype)
        for place in range(len(alphas)):
            residual = (self._targets - fitted[:, place]) / np.maximum(1.0 - own[:, place], 1e-12)[:, None]
            yield self._as_values(residual, slice(None))

    def held_out(self, alphas: Sequence[float], fold: NDArray[np.int64]) -> Iterator[Real]:
        """Return for each strength what each row gets when its fold is left out; rows of fold -1 get NaN."""
        outcomes = [np.full(self._targets.shape, np.nan) for _ in alphas]
        for number in np.unique(fold[fold >= 0]):
            rows = np.flatnonzero(fold == number)
            few = len(rows) < self._X.shape[1] // 2
            found = self._corrected(rows, alphas) if few else self._without(rows, alphas)
            for values, each in zip(outcomes, found, strict=True):
                values[rows] = each
        yield from outcomes

    def _corrected(self, rows: NDArray[np.int64], alphas: Sequence[float]) -> Iterator[Real]:
        """Correct what all rows together give to some of them: one small system for each strength."""
        # The intercept is one more axis, along which nothing is penalised.
        rotated = np.column_stack([self._standard(rows).astype(np.float64) @ self._axes, self._root_of(rows)])
        for alpha in alphas:
            curvature = np.append(self._variance + alpha, self._total)
            residual = self._targets[rows] - rotated[:, :-1] @ (self._moment / curvature[:-1, None])
            kernel = np.eye(len(rows)) - (rotated / curvature) @ rotated.T
            kernel[np.diag_indices_from(kernel)] += 1e-13
            yield self._as_values(cho_solve(cho_factor(kernel), residual), rows)

    def _without(self, rows: NDArray[np.int64], alphas: Sequence[float]) -> Iterator[Real]:
        """Take some rows out of the sums, and find the axes of the others: one decomposition for all strengths."""
        Z, root = self._standard(rows), self._root_of(rows)
        left = self._total - (root**2).sum()
        # All rows together are centred, so what is left has the opposite sums.
        mean = -(Z.T @ root.astype(Z.dtype)).astype(np.float64) / left
        target_mean = -(self._targets[rows].T @ root) / left
        gram = self._gram - (Z.T @ Z) - left * np.outer(mean, mean)
        moment = self._moment_D - Z.T @ self._targets[rows].astype(Z.dtype) - left * np.outer(mean, target_mean)
        variance, axes = _decomposed(gram, Z.dtype)
        rotated = axes.T @ moment
        stacked = np.stack([axes @ (rotated / (variance + alpha)[:, None]) for alpha in alphas], axis=1)
        centred = Z - (root[:, None] * mean).astype(Z.dtype)
        values = (centred @ stacked.reshape(len(mean), -1).astype(Z.dtype)).reshape(len(rows), len(alphas), -1)
        for place in range(len(alphas)):
            yield values[:, place] / root[:, None] + target_mean + self.target_mean

    def _as_values(self, residual: Real, rows: Any) -> Real:
        targets, root = self._targets[rows], self._root_of(rows)
        return (targets - residual) / root[:, None] + self.target_mean

    def _blocks(self) -> Iterator[slice]:
        step = max(_BLOCK_BYTES // (self._X.shape[1] * self._X.itemsize), 1)
        for start in range(0, len(self._X), step):
            yield slice(start, start + step)

    def _standard(self, rows: NDArray[np.int64]) -> Real:
        dtype = self._X.dtype
        return self._rooted((self._X[rows] - self.mean.astype(dtype)) / self._scale.astype(dtype), rows)

    def _rooted(self, values: Real, rows: Any) -> Real:
        """Multiply rows by the roots of their weights."""
        return values if self._root is None else values * self._root[rows, None].astype(values.dtype)

    def _root_of(self, rows: Any) -> Real:
        return np.ones(len(self._X))[rows] if self._root is None else self._root[rows]


def _decomposed(gram: Real, dtype: Any) -> tuple[Real, Real]:
    """Return the variances along the axes of a Gram matrix, and the axes; the matrix is consumed."""
    variance, axes = eigh(gram, overwrite_a=True, check_finite=False, driver="evd")
    return _above_rounding(variance, dtype), axes


def _above_rounding(variance: Real, dtype: Any) -> Real:
    """What rounding leaves of axes in which nothing varies is not curvature."""
    return np.maximum(variance, np.finfo(dtype).eps * max(float(variance.max()), 0.0))


def _column(y: NDArray[np.float64]) -> NDArray[np.float64]:
    return y[:, None] if y.ndim == 1 else y


def _targets(y: NDArray[np.int64], num_classes: int) -> Real:
    if num_classes == 2:
        return (2.0 * y - 1.0)[:, None]
    return np.where(y[:, None] == np.arange(num_classes), 1.0, -1.0)
