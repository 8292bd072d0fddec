"""Labels joined to samples: every sample gets one label and one split, whatever copies and groups there are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurecache.errors import TaskError
from featurecache.hashing import digest_bytes
from featurecache.specs import TaskKind
from featurecache.store.labels import SPLITS, FolderLabels, Label, TableLabels
from featurecache.store.listings import Listing
from featurecache.store.samples import Ids, SampleTable, find_ids
from featurecache.store.splits import grouped_splits, strata_of_numbers, stratified_splits
from featurecache.store.tasks import NOT_KNOWN, Task, known_of


def build_task(
    name: str,
    labels: FolderLabels | TableLabels,
    *,
    samples: SampleTable,
    listings: Sequence[Listing],
    allow_missing: bool = False,
    random_state: int = 0,
    previous: Task | None = None,
) -> Task:
    """Join labels to samples and make sure that every sample has one label and one split.

    Raises
    ------
    TaskError
        No labels, one class only, labels for files that are not in the cache, or splits for only some labels.
    """
    if isinstance(labels, FolderLabels):
        listed, rows, missing = _labels_of_folders(labels, listings)
    else:
        listed = list(labels.labels)
        rows, missing = _rows_of_labels(listed, samples, listings)
    if missing and not allow_missing:
        raise TaskError(
            f"{len(missing)} of {len(listed)} labels are for inputs that are not in the cache, first {missing[0]!r}; "
            "extract them, correct the paths (relative to the source), or pass --allow-missing"
        )
    check_labels(listed, labels)
    merged = _merge_copies(rows, listed, "classification" if isinstance(labels, FolderLabels) else labels.kind)
    if not merged.labels:
        why = f"{len(merged.conflicts)} have two" if merged.conflicts else "none is of an input in the cache"
        raise TaskError(f"no sample is left to be labelled by {len(listed)} labels of {labels.origin}: {why}")
    return _assemble(name, labels, merged, samples, random_state=random_state, missing=len(missing), previous=previous)


@dataclass
class _Merged:
    """One label and split for each row, after copies of the same bytes were merged."""

    labels: dict[int, str] = field(default_factory=dict)
    unknown: dict[int, tuple[str, ...]] = field(default_factory=dict)
    splits: dict[int, str | None] = field(default_factory=dict)
    groups: dict[int, set[str]] = field(default_factory=dict)
    weights: dict[int, float] = field(default_factory=dict)
    conflicts: list[dict[str, Any]] = field(default_factory=list)
    moved: int = 0


def _labels_of_folders(labels: FolderLabels, listings: Sequence[Listing]) -> tuple[list[Label], list[int], list[str]]:
    """Label every file; of a sample that lies in several sources, the source extracted last has the word."""
    newest: dict[int, int] = {}
    for number, listing in enumerate(listings):
        newest |= dict.fromkeys(listing.row_of.values(), number)
    listed, rows = [], []
    for number, listing in enumerate(listings):
        for label in labels.of(path for path, row in listing.row_of.items() if newest[row] == number):
            listed.append(label)
            rows.append(listing.row_of[label.key])
    return listed, rows, []


def _rows_of_labels(
    listed: Sequence[Label], samples: SampleTable, listings: Sequence[Listing]
) -> tuple[list[int], list[str]]:
    rows = np.array([_row_of_path(label.key, listings) for label in listed], np.int64)
    ids = [(place, identity) for place in np.flatnonzero(rows < 0).tolist() if (identity := _id_of(listed[place].key))]
    if ids:
        wanted = np.frombuffer(b"".join(identity for _, identity in ids), np.uint8).reshape(-1, 32)
        rows[[place for place, _ in ids]] = samples.rows_of(wanted)
    return rows.tolist(), [label.name for label, row in zip(listed, rows.tolist(), strict=True) if row < 0]


def _row_of_path(key: str, listings: Sequence[Listing]) -> int:
    found = {row for listing in listings if (row := listing.row_of.get(key)) is not None}
    if len(found) > 1:
        raise TaskError(
            f"{key!r} names different inputs in {len(found)} sources of this cache; say which with --source"
        )
    return found.pop() if found else -1


def _id_of(key: str) -> bytes | None:
    try:
        identity = bytes.fromhex(key)
    except ValueError:
        return None
    return identity if len(identity) == 32 else None


def check_labels(listed: Sequence[Label], labels: FolderLabels | TableLabels) -> None:
    """Raise `TaskError` for labels that can make no task, whatever the samples; done before extraction too."""
    if not listed:
        raise TaskError(f"no labels from {labels.origin}: put the files in one folder per class, or give a CSV")
    if isinstance(labels, FolderLabels) or labels.kind == "classification":
        _check_classes({label.label for label in listed}, len(listed))
    else:
        _check_outcomes(*_outcomes([(label.label, label.unknown) for label in listed], labels), labels)
    if {label.split for label in listed} == {"train"}:
        raise TaskError("all labels have the split train; add a validation or test part, or leave the splits out")
    without = [label.name for label in listed if label.split is None]
    if without and len(without) < len(listed):
        raise TaskError(
            f"{len(listed) - len(without)} files have a split (train, validation, test) and {len(without)} have none, "
            f"first {without[0]!r}; give every file a split, or none"
        )


def _outcomes(said: Sequence[tuple[str, tuple[str, ...]]], labels: TableLabels) -> tuple[list[str], NDArray[Any]]:
    """Return the names, and which labels hold for each sample or its numbers, (n, n_names), as `Task.labels`.

    Parameters
    ----------
    said
        Of each sample, what `Label.label` and `Label.unknown` are.
    """
    if labels.kind == "regression":
        return list(labels.names), np.array([[float(each) for each in entry.split("\n")] for entry, _ in said])
    sets = [set(entry.split("\n")) - {""} for entry, _ in said]
    names = list(labels.names) or sorted(set().union(*sets))
    outcomes = np.array([[name in held for name in names] for held in sets], np.uint8).reshape(len(sets), -1)
    place = {name: k for k, name in enumerate(names)}
    for row, (_, unknown) in enumerate(said):
        outcomes[row, [place[name] for name in unknown]] = NOT_KNOWN
    return names, outcomes


def _check_outcomes(names: list[str], outcomes: NDArray[Any], labels: TableLabels) -> None:
    """Raise `TaskError` for labels or numbers from which nothing can be learned."""
    if labels.kind == "multilabel" and len(names) < 2:
        raise TaskError(
            f"{labels.origin} has {len(names)} labels, and a task needs at least two; with one label, name it as a "
            "class: --kind classes"
        )
    for name, column in zip(names, outcomes.T, strict=True):
        known = column[known_of(column, labels.kind)]
        if not len(known):
            raise TaskError(f"{name!r} is not known for any of {len(column)} samples; leave it out")
        if (known == known[0]).all():
            what = (
                "holds for " + ("all" if known[0] else "none")
                if labels.kind == "multilabel"
                else f"is {known[0]:g} for all"
            )
            which = f"{len(known)} samples" if len(known) == len(column) else f"the {len(known)} samples that say so"
            advice = (
                ""
                if len(known) == len(column) or labels.kind == "regression"
                else (", or say what a cell without 1 and 0 means: --blank negative, --uncertain negative")
            )
            raise TaskError(f"{name!r} {what} of {which}, so nothing is to be learned; leave it out{advice}")


def _agreed(copies: Sequence[Label], kind: TaskKind) -> tuple[str, tuple[str, ...]] | None:
    """Return what copies of a sample say together, where one may know what another does not; None where they differ."""
    first = copies[0]
    if all((copy.label, copy.unknown) == (first.label, first.unknown) for copy in copies):
        return first.label, first.unknown
    if kind == "regression":
        columns = list(zip(*(copy.label.split("\n") for copy in copies), strict=True))
        known = [list(dict.fromkeys(each for each in column if each != "nan")) for column in columns]
        return (
            None
            if any(len(each) > 1 for each in known)
            else ("\n".join(each[0] if each else "nan" for each in known), ())
        )
    held = [set(copy.label.split("\n")) - {""} for copy in copies]
    unknown = [set(copy.unknown) for copy in copies]
    holds = set().union(*held)
    if kind == "classification" or any(holds - mine - none for mine, none in zip(held, unknown, strict=True)):
        return None
    return "\n".join(sorted(holds)), tuple(sorted(set.intersection(*unknown)))


def _merge_copies(rows: Sequence[int], listed: Sequence[Label], kind: TaskKind) -> _Merged:
    by_row: dict[int, list[Label]] = defaultdict(list)
    for row, label in zip(rows, listed, strict=True):
        if row >= 0:
            by_row[row].append(label)
    merged = _Merged()
    for row in sorted(by_row):
        copies = by_row[row]
        if (agreed := _agreed(copies, kind)) is None:
            merged.conflicts.append({copy.name: copy.label for copy in copies})
            continue
        splits = {copy.split for copy in copies}
        merged.moved += len(splits) > 1
        merged.labels[row], merged.unknown[row] = agreed
        merged.groups[row] = {copy.group for copy in copies if copy.group is not None}
        if weights := [copy.weight for copy in copies if copy.weight is not None]:
            merged.weights[row] = sum(weights) / len(weights)
        # A copy in the test part leaves training: the last look must be at unseen inputs.
        merged.splits[row] = max(splits, key=lambda split: SPLITS.index(split) if split else -1)
    return merged


def _check_classes(classes: set[str], count: int) -> None:
    if len(classes) == 1:
        raise TaskError(
            f"all {count} labelled files are of one class ({min(classes)!r}); a task needs at least two: "
            "put the files in one folder per class, or give a CSV"
        )


def _assemble(
    name: str,
    source: FolderLabels | TableLabels,
    merged: _Merged,
    samples: SampleTable,
    *,
    random_state: int,
    missing: int,
    previous: Task | None,
) -> Task:
    rows = sorted(merged.labels)
    kind: TaskKind = "classification" if isinstance(source, FolderLabels) else source.kind
    classes, labels = _named([(merged.labels[row], merged.unknown[row]) for row in rows], source)
    ids = np.ascontiguousarray(samples.ids[np.array(rows, np.int64)])
    names, groups = _groups(merged, rows)
    given = merged.splits[rows[0]] is not None
    if given:
        splits = np.array([SPLITS.index(merged.splits[row] or "train") for row in rows], np.uint8)
        _check_groups(groups, names, splits)
    else:
        kept = _previous_splits(ids, previous, random_state)
        splits = _made_splits(ids, labels, kind, names, groups, kept, random_state)
        if groups is not None:
            _check_enough_groups(name, groups, splits)
    about = {
        "origin": source.origin,
        "splits": "given" if given else "made",
        "random_state": None if given else random_state,
        "conflicts": merged.conflicts[:1000],
        "num_conflicts": len(merged.conflicts),
        "num_moved": merged.moved,
        "num_missing": missing,
    }
    if isinstance(source, TableLabels) and source.warnings:
        about["warnings"] = [warning.to_json() for warning in source.warnings]
    weights = np.array([merged.weights[row] for row in rows]) if merged.weights else None
    task = Task(name, classes, ids, labels, splits, about, groups, samples, kind, weights)
    _check_parts(task)
    return task


def _named(
    said: Sequence[tuple[str, tuple[str, ...]]], source: FolderLabels | TableLabels
) -> tuple[list[str], NDArray[Any]]:
    """Return the names of classes, labels or numbers, and what `Task.labels` holds."""
    if isinstance(source, FolderLabels) or source.kind == "classification":
        classes = sorted({label for label, _ in said})
        _check_classes(set(classes), len(said))
        position = {label: k for k, label in enumerate(classes)}
        return classes, np.array([position[label] for label, _ in said], np.int32)
    names, outcomes = _outcomes(said, source)
    _check_outcomes(names, outcomes, source)
    return names, outcomes


def _made_splits(
    ids: Ids,
    labels: NDArray[Any],
    kind: TaskKind,
    names: list[str],
    groups: NDArray[np.int32] | None,
    kept: NDArray[np.int64],
    random_state: int,
) -> NDArray[np.uint8]:
    strata = strata_of_numbers(labels) if kind == "regression" else labels
    if groups is not None:
        lots = [digest_bytes(f"{random_state} {name}".encode()) for name in names]
        return grouped_splits(groups, strata == 1 if kind == "multilabel" else strata, lots, kept=kept)
    if kind == "multilabel":  # each sample is a group: of each label as near to its share as can be
        lots = [digest_bytes(f"{random_state} ".encode() + row.tobytes()) for row in ids]
        return grouped_splits(np.arange(len(ids), dtype=np.int32), labels == 1, lots, kept=kept)
    return stratified_splits(ids, strata, random_state=random_state, kept=kept)


def _groups(merged: _Merged, rows: Sequence[int]) -> tuple[list[str], NDArray[np.int32] | None]:
    """Number the groups by name; groups that share a sample are one, and go by their first name."""
    leader: dict[str, str] = {}

    def first(name: str) -> str:
        while leader.setdefault(name, name) != name:
            name = leader[name]
        return name

    for row in rows:
        firsts = {first(name) for name in merged.groups[row]}
        leader |= dict.fromkeys(firsts, min(firsts, default=""))
    if not leader:
        return [], None
    of_rows = [first(min(merged.groups[row])) for row in rows]
    names = sorted(set(of_rows))
    number = {name: k for k, name in enumerate(names)}
    return names, np.array([number[name] for name in of_rows], np.int32)


def _check_groups(groups: NDArray[np.int32] | None, names: list[str], splits: NDArray[np.uint8]) -> None:
    if groups is None:
        return
    lowest, highest = np.full(len(names), 255), np.zeros(len(names), np.int64)
    np.minimum.at(lowest, groups, splits)
    np.maximum.at(highest, groups, splits)
    if (torn := np.flatnonzero(lowest < highest)).size:
        k = int(torn[0])
        raise TaskError(
            f"{torn.size} groups are in several parts, first {names[k]!r} in {SPLITS[lowest[k]]} and "
            f"{SPLITS[highest[k]]}; give all of a group one split, or leave the splits out to have them made"
        )


def _check_enough_groups(name: str, groups: NDArray[np.int32], splits: NDArray[np.uint8]) -> None:
    if len(parts := np.unique(splits)) < 2 or 0 not in parts:
        raise TaskError(
            f"task {name!r} has {groups.max() + 1} groups, too few to be divided into train and test; "
            "is this the right group column?"
        )


def _previous_splits(ids: Ids, previous: Task | None, random_state: int) -> NDArray[np.int64]:
    kept = np.full(len(ids), -1, np.int64)
    about = {} if previous is None else previous.about
    if previous is None or about["splits"] != "made" or about["random_state"] != random_state:
        return kept
    place = find_ids(ids, previous.ids)
    kept[place >= 0] = previous.splits[place[place >= 0]]
    return kept


def _check_parts(task: Task) -> None:
    if not task.has("train"):
        raise TaskError(f"task {task.name!r} has no train part; its labels say: {task.counts()}")
    if task.kind == "classification" and task.about["splits"] == "made" and len(task.classes) == len(task.ids):
        raise TaskError(
            f"task {task.name!r} has {len(task.classes)} classes for {len(task.ids)} files, so nothing to learn from; "
            "is this the right label column?"
        )
    if not (task.has("validation") or task.has("test")):
        raise TaskError(
            f"task {task.name!r} has only a train part; add a test part, or leave the splits out to have them made"
        )
    _check_known(task)
    if task.kind == "regression":
        return
    train = _present(task, "train")
    for split in ("validation", "test"):
        unseen = _present(task, split) - train
        if unseen:
            names = ", ".join(repr(task.classes[k]) for k in sorted(unseen))
            raise TaskError(
                f"task {task.name!r}: {names} occurs in the {split} part but never in train; correct the splits"
            )


def _check_known(task: Task) -> None:
    """Raise `TaskError` for labels or numbers of which the train part knows nothing."""
    if task.kind == "classification":
        return
    known = known_of(task.labels[task.splits == SPLITS.index("train")], task.kind).any(axis=0)
    if not known.all():
        names = ", ".join(repr(task.classes[k]) for k in np.flatnonzero(~known))
        raise TaskError(
            f"task {task.name!r}: {names} is not known for any sample of the train part; leave it out, or "
            "correct the splits"
        )


def _present(task: Task, split: str) -> set[int]:
    """Places of the classes, or of the labels, that some sample of a part has."""
    labels = task.labels[task.splits == SPLITS.index(split)]
    return set((np.unique(labels) if labels.ndim == 1 else np.flatnonzero((labels == 1).any(axis=0))).tolist())
