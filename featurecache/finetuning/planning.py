"""What a ladder of depths will take: how many trainings, of how many rows, and how long on this machine.

Operations after a cut tell how long a step takes beside another rung's; a few steps tell how long on this machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featurecache.backbones.backbone import Backbone
from featurecache.backbones.dry_run import example_inputs
from featurecache.backbones.input_kinds import input_kind_of
from featurecache.evaluation.selection import folds
from featurecache.finetuning.images import ImageSet
from featurecache.finetuning.settings import FineTuning
from featurecache.finetuning.training import apart
from featurecache.heads.gradient.trainable import TrainableLayers, parameter_groups
from featurecache.heads.gradient.trainings import Cost
from featurecache.heads.gradient.tuner import FineTuned
from featurecache.heads.threads import all_threads
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.tasks import Task

Clock = Callable[[], float]
_TIMED_STEPS = 2
TRAINING_PASSES = 3
"""Backward, gradients of activations and of parameters each cost about what forward costs."""
_STOP_BY, _LEAST_TO_STOP_BY = 0.1, 1000
_READ_ROWS = 8


@dataclass(frozen=True, kw_only=True)
class Fit:
    """One training to come."""

    num_rows: int
    """Each view of a sample is one."""
    num_judged: int
    """Rows that are answered for when it is done."""


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

    @property
    def num_trainings(self) -> int:
        """Of all rungs, the linear head not included."""
        return sum(len(rung.fits) for rung in self.rungs)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"num_trainings": self.num_trainings, "rungs": [rung.to_json() for rung in self.rungs]}

    def __str__(self) -> str:
        first = self.rungs[0]
        last = sum(len(rung.fits) - rung.num_settings * rung.num_folds for rung in self.rungs)
        each = [_number(first.num_settings, "setting"), _number(first.num_folds, "fold")]
        product = " x ".join([_number(len(self.rungs), "depth"), *each])
        return f"{_number(self.num_trainings, 'training')} to come: {product}, and {last} more on all rows to be kept"


def plan_rung(task: Task, feature_set: FeatureSet, tuning: FineTuning, *, flops: int, random_state: int) -> RungPlan:
    """Count the trainings of a tail, as the protocol of heads needs them.

    Parameters
    ----------
    task, feature_set
    tuning
        How tails are trained.
    flops
        Operations of one sample after the cut, forward.
    random_state
        Of folds.
    """
    features, views = feature_set.open(), feature_set.num_views or 1
    of_split = {split: task.rows(features, split) for split in ("train", "validation", "test") if task.has(split)}
    counts = {split: len(rows) for split, (rows, _) in of_split.items()}
    train = counts["train"]
    chosen_on_validation = "validation" in counts and "test" in counts
    if chosen_on_validation:
        num_folds, whole = 1, train + counts["validation"]
        once = [Fit(num_rows=train * views, num_judged=counts["validation"])]
    else:
        rows, y = of_split["train"]
        groups = task.groups_of(rows)
        num_folds = folds(y, groups, random_state=random_state).get_n_splits(y, y, groups)
        held_out, whole = math.ceil(train / num_folds), train
        once = [Fit(num_rows=(train - held_out) * views, num_judged=held_out)] * num_folds
    last = Fit(num_rows=whole * views, num_judged=counts.get("test", counts.get("validation", 0)))
    num_augmentations, num_settings = len(apart(tuning, feature_set)), len(tuning.grid())
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
    """With reading its rows."""
    answer: float
    """For one row."""
    beginning: float = 0.0
    """Of fitting the linear head that a training begins with."""

    def costs(self, rung: RungPlan, tuning: FineTuning) -> list[Cost]:
        """Return the predicted seconds of each training."""
        return [self.cost(fit, tuning) for fit in rung.fits]

    def cost(self, fit: Fit, tuning: FineTuning) -> Cost:
        """Return the predicted seconds of a training."""
        held_out = math.ceil(_STOP_BY * fit.num_rows) if fit.num_rows >= _LEAST_TO_STOP_BY else 0
        steps, epochs = num_steps(fit.num_rows - held_out, tuning)
        answered = fit.num_rows + epochs * held_out  # the features of the linear head, and epochs
        return Cost(self.beginning + steps * self.step + answered * self.answer, fit.num_judged * self.answer)


def num_steps(num_rows: int, tuning: FineTuning) -> tuple[int, int]:
    """Return steps and epochs of a training."""
    of_an_epoch = math.ceil(num_rows / tuning.batch_size)
    epochs = FineTuned(batch_size=tuning.batch_size, epochs=tuning.epochs).num_epochs(num_rows)
    return epochs * of_an_epoch, epochs


def speed_by_operations(flops: int, seconds_of_a_flop: float, tuning: FineTuning, *, beginning: float = 0.0) -> Speed:
    """Predict the speed of a tail by the operations after its cut."""
    forward = flops * seconds_of_a_flop
    return Speed(step=tuning.batch_size * TRAINING_PASSES * forward, answer=forward, beginning=beginning)


def measured_speed(
    layers: TrainableLayers, feature_set: FeatureSet, tuning: FineTuning, *, clock: Clock, beginning: float = 0.0
) -> Speed:
    """Take a few steps on made-up activations, and read a few rows.

    Parameters
    ----------
    layers
        Of the tail; changed by the steps.
    feature_set, tuning
    clock
        Gives seconds.
    beginning
        See `Speed`.
    """
    shape = feature_set.activation_shape
    activations = torch.randn(tuning.batch_size, *shape, generator=torch.Generator().manual_seed(0))
    layers = layers.to(tuning.device)
    rates = {name: getattr(tuning, name) for name in ("layer_decay", "weight_decay")}
    groups = parameter_groups(layers, learning_rate=1e-9, pretrained_factor=1.0, **rates)
    optimizer = torch.optim.AdamW(list(groups))
    layers.set_training(statistics=tuning.batch_norm == "train")
    reading = _seconds_to_read(feature_set, clock) * tuning.batch_size
    with all_threads():
        _step(layers, optimizer, activations, tuning)  # the first makes what the others find
        step = min(_timed(clock, lambda: _step(layers, optimizer, activations, tuning)) for _ in range(_TIMED_STEPS))
        layers.eval()
        with torch.no_grad():
            answer = _timed(clock, lambda: layers(activations.to(tuning.device)).cpu())
    per_row = (answer + reading) / len(activations)
    return Speed(step=step + reading, answer=per_row, beginning=beginning)


def seconds_of_a_flop(backbone: Backbone, flops: int, *, clock: Clock) -> float:
    """Time a forward pass of a whole network, whose operations for one input are ``flops``."""
    call, inputs = input_kind_of(backbone.preprocess).call, example_inputs(backbone)
    with all_threads(), torch.inference_mode():
        seconds = _timed(clock, lambda: call(backbone.module, inputs))
    return seconds / max(flops * len(inputs), 1)


def _step(layers: TrainableLayers, optimizer: torch.optim.Optimizer, activations: Tensor, tuning: FineTuning) -> None:
    dtype = torch.bfloat16 if tuning.precision == "bfloat16" else None
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(tuning.device.partition(":")[0], dtype=dtype, enabled=dtype is not None):
        outputs = layers(activations.to(tuning.device))
    loss = outputs.float().square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    loss.item()  # a device may still be at work


def _seconds_to_read(feature_set: FeatureSet, clock: Clock) -> float:
    """Return the seconds of one row."""
    features = feature_set.open()
    rows = features.rows[:_READ_ROWS]
    if isinstance(feature_set, ImageSet):
        places = np.arange(min(len(feature_set.rows), _READ_ROWS))
        return _timed(clock, lambda: feature_set.reader(places, None)) / max(len(places), 1)
    return _timed(clock, lambda: features.read(rows)) / max(len(rows) * (feature_set.num_views or 1), 1)


def _timed(clock: Clock, work: Callable[[], Any]) -> float:
    begun = clock()
    work()
    return clock() - begun


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("s" if count != 1 else "")
