"""What the outputs of trained layers mean: logits of classes or labels, or numbers in units of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassifierMixin, MultiOutputMixin, RegressorMixin

from featurecache.errors import HeadError
from featurecache.heads.checks import checked_class_weight
from featurecache.heads.classifiers import LogitMixin
from featurecache.heads.head import HeadMixin, Weights
from featurecache.heads.preparation import balanced_weights, mean_and_scale
from featurecache.specs import TaskKind

if TYPE_CHECKING:
    from torch import nn

ClassWeight: TypeAlias = NDArray[np.float64] | Literal["balanced"] | None
Targets = tuple[NDArray[Any], ClassWeight]
"""Class indices (n_samples,), or labels or numbers (n_samples, n_outputs), as losses take them; weights of classes."""


@dataclass(kw_only=True, eq=False, repr=False)
class ClassOutputs(LogitMixin, ClassifierMixin):
    """One output for each class, or for each label; stands before the other bases of an estimator.

    Parameters
    ----------
    class_weight : None, "balanced" or mapping of class to weight

    Attributes
    ----------
    classes_ : ndarray (n_classes,)
    """

    class_weight: str | Mapping[Any, float] | None = None

    @property
    def task_kind(self) -> TaskKind:
        """``multilabel`` where each class is a label by itself."""
        return "multilabel" if self.multilabel_ else "classification"

    @property
    def num_outputs(self) -> int:
        """How many classes or labels there are."""
        return len(self.classes_)

    def to_module(self) -> nn.Module:
        """Return a network from rows to probabilities, (B, n_classes)."""
        return self._with_probabilities(super().to_module())

    def _encode(self, y: NDArray[Any], weight: Weights, fitted: slice | NDArray[np.bool_]) -> Targets:
        """Take the classes of all rows, and return targets."""
        y_index = self._take_labels(y)
        return y_index, checked_class_weight(self.class_weight, self.classes_)


class NumberOutputs(MultiOutputMixin, RegressorMixin, HeadMixin):
    """One output for each number, in units of its standard deviation from its mean, over the rows fitted on.

    Layers may be too coarse for numbers far from zero, such as years; their units keep the digits.

    Attributes
    ----------
    flat_ : bool
        Numbers came as (n_samples,).
    target_mean_, target_scale_ : ndarray (n_targets,)
        The units.
    """

    n_features_in_: int
    flat_: bool
    target_mean_: NDArray[np.float64]
    target_scale_: NDArray[np.float64]

    task_kind: TaskKind = "regression"

    @property
    def num_outputs(self) -> int:
        """How many numbers there are."""
        return len(self.target_mean_)

    def to_module(self) -> nn.Module:
        """Return a network from rows to numbers, (B, n_targets)."""
        from torch import nn

        from featurecache.heads.modules import Rescale

        return nn.Sequential(super().to_module(), Rescale(mean=self.target_mean_, scale=self.target_scale_))

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the numbers, (n_samples,) or (n_samples, n_targets)."""
        values = self._logits_of(X) * self.target_scale_ + self.target_mean_
        return values[:, 0] if self.flat_ else values

    def check_arrays(self) -> None:
        """Raise `HeadError` for units that are not finite numbers, one for each output."""
        units, name = (self.target_mean_, self.target_scale_), type(self).__name__
        if {np.shape(unit) for unit in units} != {(np.size(units[0]),)} or not np.isfinite(units).all():
            raise HeadError(f"the units of its {name} are not finite numbers, one for each output")
        if self.flat_ and np.size(units[0]) != 1:
            raise HeadError(f"its {name} has several outputs, and says that it has one")

    def _encode(self, y: NDArray[Any], weight: Weights, fitted: slice | NDArray[np.bool_]) -> Targets:
        """Take the units of the rows that are fitted on, and return all numbers in them."""
        self.flat_, numbers = y.ndim == 1, y.reshape(len(y), -1).astype(np.float64)
        # Of the rows fitted on alone: those of all rows would depend on the held-out ones.
        units = mean_and_scale(numbers[fitted], None if weight is None else weight[fitted])
        self.target_mean_, self.target_scale_ = units
        return (numbers - self.target_mean_) / self.target_scale_, None


def row_weights(
    y: NDArray[Any], weight: Weights, class_weight: ClassWeight, counts: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Return the weight of each row in the loss, (n_samples,).

    Parameters
    ----------
    y : ndarray (n_samples,), or (n_samples, n_outputs)
        Targets.
    weight : ndarray (n_samples,) or None
        Of samples.
    class_weight : ndarray (n_classes,), "balanced" or None
    counts : ndarray (n_classes,), optional
        Total weight of each class among the rows fitted on, for "balanced"; all rows when left out.
    """
    weights = np.ones(len(y)) if weight is None else weight.astype(np.float64)
    if class_weight is None:
        return weights
    # Of the rows fitted on, where these differ from fold to fold.
    if isinstance(class_weight, str):
        class_weight = balanced_weights(np.bincount(y, weights).astype(np.float64) if counts is None else counts)
    return weights * class_weight[y]
