"""The training loop of all heads: models side by side in one stack, or layers one after the other.

What is trained, in which batches and by which optimiser is up to a `Trainer`: stacked models share batches that hold
the rows of all folds, each setting at a rate of its own, while layers have groups of rates, checkpoints, a deadline.

Losses of rows, by kind of task.

Axes: B batch, K classes or other outputs; other axes may stand before them, such as those of stacked models.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from featurecache.heads.gradient.budget import Deadline
from featurecache.specs import TaskKind

Batch = TypeVar("Batch")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How many steps there are, and the learning rate at each.

    Parameters
    ----------
    num_steps : int
        At most.
    steps_per_round : int
        Steps between evaluations on held-out rows.
    warmup : float
        Share of the steps in which the learning rate rises.
    """

    num_steps: int
    steps_per_round: int
    warmup: float = 0.0

    def rate_factor(self, step: int) -> float:
        """Return by what the learning rate is multiplied at a step, from 0.

        A linear warm-up, then half a cosine down to nothing (Loshchilov & Hutter, "SGDR", ICLR 2017, equation 5).
        """
        warm = int(self.warmup * self.num_steps)
        if step < warm:
            # Above zero from the first step on, which would do nothing otherwise.
            return (step + 1) / (warm + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(self.num_steps - warm, 1)))


@dataclass
class EarlyStopping:
    """The best loss of a model on held-out rows, and how many rounds ago that was."""

    patience: int
    best: float = math.inf
    rounds: int = 0

    def improves(self, loss: float) -> bool:
        """Take the loss of a round, and tell whether it is the best so far."""
        # A loss that is no number is never below the best, and so is no improvement.
        if loss < self.best:
            self.best, self.rounds = loss, 0
            return True
        self.rounds += 1
        return False

    @property
    def is_over(self) -> bool:
        """Whether there has been no better loss for too long."""
        return self.rounds >= self.patience


class Trainer(ABC, Generic[Batch]):
    """One training.

    Parameters
    ----------
    schedule : Schedule
    deadline : Deadline, optional
        Asked before each step.

    Attributes
    ----------
    step : int
        Steps taken.
    is_done : bool
        The schedule has ended, or no model gets better any more.
    """

    def __init__(self, schedule: Schedule, deadline: Deadline | None = None) -> None:
        self.schedule, self.step, self.is_done = schedule, 0, False
        self._deadline = deadline

    def run(self) -> None:
        """Take steps until the training is done, or its time is over."""
        for batch in () if self.is_done else self._batches():
            # Before a step, not after it: what is kept is the outcome of whole steps.
            if self._deadline is not None and self._deadline.has_passed():
                return
            self.take_step(batch, self.schedule.rate_factor(self.step))
            self.step += 1
            self.is_done = self.step == self.schedule.num_steps
            if self.is_done or self.step % self.schedule.steps_per_round == 0:
                self._evaluate()
            self._after_step()
            if self.is_done:
                return

    @abstractmethod
    def take_step(self, batch: Batch, factor: float) -> None:
        """Take one step on a batch, at the learning rate times ``factor``."""

    @abstractmethod
    def _batches(self) -> Iterator[Batch]:
        """Yield the batches of the steps to come."""

    @abstractmethod
    def _evaluate(self) -> None:
        """Keep the weights that are the best so far, and set `is_done` where none may get better any more."""

    def _after_step(self) -> None:
        """Keep how far the training is."""


def row_losses(outputs: Tensor, y: Tensor, kind: TaskKind) -> Tensor:
    """Return the loss of each row, (..., B).

    Parameters
    ----------
    outputs : Tensor (..., B, K)
        Logits of classes, logits of labels, or numbers.
    y : Tensor (B,) or (B, K)
        Class indices; labels or numbers.
    kind : str
        Of the task. Labels below 0, and numbers that are NaN, are not known, and lose nothing.
    """
    if kind == "classification":
        rows = outputs.shape[:-1]
        return cross_entropy(outputs.flatten(0, -2), y.expand(rows).flatten(), reduction="none").view(rows)
    if kind == "multilabel":
        labels = y.to(outputs.dtype).expand_as(outputs)
        losses = binary_cross_entropy_with_logits(outputs, labels.clamp(min=0.0), reduction="none")
        return losses.masked_fill(labels < 0, 0.0).sum(-1)
    # Where NaN, the difference is taken from the output itself, so that no NaN reaches a gradient.
    return (outputs - torch.where(y.isnan(), outputs.detach(), y)).square().mean(-1)
