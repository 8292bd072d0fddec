"""The splits of a task: made for its kind and groups, those of an earlier task kept, and refused where impossible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurecache.errors import ReportWarning, TaskError
from featurecache.hashing import digest_bytes
from featurecache.specs import TASK_NOUN, TaskKind
from featurecache.store.labels import SPLITS
from featurecache.store.samples import Ids, find_ids
from featurecache.store.splits import grouped_splits, strata_of_numbers, stratified_splits
from featurecache.store.tasks import Task, class_counts, known_of
from featurecache.wording import counted, some_of

_MOST_NAMES = 5
"""In a message of one line."""
_FEWEST = 20
"""Samples of a task; of fewer, a fifth says nothing."""


def make_splits(
    ids: Ids,
    targets: NDArray[Any],
    kind: TaskKind,
    names: list[str],
    groups: NDArray[np.int32] | None,
    kept: NDArray[np.int64],
    random_state: int,
) -> NDArray[np.uint8]:
    """Return splits of samples whose labels bring none, by kind and groups; see `featurecache.store.splits`.

    Parameters
    ----------
    ids, targets : ndarray
        Samples and their targets, as `Task` holds them.
    kind : str
    names, groups : list of str, ndarray or None
        Groups by number, and the number of each sample.
    kept : ndarray of int64
        From `previous_splits`.
    random_state : int
    """
    # Numbers have no classes to be alike in, so their fifths are.
    strata = strata_of_numbers(targets) if kind == "regression" else targets
    if groups is not None:
        lots = [digest_bytes(f"{random_state} {name}".encode()) for name in names]
    elif kind == "multilabel":  # each sample is a group: of each label as near to its share as can be
        groups = np.arange(len(ids), dtype=np.int32)
        lots = [digest_bytes(f"{random_state} ".encode() + row.tobytes()) for row in ids]
    else:
        return stratified_splits(ids, strata, random_state=random_state, kept=kept)
    if kind != "multilabel":
        return grouped_splits(groups, strata, lots, kept=kept)
    splits = grouped_splits(groups, targets == 1, lots, kept=kept)
    return _with_labels_in_train(splits, groups, targets == 1, lots, kept)


def _with_labels_in_train(
    splits: NDArray[np.uint8],
    groups: NDArray[np.int32],
    holds: NDArray[np.bool_],
    lots: Sequence[str],
    kept: NDArray[np.int64],
) -> NDArray[np.uint8]:
    """Move groups to train where a label is so rare that it came to no training sample; earlier samples stay.

    Parameters
    ----------
    splits : ndarray of uint8, shape (n,)
    groups, holds : ndarray of int32 and bool, shape (n,) and (n, n_labels)
    lots : sequence of str
        By group: the first of those with a label is moved, whatever order samples have.
    kept : ndarray of int64, shape (n,)
        Earlier split of each sample, -1 where it is new.
    """
    fixed = set(groups[kept >= 0].tolist())
    for label in np.flatnonzero(~holds[splits == 0].any(axis=0)):
        having = holds[:, label]
        able = set(groups[having].tolist()) - fixed
        # It may have come with the group of another label.
        if able and not having[splits == 0].any():
            splits[groups == min(able, key=lambda group: lots[group])] = 0
    if not splits.any():
        once = int((holds.sum(axis=0) == 1).sum())
        raise TaskError(
            f"{counted(once, 'label', of=holds.shape[1], verb='is')} of one sample each: every sample is needed "
            "to learn them, and none "
            "is left to be tested on; name fewer labels, or what stands between them with --separator"
        )
    return splits


def previous_splits(
    ids: Ids, previous: Task | None, random_state: int, classes: Sequence[str], groups: NDArray[np.int32] | None
) -> NDArray[np.int64]:
    """Return the earlier split of each sample, -1 where it is new or the earlier splits were made otherwise.

    Of other classes, or of samples that were grouped otherwise, splits say nothing.

    Parameters
    ----------
    ids : ndarray of uint8 (n, 32)
    previous : Task or None
        The task of that name so far.
    random_state : int
    classes : sequence of str
    groups : ndarray of int32 (n,), or None
    """
    kept = np.full(len(ids), -1, np.int64)
    if previous is None or (previous.about["splits"], previous.about["random_state"]) != ("made", random_state):
        return kept
    if not set(previous.classes) <= set(classes) or (previous.groups is None) != (groups is None):
        return kept
    index = find_ids(ids, previous.ids)
    kept[index >= 0] = previous.splits[index[index >= 0]]
    return kept


def check_groups(groups: NDArray[np.int32], names: list[str], splits: NDArray[np.uint8]) -> None:
    """Raise `TaskError` where the splits that labels bring divide a group.

    Parameters
    ----------
    groups : ndarray of int32 (n,)
    names : list of str
        Of the groups, by number.
    splits : ndarray of uint8 (n,)
    """
    lowest, highest = np.full(len(names), 255), np.zeros(len(names), np.int64)
    np.minimum.at(lowest, groups, splits)
    np.maximum.at(highest, groups, splits)
    if (torn := np.flatnonzero(lowest < highest)).size:
        k = int(torn[0])
        raise TaskError(
            f"{counted(torn.size, 'group', verb='is')} in several parts, first {names[k]!r} in {SPLITS[lowest[k]]} and "
            f"{SPLITS[highest[k]]}; give all of a group one split, or leave the splits out to have them made"
        )


def check_splits(task: Task) -> None:
    """Raise `TaskError` where train lacks a class, or no split is left to test on."""
    if not task.has("train"):
        raise TaskError(f"task {task.name!r} has no train part; its labels say: {task.counts()}")
    if task.kind == "classification" and task.about["splits"] == "made" and len(task.classes) == len(task.ids):
        raise TaskError(
            f"task {task.name!r} has one sample of each of its {counted(len(task.classes), 'class')}: a head that "
            "learns from it "
            "has none left to be tested on; add a second sample of each class, choose other folders or another label "
            "column, or say --kind regression of numbers"
        )
    if not (task.has("validation") or task.has("test")):
        raise TaskError(
            f"task {task.name!r} has only a train part; add a test part, or leave the splits out to have them made"
        )
    targets = {split: task.labels[task.splits == number] for number, split in enumerate(SPLITS)}
    if task.kind != "classification":
        known = known_of(targets["train"], task.kind).any(axis=0)
        if not known.all():
            names = some_of([repr(task.classes[number]) for number in np.flatnonzero(~known)], _MOST_NAMES)
            raise TaskError(
                f"task {task.name!r}: {names} is not known for any sample of the train part; leave it out, or "
                "correct the splits"
            )
    if task.kind == "regression":
        return
    present = {
        split: set((np.unique(y) if y.ndim == 1 else np.flatnonzero((y == 1).any(axis=0))).tolist())
        for split, y in targets.items()
    }
    for split in ("validation", "test"):
        if unseen := present[split] - present["train"]:
            names = some_of([repr(task.classes[number]) for number in sorted(unseen)], _MOST_NAMES)
            raise TaskError(
                f"task {task.name!r}: {names} occurs in the {split} part but never in train; correct the splits"
            )


def few_left_warnings(task: Task) -> list[ReportWarning]:
    """Return a warning where made splits leave few samples to judge by, as nearly all are needed to learn rare classes.

    Parameters
    ----------
    task : Task
    """
    num_samples, num_left = len(task.ids), int((task.splits > 0).sum())
    is_made = task.about["splits"] == "made" and task.kind != "regression"
    if not is_made or num_samples < _FEWEST or num_left >= num_samples / 5:
        return []
    of_each = class_counts(task)
    once = sum(count == 1 for count in of_each.values())
    text = (
        f"only {counted(num_left, 'sample', of=num_samples, verb='is')} left to validate and test on: "
        f"{counted(once, TASK_NOUN[task.kind], of=len(of_each), verb='has')} one sample, which is needed to learn "
        "them; name fewer, or another label column"
    )
    return [ReportWarning(kind="few_left", count=num_left, text=text)]
