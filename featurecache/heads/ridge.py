"""``ridge``: ridge regression on class indicators or numbers, every alpha and every left-out row in closed form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils.validation import check_is_fitted, validate_data

from featurecache.errors import HeadError
from featurecache.heads.checks import (
    REAL_TYPES,
    Scaling,
    by_scaling,
    check_prior_rows,
    checked_grid_values,
    checked_labels,
    checked_numbers,
    checked_weight,
    columns_by_known_rows,
    fold_of_rows,
    is_known,
    is_partial,
    is_small,
    prior_rows_of,
    with_weight,
)
from featurecache.heads.head import ANY_FIT_BYTES, NUM_FOLDS, Fold, HeadMixin, Setting, Settings, Weights, powers_of_ten
from featurecache.heads.preparation import PRIOR_ROWS
from featurecache.heads.solver.classifier import LinearClassifier, absent_classes, class_of_margins, drop_classes
from featurecache.heads.solver.normal_equations import Real, System
from featurecache.specs import TaskKind

if TYPE_CHECKING:
    from torch import nn


class _Ridge(HeadMixin, BaseEstimator):
    """Values of alpha, and what is left out to choose from them."""

    path_params: ClassVar[frozenset[str]] = frozenset({"alpha", "standardize"})
    streams: ClassVar[bool] = True
    regularization: ClassVar[str | None] = "alpha"
    grid: ClassVar[dict[str, list[Any]]] = {
        "standardize": [True, "jointly"],
        # From the largest: the simplest model first.
        "alpha": powers_of_ten(7, -2, per_decade=2),
    }
    relative_seconds: ClassVar[float] = 6.0
    _targets_of: Callable[[NDArray[Any], NDArray[Any]], Real]
    """Take what there is to know of rows and targets, and return these, (n_samples, n_outputs)."""
    _fitted: Callable[[Real, Real], Self]
    """Take weights (n_outputs, n_features) and intercepts (n_outputs,)."""

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        alphas: Sequence[float] | None = None,
        cv: Any = None,
        standardize: Scaling = True,
        prior_rows: float = 0.0,
        random_state: int | None = 0,
    ) -> None:
        self.alpha = alpha
        self.alphas = alphas
        self.cv = cv
        self.standardize = standardize
        self.prior_rows = prior_rows
        self.random_state = random_state

    def fit_path(
        self, X: NDArray[Any], y: NDArray[Any], fold: Fold, settings: Settings, sample_weight: Weights = None
    ) -> Iterator[tuple[Setting, list[Self]]]:
        """Fit all values of alpha by one decomposition for each fold; see `FitsPath`.

        Parameters
        ----------
        X, y, fold, sample_weight
            As for `FitsPath.fit_path`.
        settings : sequence of mapping
            Values of ``alpha``, for one value of ``standardize`` after the other.

        Yields
        ------
        (setting, heads)
        """
        absent = absent_classes(y, fold)
        for shared, some in by_scaling(self, settings):
            one = copy(self).set_params(**shared)
            systems = one._systems(X, one._targets_of(X, y), fold, sample_weight)
            for setting in some:
                # Not `clone`: they share what `_targets_of` has found.
                heads = [copy(one) for _ in systems]
                for head, system in zip(heads, systems, strict=True):
                    head.alpha = setting.get("alpha", self.alpha)
                    head._solved(system, head.alpha)
                drop_classes(heads, absent)
                yield dict(setting), heads

    @classmethod
    def memory_needed(cls, n_samples: int, n_features: int, n_outputs: int) -> int:
        """Return bytes for n_samples rows, n_features and n_outputs; see `HeadMixin.memory_needed`."""
        axes = 8 * n_samples * n_features if 2 * n_samples <= n_features else 8 * n_features**2
        return ANY_FIT_BYTES + (NUM_FOLDS + 4) * axes + 16 * n_samples * n_features

    @classmethod
    def seconds_needed(cls, n_samples: int, n_features: int, n_outputs: int) -> float:
        """Return seconds for n_samples rows, n_features and n_outputs; see `HeadMixin.seconds_needed`."""
        return (NUM_FOLDS + 1) * 5e-10 * min(2 * n_samples, n_features) ** 3

    def _left_out(
        self, rows: Real, targets: Real, weight: Any, fold: NDArray[np.int64] | None
    ) -> tuple[System, list[float], list[Real]]:
        """Return the system of all rows, the values of alpha, and what each row gets from each when it is left out.

        Parameters
        ----------
        rows : ndarray (n_samples, n_features)
        targets : ndarray (n_samples, n_outputs)
        weight : ndarray (n_samples,), or None
            Above 0.
        fold : ndarray (n_samples,), or None
            None: each row is left out by itself.

        Returns
        -------
        (system, alphas, held_out)
            From the largest alpha to the smallest, each (n_samples, n_outputs); empty where there is no choice.
        """
        alphas = checked_grid_values(self.alpha if self.alphas is None else self.alphas, "alpha")[::-1]
        system = self._system(rows, targets, weight)
        if self.alphas is None:
            return system, alphas, []
        return system, alphas, list(system.left_out(alphas) if fold is None else system.held_out(alphas, fold))

    def _take_best(
        self, system: System, alphas: Sequence[float], held_out: Sequence[Real], scores: Sequence[float]
    ) -> Self:
        """Take the alpha of the best score, of equals the largest.

        Parameters
        ----------
        system, alphas, held_out
            As `_left_out` returns them.
        scores : sequence of float
            Of what is held out.
        """
        best = 0
        if scores:
            self.scores_ = np.array(scores)
            # The first of equals, which is the largest alpha.
            best = int(self.scores_.argmax())
            self.held_out_ = held_out[best].astype(np.float64)
        return self._solved(system, alphas[best])

    def _solved(self, system: System | _Systems, alpha: float) -> Self:
        self.alpha_ = alpha
        weights_DK, intercept_K = system.solution(alpha)
        return self._fitted(weights_DK.T, intercept_K)

    def _systems(
        self, X: Real, targets: Real, fold: NDArray[np.int64], weight: NDArray[np.float64] | None
    ) -> list[_Systems]:
        """Return the systems of all rows but those of each fold, or of all; targets are fitted where they are known."""
        held_out = np.unique(fold[fold >= 0])
        found = [_Systems([], targets.shape[1], X.shape[1]) for _ in range(max(len(held_out), 1))]
        for columns, known in columns_by_known_rows(is_known(targets)):
            for solution, number in zip(found, held_out if len(held_out) else [-1], strict=True):
                # Rows below 0 are never held out.
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
                solution.of_columns.append((columns, system.drop_rows()))
        return found

    def _system(self, rows: Real, targets: Real, weight: Any) -> System:
        check_prior_rows(self.prior_rows)
        precise = rows.astype(np.float64, copy=False) if is_small(*rows.shape) else rows
        prior_rows = prior_rows_of(self.standardize, self.prior_rows)
        return System(precise, targets, weight, standardize=bool(self.standardize), prior_rows=prior_rows)


class RidgeProbe(_Ridge, LinearClassifier):
    """Ridge regression on class indicators (+1 and -1), on standardised features; the greatest value names the class.

    Parameters
    ----------
    alpha : float
        Weight of the penalty, as in scikit-learn's ``RidgeClassifier``. Not used when ``alphas`` is given.
    alphas : sequence of float, optional
        Values to choose from by the accuracy on left-out rows; of equals the largest. All of them together cost
        little more than one.
    cv : None, int, splitter or iterable of (train, test)
        What is left out: each row by itself (None), or folds. Features are standardised once, by all rows.
    standardize : bool or "jointly"
        False: features are only centred. Jointly: as for `LogisticProbe`.
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
    scores_ : ndarray (n_values,)
        Accuracy on left-out rows of each value, from the largest to the smallest.
    held_out_ : ndarray (n_samples, n_classes) or (n_samples, 1), float64
        What each row gets from the chosen alpha when it is left out.
    """

    kinds: ClassVar[frozenset[TaskKind]] = frozenset({"classification"})
    defaults: ClassVar[Setting] = {"alpha": 1000.0, "prior_rows": PRIOR_ROWS}
    earlier_names: ClassVar[tuple[str, ...]] = ("RidgeClassifier",)

    def fit(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None, groups: ArrayLike | None = None
    ) -> Self:
        """Fit ``X`` and ``y``, with ``sample_weight`` and ``groups`` as in `LogisticProbe.fit`.

        Raises
        ------
        ValueError
            Data or parameters that scikit-learn's estimators refuse too.
        """
        rows, y = validate_data(self, X, y, dtype=REAL_TYPES, order="C")
        labels, fold = np.asarray(y), None
        if self.alphas is not None and self.cv is not None:
            fold = fold_of_rows(self.cv, labels, groups, self.random_state)
        weight, rows, labels, fold = with_weight(checked_weight(sample_weight, rows), rows, labels, fold)
        targets = self._targets_of(rows, labels)
        y_index = np.searchsorted(self.classes_, labels)
        system, alphas, held_out = self._left_out(rows, targets, weight, fold)
        scores = [float(np.average(class_of_margins(margins) == y_index, weights=weight)) for margins in held_out]
        return self._take_best(system, alphas, held_out, scores)

    def _targets_of(self, X: NDArray[Any], y: NDArray[Any]) -> Real:
        self.n_features_in_ = X.shape[1]
        self.classes_, y_index = checked_labels(y)
        if len(self.classes_) == 2:
            return (2.0 * y_index - 1.0)[:, None]
        return np.where(y_index[:, None] == np.arange(len(self.classes_)), 1.0, -1.0)


class RidgeRegressor(MultiOutputMixin, RegressorMixin, _Ridge):
    """Ridge regression on standardised features, of one number or several; see `RidgeProbe` for the parameters.

    Attributes
    ----------
    coef_ : ndarray (n_targets, n_features) or, for targets in one dimension, (n_features,), float64
        For features as they come.
    intercept_ : ndarray (n_targets,) or float
    alpha_ : float
    scores_ : ndarray (n_values,)
        Coefficient of determination on left-out rows of each value, from the largest to the smallest; the mean over
        targets.
    held_out_ : ndarray (n_samples, n_targets), float64
        What each row gets from the chosen alpha when it is left out.
    """

    kinds: ClassVar[frozenset[TaskKind]] = frozenset({"multilabel", "regression"})
    linear_probe_of: ClassVar[frozenset[TaskKind]] = frozenset({"regression"})
    defaults: ClassVar[Setting] = {"prior_rows": PRIOR_ROWS}
    takes_unknown: ClassVar[bool] = True
    """Of several numbers some may be NaN: each is fitted on the rows where it is known."""
    arrays: ClassVar[tuple[str, ...]] = ("coef_", "intercept_")
    coef_: Real
    intercept_: Real | float
    _flat: bool
    """Targets are in one dimension."""

    def fit(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None, groups: ArrayLike | None = None
    ) -> Self:
        """Fit ``X`` and ``y``, (n_samples,) or (n_samples, n_targets).

        ``sample_weight`` and ``groups`` are as in `LogisticProbe.fit`.

        Raises
        ------
        ValueError
            Data or parameters that scikit-learn's estimators refuse too.
        """
        rows, y = checked_numbers(self, X, y)
        numbers = np.asarray(y, np.float64)
        if is_partial(numbers):
            if self.alphas is not None:
                raise ValueError("alphas are chosen where all numbers are known; set alpha, or choose among settings")
            targets, weight = self._targets_of(rows, numbers), checked_weight(sample_weight, rows)
            (systems,) = self._systems(rows, targets, np.full(len(numbers), -1), weight)
            return self._solved(systems, self.alpha)
        fold = None
        if self.alphas is not None and self.cv is not None:
            fold = fold_of_rows(self.cv, numbers, groups, self.random_state, classes=False)
        weight, rows, numbers, fold = with_weight(checked_weight(sample_weight, rows), rows, numbers, fold)
        targets, seen = self._targets_of(rows, numbers), slice(None) if fold is None else fold >= 0
        system, alphas, held_out = self._left_out(rows, targets, weight, fold)
        weight = None if weight is None else weight[seen]
        scores = [float(r2_score(targets[seen], predicted[seen], sample_weight=weight)) for predicted in held_out]
        return self._take_best(system, alphas, held_out, scores)

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the numbers, (n_samples,) or (n_samples, n_targets)."""
        check_is_fitted(self)
        rows = validate_data(self, X, reset=False, dtype=REAL_TYPES)
        return np.asarray((rows @ self.coef_.T.astype(rows.dtype)).astype(np.float64) + self.intercept_)

    def check_arrays(self) -> None:
        """Refuse weights and intercepts that would be stretched to fit each other."""
        coef, intercept = self.coef_, self.intercept_
        fits = np.ndim(coef) in (1, 2) and np.shape(coef)[-1] == self.n_features_in_
        if not fits or np.shape(intercept) != np.shape(coef)[:-1]:
            raise HeadError("the weights and intercepts of its RidgeRegressor do not belong together")
        if not np.isfinite(coef).all() or not np.isfinite(intercept).all():
            raise HeadError("the weights of its RidgeRegressor are not finite numbers")

    def to_module(self) -> nn.Module:
        """Return the numbers, (B, n_targets)."""
        from featurecache.heads.modules import Linear

        return Linear(weight=np.atleast_2d(self.coef_).T, bias=np.atleast_1d(self.intercept_))

    def _targets_of(self, X: NDArray[Any], y: NDArray[Any]) -> Real:
        self.n_features_in_, self._flat = X.shape[1], y.ndim == 1
        numbers = y.astype(np.float64, copy=False)
        return numbers[:, None] if self._flat else numbers

    def _fitted(self, weights_KD: Real, intercept_K: Real) -> Self:
        if self._flat:
            self.coef_, self.intercept_ = weights_KD[0].copy(), float(intercept_K[0])
        else:
            self.coef_, self.intercept_ = weights_KD.copy(), intercept_K.copy()
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
