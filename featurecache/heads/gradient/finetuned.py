"""Layers trained on cached activations, as scikit-learn estimators: for classes and labels, and for numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassifierMixin, MultiOutputMixin, RegressorMixin

from featurecache.heads.classifiers import LogitMixin
from featurecache.heads.gradient.tuner import FineTuned
from featurecache.heads.logistic import LogisticProbe
from featurecache.heads.preparation import mean_and_scale
from featurecache.heads.ridge import RidgeRegressor
from featurecache.specs import TaskKind

if TYPE_CHECKING:
    from torch import nn

_STRENGTHS = [1e-4, 1e-3, 1e-2, 1e-1]


class FineTunedClassifier(LogitMixin, ClassifierMixin, FineTuned):
    """Layers for classes, or for labels; see `FineTuned`."""

    arrays: ClassVar[tuple[str, ...]] = ("classes_",)
    optional_arrays: ClassVar[tuple[str, ...]] = ("n_iter_", "multilabel_", "joined_")

    def to_module(self) -> nn.Module:
        """Return probabilities, (B, n_classes)."""
        return self._with_probabilities(super().to_module())

    @property
    def num_outputs(self) -> int:
        """How many classes or labels there are."""
        return len(self.classes_)

    @property
    def _outcome(self) -> TaskKind:
        return "multilabel" if getattr(self, "multilabel_", False) else "classification"

    def _take(self, y: NDArray[Any], weight: NDArray[np.float64] | None) -> NDArray[Any]:
        return self._take_labels(y)

    def _targets(self, y: NDArray[Any]) -> NDArray[Any]:
        return self._take_labels(y)

    def _probe(
        self,
        features: NDArray[np.float32],
        y: NDArray[Any],
        weight: NDArray[np.float64],
        group: NDArray[np.int64] | None,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        num_folds = int(min(5, _least_of_a_class(y, group)))
        search = {"Cs": _STRENGTHS, "cv": num_folds} if num_folds > 1 else {"prior_rows": 10.0}
        probe = LogisticProbe(**search).fit(features, y, weight, groups=group)
        if self.multilabel_ or len(self.classes_) > 2:
            return probe.coef_, probe.intercept_
        weights, intercepts = probe.coef_ / 2, probe.intercept_ / 2  # half each way: two logits of one margin
        return np.concatenate([-weights, weights]), np.concatenate([-intercepts, intercepts])


class FineTunedRegressor(MultiOutputMixin, RegressorMixin, FineTuned):
    """Layers for numbers; see `FineTuned`."""

    arrays: ClassVar[tuple[str, ...]] = ("flat_", "target_mean_", "target_scale_")
    optional_arrays: ClassVar[tuple[str, ...]] = ("n_iter_", "joined_")

    flat_: bool
    """Numbers came as (n_samples,)."""
    target_mean_: NDArray[np.float64]
    target_scale_: NDArray[np.float64]
    """Of each number: what the layers say is in these units, from that mean."""

    @property
    def _outcome(self) -> TaskKind:
        return "regression"

    @property
    def num_outputs(self) -> int:
        """How many numbers there are."""
        return len(self.target_mean_)

    def to_module(self) -> nn.Module:
        """Return the numbers, (B, n_targets)."""
        from torch import nn

        from featurecache.heads.modules import Rescale

        return nn.Sequential(super().to_module(), Rescale(mean=self.target_mean_, scale=self.target_scale_))

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the numbers, (n_samples,) or (n_samples, n_targets)."""
        values = self._logits_of(X) * self.target_scale_ + self.target_mean_
        return values[:, 0] if self.flat_ else values

    def _take(self, y: NDArray[Any], weight: NDArray[np.float64] | None) -> NDArray[Any]:
        self.flat_ = y.ndim == 1
        numbers = y.reshape(len(y), -1).astype(np.float64)
        self.target_mean_, self.target_scale_ = mean_and_scale(numbers, weight)
        return numbers

    def _targets(self, y: NDArray[Any]) -> NDArray[Any]:
        return (y.reshape(len(y), -1) - self.target_mean_) / self.target_scale_

    def _probe(
        self,
        features: NDArray[np.float32],
        y: NDArray[Any],
        weight: NDArray[np.float64],
        group: NDArray[np.int64] | None,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        probe = RidgeRegressor(alpha=1.0).fit(features, self._targets(y), weight)
        return np.asarray(probe.coef_.reshape(self.num_outputs, -1)), np.reshape(probe.intercept_, self.num_outputs)


def _least_of_a_class(y: NDArray[Any], group: NDArray[np.int64] | None) -> int:
    """Return how many rows, or groups, the class or label has that has the fewest."""
    of_class = [y == label for label in np.unique(y)] if y.ndim == 1 else list(y.T == 1)
    return min(int(has.sum()) if group is None else len(np.unique(group[has])) for has in of_class)
