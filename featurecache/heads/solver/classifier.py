"""Fitted linear classifiers: one margin for each class, or one for two classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from featurecache.errors import HeadError
from featurecache.heads.checks import REAL_TYPES
from featurecache.heads.head import Arrays, HeadMixin

if TYPE_CHECKING:
    from torch import nn


class LinearClassifier(HeadMixin, ClassifierMixin, BaseEstimator):
    """Names the class of the greatest margin.

    Attributes
    ----------
    classes_ : ndarray (n_classes,)
    coef_ : ndarray (n_classes, n_features) or, for two classes, (1, n_features), float64
        For features as they come.
    intercept_ : ndarray (n_classes,) or (1,), float64
    """

    arrays: ClassVar[tuple[str, ...]] = ("classes_", "coef_", "intercept_")
    n_features_in_: int
    classes_: NDArray[Any]
    coef_: NDArray[np.float64]
    intercept_: NDArray[np.float64]
    multilabel_: bool = False
    """Each class is a label by itself; a row may have several, or none."""

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return margins, (n_samples,) for two classes and (n_samples, n_classes) for more."""
        check_is_fitted(self)
        rows = validate_data(self, X, reset=False, dtype=REAL_TYPES)
        margins = (self._prepared(rows) @ self.coef_.T.astype(rows.dtype)).astype(np.float64) + self.intercept_
        return margins[:, 0] if margins.shape[1] == 1 else margins

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the class of the greatest margin, (n_samples,); of several labels 0 or 1, (n_samples, n_classes)."""
        margins = self.decision_function(X)
        if self.multilabel_:
            return (margins > 0).astype(np.int64)
        return np.asarray(self.classes_[class_of_margins(margins[:, None] if margins.ndim == 1 else margins)])

    def check_arrays(self) -> None:
        """Refuse weights and intercepts that would be stretched to fit each other."""
        name, num_classes = type(self).__name__, np.size(self.classes_)
        outputs = 1 if num_classes == 2 and not self.multilabel_ else num_classes
        shapes = (np.shape(self.coef_), np.shape(self.intercept_))
        if shapes != ((outputs, self.n_features_in_), (outputs,)) or (num_classes < 2 and not self.multilabel_):
            raise HeadError(
                f"the weights and intercepts of its {name} have shapes {shapes}, which do not fit its classes"
            )

    @classmethod
    def from_earlier(cls, arrays: Arrays, params: Mapping[str, Any]) -> Self:
        """Return what releases up to 0.1 saved: weights for features that a step before had standardised.

        Among them are scikit-learn's own linear classifiers, whose margins are these; their other parameters say how
        they were fitted, and are left out.
        """
        known = {"n_features_in_", *cls.arrays, *cls.optional_arrays} - {"n_iter_"}
        kept = cls().get_params(deep=False).keys()
        own = {name: array for name, array in arrays.items() if name in known}
        if "coef_" in own:  # of two classes, scikit-learn's ridge classifier has weights in one dimension
            own["coef_"] = np.atleast_2d(own["coef_"])
        head = cls.from_arrays(own, **{name: value for name, value in params.items() if name in kept})
        mean, scale = (arrays.get(f"standardscaler.{name}") for name in ("mean_", "scale_"))
        if mean is not None and scale is not None:
            if not mean.shape == scale.shape == (head.n_features_in_,) or not (scale > 0).all():
                raise HeadError("the means and scales of its StandardScaler do not fit its features")
            head.coef_, head.intercept_ = for_raw_features(head.coef_, head.intercept_, mean, scale)
        return head

    def to_module(self) -> nn.Module:
        """Return margins, (B, n_classes); of two classes half each way, as in `probability.decision_values`."""
        from torch import nn

        from featurecache.heads.modules import Linear

        weight, bias = self.coef_.T, self.intercept_
        if weight.shape[1] == 1 and not self.multilabel_:
            weight, bias = weight * [-0.5, 0.5], bias * [-0.5, 0.5]
        return nn.Sequential(Linear(weight=weight, bias=bias))

    def _prepared(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Return the rows that weights are for; a head may centre or normalise them."""
        return rows

    def _fitted(self, weights_KD: NDArray[Any], intercept_K: NDArray[Any]) -> Self:
        """Take the weights of each class; of two classes their difference is all that matters."""
        if len(weights_KD) == 2 and not self.multilabel_:
            weights_KD, intercept_K = weights_KD[1:] - weights_KD[:1], intercept_K[1:] - intercept_K[:1]
        self.coef_, self.intercept_ = weights_KD.copy(), intercept_K.copy()
        return self


class ProbabilisticClassifier(LinearClassifier):
    """A linear classifier whose margins are logarithms of probabilities, but for a constant."""

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the probability of each class, or of each label by itself, (n_samples, n_classes)."""
        margins = self.decision_function(X)
        if self.multilabel_:
            return np.asarray(expit(margins))
        if margins.ndim == 1:
            positive = expit(margins)
            return np.stack([1 - positive, positive], axis=1)
        return np.asarray(softmax(margins, axis=1))

    def predict_log_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the logarithm of the probability of each class."""
        with np.errstate(divide="ignore"):
            return np.log(self.predict_proba(X))

    def to_module(self) -> nn.Module:
        """Return probabilities, (B, n_classes)."""
        from torch import nn

        from featurecache.heads.modules import Sigmoid, Softmax

        return nn.Sequential(super().to_module(), Sigmoid() if self.multilabel_ else Softmax(temperature=1.0))


def for_raw_features(
    weights_KD: NDArray[Any], intercept_K: NDArray[Any], mean: NDArray[Any] | None, scale: NDArray[Any] | None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return weights and intercepts for features as they come, given those for standardised features.

    Parameters
    ----------
    weights_KD : ndarray (n_classes, n_features)
    intercept_K : ndarray (n_classes,)
    mean, scale : ndarray (n_features,), or None
        By which features were standardised, if they were.
    """
    if mean is None or scale is None:
        return weights_KD, intercept_K
    raw_KD = weights_KD / scale
    return raw_KD, intercept_K - raw_KD @ mean


def class_of_margins(margins_nK: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """Return the index of the class of the greatest margin; of a single margin, 1 where it is positive."""
    return (margins_nK[:, 0] > 0).astype(np.int64) if margins_nK.shape[1] == 1 else margins_nK.argmax(axis=1)


def absent_classes(y: NDArray[Any], fold: NDArray[np.int64]) -> dict[int, NDArray[np.bool_]]:
    """Return which classes have all their rows in a fold, by the index of the fold among those that are held out.

    Several labels or numbers of a row, (n_samples, n_outputs), are in all folds.
    """
    if y.ndim == 2:
        return {}
    classes, y_index = np.unique(y, return_inverse=True)
    counts, found = np.bincount(y_index), {}
    for index, number in enumerate(np.unique(fold[fold >= 0])):
        absent = np.bincount(y_index[fold == number], minlength=len(classes)) == counts
        if absent.any():
            found[index] = absent
    return found


def drop_classes(heads: Sequence[Any], absent: Mapping[int, NDArray[np.bool_]]) -> None:
    """Take from the head of each fold the classes that had no row in fitting; what is no classifier stays as it is."""
    for index, classes in absent.items():
        if isinstance(head := heads[index], LinearClassifier):
            head.classes_, head.coef_, head.intercept_ = (
                array[~classes] for array in (head.classes_, head.coef_, head.intercept_)
            )
