"""The normal equations of ridge regression in the axes in which features are uncorrelated: every alpha at once.

With ``X = U diag(sqrt(e)) Q'`` (centred, standardised, rows times the roots of their weights) the fitted values for
``alpha = a`` are ``H y`` with ``H = U diag(e / (e + a)) U' + w w' / sum(w^2)``, the last part being the intercept. A
row that is left out has the residual ``r_i / (1 - H_ii)``, rows of a fold ``(I - H_SS)^-1 r_S``: no fit is repeated
(Allen, "The relationship between variable selection and data augmentation", Technometrics 16, 1974; for the folds,
Cook & Weisberg, "Residuals and Influence in Regression", 1982).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, eigh, svd

from featurecache.heads.preparation import shrunk_variance

_BLOCK_BYTES = 32 << 20
_ROWS_FOR_SHIFT = 256

Real = NDArray[np.floating[Any]]


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
        self._is_weighted = weight is not None
        self._root = np.ones(len(X)) if weight is None else np.sqrt(weight)
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
        weight = self._root**2 if self._is_weighted else None
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
            sums += self._root[rows].astype(X.dtype) @ Z if self._is_weighted else Z.sum(axis=0)
        offset = sums / self._total
        self.mean = shift + offset
        self._scale = self._scale_of(np.diag(gram) / self._total - offset**2)
        self._gram = (gram - self._total * np.outer(offset, offset)) / np.outer(self._scale, self._scale)
        self._moment_D = moment / self._scale[:, None]
        # Of a copy: it is consumed, and the folds that are left out take their rows out of the matrix itself.
        variance, self._axes = eigh(self._gram.copy(), overwrite_a=True, check_finite=False, driver="evd")
        self._variance = _above_rounding(variance, X.dtype)

    def _scale_of(self, variance: Real) -> Real:
        if not self._standardize:
            return np.ones(len(variance))
        flat = variance <= (1e-9 * self.mean) ** 2
        shrunk = shrunk_variance(variance, ~flat, self._total, self._prior_rows)
        return np.where(flat, 1.0, np.sqrt(np.maximum(shrunk, 0.0)))

    def drop_rows(self) -> Self:
        """Let go of all that only left-out rows need."""
        # Not slices: these would hold on to all rows.
        self._X = np.empty((0, self._X.shape[1]), self._X.dtype)
        self._targets, self._gram, self._root = np.empty((0, self._targets.shape[1])), np.empty((0, 0)), np.empty(0)
        return self

    def solution(self, alpha: float) -> tuple[Real, Real]:
        """Return weights (n_features, n_outputs) and intercepts (n_outputs,) for features as they come, float64."""
        weights_DK = self._axes @ (self._moment / (self._variance + alpha)[:, None]) / self._scale[:, None]
        return weights_DK, self.target_mean - self.mean @ weights_DK

    def left_out(self, alphas: Sequence[float]) -> Iterator[Real]:
        """Return for each alpha what each row gets when it is left out, (n_samples, n_outputs)."""
        num_rows, num_outputs = self._targets.shape
        inverse = 1.0 / (self._variance[:, None] + np.array(alphas))
        stacked = (self._moment[:, None, :] * inverse[:, :, None]).reshape(len(self._moment), -1)
        dtype = self._X.dtype
        fitted, own = np.empty((num_rows, len(alphas), num_outputs), dtype), np.empty((num_rows, len(alphas)), dtype)
        axes, stacked, inverse = (
            array.astype(dtype) for array in (self._axes / self._scale[:, None], stacked, inverse)
        )
        for rows in self._blocks():
            rotated = self._rooted(self._X[rows] - self.mean.astype(dtype), rows) @ axes
            fitted[rows] = (rotated @ stacked).reshape(-1, len(alphas), num_outputs)
            own[rows] = np.square(rotated, out=rotated) @ inverse
        own += (self._root**2 / self._total)[:, None].astype(dtype)
        for index in range(len(alphas)):
            residual = (self._targets - fitted[:, index]) / np.maximum(1.0 - own[:, index], 1e-12)[:, None]
            yield (self._targets - residual) / self._root[:, None] + self.target_mean

    def held_out(self, alphas: Sequence[float], fold: NDArray[np.int64]) -> Iterator[Real]:
        """Return for each alpha what each row gets when its fold is left out; rows of fold -1 get NaN."""
        outcomes = [np.full(self._targets.shape, np.nan) for _ in alphas]
        mean, scale = self.mean.astype(self._X.dtype), self._scale.astype(self._X.dtype)
        for number in np.unique(fold[fold >= 0]):
            rows = np.flatnonzero(fold == number)
            Z = self._rooted((self._X[rows] - mean) / scale, rows)
            few = len(rows) < self._X.shape[1] // 2
            found = self._corrected(rows, Z, alphas) if few else self._without(rows, Z, alphas)
            for values, solution in zip(outcomes, found, strict=True):
                values[rows] = solution
        yield from outcomes

    def _corrected(self, rows: NDArray[np.int64], Z: Real, alphas: Sequence[float]) -> Iterator[Real]:
        """Correct what all rows together give to some of them: one small system for each alpha."""
        # The intercept is one more axis, along which nothing is penalised.
        rotated = np.column_stack([Z.astype(np.float64) @ self._axes, self._root[rows]])
        for alpha in alphas:
            curvature = np.append(self._variance + alpha, self._total)
            residual = self._targets[rows] - rotated[:, :-1] @ (self._moment / curvature[:-1, None])
            kernel = np.eye(len(rows)) - (rotated / curvature) @ rotated.T
            kernel[np.diag_indices_from(kernel)] += 1e-13
            residual = cho_solve(cho_factor(kernel), residual)
            yield (self._targets[rows] - residual) / self._root[rows, None] + self.target_mean

    def _without(self, rows: NDArray[np.int64], Z: Real, alphas: Sequence[float]) -> Iterator[Real]:
        """Take some rows out of the sums, and find the axes of the others: one decomposition for all alphas."""
        root = self._root[rows]
        left = self._total - (root**2).sum()
        # All rows together are centred, so what is left has the opposite sums.
        mean = -(Z.T @ root.astype(Z.dtype)).astype(np.float64) / left
        target_mean = -(self._targets[rows].T @ root) / left
        gram = self._gram - (Z.T @ Z) - left * np.outer(mean, mean)
        moment = self._moment_D - Z.T @ self._targets[rows].astype(Z.dtype) - left * np.outer(mean, target_mean)
        variance, axes = eigh(gram, overwrite_a=True, check_finite=False, driver="evd")
        variance = _above_rounding(variance, Z.dtype)
        rotated = axes.T @ moment
        stacked = np.stack([axes @ (rotated / (variance + alpha)[:, None]) for alpha in alphas], axis=1)
        centred = Z - (root[:, None] * mean).astype(Z.dtype)
        values = (centred @ stacked.reshape(len(mean), -1).astype(Z.dtype)).reshape(len(rows), len(alphas), -1)
        for index in range(len(alphas)):
            yield values[:, index] / root[:, None] + target_mean + self.target_mean

    def _blocks(self) -> Iterator[slice]:
        step = max(_BLOCK_BYTES // (self._X.shape[1] * self._X.itemsize), 1)
        for start in range(0, len(self._X), step):
            yield slice(start, start + step)

    def _rooted(self, values: Real, rows: Any) -> Real:
        """Multiply rows by the roots of their weights."""
        return values * self._root[rows, None].astype(values.dtype) if self._is_weighted else values


def _above_rounding(variance: Real, dtype: Any) -> Real:
    """What rounding leaves of axes in which nothing varies is not curvature."""
    return np.maximum(variance, np.finfo(dtype).eps * max(float(variance.max()), 0.0))
