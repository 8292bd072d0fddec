"""What heads that are trained by gradient steps have in common, as scikit-learn estimators."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from threadpoolctl import threadpool_limits

from featurecache.heads.checks import (
    REAL_TYPES,
    checked_class_weight,
    checked_labels,
    checked_rows,
    checked_weight,
    is_small,
    with_weight,
)

if TYPE_CHECKING:
    from featurecache.heads.gradient.bank import Bank, Layers
    from featurecache.heads.gradient.training import Trained


class GradientProbe(ClassifierMixin, BaseEstimator):
    """Use `MlpProbe` or `AttentiveProbe`."""

    side_by_side: ClassVar[frozenset[str]]
    """Parameters in which settings may differ that are trained side by side."""
    _shape: ClassVar[tuple[str, ...]]
    """Those of them that say the shape of a model."""

    learning_rate: float
    weight_decay: float
    batch_size: int
    epochs: int | None
    patience: int
    validation_fraction: float
    class_weight: str | Mapping[Any, float] | None
    device: str
    random_state: int

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Train.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Float64 is computed in float64, all else in float32. A ``numpy.memmap`` is read by the batch.
        y : array-like of shape (n_samples,)
        sample_weight : array-like of shape (n_samples,), optional
            Of each row in the loss.

        Raises
        ------
        ValueError
            Data or parameters that scikit-learn's estimators refuse too, or training that diverges.
        """
        rows, labels = checked_rows(self, X, y)
        check_classification_targets(labels)
        weight = checked_weight(sample_weight, rows)
        weight, rows, labels = with_weight(weight, rows, labels)
        self.classes_, y_index = checked_labels(labels)
        ((trained,),) = self._train(rows, y_index, np.full(len(y_index), -1), weight, [{}])
        if not trained.num_steps:
            raise ValueError(f"training diverges at the learning rate {self.learning_rate:g}; use a smaller one")
        return self._fitted(trained, rows.dtype)

    def fit_folds(
        self, X: NDArray[Any], y: NDArray[Any], fold: NDArray[np.int64], settings: Sequence[Mapping[str, Any]]
    ) -> Iterator[tuple[Mapping[str, Any], list[Self]]]:
        """Train all settings and all folds side by side, on mini-batches that they share.

        Parameters
        ----------
        X, y
            As for `fit`; arrays.
        fold : ndarray of int (n_samples,)
            -1 for rows that are never held out. The rows outside each fold must be of all classes.
        settings : sequence of mapping
            Parameters among `side_by_side`, others stay as they are.

        Yields
        ------
        (setting, estimators)
            One fitted estimator for each fold, which was not fitted on it; a single one, fitted on all rows, where no
            row is held out. Where training diverged, it names all classes equally probable.
        """
        self.n_features_in_ = X.shape[1]
        self.classes_, y_index = checked_labels(y)
        for setting, trained in zip(settings, self._train(X, y_index, fold, None, settings), strict=True):
            yield setting, [self._sibling(setting)._fitted(each, X.dtype) for each in trained]

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return logits: (n_samples, n_classes), or the difference of two classes' (n_samples,)."""
        logits = self._logits_of(X)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the probability of each class, (n_samples, n_classes)."""
        return np.asarray(softmax(self._logits_of(X), axis=1))

    def predict_log_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the logarithm of the probability of each class, (n_samples, n_classes)."""
        return np.asarray(log_softmax(self._logits_of(X), axis=1))

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the most probable class, (n_samples,)."""
        logits = self._logits_of(X)
        return np.asarray(self.classes_[logits.argmax(axis=1)])

    @abstractmethod
    def _bank(self) -> type[Bank]:
        """Return what is trained."""

    @abstractmethod
    def _take(self, layers: Layers, dtype: type[np.floating[Any]]) -> None:
        """Keep the layers of a trained model as fitted attributes."""

    @abstractmethod
    def _logits(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Return logits (n_samples, n_classes)."""

    def _check(self, merged: Mapping[str, Any]) -> None:
        """Raise `ValueError` for settings that make no sense, before anything is trained."""
        check_whole_number("batch_size", self.batch_size, 1)
        check_whole_number("patience", self.patience, 1)
        if self.epochs is not None:
            check_whole_number("epochs", self.epochs, 1)
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must be from 0 to below 1, got {self.validation_fraction!r}")
        if not (np.isfinite(merged["learning_rate"]) and merged["learning_rate"] > 0):
            raise ValueError(f"learning_rate must be positive and finite, got {merged['learning_rate']!r}")
        if not (np.isfinite(merged["weight_decay"]) and merged["weight_decay"] >= 0):
            raise ValueError(f"weight_decay must not be negative, got {merged['weight_decay']!r}")

    def _num_tokens(self) -> int:
        return 1

    def _shape_of(self, merged: Mapping[str, Any]) -> tuple[int, ...]:
        return tuple(int(merged[name]) for name in self._shape)

    def _logits_of(self, X: ArrayLike) -> NDArray[np.float64]:
        check_is_fitted(self)
        return self._logits(validate_data(self, X, reset=False, dtype=REAL_TYPES)).astype(np.float64)

    def _train(
        self,
        X: Any,
        y: NDArray[np.int64],
        fold: NDArray[np.int64],
        weight: NDArray[np.float64] | None,
        settings: Sequence[Mapping[str, Any]],
    ) -> list[list[Trained]]:
        # torch is loaded by those who fit, not by those who list heads.
        import torch

        from featurecache.heads.gradient.bank import Setting
        from featurecache.heads.gradient.training import Schedule, Weighting, train
        from featurecache.heads.rows import NO_FOLD, Rows

        own = {name: getattr(self, name) for name in self.side_by_side}
        models = []
        for merged in (own | dict(setting) for setting in settings):
            self._check(merged)
            models.append(Setting(self._shape_of(merged), merged["learning_rate"], merged["weight_decay"]))
        of_class = checked_class_weight(self.class_weight, self.classes_)
        balanced = isinstance(of_class, str)
        schedule = Schedule(
            batch_size=self.batch_size,
            epochs=self.epochs,
            patience=self.patience,
            validation_fraction=self.validation_fraction,
            seed=self.random_state or 0,
        )
        left_out = [int(each) for each in np.unique(fold) if each != NO_FOLD] or [NO_FOLD]
        dtype = torch.float64 if X.dtype == np.float64 else torch.float32
        rows = Rows(X, y, fold, weight, dtype=dtype, device=self.device)
        weighting = Weighting(balanced=balanced, of_class=None if isinstance(of_class, str) else of_class)
        # Steps on few rows are so short that threads spend them waiting for each other.
        with threadpool_limits(1 if is_small(*X.shape) else None):
            return train(rows, models, left_out, schedule, weighting, bank=self._bank(), num_tokens=self._num_tokens())

    def _sibling(self, setting: Mapping[str, Any]) -> Self:
        estimator = clone(self).set_params(**setting)
        estimator.n_features_in_, estimator.classes_ = self.n_features_in_, self.classes_
        return estimator

    def _fitted(self, trained: Trained, dtype: np.dtype[Any]) -> Self:
        self._take(trained.layers, np.float64 if dtype == np.float64 else np.float32)
        self.n_iter_ = trained.num_steps
        return self


def check_whole_number(name: str, value: Any, least: int) -> None:
    """Raise `ValueError` unless a parameter is a whole number that is large enough."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
