"""``majority`` and ``mean``: predictions without the features, which every other head has to beat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.dummy import DummyClassifier, DummyRegressor

from featurecache.errors import HeadError
from featurecache.heads.head import Arrays, HeadMixin, Setting
from featurecache.heads.preparation import mean_and_scale
from featurecache.specs import TaskKind

if TYPE_CHECKING:
    from torch import nn


class _Baseline(HeadMixin):
    """What both have in common."""

    streams: ClassVar[bool] = True
    bytes_per_value: ClassVar[int | None] = 4
    n_features_in_: int

    @classmethod
    def from_earlier(cls, arrays: Arrays, params: Mapping[str, Any]) -> Self:
        """Return what releases up to 0.1 saved, without the arrays that follow from others."""
        kept = {name: array for name, array in arrays.items() if name in ("n_features_in_", *cls.arrays)}
        return super().from_earlier(kept, params)

    def to_module(self) -> nn.Module:
        """Return probabilities of classes, or the numbers, (B, n_outputs)."""
        from featurecache.heads.modules import Constant

        # The last of the arrays is what is predicted for all rows; of numbers it has two axes.
        return Constant(value=np.ravel(vars(self)[self.arrays[-1]]))


class MajorityClassifier(_Baseline, DummyClassifier):
    """The share of each class among the rows fitted on; see scikit-learn's ``DummyClassifier`` for the parameters."""

    kinds: ClassVar[frozenset[TaskKind]] = frozenset({"classification"})
    defaults: ClassVar[Setting] = {"random_state": 0}
    arrays: ClassVar[tuple[str, ...]] = ("classes_", "class_prior_")
    earlier_names: ClassVar[tuple[str, ...]] = ("DummyClassifier",)
    class_prior_: NDArray[np.float64]

    def check_arrays(self) -> None:
        """Refuse shares that are not those of its classes."""
        prior, num_classes = self.class_prior_, np.size(self.classes_)
        if (
            self.strategy != "prior"
            or np.shape(prior) != (num_classes,)
            or not (np.isfinite(prior) & (prior >= 0)).all()
        ):
            raise HeadError("the shares of its MajorityClassifier are not those of its classes")
        # Read by scikit-learn's predictions; they follow from what is kept.
        self.n_classes_, self.n_outputs_, self._strategy, self.sparse_output_ = num_classes, 1, "prior", False


class MeanRegressor(_Baseline, DummyRegressor):
    """The mean of each number over the rows where it is known; see ``DummyRegressor`` for the parameters."""

    kinds: ClassVar[frozenset[TaskKind]] = frozenset({"multilabel", "regression"})
    arrays: ClassVar[tuple[str, ...]] = ("constant_",)
    earlier_names: ClassVar[tuple[str, ...]] = ("DummyRegressor",)
    takes_unknown: ClassVar[bool] = True
    constant_: NDArray[np.float64]

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Fit ``X`` and ``y``, weighed by ``sample_weight``; of several numbers, some may be NaN: not known."""
        numbers = np.asarray(y)
        unknown = numbers.ndim == 2 and numbers.dtype.kind == "f" and np.isnan(numbers).any()
        # scikit-learn refuses NaN. Its means with zeros in their place are replaced below.
        super().fit(X, np.nan_to_num(numbers) if unknown else y, sample_weight)
        if unknown:
            weight = None if sample_weight is None else np.asarray(sample_weight, np.float64)
            self.constant_ = mean_and_scale(numbers, weight)[0][None]
        return self

    def check_arrays(self) -> None:
        """Refuse numbers that are no numbers."""
        if np.ndim(self.constant_) != 2 or len(self.constant_) != 1 or not np.isfinite(self.constant_).all():
            raise HeadError("the numbers of its MeanRegressor are not finite ones in one row")
        self.n_outputs_ = self.constant_.shape[1]
