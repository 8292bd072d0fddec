"""What a ladder of depths will take: how many trainings, of how many rows, and how long on this machine.

Operations after a cut give the time of a step relative to another depth; a few steps give it on this machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from featurecache.backbones.backbone import Backbone
from featurecache.backbones.dry_run import example_inputs
from featurecache.backbones.input_kinds import input_kind_of
from featurecache.evaluation.selection import fold_numbers
from featurecache.finetuning.factories import TAIL
from featurecache.finetuning.settings import FineTuning
from featurecache.finetuning.training import each_training
from featurecache.heads.gradient.budget import TrainingCost
from featurecache.heads.gradient.datasets import ActivationDataset
from featurecache.heads.gradient.finetuned import FineTunedClassifier
from featurecache.heads.gradient.layer_training import LayerTrainer, TrainingData
from featurecache.heads.gradient.trainable import LayerFactory
from featurecache.heads.threads import all_threads
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.tasks import Task
from featurecache.wording import counted

Clock = Callable[[], float]
# The first step makes what the others find, such as the moments of the optimiser.
_WARM_UP_STEPS, _TIMED_STEPS = 1, 2
TRAINING_PASSES = 3
"""Forward, gradients of activations and gradients of parameters each cost about the same."""
# As training holds rows out to stop by: a tenth of them, and none of fewer than a thousand.
_HELD_OUT, _MIN_HELD_OUT_ROWS = 0.1, 1000
_READ_ROWS = 8


@dataclass(frozen=True, kw_only=True)
class Fit:
    """One training to come."""

    num_rows: int
    """Each view of a sample is one."""
    num_predicted: int
    """Rows that are predicted when it is done."""


@dataclass(frozen=True, kw_only=True)
class RungPlan:
    """One depth."""

    tap: str
    num_settings: int
    """Augmentations included."""
    num_folds: int
    """One where settings are chosen on validation rows."""
    fits: tuple[Fit, ...]
    flops: int
    """Of one sample after the cut, forward."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "tap": self.tap,
            "num_settings": self.num_settings,
            "num_folds": self.num_folds,
            "num_trainings": len(self.fits),
            "gflop_forward": round(self.flops / 1e9, 6),
        }


@dataclass(frozen=True, kw_only=True)
class LadderPlan:
    """All depths that layers are trained at, the shallowest first."""

    rungs: tuple[RungPlan, ...]

    def __str__(self) -> str:
        first = self.rungs[0]
        last = sum(len(rung.fits) - rung.num_settings * rung.num_folds for rung in self.rungs)
        counts = {"training": sum(len(rung.fits) for rung in self.rungs), "depth": len(self.rungs)}
        counts |= {"setting": first.num_settings, "fold": first.num_folds}
        total, *factors = (counted(count, noun) for noun, count in counts.items())
        return f"{total} to come: {' x '.join(factors)}, and {last} more on all rows to be kept"


def plan_rung(task: Task, feature_set: FeatureSet, tuning: FineTuning, *, flops: int, random_state: int) -> RungPlan:
    """Count the trainings of a tail, as the protocol of heads needs them.

    Parameters
    ----------
    task : Task
    feature_set : FeatureSet
    tuning : FineTuning
        How tails are trained.
    flops : int
        Operations of one sample after the cut, forward.
    random_state : int
        Of folds.
    """
    features, views = feature_set.open(), feature_set.num_views or 1
    of_split = {split: task.rows(features, split) for split in ("train", "validation", "test") if task.has(split)}
    counts = {split: len(rows) for split, (rows, _) in of_split.items()}
    train = counts["train"]
    if "validation" in counts and "test" in counts:  # settings are chosen on validation rows
        num_folds, whole = 1, train + counts["validation"]
        once = [Fit(num_rows=train * views, num_predicted=counts["validation"])]
    else:
        rows, y = of_split["train"]
        groups = task.groups_of(rows)
        num_folds = int(fold_numbers(y, groups, random_state=random_state).max()) + 1
        held_out, whole = math.ceil(train / num_folds), train
        once = [Fit(num_rows=(train - held_out) * views, num_predicted=held_out)] * num_folds
    # The chosen setting is fitted again on all that it may see.
    last = Fit(num_rows=whole * views, num_predicted=counts.get("test", counts.get("validation", 0)))
    num_augmentations, num_settings = len(each_training(tuning, feature_set, TAIL)), len(tuning.grid())
    return RungPlan(
        tap=feature_set.tap,
        num_settings=num_settings * num_augmentations,
        num_folds=num_folds,
        fits=tuple((once * num_settings + [last]) * num_augmentations),
        flops=flops,
    )


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Seconds of what a training consists of."""

    step: float
    """Reading its rows included."""
    predict: float
    """For one row."""
    linear_fit: float = 0.0
    """Of fitting the linear head that a training starts from."""

    def cost(self, fit: Fit, tuning: FineTuning) -> TrainingCost:
        """Return the predicted seconds of a training."""
        held_out = math.ceil(_HELD_OUT * fit.num_rows) if fit.num_rows >= _MIN_HELD_OUT_ROWS else 0
        steps, epochs = tuning.num_steps(fit.num_rows - held_out)
        predicted = fit.num_rows + epochs * held_out  # features of the linear head, and evaluations of epochs
        seconds = self.linear_fit + steps * epochs * self.step + predicted * self.predict
        return TrainingCost(seconds, fit.num_predicted * self.predict)


def speed_by_operations(flops: int, seconds_of_a_flop: float, tuning: FineTuning, *, linear_fit: float = 0.0) -> Speed:
    """Predict the speed of a tail by its operations.

    Parameters
    ----------
    flops : int
        Of one sample after the cut, forward.
    seconds_of_a_flop : float
    tuning : FineTuning
    linear_fit : float
        See `Speed`.
    """
    forward = flops * seconds_of_a_flop
    return Speed(step=tuning.batch_size * TRAINING_PASSES * forward, predict=forward, linear_fit=linear_fit)


def measured_speed(
    factory: LayerFactory, feature_set: FeatureSet, tuning: FineTuning, *, clock: Clock, linear_fit: float = 0.0
) -> Speed:
    """Take a few steps of a tail on random activations, and read a few rows.

    Parameters
    ----------
    factory : callable
        Makes the tail.
    feature_set : FeatureSet
    tuning : FineTuning
    clock : callable
        Returns seconds.
    linear_fit : float
        See `Speed`.
    """
    features, size = feature_set.open(), tuning.batch_size
    rows = features.rows[features.usable(features.rows)][:_READ_ROWS]
    reading = _timed(clock, lambda: features.read(rows)) / max(len(rows) * (feature_set.num_views or 1), 1) * size
    activations = torch.randn(size, *feature_set.activation_shape, generator=torch.Generator().manual_seed(0))
    # Nothing is held out, and the loss is the cheapest: layers take nearly all of the time.
    nothing = np.zeros(0, np.int64)
    data = TrainingData(
        dataset=ActivationDataset(activations.flatten(1).numpy(), feature_set.activation_shape),
        y=torch.zeros(size, 1),
        weight=torch.ones(size),
        fitted=np.arange(size),
        held_out=nothing,
        kind="regression",
    )
    trainer = LayerTrainer(factory(1), data, FineTunedClassifier(**tuning.params()))
    batch = np.arange(size), activations
    with all_threads(), trainer.arithmetic(), torch.random.fork_rng(devices=[]):  # a step seeds torch
        seconds = [
            # At a learning rate of zero: the weights are not to leave the range in which they were trained.
            _timed(clock, lambda: trainer.take_step(batch, 0.0))
            for _ in range(_WARM_UP_STEPS + _TIMED_STEPS)
        ]
        layers = trainer.layers.eval()
        with torch.no_grad():
            predict = _timed(clock, lambda: layers(activations.to(tuning.device)).cpu())
    # The shortest: whatever else the machine does only makes a step longer.
    step = min(seconds[_WARM_UP_STEPS:]) + reading
    return Speed(step=step, predict=(predict + reading) / size, linear_fit=linear_fit)


def seconds_of_a_flop(backbone: Backbone, flops: int, *, clock: Clock) -> float:
    """Time a forward pass of a whole network.

    Parameters
    ----------
    backbone : Backbone
    flops : int
        Operations of the network for one input.
    clock : callable
        Returns seconds.
    """
    call, inputs = input_kind_of(backbone.preprocess).call, example_inputs(backbone)
    with all_threads(), torch.inference_mode():
        seconds = _timed(clock, lambda: call(backbone.module, inputs))
    return seconds / max(flops * len(inputs), 1)


def _timed(clock: Clock, work: Callable[[], Any]) -> float:
    begun = clock()
    work()
    return clock() - begun
