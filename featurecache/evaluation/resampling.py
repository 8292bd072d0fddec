"""Splitting labelled samples for a sweep: what is fitted on, what is evaluated on, and how few labels there are.

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
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from featurecache.errors import RequestError, TaskError
from featurecache.evaluation.memory_budget import MemoryBudget
from featurecache.evaluation.split_data import SplitData, class_sizes
from featurecache.specs import TaskKind
from featurecache.store.splits import strata_of_numbers
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
