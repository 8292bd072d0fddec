"""Estimators that are trained by gradient steps: what all of them share, and those of stacked models."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, clone, is_classifier, is_regressor
from sklearn.utils.validation import check_is_fitted, validate_data

from featurecache.devices import exact_float32
from featurecache.heads.checks import REAL_TYPES, checked_to_fit, is_small
from featurecache.heads.gradient.options import StackedOptions
from featurecache.heads.gradient.outputs import Targets
from featurecache.heads.head import Fold, Groups, HeadMixin, Labels, Settings, Weights
from featurecache.heads.preparation import PRIOR_ROWS
from featurecache.heads.threads import one_thread
from featurecache.specs import TaskKind

if TYPE_CHECKING:
    from featurecache.heads.gradient.stacked import Layers, StackedModels


class GradientEstimator(HeadMixin, BaseEstimator):
    """Estimators that are trained by gradient steps on mini-batches; the outputs come from another base."""

    streams: ClassVar[bool] = True

    @property
    @abstractmethod
    def task_kind(self) -> TaskKind:
        """Kind of the task that was learned."""

    @abstractmethod
    def fit_path(
        self, X: Any, y: Labels, fold: Fold, settings: Settings, sample_weight: Weights = None, groups: Groups = None
    ) -> Iterator[tuple[Mapping[str, Any], list[Self]]]:
        """Train several settings without each fold.

        Parameters
        ----------
        X, y : ndarray
            As for `fit`.
        fold : ndarray of int (n_samples,)
            -1 for rows that are never held out. The rows outside each fold must be of all classes.
        settings : sequence of mapping
            Parameters among `path_params`, others stay as they are.
        sample_weight, groups : ndarray (n_samples,), optional
            As for `fit`.

        Yields
        ------
        (setting, estimators)
            One fitted estimator for each fold, which was not fitted on it; a single one, fitted on all rows, where no
            row is held out.
        """

    @abstractmethod
    def _encode(self, y: NDArray[Any], weight: Weights, fitted: slice | NDArray[np.bool_]) -> Targets:
        """Keep what belongs to the outputs, and return targets and class weights.

        Parameters
        ----------
        y : ndarray (n_samples,), or (n_samples, n_outputs)
        weight : ndarray (n_samples,) or None
        fitted : slice or ndarray of bool (n_samples,)
            Rows that are fitted on.
        """

    def fit(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None, groups: ArrayLike | None = None
    ) -> Self:
        """Train.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Stacked models compute float64 in float64 and all else in float32; layers compute in float32. A
            ``numpy.memmap`` is read by the batch; layers also take an `InputDataset`.
        y : array-like of shape (n_samples,), or (n_samples, n_outputs)
            Classes; or labels, 0 or 1; or numbers.
        sample_weight : array-like of shape (n_samples,), optional
            Of each row in the loss.
        groups : array-like of shape (n_samples,), optional
            Rows of one group are held out together where some are held out to stop by.

        Raises
        ------
        ValueError
            Data or parameters that make no sense, or training that diverges.
        """
        rows, targets, weight, group = checked_to_fit(self, X, y, sample_weight, groups, numbers=is_regressor(self))
        ((_, (fitted,)),) = self.fit_path(rows, targets, np.full(len(targets), -1), [{}], weight, group)
        # All but parameters: these are clones there, and an estimator keeps what it was given.
        params = self.get_params(deep=False)
        self.__dict__.update({name: value for name, value in vars(fitted).items() if name not in params})
        return self


@dataclass(kw_only=True, eq=False, repr=False)
class StackedEstimator(StackedOptions, GradientEstimator):
    """Use `MlpClassifier`, `MlpRegressor` or `AttentiveClassifier`; parameters are those of `StackedOptions` too.

    Attributes
    ----------
    n_iter_ : int
        Steps after which these were the weights.
    """

    takes_unknown: ClassVar[bool] = True
    path_params: ClassVar[frozenset[str]]
    """Parameters in which settings may differ that are trained side by side."""

    n_iter_: int = field(init=False)

    @abstractmethod
    def _stack(self) -> tuple[type[StackedModels], tuple[int, ...], int]:
        """Return what is trained, the shape of a model, and how many tokens a row has."""

    @abstractmethod
    def _keep(self, layers: Layers, dtype: type[np.floating[Any]]) -> None:
        """Keep the layers of a trained model as fitted attributes."""

    @abstractmethod
    def _logits(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Return logits, or numbers in their units, (n_samples, n_outputs)."""

    def fit(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None, groups: ArrayLike | None = None
    ) -> Self:
        """Train; see `GradientEstimator.fit`.

        Parameters
        ----------
        X, y, sample_weight, groups
            As for `GradientEstimator.fit`.
        """
        super().fit(X, y, sample_weight, groups)
        if not self.n_iter_:
            raise ValueError(f"training diverges at the learning rate {self.learning_rate:g}; use a smaller one")
        return self

    def fit_path(
        self, X: Any, y: Labels, fold: Fold, settings: Settings, sample_weight: Weights = None, groups: Groups = None
    ) -> Iterator[tuple[Mapping[str, Any], list[Self]]]:
        """Train all settings and all folds side by side, on mini-batches that they share.

        Where training diverged, an estimator has its first weights: all classes are equally probable.

        Parameters
        ----------
        X, y, fold, settings, sample_weight, groups
            As for `GradientEstimator.fit_path`.
        """
        # torch is loaded by those who fit, not by those who list heads.
        import torch

        from featurecache.heads.fold_blocks import FoldBlocks
        from featurecache.heads.gradient.stacked import ModelSetting
        from featurecache.heads.gradient.stacked_training import StackedData, StackedTrainer

        self.n_features_in_ = X.shape[1]
        # Checked before anything is trained: the last setting must not cost the others.
        models = [clone(self).set_params(**setting) for setting in settings]
        for model in models:
            model.n_features_in_ = X.shape[1]
            model.check_options()
        stack, _, num_tokens = models[0]._stack()
        shapes = [ModelSetting(model._stack()[1], model.learning_rate, model.weight_decay) for model in models]
        dtype = torch.float64 if X.dtype == np.float64 else torch.float32
        fitted: list[list[Self]] = [[] for _ in settings]
        params = self.get_params(deep=False)
        # Numbers are in units of the rows that are fitted on: a training of its own for each fold.
        one_by_one = [np.where(fold == number, 0, -1) for number in np.unique(fold[fold >= 0])] or [fold]
        for held_out in [fold] if is_classifier(self) else one_by_one:
            # Keeps classes or units in this estimator, from which those of the fold take them below.
            targets, class_weight = self._encode(y, sample_weight, held_out < 0)
            rows = FoldBlocks(X, targets, held_out, sample_weight, groups, dtype=dtype, device=self.device)
            # Of several tokens there are many in a row.
            rows.prior_rows = PRIOR_ROWS if num_tokens == 1 else 0.0
            data = StackedData(rows, self.task_kind, num_tokens, class_weight)
            # Steps on few rows are so short that threads spend them waiting for each other.
            with one_thread() if is_small(*X.shape) else nullcontext(), exact_float32(self.device):
                trainer = StackedTrainer(data, shapes, stack, self)
                trainer.run()
            # Classes or units: all that is no parameter.
            known = {name: value for name, value in vars(self).items() if name not in params}
            for estimators, model, trained in zip(fitted, models, trainer.trained, strict=True):
                for layers, num_steps in trained:
                    estimators.append(clone(model))
                    estimators[-1].__dict__.update(known, n_iter_=num_steps)
                    estimators[-1]._keep(layers, np.float64 if dtype == torch.float64 else np.float32)
        yield from zip(settings, fitted, strict=True)

    def _logits_of(self, X: ArrayLike) -> NDArray[np.float64]:
        check_is_fitted(self)
        return self._logits(validate_data(self, X, reset=False, dtype=REAL_TYPES)).astype(np.float64)
