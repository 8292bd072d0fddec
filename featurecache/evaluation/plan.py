"""What a sweep goes over: heads, seeds, folds, and how few labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from featurecache.errors import RequestError
from featurecache.evaluation.configuring import HeadLike, resolve
from featurecache.evaluation.metrics import metric_of
from featurecache.evaluation.resampling import Resampling
from featurecache.heads.head import NamedHead
from featurecache.heads.registry import list_heads
from featurecache.specs import TaskKind
from featurecache.store.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a sweep goes over.

    Attributes
    ----------
    heads : sequence of str or NamedHead
        Where it is empty, all heads for the kind of each task, and that can weigh its samples where these have weights.
    seeds : sequence of int
    num_folds : int or None
        Evaluate on each fold of so many, instead of on the validation split.
    shots : sequence of int
        Samples of each class to fit on; for tasks with classes only.
    shares : sequence of float
        Share of the labels to fit on; all of them where both are empty.
    on_test : bool
        Evaluate on the test split.
    tta : bool
        Evaluate on the mean over the views of a sample.
    balanced : bool
        Choose settings by balanced accuracy, and give all classes the same total weight where the head can; for tasks
        with classes only.
    metric : str or None
        Choose settings, and compare heads, by this one; see `featurecache.evaluation.metrics`.
    """

    heads: Sequence[HeadLike] = ()
    seeds: Sequence[int] = (0,)
    num_folds: int | None = None
    shots: Sequence[int] = ()
    shares: Sequence[float] = ()
    on_test: bool = False
    tta: bool = False
    balanced: bool = False
    metric: str | None = None

    def __post_init__(self) -> None:
        if not self.seeds:
            raise RequestError("a sweep needs at least one seed")
        if self.num_folds is not None and self.num_folds < 2:
            raise RequestError(f"folds must be 2 or more, got {self.num_folds}")
        if self.num_folds and self.on_test:
            raise RequestError("folds divide train and validation samples, so test is never used; leave one out")
        if any(shots < 1 for shots in self.shots):
            raise RequestError(f"shots must be 1 or more, got {min(self.shots)}")
        if any(not 0 < share <= 1 for share in self.shares):
            wrong = next(share for share in self.shares if not 0 < share <= 1)
            raise RequestError(f"shares must be above 0 and at most 1, got {wrong}")

    def resamplings(self) -> list[Resampling]:
        """Return every way to split the samples of a task."""
        budgets: list[tuple[int | None, float | None]] = [(shots, None) for shots in dict.fromkeys(self.shots)]
        budgets += [(None, share) for share in dict.fromkeys(self.shares)]
        folds = range(self.num_folds) if self.num_folds else [None]
        return [
            Resampling(seed=seed, fold=fold, num_folds=self.num_folds, shots=shots, share=share, on_test=self.on_test)
            for shots, share in budgets or [(None, None)]
            for seed in dict.fromkeys(self.seeds)
            for fold in folds
        ]

    def heads_for(self, task: Task) -> list[NamedHead]:
        """Return the heads that are fitted for a task.

        Raises
        ------
        RequestError, UnknownNameError
            A head that is for other kinds of task, or that there is not at all.
        """
        # What is wrong with a head is told of this task, before heads of other kinds are looked up.
        for head in self.heads:
            _check_head(head, task)
        heads: Sequence[HeadLike] = self.heads or list_heads(
            kind=task.kind, weighted=task.weights is not None, partial=task.is_partial
        )
        # A head that is named twice is searched once.
        return list({head.name: head for head in (resolve(name, task.kind) for name in heads)}.values())

    def check(self, task: Task) -> None:
        """Raise what is wrong with the plan for a task.

        Raises
        ------
        RequestError
            Shots or balanced classes, for a task without classes; or a head that is for other kinds of task.
        TaskError
            A metric that is for other kinds of task.
        UnknownNameError
            A head or a metric that there is not at all.
        """
        self.heads_for(task)
        metric_of(task.kind, self.metric)
        if task.kind == "classification":
            return
        about = f"are for tasks with classes, and {task.name!r} is of kind {task.kind}"
        if self.shots:
            raise RequestError(f"shots {about}; use --share, or name tasks with classes")
        if self.balanced:
            raise RequestError(f"balanced classes {about}; leave --balanced out, or name tasks with classes")


def _check_head(head: HeadLike, task: Task) -> None:
    name = head if isinstance(head, str) else head.name
    # A name may stand for a head of some kinds of task, and of none where nobody knows it.
    of_name = [kind for kind in get_args(TaskKind) if head in list_heads(tokens=True, kind=kind)]
    kinds = of_name if isinstance(head, str) else sorted(head.kinds)
    if kinds and task.kind not in kinds:
        able = list_heads(tokens=True, kind=task.kind)
        raise RequestError(
            f"task {task.name!r} is of kind {task.kind}, and head {name!r} is for {' or '.join(kinds)}; "
            f"for {task.kind} there are {', '.join(able)}: choose among them, or name other tasks with --task"
        )
    resolve(head, task.kind)
