"""What classifiers share that take one class of each row, or several labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, log_expit, log_softmax, softmax
from sklearn.utils import Tags

from featurecache.heads.checks import checked_indicator, checked_labels
from featurecache.heads.head import HeadMixin

if TYPE_CHECKING:
    from torch import nn


class ClassifierBase(HeadMixin):
    """Of estimators with ``class_weight``; stands before their other bases."""

    takes_several: ClassVar[bool] = True
    """Whether a row may have several labels, or none: then ``y`` is (n_samples, n_labels), 0 or 1."""

    n_features_in_: int
    class_weight: str | Mapping[Any, float] | None
    classes_: NDArray[Any]
    multilabel_: bool = False
    """Each class is a label by itself."""

    def __sklearn_tags__(self) -> Tags:
        tags: Tags = super().__sklearn_tags__()  # type: ignore[misc]
        tags.classifier_tags.multi_label = self.takes_several
        return tags

    def _take_labels(self, labels: NDArray[Any]) -> NDArray[np.int64]:
        """Take the classes from checked labels, and return class indices or zeros and ones."""
        self.multilabel_ = labels.ndim == 2
        if self.multilabel_ and self.class_weight is not None:
            raise ValueError("class_weight is for rows of one class each, not for several labels; leave it out")
        self.classes_, y_index = checked_indicator(labels) if self.multilabel_ else checked_labels(labels)
        return y_index


class LogitMixin(ClassifierBase):
    """Of estimators that compute one logit for each class, or for each label by itself."""

    _logits_of: Callable[[ArrayLike], NDArray[np.float64]]
    """Return logits of rows, (n_samples, n_classes)."""

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return logits: (n_samples, n_classes), or the difference of two classes' (n_samples,)."""
        logits = self._logits_of(X)
        # One number for two classes, as of all classifiers of scikit-learn.
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 and not self.multilabel_ else logits

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the probability of each class, or of each label by itself, (n_samples, n_classes)."""
        logits = self._logits_of(X)
        return np.asarray(expit(logits) if self.multilabel_ else softmax(logits, axis=1))

    def predict_log_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the logarithm of the probability of each class, or of each label by itself, (n_samples, n_classes)."""
        logits = self._logits_of(X)
        # Not the logarithm of `predict_proba`: that is minus infinity where a probability rounds to zero.
        return np.asarray(log_expit(logits) if self.multilabel_ else log_softmax(logits, axis=1))

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the most probable class, (n_samples,); of several labels 0 or 1, (n_samples, n_classes)."""
        logits = self._logits_of(X)
        if self.multilabel_:
            return (logits > 0).astype(np.int64)
        return np.asarray(self.classes_[logits.argmax(axis=1)])

    def _with_probabilities(self, logits: nn.Module) -> nn.Module:
        """Return a network from rows to probabilities, given one to logits."""
        from torch import nn

        from featurecache.heads.modules import Sigmoid, Softmax

        return nn.Sequential(logits, Sigmoid() if self.multilabel_ else Softmax(temperature=1.0))
