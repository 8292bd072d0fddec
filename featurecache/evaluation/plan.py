"""What a sweep goes over: heads, seeds, folds, and how few labels.

Splitting labelled samples for a sweep: what is fitted on, what is evaluated on, and how few labels there are.

==================  ==============================================  =============================================
asked for           heads are evaluated on                          fitted on
==================  ==============================================  =============================================
nothing             the validation split; where there is none, a    the train split, or the rest of it
                    quarter of each stratum of train, by seed
``folds``           one fold of train and validation, by seed       the other folds: nested cross-validation, since
                                                                    settings are chosen inside them
``on_test``         the test split                                  train (and validation, where no labels are
                                                                    taken away)
==================  ==============================================  =============================================

Groups are never split. ``shots`` and ``share`` take labels away from what is fitted on: so many samples of each
class, or that share of each stratum. With one seed, fewer labels are always a subset of more. Strata are classes, or
the fifths in which numbers lie; tasks of labels have one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from featurecache.errors import RequestError, TaskError
from featurecache.evaluation.configuring import HeadLike, resolve
from featurecache.evaluation.memory_budget import MemoryBudget
from featurecache.evaluation.metrics import metric_of
from featurecache.evaluation.split_data import SplitData, class_sizes
from featurecache.heads.head import NamedHead
from featurecache.heads.registry import list_heads
from featurecache.specs import TaskKind
from featurecache.store.splits import strata_of_numbers
from featurecache.store.tasks import Task
from featurecache.wording import counted

HELD_OUT_SHARE = 0.25
_QUARTERS = round(1 / HELD_OUT_SHARE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Resampling:
    """One way to split the samples of a task.

    Attributes
    ----------
    seed : int
        Of what is drawn, and of the head.
    fold, num_folds : int or None
        Evaluate on this fold of so many.
    shots : int or None
        Samples of each class to fit on; for tasks with classes only.
    share : float or None
        Share of each stratum to fit on.
    on_test : bool
        Evaluate on the test split.
    """

    seed: int = 0
    fold: int | None = None
    num_folds: int | None = None
    shots: int | None = None
    share: float | None = None
    on_test: bool = False

    @property
    def takes_labels_away(self) -> bool:
        """Tell whether heads see some of the labels only."""
        return self.shots is not None or (self.share is not None and self.share < 1)


def resample(
    splits: dict[str, SplitData],
    resampling: Resampling,
    *,
    kind: TaskKind = "classification",
    budget: MemoryBudget | None = None,
) -> dict[str, SplitData]:
    """Return splits as `evaluate_head` takes them.

    Parameters
    ----------
    splits : dict
        The splits of a task, train among them.
    resampling : Resampling
    kind : str
    budget : MemoryBudget, optional
        Where features of samples that are taken out of a split are laid out; in memory when left out. A split that is
        taken as a whole stays where it is.

    Raises
    ------
    RequestError
        The test split of a task that has none, or features that neither memory nor disk would hold.
    TaskError
        Too few samples, or classes too small to be split.
    """
    assert resampling.shots is None or kind == "classification"
    train, rest = splits["train"], {name: data for name, data in splits.items() if name != "train"}
    kept, held_out = np.arange(len(train)), None
    if resampling.num_folds:
        train = train if "validation" not in rest else train.with_samples_of(rest["validation"])
        kept, held_out = _fold_of(train, resampling, kind)
    elif resampling.on_test:
        if "test" not in rest:
            raise RequestError("the task has no test split; leave --look-at-test out")
        rest = {"test": rest["test"]} if resampling.takes_labels_away else rest
    elif "validation" in rest:
        rest = {"validation": rest["validation"]}
    else:
        kept, held_out = _held_out(train, resampling.seed, kind)
    kept = _fewer(train, kept, resampling, kind)
    fitted = train if len(kept) == len(train) else train.take(kept, budget)
    return {"train": fitted, **(rest if held_out is None else {"validation": train.take(held_out, budget)})}


def _fold_of(pool: SplitData, resampling: Resampling, kind: TaskKind) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of what is fitted on, and of the fold that is held out."""
    assert resampling.num_folds is not None
    assert resampling.fold is not None
    strata, noun = (
        _strata(pool.y, pool.groups, kind, resampling.num_folds),
        "samples" if pool.groups is None else "groups",
    )
    if (smallest := class_sizes(strata, pool.groups).min()) < resampling.num_folds:
        where = "the smallest class" if kind == "classification" else "the task"
        raise TaskError(
            f"{where} has {smallest} {noun}, too few for {resampling.num_folds} folds; ask for fewer folds, or add a "
            "validation split to the task"
        )
    # The one does not know groups, the other needs them.
    splitter = StratifiedKFold if pool.groups is None else StratifiedGroupKFold
    folds = splitter(resampling.num_folds, shuffle=True, random_state=resampling.seed)
    fitted, held_out = list(folds.split(strata, strata, pool.groups))[resampling.fold]
    return fitted, held_out


def _held_out(train: SplitData, seed: int, kind: TaskKind) -> tuple[np.ndarray, np.ndarray]:
    if train.groups is not None:
        return _fold_of(train, Resampling(seed=seed, fold=0, num_folds=_QUARTERS), kind)
    order = _shuffled_strata(train.y, train.groups, seed, kind)
    # Rounded in each stratum: of two samples none is held out, of three one.
    held_out = np.concatenate([indices[: round(HELD_OUT_SHARE * len(indices))] for indices in order])
    if not len(held_out):
        few = (
            "no class has enough train samples"
            if kind == "classification"
            else f"{counted(len(train), 'train sample', verb='is')} too few"
        )
        raise TaskError(f"{few} to hold out a quarter; add a validation split to the task")
    return np.setdiff1d(np.arange(len(train.y)), held_out), np.sort(held_out)


def _fewer(train: SplitData, kept: np.ndarray, resampling: Resampling, kind: TaskKind) -> np.ndarray:
    """Return the indices, of those that are kept, whose labels are not taken away."""
    if not resampling.takes_labels_away:
        return kept
    groups = None if train.groups is None else train.groups[kept]
    # Another stream than the one that holds out: which samples are taken must not depend on that.
    order = _shuffled_strata(train.y[kept], groups, resampling.seed + 1_000_003, kind)
    # At least one of each stratum, or a class would be gone.
    counts = [resampling.shots or max(1, math.ceil((resampling.share or 0) * len(indices))) for indices in order]
    indices = np.concatenate([indices[:count] for indices, count in zip(order, counts, strict=True)])
    return kept[np.sort(indices)]


def _shuffled_strata(y: np.ndarray, groups: np.ndarray | None, seed: int, kind: TaskKind) -> list[np.ndarray]:
    generator, strata = np.random.default_rng(seed), _strata(y, groups, kind, _QUARTERS)
    return [generator.permutation(np.flatnonzero(strata == stratum)) for stratum in np.unique(strata)]


def _strata(y: np.ndarray, groups: np.ndarray | None, kind: TaskKind, at_least: int) -> np.ndarray:
    """Return the stratum of each sample, (n_samples,) int: what all sides of a resampling should be alike in.

    Numbers of which a fifth has fewer than ``at_least`` samples, or groups, are one stratum, as labels always are.
    """
    if kind == "classification":
        return y
    if kind == "regression" and class_sizes(fifths := strata_of_numbers(y), groups).min() >= at_least:
        return fifths
    return np.zeros(len(y), np.int64)


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
