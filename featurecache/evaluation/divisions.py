"""Dividing labelled samples for a sweep: what is fitted on, what is judged on, and how few labels there are.

==================  ===========================================  ==========================================
asked for           heads are judged on                          fitted on
==================  ===========================================  ==========================================
nothing             the validation part; where there is none, a  the train part, or the rest of it
                    quarter of each class of train, by seed
``folds``           one fold of train and validation, by seed    the other folds: nested cross-validation, since
                                                                 settings are chosen inside them
``look_at_test``    the test part                                train (and validation, where no labels are
                                                                 taken away)
==================  ===========================================  ==========================================

Groups are never divided. ``shots`` and ``share`` take labels away from what is fitted on: so many samples of each
class, or that share of each class. With one seed, fewer labels are always a part of more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from featurecache.errors import RequestError, TaskError
from featurecache.evaluation.parts import Part, smallest_class

HELD_OUT_SHARE = 0.25


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
        Samples of each class to fit on.
    share : float or None
        Share of each class to fit on.
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


def divide(parts: dict[str, Part], division: Division) -> dict[str, Part]:
    """Return parts as `evaluate_head` takes them.

    Parameters
    ----------
    parts : dict
        The parts of a task, train among them.
    division : Division

    Raises
    ------
    RequestError
        The test part of a task that has none.
    TaskError
        Classes too small to be divided.
    """
    train, rest = parts["train"], {name: part for name, part in parts.items() if name != "train"}
    if division.num_folds:
        pool = train if "validation" not in rest else train.with_samples_of(rest["validation"])
        train, held_out = _fold_of(pool, division)
        rest = {"validation": held_out}
    elif division.look_at_test:
        if "test" not in rest:
            raise RequestError("the task has no test part to look at; leave --look-at-test out")
        rest = {"test": rest["test"]} if division.takes_labels_away else rest
    elif "validation" in rest:
        rest = {"validation": rest["validation"]}
    else:
        train, held_out = _held_out(train, division.seed)
        rest = {"validation": held_out}
    return {"train": _fewer(train, division), **rest}


def _fold_of(pool: Part, division: Division) -> tuple[Part, Part]:
    assert division.num_folds is not None
    assert division.fold is not None
    smallest, noun = smallest_class(pool.y, pool.groups), "samples" if pool.groups is None else "groups"
    if smallest < division.num_folds:
        raise TaskError(
            f"the smallest class has {smallest} {noun}, too few for {division.num_folds} folds; ask for fewer folds"
        )
    kind = StratifiedKFold if pool.groups is None else StratifiedGroupKFold
    folds = kind(division.num_folds, shuffle=True, random_state=division.seed)
    fitted, held_out = list(folds.split(pool.y, pool.y, pool.groups))[division.fold]
    return pool.take(fitted), pool.take(held_out)


def _held_out(train: Part, seed: int) -> tuple[Part, Part]:
    if train.groups is not None:
        return _fold_of(train, Division(seed=seed, fold=0, num_folds=round(1 / HELD_OUT_SHARE)))
    order = _shuffled_classes(train.y, seed)
    held_out = np.concatenate([places[: round(HELD_OUT_SHARE * len(places))] for places in order])
    if not len(held_out):
        raise TaskError("no class has enough train samples to hold out a quarter; add a validation part to the task")
    kept = np.setdiff1d(np.arange(len(train.y)), held_out)
    return train.take(kept), train.take(np.sort(held_out))


def _fewer(train: Part, division: Division) -> Part:
    if not division.takes_labels_away:
        return train
    # Another stream than the one that holds out: which samples are taken must not depend on that.
    order = _shuffled_classes(train.y, division.seed + 1_000_003)
    counts = [division.shots or max(1, math.ceil((division.share or 0) * len(places))) for places in order]
    places = np.concatenate([places[:count] for places, count in zip(order, counts, strict=True)])
    return train.take(np.sort(places))


def _shuffled_classes(y: np.ndarray, seed: int) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.permutation(np.flatnonzero(y == label)) for label in np.unique(y)]
