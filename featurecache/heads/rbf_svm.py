"""``rbf_svm``: scikit-learn's support vector machine with a Gaussian kernel, on standardised features."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.svm import SVC
from sklearn.utils.validation import check_is_fitted, validate_data

from featurecache.errors import HeadError
from featurecache.heads.checks import REAL_TYPES, check_prior_rows, checked_labels, checked_weight, with_weight
from featurecache.heads.head import ANY_FIT_BYTES, NUM_FOLDS, Arrays, HeadMixin, Setting, check_types, powers_of_ten
from featurecache.heads.preparation import PRIOR_ROWS, shrunk_scaler
from featurecache.specs import TaskKind

if TYPE_CHECKING:
    from torch import nn

# Of kernel values: scikit-learn's 200 MB hold those of 7,000 rows, these of 11,000.
_CACHE_MB = 500
# What libsvm reads: scikit-learn keeps two copies of some, with opposite signs for two classes.
_ARRAYS = ("support_", "support_vectors_", "_n_support", "_dual_coef_", "_intercept_", "_gamma")
# Read by scikit-learn's predictions; fitting without probabilities always leaves these values.
_WITHOUT_PROBABILITIES = {"fit_status_": 0, "_sparse": False, "_effective_probability": False}


class RbfSvm(HeadMixin, ClassifierMixin, BaseEstimator):
    """Support vector machine with a Gaussian kernel of width by the features' variance, one class against another.

    Parameters
    ----------
    C : float
        Weight of the data against the margin.
    prior_rows : float
        As for `GaussianDiscriminant`.
    class_weight : None, "balanced" or mapping of class to weight
    random_state : int or None
        Not used by libsvm without probabilities.

    Attributes
    ----------
    classes_ : ndarray (n_classes,)
    mean_, scale_ : ndarray (n_features,), float64
        By which features are standardised.
    svc_ : SVC
        Fitted on standardised features.
    """

    kinds: ClassVar[frozenset[TaskKind]] = frozenset({"classification"})
    grid: ClassVar[dict[str, list[Any]]] = {"C": powers_of_ten(-1, 1)}
    defaults: ClassVar[Setting] = {"prior_rows": PRIOR_ROWS, "random_state": 0}
    earlier_names: ClassVar[tuple[str, ...]] = ("SVC",)
    interruptible: ClassVar[bool] = False
    relative_seconds: ClassVar[float] = 200.0
    n_features_in_: int
    classes_: NDArray[Any]
    mean_: NDArray[np.float64]
    scale_: NDArray[np.float64]
    svc_: SVC

    def __init__(
        self,
        C: float = 1.0,
        *,
        prior_rows: float = 0.0,
        class_weight: str | Mapping[Any, float] | None = None,
        random_state: int | None = None,
    ) -> None:
        self.C = C
        self.prior_rows = prior_rows
        self.class_weight = class_weight
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Fit ``X`` and ``y``, weighed by ``sample_weight``; see `LogisticProbe.fit`.

        Raises
        ------
        ValueError
            Data or parameters that scikit-learn's estimators refuse too.
        """
        rows, y = validate_data(self, X, y, dtype=REAL_TYPES)
        weight, rows, labels = with_weight(checked_weight(sample_weight, rows), rows, np.asarray(y))
        self.classes_, _ = checked_labels(labels)
        check_prior_rows(self.prior_rows)
        scaler = shrunk_scaler(rows, weight, prior_rows=self.prior_rows)
        self.mean_, self.scale_ = scaler.mean_, scaler.scale_
        # Without break_ties the predicted class may differ from the one with the highest probability.
        self.svc_ = SVC(C=self.C, break_ties=True, cache_size=_CACHE_MB, class_weight=self.class_weight, random_state=0)
        self.svc_.fit(scaler.transform(rows), labels, sample_weight=weight)
        return self

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return margins, (n_samples,) for two classes and (n_samples, n_classes) for more."""
        rows = self._standardised(X)
        return np.asarray(self.svc_.decision_function(rows))

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the class of the greatest margin, (n_samples,)."""
        rows = self._standardised(X)
        return np.asarray(self.svc_.predict(rows))

    @classmethod
    def memory_needed(cls, n_samples: int, n_features: int, n_outputs: int) -> int:
        """Return bytes for n_samples rows, n_features and n_outputs; see `HeadMixin.memory_needed`."""
        # libsvm has rows of its own in float64, and so are the support vectors that it gives back.
        rows = 40 * n_samples * n_features
        # Kernel values of all pairs in float32, as far as they fit.
        kernel = min(_CACHE_MB << 20, 4 * n_samples**2)
        return ANY_FIT_BYTES + rows + kernel

    @classmethod
    def seconds_needed(cls, n_samples: int, n_features: int, n_outputs: int) -> float:
        """Return seconds for n_samples rows, n_features and n_outputs; see `HeadMixin.seconds_needed`.

        Of two classes 1e-9 s for each pair of rows and each feature; of more, a machine for each two of them.
        """
        num_fits = 3 * NUM_FOLDS * 0.64 + 1
        machines = num_fits * 2 * (n_outputs - 1) / max(n_outputs, 1) + 3 * 0.8
        return 1e-9 * n_samples**2 * n_features * machines

    def to_arrays(self) -> Arrays:
        """See `Head`."""
        if not hasattr(self, "svc_"):
            raise HeadError("RbfSvm has no svc_; fit the head before saving it")
        own = {name: vars(self)[name] for name in ("n_features_in_", "classes_", "mean_", "scale_")}
        return {name: np.asarray(value) for name, value in own.items()} | {
            f"svc.{name}": np.asarray(vars(self.svc_)[name]) for name in _ARRAYS
        }

    @classmethod
    def from_arrays(cls, arrays: Arrays, **params: Any) -> Self:
        """See `Head`."""
        names = {"n_features_in_", "classes_", "mean_", "scale_", *(f"svc.{name}" for name in _ARRAYS)}
        if differing := sorted(names ^ arrays.keys()):
            raise HeadError(f"the attribute {differing[0]!r} of its RbfSvm is missing or unknown")
        check_types(arrays, cls.__name__)
        head = cls(**params)
        head.__dict__.update({name: array for name, array in arrays.items() if "." not in name})
        head.n_features_in_ = arrays["n_features_in_"].item()
        head.svc_ = SVC(C=head.C, break_ties=True, class_weight=head.class_weight)
        vars(head.svc_).update({name: arrays[f"svc.{name}"] for name in _ARRAYS} | _WITHOUT_PROBABILITIES)
        head._check_svc()
        return head

    @classmethod
    def from_earlier(cls, arrays: Arrays, params: Mapping[str, Any]) -> Self:
        """Return what releases up to 0.1 saved: after a step that had standardised features."""
        own = {f"svc.{name}": arrays[name] for name in _ARRAYS}
        own |= {name: arrays[name] for name in ("n_features_in_", "classes_")}
        own |= {name: arrays[f"standardscaler.{name}"] for name in ("mean_", "scale_")}
        return cls.from_arrays(own, **{name: params[name] for name in ("C", "class_weight") if name in params})

    def to_module(self) -> nn.Module:
        """Return decision values, (B, n_classes)."""
        from torch import nn

        from featurecache.heads.modules import Standardise, SupportVectors

        svc, pairs = self.svc_, list(combinations(range(len(self.classes_)), 2))
        ends, duals = np.cumsum(svc._n_support), np.zeros((len(svc.support_vectors_), len(pairs)))
        for column, (one, other) in enumerate(pairs):
            # libsvm keeps, for vectors of each class, one row of coefficients for each of the other classes.
            for own, row in ((one, other - 1), (other, one)):
                rows = slice(ends[own] - svc._n_support[own], ends[own])
                duals[rows, column] = svc._dual_coef_[row, rows]
        winners = np.eye(len(self.classes_))[np.array(pairs)]
        kernel = {"vectors": svc.support_vectors_, "gamma": svc._gamma, "duals": duals, "bias": svc._intercept_}
        return nn.Sequential(
            Standardise(mean=self.mean_, scale=self.scale_),
            SupportVectors(**kernel, first=winners[:, 0], second=winners[:, 1]),
        )

    def _standardised(self, X: ArrayLike) -> NDArray[Any]:
        check_is_fitted(self, "svc_")
        rows = validate_data(self, X, reset=False, dtype=REAL_TYPES)
        return np.asarray((rows - self.mean_.astype(rows.dtype)) / self.scale_.astype(rows.dtype))

    def _check_svc(self) -> None:
        """Refuse shapes that do not fit together: libsvm reads by them without a check. Set what follows from them."""
        svc, n_classes = self.svc_, np.size(self.classes_)
        n_vectors = len(np.atleast_1d(svc.support_vectors_))
        expected = {
            "support_": (n_vectors,),
            "support_vectors_": (n_vectors, self.n_features_in_),
            "_n_support": (n_classes,),
            "_dual_coef_": (n_classes - 1, n_vectors),
            "_intercept_": (n_classes * (n_classes - 1) // 2,),
            "_gamma": (),
        }
        for name, shape in expected.items():
            if np.shape(vars(svc)[name]) != shape:
                raise HeadError(f"{name} of its SVC has shape {np.shape(vars(svc)[name])}, expected {shape}")
        if svc._n_support.dtype.kind != "i" or (svc._n_support < 0).any() or int(svc._n_support.sum()) != n_vectors:
            raise HeadError("the support vectors of its SVC do not add up")
        if {np.shape(self.mean_), np.shape(self.scale_)} != {(self.n_features_in_,)} or not (self.scale_ > 0).all():
            raise HeadError("the means and scales of its RbfSvm do not fit its features")
        sign = -1 if n_classes == 2 else 1  # as scikit-learn has them since it gave decisions one sign
        svc.dual_coef_, svc.intercept_ = sign * svc._dual_coef_, sign * svc._intercept_
        svc.classes_, svc.class_weight_ = self.classes_, np.ones(n_classes)
        svc.n_features_in_, svc.shape_fit_ = self.n_features_in_, (n_vectors, self.n_features_in_)
        svc._gamma, svc._probA, svc._probB = float(svc._gamma), np.zeros(0), np.zeros(0)
        svc._num_iter = svc.n_iter_ = np.zeros(len(svc._intercept_), np.int32)
