"""Nearest neighbours by cosine, as DINO's protocol weighs them."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.preprocessing import normalize
from sklearn.utils.validation import check_is_fitted, validate_data

from featurecache.heads.checks import REAL_TYPES, checked_labels

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
        if self.n_neighbors < 1 or not self.temperature > 0:
            given = f"{self.n_neighbors} and {self.temperature}"
            raise ValueError(f"n_neighbors and temperature must be positive, got {given}")
        self.classes_, self.labels_ = checked_labels(y)
        self.directions_ = normalize(rows)
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return each class's share of the votes, (n_samples, n_classes)."""
        check_is_fitted(self)
        kept = self.directions_
        directions = normalize(validate_data(self, X, reset=False, dtype=REAL_TYPES)).astype(kept.dtype)
        count = min(self.n_neighbors, len(kept))
        votes = np.empty((len(directions), len(self.classes_)))
        step = max(_BLOCK_BYTES // (len(kept) * kept.itemsize), 1)
        for start in range(0, len(directions), step):
            similarity = directions[start : start + step] @ kept.T
            nearest = np.argpartition(similarity, -count, axis=1)[:, -count:]
            close = np.take_along_axis(similarity, nearest, axis=1).astype(np.float64)
            # The largest one taken off, so that no temperature overflows or leaves nothing.
            weight = np.exp((close - close.max(axis=1, keepdims=True)) / self.temperature)
            for place in range(len(self.classes_)):
                votes[start : start + step, place] = (weight * (self.labels_[nearest] == place)).sum(axis=1)
        return votes / votes.sum(axis=1, keepdims=True)

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the class with most votes, (n_samples,)."""
        probability = self.predict_proba(X)
        return np.asarray(self.classes_[probability.argmax(axis=1)])
