"""Tasks on feature sets: what heads are fitted and evaluated on in each split."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from featurecache.errors import RequestError, TaskError, UnknownNameError, command_line
from featurecache.evaluation.measure import Measure
from featurecache.evaluation.measures import measure_of
from featurecache.evaluation.memory_budget import MemoryBudget, memory_for_features
from featurecache.evaluation.split_data import SplitData, Views
from featurecache.heads.gradient.datasets import InputDataset
from featurecache.heads.thresholds import threshold_rule
from featurecache.specs import check_takes_views
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.features import Features
from featurecache.store.labels import SPLITS
from featurecache.store.samples import Rows
from featurecache.store.store import FeatureStore
from featurecache.store.tasks import Task, read_views

MAX_NUMBERS = 1_000_000
"""Per sample, in features for heads."""


@runtime_checkable
class InputFeatures(Protocol):
    """Features that are not cached: inputs, which are decoded when they are read."""

    def dataset(self, rows: Rows) -> InputDataset:
        """Return the inputs of rows of the sample table."""


class TaskFeatures(NamedTuple):
    """A task, what heads are fitted on, and what they are evaluated on."""

    task: Task
    measure: Measure
    feature_set: FeatureSet
    eval_set: FeatureSet
    features: Features
    eval_features: Features


def open_task_features(
    store: FeatureStore,
    tasks: Sequence[Task],
    sets: Sequence[FeatureSet],
    *,
    tta: bool,
    balanced: bool,
    metric: str | None = None,
    threshold: str | None = None,
    positive: str | None = None,
    max_numbers: int = MAX_NUMBERS,
) -> list[TaskFeatures]:
    """Open each feature set once, for all tasks, with what its heads are evaluated on.

    Parameters
    ----------
    store : FeatureStore
    tasks : sequence of Task
    sets : sequence of FeatureSet
    tta : bool
        Evaluate on the views of each sample.
    balanced : bool
        Classes count alike.
    metric : str, optional
        As for `measure_of`.
    threshold, positive : str, optional
        As for `train_heads`.
    max_numbers : int
        Features that have more numbers per sample are refused.

    Returns
    -------
    list of TaskFeatures
        Of each task the feature sets in order.

    Raises
    ------
    RequestError
        A set with views without the plain features that heads are evaluated on; test-time views where there are none;
        features with more numbers per sample than heads for pooled ones can be fitted to.
    """
    opened = []
    for feature_set in sets:
        eval_set = _eval_set_of(store, feature_set, tta=tta)
        features = feature_set.open()
        # A whole map of a layer: heads for pooled features would take for ever on it.
        if (num_numbers := math.prod(features.view_shape)) > max_numbers:
            raise RequestError(f"tap {feature_set.tap!r} has {num_numbers} numbers per sample; pool it")
        opened.append((feature_set, eval_set, features, eval_set.open()))
    rule = threshold_rule(threshold)
    measures = [
        measure_of(
            task.kind,
            len(task.classes),
            balanced=balanced,
            metric=metric,
            names=task.classes,
            threshold=rule,
            positive=_positive(task, positive),
        )
        for task in tasks
    ]
    return [
        TaskFeatures(task, measure, *features)
        for task, measure in zip(tasks, measures, strict=True)
        for features in opened
    ]


def groups_in_memory(opened: Sequence[TaskFeatures], memory: int | None) -> Iterator[list[TaskFeatures]]:
    """Yield groups of features that memory holds at a time, so that their heads can be fitted side by side.

    Parameters
    ----------
    opened : sequence of TaskFeatures
    memory : int or None
        Bytes, as for `train_heads`.
    """
    left, group = 0, list[TaskFeatures]()
    for features in opened:
        # In float32, of all samples: at most what `read_splits` asks for, which reads what heads are evaluated on by
        # itself only where that has other views.
        both = {kept.num_views: kept for kept in (features.features, features.eval_features)}.values()
        num_numbers = sum((kept.num_views or 1) * math.prod(kept.view_shape) for kept in both)
        num_bytes = 4 * len(features.task.ids) * num_numbers
        if group and num_bytes > left:
            yield group
            group = []
        if not group:
            left = memory_for_features(memory)
        left -= num_bytes
        group.append(features)
    if group:
        yield group


def _positive(task: Task, name: str | None) -> int:
    """Return the index of the positive class: the second, where none is named."""
    if name is None:
        return 1
    if task.kind != "classification" or len(task.classes) != 2:
        raise RequestError(f"--positive {name} is for tasks of two classes, which {task.name!r} is not; leave it out")
    if name not in task.classes:
        raise UnknownNameError("class", name, task.classes)
    return task.classes.index(name)


def rows_of_split(
    task: Task, features: Features, eval_features: Features, split: str
) -> tuple[Rows, np.ndarray[Any, Any]]:
    """Return rows and targets of the samples of a split that are good as both features.

    Parameters
    ----------
    task : Task
    features, eval_features : Features
        What heads are fitted on, and what they are evaluated on.
    split : str
    """
    rows, y = task.rows(features, split)
    if eval_features.num_views == features.num_views:
        return rows, y
    # A sample may be bad as one of the two only.
    good = np.isin(rows, task.rows(eval_features, split)[0])
    return rows[good], y[good]


def read_splits(
    task: Task,
    features: Features,
    eval_features: Features,
    fit_splits: Sequence[str],
    budget: MemoryBudget | None = None,
) -> dict[str, SplitData]:
    """Read every split of a task.

    Parameters
    ----------
    task : Task
    features, eval_features : Features
        What heads are fitted on, and what they are evaluated on.
    fit_splits : sequence of str
        Splits whose ``features`` are read too, where the two differ.
    budget : MemoryBudget, optional
        Where features are held, the splits of a task one after the other; in memory when left out.

    Raises
    ------
    RequestError
        Labelled samples without features.
    TaskError
        A split without good samples.
    """
    rows, splits = splits_without_features(task, features, eval_features)
    eval_views = _read_into_one(eval_features, rows, budget)
    same = eval_features.num_views == features.num_views
    fit_views = {} if same else _read_into_one(features, {split: rows[split] for split in fit_splits}, budget)
    shape = features.view_shape
    lazy = np.memmap | InputDataset
    on_disk = any(isinstance(views, lazy) for views in (*eval_views.values(), *fit_views.values()))
    return {
        split: replace(
            data,
            fit_views=fit_views.get(split, eval_views[split]),
            eval_views=eval_views[split],
            num_tokens=shape[0] if len(shape) == 2 else 1,
            on_disk=on_disk,
        )
        for split, data in splits.items()
    }


def splits_without_features(
    task: Task, features: Features, eval_features: Features
) -> tuple[dict[str, Rows], dict[str, SplitData]]:
    """Return the rows of every split of a task, and the splits without any features: enough to resample them.

    Parameters
    ----------
    task, features, eval_features
        As for `read_splits`.

    Raises
    ------
    TaskError
        A split without good samples.
    """
    rows, splits = {}, {}
    for split in (split for split in SPLITS if task.has(split)):
        rows[split], y = rows_of_split(task, features, eval_features, split)
        if len(y) == 0:
            raise TaskError(
                f"all {split} samples of task {task.name!r} are bad inputs for tap {features.tap!r}; "
                "see `featurecache info` for the reasons"
            )
        nothing = np.empty((len(y), 1, 0), np.float32)
        groups, weight = task.groups_of(rows[split]), task.weights_of(rows[split])
        splits[split] = SplitData(y=y, fit_views=nothing, eval_views=nothing, groups=groups, weight=weight)
    return rows, splits


def _read_into_one(features: Features, rows: dict[str, Rows], budget: MemoryBudget | None) -> Mapping[str, Views]:
    """Read the rows of all splits into one array, and return each split's rows in it; inputs are read later."""
    if isinstance(features, InputFeatures):
        return {split: features.dataset(some) for split, some in rows.items()}
    count = sum(map(len, rows.values()))
    num_views = features.num_views or 1
    shape = (count, num_views, math.prod(features.view_shape))
    whole = np.empty(shape, np.float32) if budget is None else budget.empty(shape)
    # One after the other: fitting on train and validation together then needs no copy.
    found, start = {}, 0
    for split, some in rows.items():
        found[split] = read_views(features, some, whole[start : start + len(some)])
        start += len(some)
    features.let_go()
    return found


def _eval_set_of(store: FeatureStore, feature_set: FeatureSet, *, tta: bool) -> FeatureSet:
    """Return what heads on a feature set are evaluated on."""
    if tta:
        check_takes_views(feature_set.identity.preprocess.modality, f"the cached {feature_set}", option="--tta")
    if tta and feature_set.num_views is None:
        return _views_of(store, feature_set)
    if tta or feature_set.num_views is None:
        return feature_set
    plain, tap, dtype = feature_set.identity.plain, feature_set.tap, feature_set.dtype
    for other in store.feature_sets():
        if (other.fingerprint, other.tap, other.dtype) == (plain.fingerprint, tap, dtype):
            return other
    options = ("--backbone", plain.backbone, "--tap", tap, "--dtype", dtype)
    command = command_line("extract", "SOURCE", "--cache", store.path, *options)
    raise RequestError(
        f"heads on views of tap {tap!r} are evaluated on its plain features, which are not in {store.path} as {dtype}; "
        f"run `{command}`, or pass --tta"
    )


def _views_of(store: FeatureStore, plain: FeatureSet) -> FeatureSet:
    """Return the views of the samples of a plain feature set: the most that are cached."""
    tap, dtype = plain.tap, plain.dtype
    found = [
        feature_set
        for feature_set in store.feature_sets()
        if feature_set.num_views is not None and (feature_set.tap, feature_set.dtype) == (tap, dtype)
    ]
    found = [feature_set for feature_set in found if feature_set.identity.plain.fingerprint == plain.fingerprint]
    if not found:
        raise RequestError(
            f"{plain} holds no views to evaluate heads on; leave --tta out, or run `featurecache extract --views K`"
        )
    most = max(feature_set.num_views or 0 for feature_set in found)
    first, *others = [feature_set for feature_set in found if feature_set.num_views == most]
    if others:
        raise RequestError(
            f"--tta may evaluate on {first} or on {others[0]}; name one with --views {most} --fingerprint, to train on "
            "its views too, or remove the other"
        )
    return first
