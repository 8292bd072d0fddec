"""Gradient-boosted trees: LightGBM grows them, and they are kept and asked as plain arrays.

A saved head is so no text that a stranger can forge for a parser in C++ to trust, and answers where LightGBM is absent.
Axes: R rounds, O outputs, N nodes of a tree, n rows, D features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from featurecache.heads.checks import (
    REAL_TYPES,
    check_whole_number,
    checked_class_weight,
    checked_to_fit,
    with_weight,
)
from featurecache.heads.growing import grown
from featurecache.heads.labelled import LogitMixin
from featurecache.heads.preparation import mean_and_scale, rows_to_stop_by

TREE_ARRAYS = ("feature_", "threshold_", "children_", "value_")
"""Attributes that hold the nodes of all trees."""

MAX_NODES = 1 << 20
"""Of all rounds of an output: so many steps does a row take at most, also through a stranger's trees."""

_ANSWERS_AT_ONCE = 1 << 16
_SHARE, _LEAST_FEATURES = 0.05, 32


class _TreeEstimator(BaseEstimator):
    """Growing trees and asking them, whatever is said of a row."""

    takes_unknown: ClassVar[bool] = True
    n_features_in_: int
    feature_: NDArray[np.int32]
    threshold_: NDArray[np.float64]
    children_: NDArray[np.int32]
    value_: NDArray[np.float64]

    def __init__(
        self,
        num_leaves: int = 15,
        *,
        learning_rate: float = 0.1,
        num_boost_round: int = 100,
        min_data_in_leaf: int = 5,
        feature_fraction: float | None = None,
        patience: int = 10,
        validation_fraction: float = 0.1,
        random_state: int = 0,
    ) -> None:
        self.num_leaves = num_leaves
        self.learning_rate = learning_rate
        self.num_boost_round = num_boost_round
        self.min_data_in_leaf = min_data_in_leaf
        self.feature_fraction = feature_fraction
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.random_state = random_state

    def _check(self) -> None:
        """Raise `ValueError` for settings that make no sense, before anything is grown."""
        check_whole_number("num_leaves", self.num_leaves, 2)
        for name in ("num_boost_round", "min_data_in_leaf", "patience"):
            check_whole_number(name, getattr(self, name), 1)
        if self.num_boost_round * (2 * self.num_leaves - 1) > MAX_NODES:
            raise ValueError(
                f"{self.num_boost_round} rounds of {self.num_leaves} leaves have more than {MAX_NODES} nodes; "
                "lower num_leaves or num_boost_round"
            )
        if not (np.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate must be positive and finite, got {self.learning_rate!r}")
        if self.feature_fraction is not None and not 0 < self.feature_fraction <= 1:
            raise ValueError(f"feature_fraction must be above 0 and at most 1, got {self.feature_fraction!r}")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must be from 0 to below 1, got {self.validation_fraction!r}")

    def _grow(
        self,
        X: NDArray[Any],
        y: NDArray[Any],
        weight: NDArray[np.float64] | None,
        group: NDArray[np.int64] | None,
        objective: Mapping[str, Any],
    ) -> None:
        """Grow trees for class indices (n,), or a booster for each column of labels or numbers (n, O)."""
        held_out = np.zeros(len(y), bool)
        seen_1n = np.ones((1, len(y)), bool)
        seed = self.random_state or 0
        held_out[rows_to_stop_by(y, seen_1n, group, fraction=self.validation_fraction, random_state=seed)] = True
        columns = y[:, None] if y.ndim == 1 else y
        arrays = grown(X, columns, weight, held_out, self._settings(objective), self.patience)
        for name, array in zip(TREE_ARRAYS, arrays, strict=True):
            setattr(self, name, array)

    def _settings(self, objective: Mapping[str, Any]) -> dict[str, Any]:
        self._check()
        own = {
            name: getattr(self, name) for name in ("num_leaves", "learning_rate", "num_boost_round", "min_data_in_leaf")
        }
        share = self.feature_fraction or min(max(_SHARE, _LEAST_FEATURES / self.n_features_in_), 1.0)
        return {**own, "feature_fraction": share, "seed": self.random_state or 0, **objective}

    def _sums(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return what the leaves that each row reaches add up to, (n_samples, n_outputs)."""
        check_is_fitted(self)
        rows = validate_data(self, X, reset=False, dtype=REAL_TYPES)
        num_outputs, num_nodes = self.value_.shape[1:]
        root_O = np.arange(num_outputs) * num_nodes
        children = self.children_ + root_O[:, None, None]  # of all trees of a round in one array
        sums = np.zeros((len(rows), num_outputs))
        step = max(_ANSWERS_AT_ONCE // num_outputs, 1)
        for start in range(0, len(rows), step):
            block = slice(start, start + step)
            rounds = zip(self.feature_, self.threshold_, children, self.value_, strict=True)
            for feature, threshold, child, value in rounds:
                leaf = _leaves(rows[block], root_O, feature.ravel(), threshold.ravel(), child.ravel())
                sums[block] += value.take(leaf)
        return sums


class BoostedTrees(LogitMixin, ClassifierMixin, _TreeEstimator):
    """Gradient-boosted decision trees (Friedman, Annals of Statistics 2001), grown by LightGBM leaf by leaf.

    Of two classes there is one tree a round, of more one for each class; several labels have a booster each. See Ke et
    al., "LightGBM: A Highly Efficient Gradient Boosting Decision Tree", NeurIPS 2017. LightGBM (extra ``trees``) is
    needed to fit, not to predict.

    Parameters
    ----------
    num_leaves : int
        Of a tree, at most.
    learning_rate : float
    num_boost_round : int
        At most.
    min_data_in_leaf : int
        Rows, whatever they weigh.
    feature_fraction : float, optional
        Share of the features, drawn anew for each tree, among which splits are sought: embeddings are wide, and their
        features say much the same. None: a twentieth, but at least 32 features.
    patience : int
        Rounds without improvement on the held-out rows after which growing ends; the best round is the last one kept.
    validation_fraction : float
        Of the rows of each class, held out to stop by. None are where there are fewer than 1,000 rows, or ten of a
        class; then all rounds are grown.
    class_weight : None, "balanced" or mapping of class to weight
    random_state : int
        Of held-out rows and drawn features.

    Attributes
    ----------
    classes_ : ndarray (n_classes,)
    feature_ : ndarray (n_rounds, n_outputs, n_nodes), int32
    threshold_ : ndarray (n_rounds, n_outputs, n_nodes), float64
    children_ : ndarray (n_rounds, n_outputs, n_nodes, 2), int32
        Where a row goes whose feature is at most the threshold, and where others go: to a later node, or nowhere else
        from a leaf. Node 0 is the root.
    value_ : ndarray (n_rounds, n_outputs, n_nodes), float64
        Of leaves. Those that a row reaches in all rounds are added up.
    """

    def __init__(
        self,
        num_leaves: int = 15,
        *,
        learning_rate: float = 0.1,
        num_boost_round: int = 100,
        min_data_in_leaf: int = 5,
        feature_fraction: float | None = None,
        patience: int = 10,
        validation_fraction: float = 0.1,
        class_weight: str | Mapping[Any, float] | None = None,
        random_state: int = 0,
    ) -> None:
        super().__init__(
            num_leaves,
            learning_rate=learning_rate,
            num_boost_round=num_boost_round,
            min_data_in_leaf=min_data_in_leaf,
            feature_fraction=feature_fraction,
            patience=patience,
            validation_fraction=validation_fraction,
            random_state=random_state,
        )
        self.class_weight = class_weight

    def fit(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None, groups: ArrayLike | None = None
    ) -> Self:
        """Grow trees.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : array-like of shape (n_samples,), or several labels of each row, (n_samples, n_labels), 0 or 1
        sample_weight : array-like of shape (n_samples,), optional
            Of each row in the loss.
        groups : array-like of shape (n_samples,), optional
            Rows of one group are held out together where some are held out to stop by.

        Raises
        ------
        MissingExtraError
            LightGBM is not installed.
        ValueError
            Data or parameters that scikit-learn's estimators refuse too.
        """
        rows, labels, weight, group = checked_to_fit(self, X, y, sample_weight, groups)
        y_index = self._take_labels(labels)
        weight = _weighed(y_index, weight, checked_class_weight(self.class_weight, self.classes_))
        weight, rows, y_index, group = with_weight(weight, rows, y_index, group)
        several = len(self.classes_) > 2 and not self.multilabel_
        objective = {"objective": "multiclass", "num_class": len(self.classes_)} if several else {"objective": "binary"}
        self._grow(rows, y_index, weight, group, objective)
        return self

    def _logits_of(self, X: ArrayLike) -> NDArray[np.float64]:  # type: ignore[override]
        sums = self._sums(X)
        # One tree a round says how much more probable the second class is.
        return np.hstack([np.zeros_like(sums), sums]) if len(self.classes_) == 2 and not self.multilabel_ else sums


class BoostedTreesRegressor(MultiOutputMixin, RegressorMixin, _TreeEstimator):
    """Gradient-boosted trees that say one number or several, each by a booster of its own, grown on squared errors.

    Parameters are those of `BoostedTrees`, as far as they are not about classes; so are the arrays of trees.

    Attributes
    ----------
    intercept_ : ndarray () or (n_targets,), float64
        Mean of the numbers, from which leaves count.
    """

    intercept_: NDArray[np.float64]

    def fit(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None, groups: ArrayLike | None = None
    ) -> Self:
        """Grow trees.

        Parameters
        ----------
        X, sample_weight, groups
            As for `BoostedTrees.fit`.
        y : array-like of shape (n_samples,) or (n_samples, n_targets)

        Raises
        ------
        MissingExtraError
            LightGBM is not installed.
        ValueError
            Data or parameters that scikit-learn's estimators refuse too.
        """
        rows, numbers, weight, group = checked_to_fit(self, X, y, sample_weight, groups, numbers=True)
        mean, scale = mean_and_scale(numbers, weight)
        targets = (numbers - mean) / scale
        self._grow(rows, targets.reshape(len(rows), -1), weight, group, {"objective": "regression"})
        self.value_ *= np.reshape(scale, (-1, 1))
        self.intercept_ = np.asarray(mean)
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the numbers, (n_samples,) or (n_samples, n_targets)."""
        sums = self._sums(X)
        return sums.reshape(len(sums), *self.intercept_.shape) + self.intercept_


def _weighed(
    y_index: NDArray[np.int64], weight: NDArray[np.float64] | None, class_weight: Any
) -> NDArray[np.float64] | None:
    """Return the weight of each row, that of its class included."""
    if class_weight is None:
        return weight
    own = np.ones(len(y_index)) if weight is None else weight
    if isinstance(class_weight, str):
        of_class = np.bincount(y_index, own)
        class_weight = of_class.sum() / (len(of_class) * of_class)
    return np.asarray(own * class_weight[y_index])


def _leaves(
    rows_nD: NDArray[Any],
    root_O: NDArray[np.int64],
    feature: NDArray[np.int32],
    threshold: NDArray[np.float64],
    children: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Walk down the trees of one round and return the leaf that each row reaches in each of them, (n, O)."""
    node_nO = np.broadcast_to(root_O, (len(rows_nD), len(root_O)))
    while True:
        goes_right = np.take_along_axis(rows_nD, feature.take(node_nO), axis=1) > threshold.take(node_nO)
        next_nO = children.take(2 * node_nO + goes_right)
        if np.array_equal(next_nO, node_nO):
            return next_nO
        node_nO = next_nO
