"""``nearest_mean``: the class whose mean is nearest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.preprocessing import normalize
from sklearn.utils.validation import validate_data

from featurecache.errors import HeadError
from featurecache.heads.checks import REAL_TYPES, checked_labels
from featurecache.heads.gda import class_means
from featurecache.heads.head import ANY_FIT_BYTES, Arrays
from featurecache.heads.solver.classifier import LinearClassifier
from featurecache.specs import TaskKind

if TYPE_CHECKING:
    from torch import nn


class NearestMean(LinearClassifier):
    """The class whose mean is nearest, of features less their mean, normalised.

    This is SimpleShot (Wang et al., 2019, arXiv:1911.04623, "CL2N").

    Attributes
    ----------
    classes_ : ndarray (n_classes,)
    mean_ : ndarray (n_features,), float64
        Of all rows, which is taken off.
    coef_, intercept_ : ndarray, float64
        As in `LinearClassifier`, for normalised features: how much nearer than the origin each mean is, squared.
    """

    kinds: ClassVar[frozenset[TaskKind]] = frozenset({"classification"})
    arrays: ClassVar[tuple[str, ...]] = ("classes_", "mean_", "coef_", "intercept_")
    relative_seconds: ClassVar[float] = 3.0
    mean_: NDArray[np.float64]

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit; see `GaussianDiscriminant.fit`."""
        rows, y = validate_data(self, X, y, dtype=REAL_TYPES)
        self.classes_, y_index = checked_labels(y)
        self.mean_ = rows.mean(axis=0, dtype=np.float64)
        means, _ = class_means(self._prepared(rows), y_index, len(self.classes_))
        # The squared distance, less what is the same for all classes, and negated.
        return self._fitted(2.0 * means, -(means**2).sum(axis=1))

    @classmethod
    def memory_needed(cls, n_samples: int, n_features: int, n_outputs: int) -> int:
        """Return bytes for n_samples rows, n_features and n_outputs; see `HeadMixin.memory_needed`."""
        return ANY_FIT_BYTES + 20 * n_samples * n_features

    @classmethod
    def from_earlier(cls, arrays: Arrays, params: Mapping[str, Any]) -> Self:
        """Return what releases up to 0.1 saved: after a step that had taken off the mean."""
        own = {name: array for name, array in arrays.items() if "." not in name}
        return super().from_earlier({"mean_": arrays["standardscaler.mean_"], **own}, params)

    def check_arrays(self) -> None:
        """Refuse weights, intercepts and a mean that would be stretched to fit each other."""
        super().check_arrays()
        if np.shape(self.mean_) != (self.n_features_in_,):
            raise HeadError("the mean of its NearestMean does not fit its features")

    def to_module(self) -> nn.Module:
        """Return margins, (B, n_classes)."""
        from torch import nn

        from featurecache.heads.modules import Standardise, UnitLength

        centre = Standardise(mean=self.mean_, scale=np.ones(len(self.mean_)))
        return nn.Sequential(centre, UnitLength(), super().to_module())

    def _prepared(self, rows: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(normalize(rows - self.mean_.astype(rows.dtype)))
