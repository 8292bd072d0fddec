"""What a sweep goes over: heads, seeds, folds, and how few labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from featurecache.errors import RequestError
from featurecache.evaluation.divisions import Division
from featurecache.heads.registry import kinds_of_head, list_heads, make_head
from featurecache.store.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a sweep goes over.

    Attributes
    ----------
    heads : sequence of str
        Where it is empty, all heads for the kind of each task, and that can weigh its samples where these have weights.
    seeds : sequence of int
    num_folds : int or None
        Judge on each fold of so many, instead of on the validation part.
    shots : sequence of int
        Samples of each class to fit on; for tasks with classes only.
    shares : sequence of float
        Share of the labels to fit on; all of them where both are empty.
    look_at_test : bool
    tta : bool
        Judge on the mean over the views of a sample.
    balanced : bool
        Choose settings by balanced accuracy, and give all classes the same total weight where the head can; for tasks
        with classes only.
    """

    heads: Sequence[str] = ()
    seeds: Sequence[int] = (0,)
    num_folds: int | None = None
    shots: Sequence[int] = ()
    shares: Sequence[float] = ()
    look_at_test: bool = False
    tta: bool = False
    balanced: bool = False

    def __post_init__(self) -> None:
        if not self.seeds:
            raise RequestError("a sweep needs at least one seed")
        if self.num_folds is not None and self.num_folds < 2:
            raise RequestError(f"folds must be 2 or more, got {self.num_folds}")
        if self.num_folds and self.look_at_test:
            raise RequestError("folds divide train and validation samples, so they never look at test; leave one out")
        if any(shots < 1 for shots in self.shots):
            raise RequestError(f"shots must be 1 or more, got {min(self.shots)}")
        if any(not 0 < share <= 1 for share in self.shares):
            wrong = next(share for share in self.shares if not 0 < share <= 1)
            raise RequestError(f"shares must be above 0 and at most 1, got {wrong}")

    def divisions(self) -> list[Division]:
        """Return every way to divide the samples of a task."""
        budgets: list[dict[str, Any]] = [{"shots": shots} for shots in dict.fromkeys(self.shots)]
        budgets += [{"share": share} for share in dict.fromkeys(self.shares)]
        folds = range(self.num_folds) if self.num_folds else [None]
        return [
            Division(seed=seed, fold=fold, num_folds=self.num_folds, look_at_test=self.look_at_test, **budget)
            for budget in budgets or [{}]
            for seed in dict.fromkeys(self.seeds)
            for fold in folds
        ]

    def heads_for(self, task: Task) -> list[str]:
        """Return the heads that are fitted for a task."""
        return list(dict.fromkeys(self.heads)) or list_heads(
            kind=task.kind, weighted=task.weights is not None, partial=task.is_partial
        )

    def num_cells(self, tasks: Sequence[Task], num_sets: int) -> int:
        """Return how many heads are fitted for these tasks on so many feature sets."""
        return num_sets * len(self.divisions()) * sum(len(self.heads_for(task)) for task in tasks)

    def check(self, task: Task) -> None:
        """Raise what is wrong with the plan for a task.

        Raises
        ------
        RequestError
            Shots or balanced classes, for a task without classes; or a head that is for other kinds of task.
        UnknownNameError
            A head that there is not at all.
        """
        for head in self.heads_for(task):
            _check_head(head, task)
        if task.kind == "classes":
            return
        about = f"are for tasks with classes, and {task.name!r} has {task.kind}"
        if self.shots:
            raise RequestError(f"shots {about}; use --share, or name tasks with classes")
        if self.balanced:
            raise RequestError(f"balanced classes {about}; leave --balanced out, or name tasks with classes")


def _check_head(head: str, task: Task) -> None:
    if (kinds := kinds_of_head(head)) and task.kind not in kinds:
        able = list_heads(tokens=True, kind=task.kind)
        raise RequestError(
            f"task {task.name!r} has {task.kind}, and head {head!r} is for {' or '.join(kinds)}; for {task.kind} there "
            f"are {', '.join(able)}: choose among them, or name other tasks with --task"
        )
    make_head(head, kind=task.kind)
