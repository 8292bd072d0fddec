"""Trainings of layers one after another, as folds and settings need them: their time, and what became of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

_BEGINNING_ROWS = 32
_FAR = 2.0
_FAR_SHARE = 0.25
"""Of what a constant answer loses. Losses of batches scatter: a training that began near zero is allowed this much."""


class Cost(NamedTuple):
    """Predicted seconds of one training."""

    fit: float
    judge: float = 0.0
    """Of answering for rows that are held out, when it is done."""


@dataclass(eq=False)
class Trainings:
    """Trainings of one head on one feature set.

    Parameters
    ----------
    deadline
        When all of them, and answering for held-out rows, are to be done, by ``clock``.
    costs
        Of each training, in order. Each may take its share of what is left, so that no fold is trained less than
        another, nor the layers that are kept less than those that they were judged by.
    clock
        Gives seconds.
    """

    deadline: float = math.inf
    costs: Sequence[Cost] = ()
    clock: Callable[[], float] = time.monotonic
    turns: list[Turn] = field(default_factory=list)
    """The trainings that have begun, in order."""
    diverged: list[dict[str, Any]] = field(default_factory=list)
    """Settings that were left out because their loss was no number any more."""

    def __sklearn_clone__(self) -> Self:
        return self

    def begin(self) -> Turn:
        """Begin the next training, and say when it has to end."""
        self.turns.append(Turn(self._end(), self.clock))
        return self.turns[-1]

    def _end(self) -> float:
        if math.isinf(self.deadline):
            return math.inf
        to_come = [*self.costs[len(self.turns) :]] or [Cost(1.0)]
        now = self.clock()
        return now + max(self.deadline - now, 0.0) * to_come[0].fit / (sum(map(sum, to_come)) or 1.0)

    @property
    def num_stopped(self) -> int:
        """How many were stopped before their end."""
        return sum(turn.stopped for turn in self.turns)


@dataclass(eq=False)
class Turn:
    """One training's time."""

    end: float
    clock: Callable[[], float]
    stopped: bool = False

    def is_over(self) -> bool:
        """Tell whether another step may not begin."""
        self.stopped = not math.isinf(self.end) and self.clock() >= self.end
        return self.stopped


def rise(losses: Sequence[float], *, batch_size: int, of_an_epoch: int, constant: float) -> tuple[float, float] | None:
    """Return where a loss began and where it ended, if that is far above; else None.

    Parameters
    ----------
    losses
        Of each step.
    batch_size
        Rows in a step.
    of_an_epoch
        Steps; the end is their median.
    constant
        What one answer for all rows loses.
    """
    first = max(math.ceil(_BEGINNING_ROWS / batch_size), 1)
    if len(losses) <= first:
        return None
    begun = sum(losses[:first]) / first
    last = sorted(losses[max(len(losses) - max(of_an_epoch, first), first) :])
    ended = last[len(last) // 2]
    return (begun, ended) if ended > _FAR * begun and ended - begun > _FAR_SHARE * constant else None
