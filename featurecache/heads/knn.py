"""``knn``: nearest neighbours by cosine, as DINO's protocol weighs them, of features as they come or standardised."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from featurecache.errors import HeadError
from featurecache.heads.checks import (
    REAL_TYPES,
    check_units,
    checked_labels,
    checked_numbers,
    columns_by_known_rows,
    is_known,
)
from featurecache.heads.head import ANY_FIT_BYTES, HeadMixin, Setting
from featurecache.heads.preparation import directions, own_units
from featurecache.specs import TaskKind

if TYPE_CHECKING:
    from torch import nn

# Of similarities that are computed at a time: of a hundred thousand rows all pairs would take 40 GB.
_BLOCK_BYTES = 64 << 20
# Fewer rows choose among more settings by chance: of three kinds of set cards with five labels each, accuracy falls
# from 0.55 to 0.53. From here on nothing is lost, and what a network scales badly is half as wrong in log loss.
_ENOUGH_TO_STANDARDIZE = 40


class _Neighbours(HeadMixin):
    """The parameters of both heads, and what they cost."""

    grid: ClassVar[dict[str, list[Any]]] = {"standardize": [False, True], "n_neighbors": [50, 20, 10, 5, 3, 1]}
    optional_arrays: ClassVar[tuple[str, ...]] = ("mean_", "factor_")
    relative_seconds: ClassVar[float] = 7.0
    bytes_per_value: ClassVar[int | None] = 24
    # Similarities of a block, their indices as int64, and what is sorted of both.
    fixed_bytes: ClassVar[int] = ANY_FIT_BYTES + (384 << 20)
    n_features_in_: int
    mean_: NDArray[np.float64]
    factor_: NDArray[np.float64]
    directions_: NDArray[Any]

    def __init__(self, n_neighbors: int = 20, *, temperature: float = 0.07, standardize: bool = False) -> None:
        self.n_neighbors = n_neighbors
        self.temperature = temperature
        self.standardize = standardize

    @classmethod
    def settings(cls, n_samples: int) -> list[Setting]:
        """Return the settings to search on so many rows: numbers of neighbours, the most first.

        Of standardised features every other number, as each takes as long again.
        """
        counts = cls.grid["n_neighbors"]
        found = [{"standardize": False, "n_neighbors": count} for count in counts]
        if n_samples >= _ENOUGH_TO_STANDARDIZE:
            found += [{"standardize": True, "n_neighbors": count} for count in counts[1::2]]
        return [setting for setting in found if setting["n_neighbors"] <= max(n_samples, 1)]

    @classmethod
    def seconds_needed(cls, n_samples: int, n_features: int, n_outputs: int) -> float:
        """Return seconds for n_samples rows, n_features and n_outputs; see `HeadMixin.seconds_needed`."""
        return 9 * 5e-11 * n_samples**2 * n_features

    def _keep(self, rows: NDArray[Any]) -> None:
        """Keep the rows, normalised, and the units of their features.

        Raises
        ------
        ValueError
            Parameters that make no sense.
        """
        if self.n_neighbors < 1 or not self.temperature > 0:
            raise ValueError(
                f"n_neighbors and temperature must be positive, got {self.n_neighbors} and {self.temperature}"
            )
        if self.standardize:
            self.mean_, self.factor_ = own_units(rows)
            self.directions_ = directions(rows, self.mean_, self.factor_)
        else:
            self.directions_ = directions(rows)

    def _directions(self, X: ArrayLike) -> NDArray[Any]:
        """Return rows to predict, normalised as those that are kept."""
        check_is_fitted(self)
        rows = validate_data(self, X, reset=False, dtype=REAL_TYPES)
        if not self.standardize:
            return directions(rows)
        return directions(rows, self.mean_, self.factor_)

    def _check_directions(self) -> None:
        name, count, temperature = type(self).__name__, self.n_neighbors, self.temperature
        if type(count) is not int or count < 1 or not isinstance(temperature, int | float) or not temperature > 0:
            raise HeadError(f"its {name} has {count!r} neighbours and the temperature {temperature!r}")
        kept = self.directions_
        if np.ndim(kept) != 2 or np.shape(kept)[1] != self.n_features_in_ or len(kept) == 0:
            raise HeadError(f"the rows of its {name} do not fit its features")
        if kept.dtype.kind != "f" or not np.isfinite(kept).all():
            raise HeadError(f"the rows of its {name} are not finite numbers")
        check_units(self, ("mean_", "factor_"))

    def _module(self, targets: NDArray[Any]) -> nn.Module:
        """Return the weighted mean of the targets of the nearest rows, (B, n_outputs)."""
        from torch import nn

        from featurecache.heads.modules import Neighbours, Rescale, Standardise, UnitLength

        if np.isnan(targets).any():
            raise HeadError(
                "nearest neighbours of which some labels or numbers are unknown cannot be exported; choose another head"
            )
        count = min(self.n_neighbors, len(self.directions_))
        mean = Neighbours(count, directions=self.directions_, says=targets, temperature=self.temperature)
        if not self.standardize:
            return nn.Sequential(UnitLength(), mean)
        zeros, ones = np.zeros(self.n_features_in_), np.ones(self.n_features_in_)
        units = Standardise(mean=self.mean_, scale=ones), Rescale(mean=zeros, scale=self.factor_)
        return nn.Sequential(*units, UnitLength(), mean)


class CosineKnn(_Neighbours, ClassifierMixin, BaseEstimator):
    """k nearest neighbours by cosine similarity, each with the weight ``exp(similarity / temperature)``.

    The protocol of Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021, appendix F.4
    (temperature 0.07, and 20 neighbours as the value that does well everywhere).

    Parameters
    ----------
    n_neighbors : int
        Where there are fewer rows, all of them.
    temperature : float
    standardize : bool
        Features less their mean and divided by their standard deviation before rows are normalised: what is predicted
        then does not depend on how they are scaled. How a network scales them is worth knowing where rows are few.

    Attributes
    ----------
    classes_ : ndarray (n_classes,)
    mean_, factor_ : ndarray (n_features,), float64
        Of standardised features, by which they are shifted and multiplied.
    directions_ : ndarray (n_samples, n_features)
        The rows, normalised.
    labels_ : ndarray (n_samples,), int64
        Index of each row's class.
    """

    kinds: ClassVar[frozenset[TaskKind]] = frozenset({"classification"})
    defaults: ClassVar[Setting] = {"n_neighbors": 5}
    arrays: ClassVar[tuple[str, ...]] = ("classes_", "directions_", "labels_")

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Keep the rows, normalised.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : array-like of shape (n_samples,)

        Raises
        ------
        ValueError
            Data or parameters that scikit-learn's estimators refuse too.
        """
        rows, y = validate_data(self, X, y, dtype=REAL_TYPES)
        self._keep(rows)
        self.classes_, self.labels_ = checked_labels(y)
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return each class's share of the votes, (n_samples, n_classes)."""
        rows = self._directions(X)
        votes = np.empty((len(rows), len(self.classes_)))
        for block, nearest, weight in _neighbours(self.directions_, rows, self.n_neighbors, self.temperature):
            # Class by class: indicators of all neighbours at once would be (n, k, n_classes).
            for index in range(len(self.classes_)):
                votes[block, index] = (weight * (self.labels_[nearest] == index)).sum(axis=1)
        return votes / votes.sum(axis=1, keepdims=True)

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the class with most votes, (n_samples,)."""
        probability = self.predict_proba(X)
        return np.asarray(self.classes_[probability.argmax(axis=1)])

    def check_arrays(self) -> None:
        """Refuse votes that would be lost or made up: what a try on a few rows does not show."""
        self._check_directions()
        labels, n_classes = self.labels_, len(self.classes_)
        if np.shape(labels) != (len(self.directions_),):
            raise HeadError("the rows and labels of its CosineKnn do not belong together")
        if labels.dtype.kind != "i" or labels.min() < 0 or labels.max() >= n_classes or n_classes > len(labels):
            raise HeadError("the labels of its CosineKnn are not those of its classes")

    def to_module(self) -> nn.Module:
        """Return the share of the votes of each class, (B, n_classes)."""
        return self._module(np.eye(len(self.classes_))[self.labels_])


class CosineKnnRegressor(_Neighbours, MultiOutputMixin, RegressorMixin, BaseEstimator):
    """The mean of one number or several over the nearest neighbours; weights and parameters are those of `CosineKnn`.

    Attributes
    ----------
    directions_ : ndarray (n_samples, n_features)
        The rows, normalised.
    targets_ : ndarray (n_samples,) or (n_samples, n_targets), float64
        Those that are not known, NaN, are passed over: neighbours are the nearest rows for which a number is known.
    """

    kinds: ClassVar[frozenset[TaskKind]] = frozenset({"multilabel", "regression"})
    takes_unknown: ClassVar[bool] = True
    arrays: ClassVar[tuple[str, ...]] = ("directions_", "targets_")

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Keep the rows, normalised, and ``y``, (n_samples,) or (n_samples, n_targets).

        Raises
        ------
        ValueError
            Data or parameters that scikit-learn's estimators refuse too.
        """
        rows, y = checked_numbers(self, X, y)
        self._keep(rows)
        self.targets_ = np.array(y, np.float64)
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the weighted means, (n_samples,) or (n_samples, n_targets)."""
        rows = self._directions(X)
        targets = self.targets_ if self.targets_.ndim == 2 else self.targets_[:, None]
        means = np.zeros((len(rows), targets.shape[1]))
        for columns, known in columns_by_known_rows(is_known(targets)):
            if not known.any():
                continue
            kept, known_targets = (
                (self.directions_, targets) if known.all() else (self.directions_[known], targets[known])
            )
            for block, nearest, weight in _neighbours(kept, rows, self.n_neighbors, self.temperature):
                share = weight / weight.sum(axis=1, keepdims=True)
                means[block, columns] = np.einsum("nk,nkt->nt", share, known_targets[nearest][:, :, columns])
        return means.reshape(len(rows), *self.targets_.shape[1:])

    def check_arrays(self) -> None:
        """Refuse rows and numbers that do not belong together."""
        self._check_directions()
        targets = self.targets_
        if targets.ndim not in (1, 2) or len(targets) != len(self.directions_):
            raise HeadError("the rows and numbers of its CosineKnnRegressor do not belong together")
        # Of several numbers of a row, some may be unknown.
        if targets.dtype.kind != "f" or np.isinf(targets).any() or (targets.ndim == 1 and np.isnan(targets).any()):
            raise HeadError("the rows or numbers of its CosineKnnRegressor are not finite numbers")

    def to_module(self) -> nn.Module:
        """Return the numbers, (B, n_targets)."""
        return self._module(self.targets_.reshape(len(self.targets_), -1))


def _neighbours(
    kept: NDArray[Any], rows: NDArray[Any], n_neighbors: int, temperature: float
) -> Iterator[tuple[slice, NDArray[np.int64], NDArray[np.float64]]]:
    """Yield blocks of rows with the indices of their neighbours, (n, k), and what each of them weighs."""
    rows = rows.astype(kept.dtype, copy=False)
    count = min(n_neighbors, len(kept))
    step = max(_BLOCK_BYTES // (len(kept) * kept.itemsize), 1)
    for start in range(0, len(rows), step):
        similarity = rows[start : start + step] @ kept.T
        # A partition, not a sort: the order of the neighbours does not matter.
        nearest = np.argpartition(similarity, -count, axis=1)[:, -count:]
        close = np.take_along_axis(similarity, nearest, axis=1).astype(np.float64)
        # The largest one taken off, so that no temperature overflows or leaves nothing.
        weight = np.exp((close - close.max(axis=1, keepdims=True)) / temperature)
        yield slice(start, start + step), nearest, weight
