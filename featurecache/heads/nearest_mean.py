"""``nearest_mean``: the class whose mean is nearest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import validate_data

from featurecache.errors import HeadError
from featurecache.heads.checks import REAL_TYPES, check_units, checked_labels
from featurecache.heads.head import Arrays
from featurecache.heads.preparation import directions, own_units
from featurecache.heads.solver.classifier import LinearClassifier
from featurecache.specs import TaskKind

if TYPE_CHECKING:
    from torch import nn


class NearestMean(LinearClassifier):
    """The class whose mean is nearest, of features less their mean, normalised.

    This is SimpleShot (Wang et al., 2019, arXiv:1911.04623, "CL2N").

    Parameters
    ----------
    standardize : bool
        As for `CosineKnn`.

    Attributes
    ----------
    classes_ : ndarray (n_classes,)
    mean_ : ndarray (n_features,), float64
        Of all rows, which is taken off.
    factor_ : ndarray (n_features,), float64
        Of standardised features, by which they are multiplied.
    coef_, intercept_ : ndarray, float64
        As in `LinearClassifier`, for normalised features: how much nearer than the origin each mean is, squared.
    """

    kinds: ClassVar[frozenset[TaskKind]] = frozenset({"classification"})
    arrays: ClassVar[tuple[str, ...]] = ("classes_", "mean_", "coef_", "intercept_")
    optional_arrays: ClassVar[tuple[str, ...]] = ("factor_",)
    grid: ClassVar[dict[str, list[Any]]] = {"standardize": [False, True]}
    relative_seconds: ClassVar[float] = 3.0
    bytes_per_value: ClassVar[int | None] = 24
    mean_: NDArray[np.float64]
    factor_: NDArray[np.float64]

    def __init__(self, *, standardize: bool = False) -> None:
        self.standardize = standardize

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit; see `GaussianDiscriminant.fit`."""
        rows, y = validate_data(self, X, y, dtype=REAL_TYPES)
        self.classes_, y_index = checked_labels(y)
        self.mean_ = rows.mean(axis=0, dtype=np.float64)
        if self.standardize:
            self.mean_, self.factor_ = own_units(rows)
        directed = self._prepared(rows)
        means = np.stack([directed[y_index == k].mean(axis=0, dtype=np.float64) for k in range(len(self.classes_))])
        # The squared distance, less what is the same for all classes, and negated.
        return self._fitted(2.0 * means, -(means**2).sum(axis=1))

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
        check_units(self, ("factor_",))

    def to_module(self) -> nn.Module:
        """Return margins, (B, n_classes)."""
        from torch import nn

        from featurecache.heads.modules import Rescale, Standardise, UnitLength

        steps: list[nn.Module] = [Standardise(mean=self.mean_, scale=np.ones(len(self.mean_)))]
        if self.standardize:
            # Not one layer that divides by a scale: the factor of a feature that never varies is zero.
            steps.append(Rescale(mean=np.zeros(len(self.mean_)), scale=self.factor_))
        return nn.Sequential(*steps, UnitLength(), super().to_module())

    def _prepared(self, rows: NDArray[Any]) -> NDArray[Any]:
        return directions(rows, self.mean_, self.factor_ if self.standardize else None)
