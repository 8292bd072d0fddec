"""Models of many settings and folds, trained side by side on mini-batches that they share.

Each batch is read once and standardised once for each fold, and every stack takes one step on it.

Axes: F folds, n rows, B batch, D features, S settings, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featurecache.devices import copied_to
from featurecache.heads.fold_blocks import NO_FOLD, FoldBlocks, Moments
from featurecache.heads.gradient.fold_features import features_of_folds
from featurecache.heads.gradient.options import MAX_ROWS_EVALUATED, StackedOptions
from featurecache.heads.gradient.outputs import ClassWeight, row_weights
from featurecache.heads.gradient.stacked import DataSizes, Layers, ModelSetting, StackedModels
from featurecache.heads.gradient.training import EarlyStopping, Schedule, Trainer
from featurecache.heads.preparation import rows_to_stop_by
from featurecache.specs import TaskKind

# On small data an epoch is a handful of steps: neither is twenty of them enough, nor each worth an evaluation.
_EPOCHS, _MIN_STEPS, _MIN_STEPS_OF_A_ROUND = 20, 300, 25


class TrainedModel(NamedTuple):
    """One model at the end."""

    layers: Layers
    """For features that are not standardised."""
    num_steps: int
    """After which these were the weights; 0 if training diverged from the start, and these are the first weights."""


@dataclass(frozen=True, eq=False)
class StackedData:
    """Rows and targets of one training.

    Parameters
    ----------
    rows : FoldBlocks
        Features are read by the batch; models are trained without each fold.
    kind : str
        Of the task.
    num_tokens : int
        Tokens in a row, which are standardised alike.
    class_weight : ndarray (n_classes,), "balanced" or None
    """

    rows: FoldBlocks
    kind: TaskKind
    num_tokens: int = 1
    class_weight: ClassWeight = None


class StackedTrainer(Trainer[NDArray[np.int64]]):
    """Trains every setting without each fold.

    Parameters
    ----------
    data : StackedData
    settings : sequence of ModelSetting
    stack : type of StackedModels
        What is trained.
    options : StackedOptions
        Those that all settings have in common.

    Attributes
    ----------
    trained : list of list of TrainedModel
        The best so far, by setting, then by fold.
    """

    def __init__(
        self, data: StackedData, settings: Sequence[ModelSetting], stack: type[StackedModels], options: StackedOptions
    ) -> None:
        rows = data.rows
        super().__init__(_schedule(len(rows.y), options))
        self._rows, self._batch_size, self._seed = rows, options.batch_size, options.random_state or 0
        y = torch.from_numpy(rows.y)
        self._y = y if data.kind == "classification" else y.to(rows.dtype)
        # Without a fold that is held out, one group of models is fitted on all rows.
        folds = [fold for fold in rows.folds if fold != NO_FOLD] or [NO_FOLD]
        # One pass over the rows for all folds: sums over each, of which every group of models leaves one out.
        moments = Moments.of(rows)
        _, means, scales, counts = zip(*(moments.without(fold) for fold in folds), strict=True)
        seen_Fn = np.stack([(rows.fold != fold) | (rows.fold == NO_FOLD) for fold in folds])
        self._features = features = features_of_folds(
            rows, means, scales, seen_Fn, num_tokens=data.num_tokens, any_axes=stack.takes_any_axes, seed=self._seed
        )
        weight_Fn = [row_weights(rows.y, rows.weight, data.class_weight, count.cpu().numpy()) for count in counts]
        self._held_out = rows_to_stop_by(
            rows.y, seen_Fn, rows.group, fraction=options.validation_fraction, random_state=self._seed
        )
        self._weight_Fn = torch.from_numpy(np.stack(weight_Fn) * seen_Fn).to(rows.dtype)
        # Held-out rows have no weight in steps, and their own in evaluations.
        self._fitted_weight_Fn = self._weight_Fn.clone()
        self._fitted_weight_Fn[:, torch.from_numpy(self._held_out)] = 0.0
        # Models of different shapes cannot share a matrix product.
        shapes: dict[tuple[int, ...], list[tuple[int, ModelSetting]]] = {}
        for number, setting in enumerate(settings):
            shapes.setdefault(setting.shape, []).append((number, setting))
        sizes = DataSizes(len(folds), features.width, features.square, rows.num_classes, data.num_tokens, data.kind)
        self._stacks = [
            stack(alike, sizes, seed=self._seed, dtype=rows.dtype, device=rows.device) for alike in shapes.values()
        ]
        self._stopping = [[EarlyStopping(options.patience) for _ in folds] for _ in settings]
        first = {
            number: [TrainedModel(models.layers(fold, index, raw), 0) for fold, raw in enumerate(features.raw)]
            for models in self._stacks
            for index, number in enumerate(models.numbers)
        }
        self.trained = [first[number] for number in range(len(settings))]

    def take_step(self, batch: NDArray[np.int64], factor: float) -> None:
        """Let all models take one step; see `Trainer.take_step`."""
        index_B, device = torch.from_numpy(batch), self._rows.device
        X_FBD, y_B = self._features.read(batch), copied_to(self._y[index_B], device)
        weight_FB = copied_to(self._fitted_weight_Fn[:, index_B], device)
        for models in self._stacks:
            # The sum over the models: the gradient of each is that of its own loss.
            models.losses(X_FBD, y_B, weight_FB).sum().backward()
            for parameter in models.parameters:
                parameter.step(models.rate_S * factor, models.decay_S, self.step + 1)

    def _batches(self) -> Iterator[NDArray[np.int64]]:
        """Yield indices of rows, shuffled in each epoch; held-out ones among them, as each fold has others."""
        generator, num_rows = np.random.default_rng(self._seed + 1), len(self._rows.y)
        while True:
            order = generator.permutation(num_rows)
            for start in range(0, num_rows, self._batch_size):
                # Sorted, as features may be in a file, which is faster read forwards.
                yield np.sort(order[start : start + self._batch_size])

    def _evaluate(self) -> None:
        """Keep the best weights of each model, and drop the settings that are done in every fold."""
        for models in self._stacks:
            losses_SF = self._losses(models).T.tolist()
            # Every fold of a setting is evaluated, also where an earlier one goes on.
            improving_SF = [
                [self._update(models, fold, index, loss) for fold, loss in enumerate(losses)]
                for index, losses in enumerate(losses_SF)
            ]
            going_on = [index for index, folds in enumerate(improving_SF) if any(folds)]
            if len(going_on) < len(models.numbers):
                models.keep(going_on)
        self._stacks = [models for models in self._stacks if models.numbers]
        self.is_done |= not self._stacks

    def _update(self, models: StackedModels, fold: int, index: int, loss: float) -> bool:
        """Keep a model if it is better than before; tell whether it may still get better."""
        number = models.numbers[index]
        stopping, has_held_out = self._stopping[number][fold], len(self._held_out) > 0
        if has_held_out and stopping.is_over:  # other folds of its setting are not
            return False
        # Without held-out rows the last weights are the best, unless they have diverged.
        if stopping.improves(loss) or (self.is_done and not has_held_out and math.isfinite(loss)):
            self.trained[number][fold] = TrainedModel(models.layers(fold, index, self._features.raw[fold]), self.step)
            return True
        return math.isfinite(loss) and not (has_held_out and stopping.is_over)

    def _losses(self, models: StackedModels) -> Tensor:
        """Return each model's loss (F, S) on held-out rows; without such rows, on some that it is fitted on."""
        rows = self._held_out if len(self._held_out) else np.arange(min(len(self._rows.y), MAX_ROWS_EVALUATED))
        device = self._rows.device
        total, weight_F1 = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        with torch.inference_mode():
            for start in range(0, len(rows), MAX_ROWS_EVALUATED):
                some = rows[start : start + MAX_ROWS_EVALUATED]
                index_B = torch.from_numpy(some)
                X_FBD, y_B, weight_FB = self._features.read(some), self._y[index_B], self._weight_Fn[:, index_B]
                share_F1 = weight_FB.sum(1, keepdim=True).double()
                losses_FS = models.losses(X_FBD, y_B.to(device), weight_FB.to(device)).double().cpu()
                total, weight_F1 = total + losses_FS * share_F1, weight_F1 + share_F1
        return total / weight_F1


def _schedule(num_rows: int, options: StackedOptions) -> Schedule:
    """Return how many steps models take on so many rows, and after how many they are evaluated."""
    of_an_epoch = math.ceil(num_rows / options.batch_size)
    num_steps = of_an_epoch * (options.epochs or _EPOCHS)
    # Epochs that were asked for are taken at their word.
    num_steps = num_steps if options.epochs else max(num_steps, _MIN_STEPS)
    return Schedule(num_steps=num_steps, steps_per_round=min(max(of_an_epoch, _MIN_STEPS_OF_A_ROUND), num_steps))
