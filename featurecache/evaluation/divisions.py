"""Dividing labelled samples for a sweep: what is fitted on, what is judged on, and how few labels there are.

==================  ===========================================  ==========================================
asked for           heads are judged on                          fitted on
==================  ===========================================  ==========================================
nothing             the validation part; where there is none, a  the train part, or the rest of it
                    quarter of each stratum of train, by seed
``folds``           one fold of train and validation, by seed    the other folds: nested cross-validation, since
                                                                 settings are chosen inside them
``look_at_test``    the test part                                train (and validation, where no labels are
                                                                 taken away)
==================  ===========================================  ==========================================

Groups are never divided. ``shots`` and ``share`` take labels away from what is fitted on: so many samples of each
class, or that share of each stratum. With one seed, fewer labels are always a part of more. Strata are classes, or the
fifths in which numbers lie; tasks of labels have one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from featurecache.errors import RequestError, TaskError
from featurecache.evaluation.parts import Part, smallest_class
from featurecache.evaluation.staging import Staging
from featurecache.specs import TaskKind
from featurecache.store.splits import strata_of_numbers

HELD_OUT_SHARE = 0.25
_QUARTERS = round(1 / HELD_OUT_SHARE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Division:
    """One way to divide the samples of a task.

    Attributes
    ----------
    seed : int
        Of what is drawn, and of the head.
    fold, num_folds : int or None
        Judge on this fold of so many.
    shots : int or None
        Samples of each class to fit on; for tasks with classes only.
    share : float or None
        Share of each stratum to fit on.
    look_at_test : bool
    """

    seed: int = 0
    fold: int | None = None
    num_folds: int | None = None
    shots: int | None = None
    share: float | None = None
    look_at_test: bool = False

    @property
    def judges_on(self) -> str:
        """``fold``, ``test``, or ``validation``, which may be held out from train."""
        return "fold" if self.num_folds else "test" if self.look_at_test else "validation"

    @property
    def takes_labels_away(self) -> bool:
        """Tell whether heads see a part of the labels only."""
        return self.shots is not None or (self.share is not None and self.share < 1)

    def is_the_tasks_own(self, parts: dict[str, Part]) -> bool:
        """Tell whether the parts of a task stay whole, so that those of tasks on the same samples stay alike."""
        whole = self.look_at_test or "validation" in parts
        return whole and not self.num_folds and not self.takes_labels_away


def divide(
    parts: dict[str, Part], division: Division, *, kind: TaskKind = "classes", room: Staging | None = None
) -> dict[str, Part]:
    """Return parts as `evaluate_head` takes them.

    Parameters
    ----------
    parts : dict
        The parts of a task, train among them.
    division : Division
    kind : str
        What is said of a sample.
    room : Staging, optional
        Where features of samples that are taken out of a part are laid out; in memory when left out. A part that is
        taken as a whole stays where it is.

    Raises
    ------
    RequestError
        The test part of a task that has none, or features for which there is no room.
    TaskError
        Too few samples, or classes too small to be divided.
    """
    assert division.shots is None or kind == "classes"
    train, rest = parts["train"], {name: part for name, part in parts.items() if name != "train"}
    kept, held_out = np.arange(len(train)), None
    if division.num_folds:
        train = train if "validation" not in rest else train.with_samples_of(rest["validation"])
        kept, held_out = _fold_of(train, division, kind)
    elif division.look_at_test:
        if "test" not in rest:
            raise RequestError("the task has no test part to look at; leave --look-at-test out")
        rest = {"test": rest["test"]} if division.takes_labels_away else rest
    elif "validation" in rest:
        rest = {"validation": rest["validation"]}
    else:
        kept, held_out = _held_out(train, division.seed, kind)
    kept = _fewer(train, kept, division, kind)
    fitted = train if len(kept) == len(train) else train.take(kept, room)
    return {"train": fitted, **(rest if held_out is None else {"validation": train.take(held_out, room)})}


def _fold_of(pool: Part, division: Division, kind: TaskKind) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of what is fitted on, and of the fold that is held out."""
    assert division.num_folds is not None
    assert division.fold is not None
    strata, noun = (
        _strata(pool.y, pool.groups, kind, division.num_folds),
        "samples" if pool.groups is None else "groups",
    )
    if (smallest := smallest_class(strata, pool.groups)) < division.num_folds:
        where = "the smallest class" if kind == "classes" else "the task"
        raise TaskError(
            f"{where} has {smallest} {noun}, too few for {division.num_folds} folds; ask for fewer folds, or add a "
            "validation part to the task"
        )
    splitter = StratifiedKFold if pool.groups is None else StratifiedGroupKFold
    folds = splitter(division.num_folds, shuffle=True, random_state=division.seed)
    fitted, held_out = list(folds.split(strata, strata, pool.groups))[division.fold]
    return fitted, held_out


def _held_out(train: Part, seed: int, kind: TaskKind) -> tuple[np.ndarray, np.ndarray]:
    if train.groups is not None:
        return _fold_of(train, Division(seed=seed, fold=0, num_folds=_QUARTERS), kind)
    order = _shuffled_strata(train.y, train.groups, seed, kind)
    held_out = np.concatenate([places[: round(HELD_OUT_SHARE * len(places))] for places in order])
    if not len(held_out):
        few = "no class has enough train samples" if kind == "classes" else f"{len(train)} train samples are too few"
        raise TaskError(f"{few} to hold out a quarter; add a validation part to the task")
    return np.setdiff1d(np.arange(len(train.y)), held_out), np.sort(held_out)


def _fewer(train: Part, kept: np.ndarray, division: Division, kind: TaskKind) -> np.ndarray:
    """Return the places, of those that are kept, whose labels are not taken away."""
    if not division.takes_labels_away:
        return kept
    groups = None if train.groups is None else train.groups[kept]
    # Another stream than the one that holds out: which samples are taken must not depend on that.
    order = _shuffled_strata(train.y[kept], groups, division.seed + 1_000_003, kind)
    counts = [division.shots or max(1, math.ceil((division.share or 0) * len(places))) for places in order]
    places = np.concatenate([places[:count] for places, count in zip(order, counts, strict=True)])
    return kept[np.sort(places)]


def _shuffled_strata(y: np.ndarray, groups: np.ndarray | None, seed: int, kind: TaskKind) -> list[np.ndarray]:
    generator, strata = np.random.default_rng(seed), _strata(y, groups, kind, _QUARTERS)
    return [generator.permutation(np.flatnonzero(strata == each)) for each in np.unique(strata)]


def _strata(y: np.ndarray, groups: np.ndarray | None, kind: TaskKind, at_least: int) -> np.ndarray:
    """Return the stratum of each sample, (n_samples,) int: what all sides of a division should be alike in.

    Numbers of which a fifth has fewer than ``at_least`` samples, or groups, are one stratum, as labels always are.
    """
    if kind == "classes":
        return y
    if kind == "numbers" and smallest_class(fifths := strata_of_numbers(y), groups) >= at_least:
        return fifths
    return np.zeros(len(y), np.int64)
