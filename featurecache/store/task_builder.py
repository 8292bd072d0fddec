"""Tasks from labels: every sample gets one target and one split, whatever copies and groups there are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurecache.errors import ReportWarning, TaskError, shortened
from featurecache.specs import TaskKind
from featurecache.store.label_entries import Target
from featurecache.store.label_folders import folder_warnings
from featurecache.store.label_join import MISSING, labels_of_folders, missing_error, rows_of_labels
from featurecache.store.labels import SPLITS, FolderLabels, Label, TableLabels, class_order
from featurecache.store.listings import Listing
from featurecache.store.samples import SampleTable
from featurecache.store.spellings import merged_spellings
from featurecache.store.task_splits import check_groups, check_splits, few_left_warnings, make_splits, previous_splits
from featurecache.store.tasks import UNKNOWN, Task, known_of
from featurecache.wording import counted


def build_task(
    name: str,
    labels: FolderLabels | TableLabels,
    *,
    samples: SampleTable,
    listings: Sequence[Listing],
    allow_missing: bool = False,
    alike: Mapping[int, str] | None = None,
    random_state: int = 0,
    previous: Task | None = None,
) -> Task:
    """Join labels to samples and make sure that every sample has one target and one split.

    Parameters
    ----------
    name : str
    labels : FolderLabels or TableLabels
    samples : SampleTable
    listings : sequence of Listing
        Of the sources whose files may have labels; of a sample in several sources the last one counts.
    allow_missing : bool
        Skip labels of files that are not in the cache instead of refusing them.
    alike : mapping of int to str, optional
        Group of rows that are alike, besides the groups of the labels.
    random_state : int
        Seed of the split that is made where the labels bring none.
    previous : Task, optional
        The task of that name so far, whose samples keep their split.

    Raises
    ------
    TaskError
        No labels, one class only, labels for files that are not in the cache, or splits for only some labels.
    """
    warnings: list[ReportWarning] = []
    if isinstance(labels, FolderLabels):
        listed, rows = labels_of_folders(listings, labels.class_folder)
        warnings += folder_warnings(listed) if labels.class_folder == "innermost" else []
    else:
        listed, rows = list(labels.labels), rows_of_labels(labels, samples, listings, warnings)
        warnings += labels.warnings
    missing = [label for label, row in zip(listed, rows, strict=True) if row == MISSING]
    # Of folders none is: they are those of the listings.
    if missing and not allow_missing and isinstance(labels, TableLabels):
        paths = (path for listing in listings for path in listing.paths)
        raise missing_error(missing, labels, paths)
    # Before copies are merged: two spellings of one class are then no conflict.
    listed, spelled = check_labels(listed, labels)
    warnings += spelled
    merged = _merge_copies(rows, listed, labels.kind)
    if alike is not None:
        _add_groups(merged, alike, samples)
    if not merged.targets:
        why = "none is of an input in the cache"
        if merged.conflicts:
            first = ", ".join(f"{name} is {label}" for name, label in merged.conflicts[0].items())
            advice = (
                "; if one sample may have several, say --kind multilabel" if labels.kind == "classification" else ""
            )
            why = (
                f"{counted(len(merged.conflicts), 'sample', verb='has')} several that differ, first "
                f"{shortened(first)}{advice}"
            )
        raise TaskError(
            f"no sample is left to be labelled by {counted(len(listed), 'label')} of {labels.origin}: {why}"
        )
    task = _assemble(name, labels, merged, samples, random_state=random_state, missing=len(missing), previous=previous)
    warnings += few_left_warnings(task)
    if warnings:
        task.about["warnings"] = [warning.to_json() for warning in warnings]
    return task


@dataclass
class _Merged:
    """One target and split for each row, after copies of the same bytes were merged."""

    targets: dict[int, Target] = field(default_factory=dict)
    splits: dict[int, str | None] = field(default_factory=dict)
    groups: dict[int, set[str]] = field(default_factory=dict)
    weights: dict[int, float] = field(default_factory=dict)
    domains: dict[int, str] = field(default_factory=dict)
    conflicts: list[dict[str, str]] = field(default_factory=list)
    moved: int = 0


def check_labels(
    listed: Sequence[Label], labels: FolderLabels | TableLabels
) -> tuple[list[Label], list[ReportWarning]]:
    """Return labels with one spelling for each class, where that is asked for, and what is doubtful about them.

    Raises
    ------
    TaskError
        They can make no task, whatever the samples; so this is done before extraction too.
    """
    if not listed:
        raise TaskError(
            f"no labels from {labels.origin}: put the files in one folder per class, or name a table of labels (`run "
            "--labels TABLE`, `task add CACHE NAME TABLE`), such as a metadata.csv or metadata.jsonl beside the images"
        )
    warnings: list[ReportWarning] = []
    if isinstance(labels, FolderLabels) or not labels.names:  # else they are names of columns
        listed, warnings = merged_spellings(listed, labels.kind, merge=labels.merge_spellings)
    _encode_targets([(label.label, label.unknown) for label in listed], labels)
    if {label.split for label in listed} == {"train"}:
        raise TaskError("all labels have the split train; add a validation or test part, or leave the splits out")
    without = [label.name for label in listed if label.split is None]
    if without and len(without) < len(listed):
        raise TaskError(
            f"{counted(len(listed) - len(without), 'file', verb='has')} a split (train, validation, test), and no "
            "split is said of "
            f"{len(without)}, first {without[0]!r}; give every file a split, or none"
        )
    return list(listed), warnings


def _encode_targets(
    targets: Sequence[Target], labels: FolderLabels | TableLabels, earlier: Sequence[str] = ()
) -> tuple[list[str], NDArray[Any]]:
    """Return the names of classes, labels or numbers, and the targets of all samples as `Task.labels` holds them.

    Parameters
    ----------
    targets : sequence of Target
    labels : FolderLabels or TableLabels
        Where they came from.
    earlier : sequence of str
        Classes of the task so far: the same ones keep their order, so that no code of ``y`` means another class.

    Raises
    ------
    TaskError
        Targets from which nothing can be learned.
    """
    if labels.kind == "regression":
        assert isinstance(labels, TableLabels)
        numbers = np.array([[float(number) for number in entry.split("\n")] for entry, _ in targets])
        _check_outputs(list(labels.names), numbers, labels)
        return list(labels.names), numbers
    # A name of a class may hold a line break, as that of a folder; labels are listed one on each line.
    held = [set(entry.split("\n")) - {""} for entry, _ in targets] if labels.kind == "multilabel" else []
    found = set().union(*held) if labels.kind == "multilabel" else {entry for entry, _ in targets}
    names = list(earlier) if found == set(earlier) else sorted(found, key=class_order)
    if labels.kind == "classification":
        if len(names) == 1:
            advice = "name another label column"
            if isinstance(labels, FolderLabels):
                advice = "put the files in one folder per class, or give a CSV"
            raise TaskError(
                f"{counted(len(targets), 'labelled file', verb='is')} of one class ({names[0]!r}); a task needs "
                "at least two: "
                f"{advice}"
            )
        index = {label: k for k, label in enumerate(names)}
        return names, np.array([index[label] for label, _ in targets], np.int32)
    assert isinstance(labels, TableLabels)
    names = list(labels.names) or names
    encoded = np.array([[name in labels_of for name in names] for labels_of in held], np.uint8).reshape(len(held), -1)
    index = {name: k for k, name in enumerate(names)}
    for row, (_, unknown) in enumerate(targets):
        encoded[row, [index[name] for name in unknown]] = UNKNOWN
    _check_outputs(names, encoded, labels)
    return names, encoded


def _check_outputs(names: list[str], encoded: NDArray[Any], labels: TableLabels) -> None:
    """Raise `TaskError` for a label or number that is the same for all samples, or known for none."""
    multilabel = labels.kind == "multilabel"
    if multilabel and len(names) < 2:
        raise TaskError(
            f"{labels.origin} has {counted(len(names), 'label')}, and a task needs at least two; with one label, "
            "name it as a "
            "class: --kind classification"
        )
    for name, column in zip(names, encoded.T, strict=True):
        known = column[known_of(column, labels.kind)]
        if not len(known):
            raise TaskError(f"{name!r} is not known for any of {counted(len(column), 'sample')}; leave it out")
        if (known != known[0]).any():
            continue
        value = f"is {known[0]:g} for all"
        if multilabel:
            value = "holds for all" if known[0] else "holds for none"
        which, advice = counted(len(known), "sample"), ""
        if len(known) < len(column):
            which = f"the {counted(len(known), 'sample')} where it is known"
            if multilabel:
                advice = ", or say what a cell without 1 and 0 means: --blank negative, --uncertain negative"
        raise TaskError(f"{name!r} {value} of {which}, so nothing is to be learned; leave it out{advice}")


def _merge_targets(copies: Sequence[Label], kind: TaskKind) -> Target | None:
    """Return the target of a sample by all its copies, of which one may know what another does not.

    None where they contradict each other.
    """
    first = copies[0]
    if all((copy.label, copy.unknown) == (first.label, first.unknown) for copy in copies):
        return first.label, first.unknown
    if kind == "regression":
        columns = zip(*(copy.label.split("\n") for copy in copies), strict=True)
        known = [list(dict.fromkeys(number for number in column if number != "nan")) for column in columns]
        if any(len(numbers) > 1 for numbers in known):
            return None
        return "\n".join(numbers[0] if numbers else "nan" for numbers in known), ()
    held = [set(copy.label.split("\n")) - {""} for copy in copies]
    unknown = [set(copy.unknown) for copy in copies]
    holds = set().union(*held)
    # What holds by one copy must hold by each other one, or be unknown there.
    if kind == "classification" or any(holds - mine - none for mine, none in zip(held, unknown, strict=True)):
        return None
    return "\n".join(sorted(holds)), tuple(sorted(set.intersection(*unknown)))


def _shown(label: str, kind: TaskKind) -> str:
    """Return what is said of a sample as it stands in a message."""
    return label if kind == "classification" else label.replace("\n", ", ") or "none"


def _merge_copies(rows: Sequence[int], listed: Sequence[Label], kind: TaskKind) -> _Merged:
    by_row: dict[int, list[Label]] = defaultdict(list)
    for row, label in zip(rows, listed, strict=True):
        # The others are missing or cannot be read, and are counted where they are joined.
        if row >= 0:
            by_row[row].append(label)
    merged = _Merged()
    for row, copies in sorted(by_row.items()):
        if (target := _merge_targets(copies, kind)) is None:
            # Dicts instead of sets: the labels of each name once, in the order in which they came.
            by_name: dict[str, dict[str, None]] = defaultdict(dict)
            for copy in copies:
                by_name[copy.name][_shown(copy.label, kind)] = None
            merged.conflicts.append({name: " and ".join(labels) for name, labels in by_name.items()})
            continue
        splits = {copy.split for copy in copies}
        merged.moved += len(splits) > 1
        merged.targets[row] = target
        merged.groups[row] = {copy.group for copy in copies if copy.group is not None}
        if weights := [copy.weight for copy in copies if copy.weight is not None]:
            # The mean, as copies are one sample.
            merged.weights[row] = sum(weights) / len(weights)
        if domains := [copy.domain for copy in copies if copy.domain is not None]:
            # Any would do; the first by name is the same in every order of the table.
            merged.domains[row] = min(domains)
        # A copy in the test split leaves training: test scores are of samples that no head was fitted on.
        merged.splits[row] = max(splits, key=lambda split: SPLITS.index(split) if split else -1)
    return merged


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
    rows = sorted(merged.targets)
    earlier = () if previous is None else previous.classes
    classes, targets = _encode_targets([merged.targets[row] for row in rows], source, earlier)
    ids = np.ascontiguousarray(samples.ids[np.array(rows, np.int64)])
    names, groups = _groups(merged, rows)
    # Of all or of none: `check_labels` refuses a mixture.
    given = merged.splits[rows[0]] is not None
    if given:
        splits = np.array([SPLITS.index(merged.splits[row] or "train") for row in rows], np.uint8)
        if groups is not None:
            check_groups(groups, names, splits)
    else:
        kept = previous_splits(ids, previous, random_state, classes, groups)
        splits = make_splits(ids, targets, source.kind, names, groups, kept, random_state)
        if groups is not None and (len(used := np.unique(splits)) < 2 or 0 not in used):
            raise TaskError(
                f"task {name!r} has {counted(groups.max() + 1, 'group')}, too few to be divided into train and test; "
                "is this the right group column?"
            )
    about: dict[str, object] = {
        "origin": source.origin,
        "splits": "given" if given else "made",
        "random_state": None if given else random_state,
        # The record is read whole, so it names only so many.
        "conflicts": merged.conflicts[:1000],
        "num_conflicts": len(merged.conflicts),
        "num_moved": merged.moved,
        "num_missing": missing,
    }
    weights = np.array([merged.weights[row] for row in rows]) if merged.weights else None
    domain_names = sorted(set(merged.domains.values()))
    domains = np.array([domain_names.index(merged.domains[row]) for row in rows], np.int32) if domain_names else None
    task = Task(
        name, classes, ids, targets, splits, about, groups, samples, source.kind, weights, domains, domain_names
    )
    check_splits(task)
    return task


def _add_groups(merged: _Merged, alike: Mapping[int, str], samples: SampleTable) -> None:
    """Put rows that are alike into one group, and each other row that has none into its own."""
    rows = np.array(list(merged.groups), np.int64)
    for row, content in zip(rows.tolist(), samples.ids[rows], strict=True):
        if row in alike:
            merged.groups[row].add(alike[row])
        elif not merged.groups[row]:
            merged.groups[row].add(f"sample {content.tobytes().hex()}")


def _groups(merged: _Merged, rows: Sequence[int]) -> tuple[list[str], NDArray[np.int32] | None]:
    """Number the groups by name; groups that share a sample are one, under the first of their names."""
    leader: dict[str, str] = {}

    def first(name: str) -> str:
        while leader.setdefault(name, name) != name:
            name = leader[name]
        return name

    for row in rows:
        firsts = {first(name) for name in merged.groups[row]}
        # The first by name, whatever the order of the rows.
        leader |= dict.fromkeys(firsts, min(firsts, default=""))
    if not leader:
        return [], None
    of_rows = [first(min(merged.groups[row])) for row in rows]
    names, numbers = np.unique(of_rows, return_inverse=True)
    return names.tolist(), numbers.astype(np.int32)
