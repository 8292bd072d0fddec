"""What heads that are trained by gradient steps have in common, as scikit-learn estimators."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, MultiOutputMixin, RegressorMixin, clone
from sklearn.utils.validation import check_is_fitted, validate_data

from featurecache.heads.checks import (
    REAL_TYPES,
    check_whole_number,
    checked_class_weight,
    checked_to_fit,
    is_small,
)
from featurecache.heads.classifiers import LogitMixin
from featurecache.heads.head import HeadMixin
from featurecache.heads.preparation import mean_and_scale
from featurecache.heads.threads import one_thread
from featurecache.specs import TaskKind

if TYPE_CHECKING:
    from featurecache.heads.gradient.bank import Bank, Layers
    from featurecache.heads.gradient.training import Trained


class GradientEstimator(HeadMixin, BaseEstimator):
    """Training, whatever is said of a row."""

    streams: ClassVar[bool] = True
    takes_unknown: ClassVar[bool] = True
    """Whether some of several labels or numbers of a row may be unknown."""
    path_params: ClassVar[frozenset[str]]
    """Parameters in which settings may differ that are trained side by side."""
    _shape: ClassVar[tuple[str, ...]]
    """Those of them that say the shape of a model."""

    learning_rate: float
    weight_decay: float
    batch_size: int
    epochs: int | None
    patience: int
    validation_fraction: float
    device: str
    random_state: int

    @abstractmethod
    def _bank(self) -> type[Bank]:
        """Return what is trained."""

    @abstractmethod
    def _take(self, layers: Layers, dtype: type[np.floating[Any]]) -> None:
        """Keep the layers of a trained model as fitted attributes."""

    @abstractmethod
    def _logits(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Return what the model says, (n_samples, n_outputs)."""

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
        y: NDArray[Any],
        fold: NDArray[np.int64],
        weight: NDArray[np.float64] | None,
        group: NDArray[np.int64] | None,
        settings: Sequence[Mapping[str, Any]],
        *,
        outcome: TaskKind,
        class_weight: NDArray[np.float64] | Literal["balanced"] | None = None,
    ) -> list[list[Trained]]:
        # torch is loaded by those who fit, not by those who list heads.
        import torch

        from featurecache.heads.fold_blocks import NO_FOLD, FoldBlocks
        from featurecache.heads.gradient.bank import Setting
        from featurecache.heads.gradient.training import Schedule, Weighting, train

        own = {name: getattr(self, name) for name in self.path_params}
        models = []
        for merged in (own | dict(setting) for setting in settings):
            self._check(merged)
            models.append(Setting(self._shape_of(merged), merged["learning_rate"], merged["weight_decay"]))
        schedule = Schedule(
            batch_size=self.batch_size,
            epochs=self.epochs,
            patience=self.patience,
            validation_fraction=self.validation_fraction,
            seed=self.random_state or 0,
        )
        left_out = [int(each) for each in np.unique(fold) if each != NO_FOLD] or [NO_FOLD]
        dtype = torch.float64 if X.dtype == np.float64 else torch.float32
        rows = FoldBlocks(X, y, fold, weight, group, dtype=dtype, device=self.device)
        balanced = isinstance(class_weight, str)
        weighting = Weighting(balanced=balanced, of_class=None if isinstance(class_weight, str) else class_weight)
        # Steps on few rows are so short that threads spend them waiting for each other.
        with one_thread() if is_small(*X.shape) else nullcontext():
            return train(
                rows,
                models,
                left_out,
                schedule,
                weighting,
                bank=self._bank(),
                num_tokens=self._num_tokens(),
                outcome=outcome,
            )

    def _refuse_divergence(self, trained: Trained) -> None:
        if not trained.num_steps:
            raise ValueError(f"training diverges at the learning rate {self.learning_rate:g}; use a smaller one")

    def _fitted(self, trained: Trained, dtype: np.dtype[Any]) -> Self:
        self._take(trained.layers, np.float64 if dtype == np.float64 else np.float32)
        self.n_iter_ = trained.num_steps
        return self


class GradientClassifier(LogitMixin, ClassifierMixin, GradientEstimator):
    """Use `MlpClassifier` or `AttentiveClassifier`."""

    def fit(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None, groups: ArrayLike | None = None
    ) -> Self:
        """Train.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Float64 is computed in float64, all else in float32. A ``numpy.memmap`` is read by the batch.
        y : array-like of shape (n_samples,), or several labels of each row, (n_samples, n_labels), 0 or 1
        sample_weight : array-like of shape (n_samples,), optional
            Of each row in the loss.
        groups : array-like of shape (n_samples,), optional
            Rows of one group are held out together where some are held out to stop by.

        Raises
        ------
        ValueError
            Data or parameters that scikit-learn's estimators refuse too, or training that diverges.
        """
        rows, labels, weight, group = checked_to_fit(self, X, y, sample_weight, groups)
        ((trained,),) = self._train_labels(rows, labels, np.full(len(labels), -1), weight, group, [{}])
        self._refuse_divergence(trained)
        return self._fitted(trained, rows.dtype)

    def fit_path(
        self,
        X: NDArray[Any],
        y: NDArray[Any],
        fold: NDArray[np.int64],
        settings: Sequence[Mapping[str, Any]],
        sample_weight: NDArray[np.float64] | None = None,
        groups: NDArray[np.int64] | None = None,
    ) -> Iterator[tuple[Mapping[str, Any], list[Self]]]:
        """Train all settings and all folds side by side, on mini-batches that they share.

        Parameters
        ----------
        X, y
            As for `fit`; arrays.
        fold : ndarray of int (n_samples,)
            -1 for rows that are never held out. The rows outside each fold must be of all classes.
        settings : sequence of mapping
            Parameters among `path_params`, others stay as they are.
        sample_weight, groups : ndarray (n_samples,), optional
            As for `fit`; weights above 0.

        Yields
        ------
        (setting, estimators)
            One fitted estimator for each fold, which was not fitted on it; a single one, fitted on all rows, where no
            row is held out. Where training diverged, it names all classes equally probable.
        """
        self.n_features_in_ = X.shape[1]
        found = self._train_labels(X, y, fold, sample_weight, groups, settings)
        for setting, trained in zip(settings, found, strict=True):
            yield setting, [clone(self).set_params(**setting)._like(self)._fitted(each, X.dtype) for each in trained]

    def _train_labels(
        self,
        X: Any,
        labels: NDArray[Any],
        fold: NDArray[np.int64],
        weight: NDArray[np.float64] | None,
        group: NDArray[np.int64] | None,
        settings: Sequence[Mapping[str, Any]],
    ) -> list[list[Trained]]:
        y_index = self._take_labels(labels)
        outcome: TaskKind = "multilabel" if self.multilabel_ else "classification"
        class_weight = checked_class_weight(self.class_weight, self.classes_)
        return self._train(X, y_index, fold, weight, group, settings, outcome=outcome, class_weight=class_weight)


class GradientRegressor(MultiOutputMixin, RegressorMixin, GradientEstimator):
    """Use `MlpRegressor`."""

    flat_: bool
    """Numbers came as (n_samples,)."""
    target_mean_: NDArray[np.float64]
    target_scale_: NDArray[np.float64]
    """Of each number, (n_targets,): what the model says is in these units, from that mean."""

    def fit(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None, groups: ArrayLike | None = None
    ) -> Self:
        """Train.

        Parameters
        ----------
        X, sample_weight, groups
            As for `GradientClassifier.fit`.
        y : array-like of shape (n_samples,) or (n_samples, n_targets)

        Raises
        ------
        ValueError
            Data or parameters that scikit-learn's estimators refuse too, or training that diverges.
        """
        rows, numbers, weight, group = checked_to_fit(self, X, y, sample_weight, groups, numbers=True)
        (trained,) = self._train_numbers(rows, numbers, np.full(len(numbers), -1), weight, group, [{}])
        self._refuse_divergence(trained)
        return self._fitted(trained, rows.dtype)

    def fit_path(
        self,
        X: NDArray[Any],
        y: NDArray[Any],
        fold: NDArray[np.int64],
        settings: Sequence[Mapping[str, Any]],
        sample_weight: NDArray[np.float64] | None = None,
        groups: NDArray[np.int64] | None = None,
    ) -> Iterator[tuple[Mapping[str, Any], list[Self]]]:
        """Train all settings side by side; see `GradientClassifier.fit_path`. Each fold has units of its own."""
        self.n_features_in_ = X.shape[1]
        fitted: list[list[Self]] = [[] for _ in settings]
        for each in np.unique(fold[fold >= 0]).tolist() or [None]:
            left_out = np.where(fold == each, 0, -1) if each is not None else fold
            trained = self._train_numbers(X, y, left_out, sample_weight, groups, settings)
            for of_setting, setting, found in zip(fitted, settings, trained, strict=True):
                of_setting.append(clone(self).set_params(**setting)._like(self)._fitted(found, X.dtype))
        yield from zip(settings, fitted, strict=True)

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the numbers, (n_samples,) or (n_samples, n_targets)."""
        values = self._logits_of(X) * self.target_scale_ + self.target_mean_
        return values[:, 0] if self.flat_ else values

    def _like(self, other: Self) -> Self:
        """Take features and units from another estimator."""
        self.n_features_in_, self.flat_ = other.n_features_in_, other.flat_
        self.target_mean_, self.target_scale_ = other.target_mean_, other.target_scale_
        return self

    def _train_numbers(
        self,
        X: Any,
        y: NDArray[np.float64],
        fold: NDArray[np.int64],
        weight: NDArray[np.float64] | None,
        group: NDArray[np.int64] | None,
        settings: Sequence[Mapping[str, Any]],
    ) -> list[Trained]:
        """Train on numbers in units of their own spread, which is kept apart: layers may be too coarse for it.

        The units are those of the rows that are not left out, by ``fold`` 0.
        """
        numbers, seen = y[:, None] if y.ndim == 1 else y, fold < 0
        self.flat_ = y.ndim == 1
        units = mean_and_scale(numbers[seen], None if weight is None else weight[seen])
        self.target_mean_, self.target_scale_ = units
        targets = (numbers - self.target_mean_) / self.target_scale_
        return [each for (each,) in self._train(X, targets, fold, weight, group, settings, outcome="regression")]
