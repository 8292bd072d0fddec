"""Tasks: targets and splits of samples, joined to features by sample id."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.lib.recfunctions import unstructured_to_structured
from numpy.typing import ArrayLike, NDArray

from featurecache.display import html_table
from featurecache.errors import CorruptError, ReportWarning, RequestError, TaskError
from featurecache.specs import TASK_NOUNS, TaskKind, task_kind
from featurecache.store.commits import Commit
from featurecache.store.features import Features
from featurecache.store.folders import ShardFolder
from featurecache.store.labels import SPLITS
from featurecache.store.samples import Ids, Rows, SampleTable, find_ids, first_indices
from featurecache.store.shards import MappedShard
from featurecache.wording import counted

# Of features that are read into a given array at a time: the copy in the stored type comes on top.
_BLOCK_BYTES = 64 << 20
# On disk, a label of which it is not known whether it holds: releases that know no such thing refuse it.
UNKNOWN = 2
# The array of the targets.
_ARRAY_OF: dict[TaskKind, str] = {"classification": "label", "multilabel": "holds", "regression": "number"}


@dataclass(frozen=True)
class Task:
    """Targets and splits of the samples of one cache.

    Attributes
    ----------
    classes : list of str
        Names of the classes, labels or numbers, in the order of the codes and columns of ``y``: a code is a position in
        this list, also where the names are numbers themselves, and `decode` gives the names back.
    ids : ndarray of uint8, shape (n, 32)
        Samples that have a target.
    labels : ndarray
        Targets: class indices, int32 (n,); which labels hold, uint8 (n, n_labels): 0, 1, or `UNKNOWN`; or numbers,
        float64 (n, n_numbers), NaN where not known.
    splits : ndarray of uint8, shape (n,)
        Split of each sample as a position in `SPLITS`.
    about : dict
        Where labels and splits came from, and what was left out.
    groups : ndarray of int32, shape (n,), or None
        Samples with the same number (of one photo, of one patient) stay in one split and one fold.
    kind : str
        ``classification``, ``multilabel`` or ``regression``.
    weights : ndarray of float64, shape (n,), or None
        Sample weights in fitting, above 0; scores give all samples the same weight.
    domains : ndarray of int32, shape (n,), or None
        Where each sample comes from (a camera, a site), as a position in `domain_names`.
    domain_names : list of str
    """

    name: str
    classes: list[str]
    ids: Ids
    labels: NDArray[Any]
    splits: NDArray[np.uint8]
    about: dict[str, Any] = field(default_factory=dict)
    groups: NDArray[np.int32] | None = None
    samples: SampleTable | None = field(default=None, repr=False, compare=False)
    kind: TaskKind = "classification"
    weights: NDArray[np.float64] | None = None
    domains: NDArray[np.int32] | None = None
    domain_names: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {split}" for split, count in self.counts().items())
        return f"Task({self.name!r}: {len(self.classes)} {TASK_NOUNS[self.kind]}, {counts})"

    def _repr_html_(self) -> str:
        return html_table(repr(self), ["name", "samples"], list(class_counts(self).items()))

    @property
    def is_partial(self) -> bool:
        """Tell whether some labels or numbers of a sample are not known."""
        return self.kind != "classification" and not bool(known_of(self.labels, self.kind).all())

    def num_unknown(self) -> dict[str, int]:
        """Return of how many samples each label or number is not known; none for classes."""
        if self.kind == "classification":
            return {}
        counts = (~known_of(self.labels, self.kind)).sum(axis=0)
        return dict(zip(self.classes, counts.tolist(), strict=True))

    def warnings(self) -> list[ReportWarning]:
        """Return what is doubtful about the labels, as it was seen when the task was made."""
        return [msgspec.convert(document, ReportWarning) for document in self.about.get("warnings", [])]

    def has(self, split: str) -> bool:
        """Tell whether any sample is in this split."""
        return bool((self.splits == SPLITS.index(split)).any())

    def counts(self) -> dict[str, int]:
        """Samples with a target in each split that has any."""
        return {split: int((self.splits == k).sum()) for k, split in enumerate(SPLITS) if self.has(split)}

    def rows(self, features: Features, split: str) -> tuple[Rows, NDArray[Any]]:
        """Return the row numbers and targets of the split's samples that have features.

        Targets are codes int64 (n,), positions in `classes` and never the names; labels int64 (n, n_labels): 0, 1, or
        -1 where it is not known whether they hold; or numbers float64 (n, n_numbers), NaN where not known. `decode`
        says by name what they are.

        Raises
        ------
        RequestError
            An unknown split, or samples with a target whose features were never extracted.
        """
        if split not in SPLITS:
            raise RequestError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
        assert self.samples is not None
        in_split = self.splits == SPLITS.index(split)
        rows = self.samples.rows_of(self.ids[in_split])
        cached = np.isin(rows, features.rows)
        if not cached.all():
            raise RequestError(
                f"{counted((~cached).sum(), f'{split} sample', of=len(rows))} of task {self.name!r} without "
                "features for tap "
                f"{features.tap!r}; run `featurecache extract` with this tap to add them"
            )
        good = features.usable(rows)
        y = self.labels[in_split][good].astype(np.float64 if self.kind == "regression" else np.int64)
        # In memory -1, which no test for a positive number takes for a label that holds.
        return rows[good], np.where(y == UNKNOWN, -1, y) if self.kind == "multilabel" else y

    def decode(self, y: ArrayLike) -> NDArray[Any]:
        """Return by name what ``y`` is: code 1 of a task with the classes 2 and 10 is the class "10".

        Parameters
        ----------
        y : array-like of shape (n,) or (n, n_outputs)
            From `select` or `rows`, or what an estimator that was fitted on such predicts.

        Returns
        -------
        ndarray of shape (n,)
            Names of classes, str; of several labels, or of numbers, records with a field for each by its name, which
            holds its column: ``task.decode(y)["height"]``.

        Raises
        ------
        TaskError
            Names, probabilities, or codes and columns that the task does not have.
        """
        values, names = np.asarray(y), self.classes
        # `flat`, because `ravel` copies an array whose rows do not follow each other.
        shown = f"{values.dtype} of shape {values.shape}: {' '.join(str(values.flat[:3].tolist()).split())[:80]}"
        if self.kind == "classification":
            # Not even whole numbers as floats: 1.0 is how data frames write a class that is called 1.
            if values.ndim != 1 or values.dtype.kind not in "iu" or not ((values >= 0) & (values < len(names))).all():
                raise TaskError(
                    f"decode takes codes of the classes of task {self.name!r}, whole numbers from 0 to "
                    f"{len(names) - 1} as `select` returns them, not {shown}"
                )
            return np.array(names)[values]
        if values.ndim == 1 and len(names) == 1:
            values = values[:, None]
        if values.ndim != 2 or values.shape[1] != len(names) or values.dtype.kind not in "biuf":
            raise TaskError(
                f"decode takes the {len(names)} {TASK_NOUNS[self.kind]} of task {self.name!r} as columns, in the order "
                f"of its classes, not {shown}"
            )
        if self.kind == "multilabel" and not np.isin(values, (0, 1, -1)).all():
            raise TaskError(
                f"decode takes labels that hold or not (1, 0, or -1 where not known), not {shown}; compare "
                "probabilities with a threshold first"
            )
        number = np.float64 if self.kind == "regression" else np.int64
        return unstructured_to_structured(values.astype(number), np.dtype([(name, number) for name in names]))

    def groups_of(self, rows: Rows) -> NDArray[np.int32] | None:
        """Return the group of rows that have a target, (n,) int32; None for a task without groups."""
        return None if self.groups is None else self.groups[self.indices_of(rows)]

    def weights_of(self, rows: Rows) -> NDArray[np.float64] | None:
        """Return the weight of rows that have a target, (n,) float64; None for a task without weights."""
        return None if self.weights is None else self.weights[self.indices_of(rows)]

    def indices_of(self, rows: Rows) -> NDArray[np.int64]:
        assert self.samples is not None
        return find_ids(self.samples.ids[rows], self.ids)

    def select(self, features: Features, split: str) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """Return ``X`` (n_samples, n_features) float32 and ``y`` of one split, as `rows` does.

        ``y`` holds codes, positions in `classes`, and not the names of classes, which `decode` gives back. Bad inputs
        are left out; `left_out` names them.

        Raises
        ------
        RequestError
            As `rows`; features of views, of which `select_views` returns all.
        """
        if features.num_views is not None:
            raise RequestError(
                f"tap {features.tap!r} has {counted(features.num_views, 'view')} of each sample; take them with "
                "select_views(), "
                "or the plain features with features(views=0)"
            )
        X, y = self.select_views(features, split)
        return X[:, 0], y

    def select_views(self, features: Features, split: str) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """Return ``X`` (n_samples, n_views, n_features) float32 and ``y`` as `rows` does; plain: one view."""
        rows, y = self.rows(features, split)
        if len(rows) == 0:
            raise TaskError(
                f"all {split} samples of task {self.name!r} are bad inputs for tap {features.tap!r}; "
                "see `featurecache info` for the reasons"
            )
        return read_views(features, rows), y

    def left_out(self, features: Features) -> dict[str, tuple[str, str]]:
        """Return the samples with a target that are bad inputs: where first seen -> (status, reason)."""
        assert self.samples is not None
        rows = self.samples.rows_of(self.ids)
        bad = [row for row in rows.tolist() if row in features.bad]
        return {uri: features.bad[row] for uri, row in zip(self.samples.uris_of(bad), bad, strict=True)}


def read_views(features: Features, rows: Rows, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Return features of rows as ``(n_samples, n_views, n_features)`` float32; plain features are one view.

    With ``out``, an array of that shape, they are read into it, some rows at a time.
    """
    if out is None:
        return features.read(rows).astype(np.float32).reshape(len(rows), features.num_views or 1, -1)
    step = max(_BLOCK_BYTES // (out[:1].nbytes or 1), 1)
    for start in range(0, len(rows), step):
        out[start : start + step] = read_views(features, rows[start : start + step])
    return out


def save_task(folder: ShardFolder, task: Task) -> None:
    """Publish a task; a task of the same name is replaced by the next generation."""
    columns: dict[str, NDArray[Any] | None]
    columns = {"id": task.ids, _ARRAY_OF[task.kind]: task.labels, "split": task.splits}
    columns |= {"group": task.groups, "weight": task.weights, "domain": task.domains}
    arrays = {
        # Little-endian on every machine.
        name: (values.dtype.name, values.astype(values.dtype.newbyteorder("<"), copy=False))
        for name, values in columns.items()
        if values is not None
    }
    body = {"classes": task.classes, "about": task.about, "kind": task.kind}
    if task.domains is not None:
        body["domains"] = task.domain_names
    if not folder.publish_next(arrays, body, kind="task"):
        raise TaskError(f"task {task.name!r} was written by another process at the same moment; run the command again")


def load_task(name: str, folder: ShardFolder, samples: SampleTable) -> Task | None:
    """Read the newest generation of a task; None where there is none.

    Parameters
    ----------
    name : str
    folder : ShardFolder
        Of this task.
    samples : SampleTable
        Of the cache.

    Raises
    ------
    CorruptError
        It is not what `save_task` would have written.
    """

    def read(commit: Commit, shard: MappedShard) -> Task:
        kind = task_kind(commit.body.get("kind", "classification"))
        arrays = commit.shard.arrays
        if arrays.keys() & _ARRAY_OF.values() != {_ARRAY_OF[kind]}:
            raise CorruptError(f"{folder.path}: task {name!r} has no {_ARRAY_OF[kind]} of its samples; make it again")
        # Of a stranger, perhaps: what is used as an index below is compared with its bounds first.
        ids, labels, splits = (shard.read(column) for column in ("id", _ARRAY_OF[kind], "split"))
        optional = ("group", "weight", "domain")
        groups, weights, domains = (shard.read(column) if column in arrays else None for column in optional)
        classes, domain_names = list(commit.body["classes"]), list(commit.body.get("domains", ()))
        wrong = ""
        if not _are_possible(labels, kind, len(classes)) or splits.max() >= len(SPLITS):
            wrong = "labels or splits that do not exist"
        elif len(set(classes)) < len(classes) or len(first_indices(ids)) < len(ids):
            wrong = "a class or a sample twice"
        elif groups is not None and (groups.min() < 0 or groups.max() >= len(ids)):
            wrong = "groups that do not exist"
        elif weights is not None and not (np.isfinite(weights).all() and weights.min() > 0):
            wrong = "weights that are not above 0"
        elif domains is not None and (domains.min() < 0 or domains.max() >= len(domain_names)):
            wrong = "domains that do not exist"
        if wrong:
            raise CorruptError(f"{folder.path}: task {name!r} has {wrong}; make it again")
        about = commit.body["about"]
        return Task(name, classes, ids, labels, splits, about, groups, samples, kind, weights, domains, domain_names)

    return folder.newest(read)


def _are_possible(labels: NDArray[Any], kind: TaskKind, count: int) -> bool:
    """Tell whether targets are of ``count`` classes, labels or numbers."""
    if kind == "classification":
        return bool(labels.min() >= 0 and labels.max() < count)
    good = labels <= UNKNOWN if kind == "multilabel" else ~np.isinf(labels)
    return labels.shape[1] == count and bool(good.all()) and bool(known_of(labels, kind).any())


def known_of(labels: NDArray[Any], kind: TaskKind) -> NDArray[np.bool_]:
    """Tell which labels or numbers, as `Task.labels` holds them, are known."""
    return np.asarray(labels != UNKNOWN if kind == "multilabel" else ~np.isnan(labels))


def class_counts(task: Task) -> dict[str, int]:
    """Return the number of samples of each class, or with each label; of numbers, of all for which they are known."""
    if task.kind != "classification":
        has = task.labels == 1 if task.kind == "multilabel" else known_of(task.labels, task.kind)
        return dict(zip(task.classes, has.sum(axis=0).tolist(), strict=True))
    counts = Counter(task.labels.tolist())
    return {label: counts[k] for k, label in enumerate(task.classes)}
