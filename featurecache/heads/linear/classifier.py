"""What is known of a linear classifier once it is fitted: one margin for each class, or one for two classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from featurecache.heads.checks import REAL_TYPES


class LinearClassifier(ClassifierMixin, BaseEstimator):
    """Names the class of the greatest margin.

    Attributes
    ----------
    classes_ : ndarray (n_classes,)
    coef_ : ndarray (n_classes, n_features) or, for two classes, (1, n_features), float64
        For features as they come.
    intercept_ : ndarray (n_classes,) or (1,), float64
    """

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
        margins = (rows @ self.coef_.T.astype(rows.dtype)).astype(np.float64) + self.intercept_
        return margins[:, 0] if margins.shape[1] == 1 else margins

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the class of the greatest margin, (n_samples,); of several labels 0 or 1, (n_samples, n_classes)."""
        margins = self.decision_function(X)
        if self.multilabel_:
            return (margins > 0).astype(np.int64)
        return np.asarray(self.classes_[named(margins[:, None] if margins.ndim == 1 else margins)])

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


def named(margins_nK: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """Return the index of the class of the greatest margin; of a single margin, 1 where it is positive."""
    return (margins_nK[:, 0] > 0).astype(np.int64) if margins_nK.shape[1] == 1 else margins_nK.argmax(axis=1)


def absent_classes(
    ys: Sequence[NDArray[Any]], folds: Sequence[NDArray[np.int64]]
) -> list[dict[int, NDArray[np.bool_]]]:
    """Return for each task which classes have all their rows in a fold, by the place of the fold.

    Several labels or numbers of a row, (n_samples, n_outputs), are in all folds.
    """
    found: list[dict[int, NDArray[np.bool_]]] = []
    for y, fold in zip(ys, folds, strict=True):
        found.append({})
        if y.ndim == 2:
            continue
        classes, y_index = np.unique(y, return_inverse=True)
        counts = np.bincount(y_index)
        for place, each in enumerate(np.unique(fold[fold >= 0])):
            absent = np.bincount(y_index[fold == each], minlength=len(classes)) == counts
            if absent.any():
                found[-1][place] = absent
    return found


def forget_classes(fitted: Sequence[Sequence[Any]], absent: Sequence[Mapping[int, NDArray[np.bool_]]]) -> None:
    """Let classifiers of each task and fold be as if those of three classes or more that had no row were not asked for.

    What is no classifier is left as it is.
    """
    for estimators, of_folds in zip(fitted, absent, strict=True):
        for place, classes in of_folds.items():
            if isinstance(head := estimators[place], LinearClassifier):
                head.classes_, head.coef_, head.intercept_ = (
                    each[~classes] for each in (head.classes_, head.coef_, head.intercept_)
                )
