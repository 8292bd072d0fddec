"""The time of trainings one after another, as folds and settings need them, and what became of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from featurecache.heads.head import Setting

# Losses of single batches scatter: the first 32 rows are averaged, and a loss that began near zero may rise by a
# quarter of what a constant prediction loses before anybody is warned.
_FIRST_ROWS = 32
_FAR, _FAR_SHARE = 2.0, 0.25


class TrainingCost(NamedTuple):
    """Predicted seconds of one training."""

    fit: float
    predict: float = 0.0
    """For rows that are held out, when it is done."""


@dataclass(eq=False)
class Deadline:
    """When one training has to end."""

    end: float
    clock: Callable[[], float]
    is_missed: bool = False
    """The training was stopped."""

    def has_passed(self) -> bool:
        """Tell whether another step may not begin."""
        self.is_missed = not math.isinf(self.end) and self.clock() >= self.end
        return self.is_missed


@dataclass(eq=False)
class TrainingBudget:
    """Time for the trainings of one head on one feature set.

    Parameters
    ----------
    deadline : float
        When all of them, and predictions for held-out rows, are to be done, by ``clock``.
    costs : sequence of TrainingCost
        Of each training, in order. Each may take its share of what is left, so that no fold is trained less than
        another, nor the layers that are kept less than those that their setting was chosen by.
    clock : callable
        Returns seconds.
    deadlines : list of Deadline
        Of the trainings that have begun, in order.
    diverged : list of dict
        Settings that were left out because their loss was no number any more.
    """

    deadline: float = math.inf
    costs: Sequence[TrainingCost] = ()
    clock: Callable[[], float] = time.monotonic
    deadlines: list[Deadline] = field(default_factory=list)
    diverged: list[Setting] = field(default_factory=list)

    def __sklearn_clone__(self) -> Self:
        return self  # one budget for the clones of all folds and settings

    def begin(self) -> Deadline:
        """Begin the next training, and return when it has to end."""
        end = self.deadline
        if not math.isinf(end):
            to_come = self.costs[len(self.deadlines) :] or [TrainingCost(1.0)]
            now = self.clock()
            end = now + max(end - now, 0.0) * to_come[0].fit / (sum(map(sum, to_come)) or 1.0)
        self.deadlines.append(Deadline(end, self.clock))
        return self.deadlines[-1]

    @property
    def num_stopped(self) -> int:
        """How many were stopped before their end."""
        return sum(deadline.is_missed for deadline in self.deadlines)


def loss_rise(
    losses: Sequence[float], *, batch_size: int, steps_per_epoch: int, constant: float
) -> tuple[float, float] | None:
    """Return where a loss began and where it ended, if that is far above; else None.

    Parameters
    ----------
    losses : sequence of float
        Of each step.
    batch_size : int
        Rows in a step.
    steps_per_epoch : int
        The end is the median of the last epoch.
    constant : float
        Loss of one prediction for all rows.
    """
    first = max(math.ceil(_FIRST_ROWS / batch_size), 1)
    if len(losses) <= first:
        return None
    begun = sum(losses[:first]) / first
    last = sorted(losses[max(len(losses) - max(steps_per_epoch, first), first) :])
    ended = last[len(last) // 2]
    return (begun, ended) if ended > _FAR * begun and ended - begun > _FAR_SHARE * constant else None
