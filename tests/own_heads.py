"""Estimators of 'somebody's own code' for tests: named as ``python:own_heads:...``."""

from __future__ import annotations

import os
import threading
import time
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.dummy import DummyClassifier
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from torch import nn

from featurecache.heads.head import HeadMixin
from featurecache.heads.modules import Constant


def tree() -> DecisionTreeClassifier:
    """A classifier with values to search."""
    found = DecisionTreeClassifier(random_state=0)
    found.grid = {"max_depth": [1, 3]}
    return found


def regressor() -> DecisionTreeRegressor:
    return DecisionTreeRegressor()


def nothing() -> int:
    return 7


def failing() -> BaseEstimator:
    raise RuntimeError("no such luck")


def needs(shape: tuple[int, ...], num_outputs: int) -> None:
    """Layers, not a head."""


class Priors(HeadMixin, ClassifierMixin, BaseEstimator):
    """A head in one file: the share of each class, which states all that the package asks of a head."""

    kinds = frozenset({"classification"})
    grid = {"smoothing": [0.0, 1.0]}  # noqa: RUF012
    arrays = ("classes_", "shares_")

    def __init__(self, smoothing: float = 0.0) -> None:
        self.smoothing = smoothing

    def fit(self, X: ArrayLike, y: ArrayLike) -> Priors:
        self.n_features_in_ = np.shape(X)[1]
        self.classes_, counts = np.unique(y, return_counts=True)
        self.shares_ = (counts + self.smoothing) / (counts + self.smoothing).sum()
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        return np.tile(self.shares_, (len(X), 1))

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:
        return self.classes_[self.predict_proba(X).argmax(axis=1)]

    def to_module(self) -> nn.Module:
        return Constant(value=self.shares_)


class Slow(DummyClassifier):
    """Takes its time for each fit."""

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__()
        self.seconds = seconds

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        time.sleep(self.seconds)
        return super().fit(X, y, sample_weight)


class Whereabouts(DummyClassifier):
    """A head that knows in which process and thread it was fitted."""

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        self.where_ = [os.getpid(), threading.get_ident()]
        time.sleep(0.2)  # so that one worker does not do the work of two
        return super().fit(X, y, sample_weight)
