"""Ridge regression on class indicators or numbers: every strength, and what rows get when left out, in closed form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils.validation import check_is_fitted, validate_data

from featurecache.heads.checks import (
    REAL_TYPES,
    alike_columns,
    check_prior_rows,
    checked_labels,
    checked_numbers,
    checked_strengths,
    checked_weight,
    fold_of_rows,
    is_partial,
    is_small,
    known_cells,
    sets_of,
    with_weight,
)
from featurecache.heads.linear.classifier import LinearClassifier, absent_classes, forget_classes, named
from featurecache.heads.linear.normal_equations import Real, System
from featurecache.heads.linear.tasks import FitsTasks


class _Ridge(FitsTasks, BaseEstimator):
    """Strengths, and what is left out to choose from them."""

    side_by_side: ClassVar[frozenset[str]] = frozenset({"alpha"})

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

    @classmethod
    def fit_folds_of_tasks(
        cls,
        heads: Sequence[Self],
        Xs: Sequence[NDArray[Any]],
        ys: Sequence[NDArray[Any]],
        folds: Sequence[NDArray[np.int64]],
        settings: Sequence[Mapping[str, Any]],
        sample_weight: NDArray[np.float64] | None = None,
    ) -> Iterator[tuple[dict[str, Any], list[list[Self]]]]:
        """See `FitsTasks`: all come from one decomposition of each fold."""
        targets = [head._targets_of(*each) for head, *each in zip(heads, Xs, ys, strict=True)]
        systems = heads[0]._systems(Xs[0], np.hstack(targets), folds[0], sample_weight)
        absent = absent_classes(ys, folds)
        for alpha in (setting["alpha"] for setting in settings):
            fitted: list[list[Self]] = [[] for _ in heads]
            for system in systems:
                new = [copy(head) for head in heads]
                for head in new:
                    head.alpha = alpha
                _solve(system, new, [each.shape[1] for each in targets])
                for estimators, head in zip(fitted, new, strict=True):
                    estimators.append(head)
            forget_classes(fitted, absent)
            yield {"alpha": alpha}, fitted

    @staticmethod
    def batches(
        Xs: Sequence[NDArray[Any]], ys: Sequence[NDArray[Any]], folds: Sequence[NDArray[np.int64]]
    ) -> list[list[int]]:
        """Return the places of tasks that share something: those that divide rows of the same features alike."""
        alike: dict[tuple[int, bytes], list[int]] = {}
        for place, (of_set, fold) in enumerate(zip(sets_of(Xs), folds, strict=True)):
            alike.setdefault((of_set, fold.tobytes()), []).append(place)
        return list(alike.values())

    @classmethod
    def fit_tasks(
        cls,
        heads: Sequence[Self],
        Xs: Sequence[NDArray[Any]],
        ys: Sequence[NDArray[Any]],
        sample_weight: NDArray[np.float64] | None = None,
    ) -> list[bool]:
        """See `FitsTasks`: all come from one decomposition."""
        targets = [head._targets_of(*each) for head, *each in zip(heads, Xs, ys, strict=True)]
        never = np.full(len(Xs[0]), -1)
        (system,) = heads[0]._systems(Xs[0], np.hstack(targets), never, sample_weight)
        _solve(system, heads, [each.shape[1] for each in targets])
        return [True] * len(heads)

    def _targets_of(self, X: NDArray[Any], y: NDArray[Any]) -> Real:
        """Take what there is to know of rows and targets, and return these, (n_samples, n_outputs)."""
        raise NotImplementedError

    def _solved(self, alpha: float, weights_DK: Real, intercept_K: Real) -> Self:
        raise NotImplementedError

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
    ) -> list[_Systems]:
        """Return the systems of all rows but those of each fold, or of all; targets are fitted where they are known."""
        held_out = np.unique(fold[fold >= 0])
        found = [_Systems([], targets.shape[1], X.shape[1]) for _ in range(max(len(held_out), 1))]
        for columns, known in alike_columns(known_cells(targets)):
            for each, number in zip(found, held_out if len(held_out) else [-1], strict=True):
                kept = known & ((fold != number) | (fold < 0))
                if kept.all():
                    system = self._system(X, targets[:, columns], weight)
                elif isinstance(X, np.memmap):  # a row without weight is as good as none, and nothing is copied
                    whole = np.ones(len(fold)) if weight is None else weight
                    mine = np.where(known[:, None], targets[:, columns], 0.0)
                    system = self._system(X, mine, np.where(kept, whole, 0.0))
                elif kept.any():
                    system = self._system(X[kept], targets[kept][:, columns], None if weight is None else weight[kept])
                else:
                    continue
                each.of_columns.append((columns, system.forget_rows()))
        return found

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
        weight, rows, labels, fold = self._divided(rows, np.asarray(y), sample_weight, groups, classes=True)
        targets = self._targets_of(rows, labels)
        y_index = np.searchsorted(self.classes_, labels)

        def accuracy(values: Real) -> float:
            return float(np.average(named(values) == y_index, weights=weight))

        system = self._chosen(rows, targets, weight, fold, accuracy)
        return self._solved(self.alpha_, *system.solution(self.alpha_))

    def _targets_of(self, X: NDArray[Any], y: NDArray[Any]) -> Real:
        self.n_features_in_ = X.shape[1]
        self.classes_, y_index = checked_labels(y)
        if len(self.classes_) == 2:
            return (2.0 * y_index - 1.0)[:, None]
        return np.where(y_index[:, None] == np.arange(len(self.classes_)), 1.0, -1.0)

    def _solved(self, alpha: float, weights_DK: Real, intercept_K: Real) -> Self:
        self.alpha_ = alpha
        return self._fitted(weights_DK.T, intercept_K)


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

    takes_unknown: ClassVar[bool] = True
    """Of several numbers some may be NaN: each is fitted on the rows where it is known."""
    coef_: Real
    intercept_: Real | float
    _flat: bool
    """Targets are in one dimension."""

    def fit(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None, groups: ArrayLike | None = None
    ) -> Self:
        """Fit; ``y`` is (n_samples,) or (n_samples, n_targets). See `LogisticProbe.fit` for the others.

        Raises
        ------
        ValueError
            Data or parameters that scikit-learn's estimators refuse too.
        """
        rows, y = checked_numbers(self, X, y)
        numbers = np.asarray(y, np.float64)
        if is_partial(numbers):
            if self.alphas is not None:
                raise ValueError(
                    "strengths are chosen where all numbers are known; set alpha, or choose among settings"
                )
            self.fit_tasks([self], [rows], [numbers], checked_weight(sample_weight, rows))
            return self
        weight, rows, numbers, fold = self._divided(rows, numbers, sample_weight, groups, classes=False)
        seen = slice(None) if fold is None else fold >= 0

        def determination(values: Real) -> float:
            return float(
                r2_score(_column(numbers)[seen], values[seen], sample_weight=None if weight is None else weight[seen])
            )

        system = self._chosen(rows, self._targets_of(rows, numbers), weight, fold, determination)
        return self._solved(self.alpha_, *system.solution(self.alpha_))

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the numbers, (n_samples,) or (n_samples, n_targets)."""
        check_is_fitted(self)
        rows = validate_data(self, X, reset=False, dtype=REAL_TYPES)
        return np.asarray((rows @ self.coef_.T.astype(rows.dtype)).astype(np.float64) + self.intercept_)

    def _targets_of(self, X: NDArray[Any], y: NDArray[Any]) -> Real:
        self.n_features_in_, self._flat = X.shape[1], y.ndim == 1
        return _column(y.astype(np.float64, copy=False))

    def _solved(self, alpha: float, weights_DK: Real, intercept_K: Real) -> Self:
        self.alpha_ = alpha
        if self._flat:
            self.coef_, self.intercept_ = weights_DK[:, 0].copy(), float(intercept_K[0])
        else:
            self.coef_, self.intercept_ = weights_DK.T.copy(), intercept_K.copy()
        return self


@dataclass(frozen=True, eq=False)
class _Systems:
    """The systems of targets that are known for different rows.

    Attributes
    ----------
    of_columns : list of (columns, System)
        A target that is known for no row is in none of them, and gets no weights.
    num_targets, num_features : int
    """

    of_columns: list[tuple[NDArray[np.int64], System]]
    num_targets: int
    num_features: int

    def solution(self, alpha: float) -> tuple[Real, Real]:
        """Return weights (n_features, n_targets) and intercepts (n_targets,), as `System.solution` does."""
        if len(self.of_columns) == 1 and len(self.of_columns[0][0]) == self.num_targets:
            return self.of_columns[0][1].solution(alpha)
        weights_DK, intercept_K = np.zeros((self.num_features, self.num_targets)), np.zeros(self.num_targets)
        for columns, system in self.of_columns:
            weights_DK[:, columns], intercept_K[columns] = system.solution(alpha)
        return weights_DK, intercept_K


def _solve(system: _Systems, probes: Sequence[_Ridge], num_outputs: Sequence[int]) -> None:
    """Give each probe its part of the solution for its strength, of targets that stand side by side."""
    solutions = {alpha: system.solution(alpha) for alpha in {probe.alpha for probe in probes}}
    stop = 0
    for probe, count in zip(probes, num_outputs, strict=True):
        start, stop = stop, stop + count
        weights_DK, intercept_K = solutions[probe.alpha]
        probe._solved(probe.alpha, weights_DK[:, start:stop], intercept_K[start:stop])


def _column(y: NDArray[np.float64]) -> NDArray[np.float64]:
    return y[:, None] if y.ndim == 1 else y
