"""Nearest neighbours by cosine, as DINO's protocol weighs them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, MultiOutputMixin, RegressorMixin
from sklearn.preprocessing import normalize
from sklearn.utils.validation import check_is_fitted, validate_data

from featurecache.heads.checks import REAL_TYPES, alike_columns, checked_labels, checked_numbers, known_cells

_BLOCK_BYTES = 64 << 20


class CosineKnn(ClassifierMixin, BaseEstimator):
    """k nearest neighbours by cosine similarity, each with the weight ``exp(similarity / temperature)``.

    The protocol of Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021, appendix F.4
    (temperature 0.07, and 20 neighbours as the value that does well everywhere).

    Parameters
    ----------
    n_neighbors : int
        Where there are fewer rows, all of them.
    temperature : float

    Attributes
    ----------
    classes_ : ndarray (n_classes,)
    directions_ : ndarray (n_samples, n_features)
        The rows, normalised.
    labels_ : ndarray (n_samples,), int64
        Index of each row's class.
    """

    def __init__(self, n_neighbors: int = 20, *, temperature: float = 0.07) -> None:
        self.n_neighbors = n_neighbors
        self.temperature = temperature

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
        _check_parameters(self.n_neighbors, self.temperature)
        self.classes_, self.labels_ = checked_labels(y)
        self.directions_ = normalize(rows)
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return each class's share of the votes, (n_samples, n_classes)."""
        check_is_fitted(self)
        rows = validate_data(self, X, reset=False, dtype=REAL_TYPES)
        votes = np.empty((len(rows), len(self.classes_)))
        for block, nearest, weight in _neighbours(self.directions_, rows, self.n_neighbors, self.temperature):
            for place in range(len(self.classes_)):
                votes[block, place] = (weight * (self.labels_[nearest] == place)).sum(axis=1)
        return votes / votes.sum(axis=1, keepdims=True)

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the class with most votes, (n_samples,)."""
        probability = self.predict_proba(X)
        return np.asarray(self.classes_[probability.argmax(axis=1)])


class CosineKnnRegressor(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """The mean of one number or several over the nearest neighbours; weights and parameters are those of `CosineKnn`.

    Attributes
    ----------
    directions_ : ndarray (n_samples, n_features)
        The rows, normalised.
    targets_ : ndarray (n_samples,) or (n_samples, n_targets), float64
        Those that are not known, NaN, are passed over: neighbours are the nearest rows for which a number is known.
    """

    takes_unknown: ClassVar[bool] = True

    def __init__(self, n_neighbors: int = 20, *, temperature: float = 0.07) -> None:
        self.n_neighbors = n_neighbors
        self.temperature = temperature

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Keep the rows, normalised, and ``y``, (n_samples,) or (n_samples, n_targets).

        Raises
        ------
        ValueError
            Data or parameters that scikit-learn's estimators refuse too.
        """
        rows, y = checked_numbers(self, X, y)
        _check_parameters(self.n_neighbors, self.temperature)
        self.targets_ = np.array(y, np.float64)
        self.directions_ = normalize(rows)
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the weighted means, (n_samples,) or (n_samples, n_targets)."""
        check_is_fitted(self)
        rows = validate_data(self, X, reset=False, dtype=REAL_TYPES)
        targets = self.targets_ if self.targets_.ndim == 2 else self.targets_[:, None]
        means = np.zeros((len(rows), targets.shape[1]))
        for columns, known in alike_columns(known_cells(targets)):
            if not known.any():
                continue
            kept, mine = (self.directions_, targets) if known.all() else (self.directions_[known], targets[known])
            for block, nearest, weight in _neighbours(kept, rows, self.n_neighbors, self.temperature):
                share = weight / weight.sum(axis=1, keepdims=True)
                means[block, columns] = np.einsum("nk,nkt->nt", share, mine[nearest][:, :, columns])
        return means.reshape(len(rows), *self.targets_.shape[1:])


def _check_parameters(n_neighbors: Any, temperature: Any) -> None:
    if n_neighbors < 1 or not temperature > 0:
        raise ValueError(f"n_neighbors and temperature must be positive, got {n_neighbors} and {temperature}")


def _neighbours(
    kept: NDArray[Any], rows: NDArray[Any], n_neighbors: int, temperature: float
) -> Iterator[tuple[slice, NDArray[np.int64], NDArray[np.float64]]]:
    """Yield blocks of rows with the places of their neighbours, (n, k), and what each of them weighs."""
    directions = normalize(rows).astype(kept.dtype)
    count = min(n_neighbors, len(kept))
    step = max(_BLOCK_BYTES // (len(kept) * kept.itemsize), 1)
    for start in range(0, len(directions), step):
        similarity = directions[start : start + step] @ kept.T
        nearest = np.argpartition(similarity, -count, axis=1)[:, -count:]
        close = np.take_along_axis(similarity, nearest, axis=1).astype(np.float64)
        # The largest one taken off, so that no temperature overflows or leaves nothing.
        weight = np.exp((close - close.max(axis=1, keepdims=True)) / temperature)
        yield slice(start, start + step), nearest, weight
