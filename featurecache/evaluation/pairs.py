"""Tasks on feature sets: what each part holds, and which of them have the same samples in every part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from featurecache.errors import RequestError, TaskError
from featurecache.evaluation.measures import Measure, measure_of
from featurecache.evaluation.parts import Part
from featurecache.evaluation.staging import Staging
from featurecache.heads.checks import is_small
from featurecache.specs import check_takes_views
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.features import Features
from featurecache.store.labels import SPLITS
from featurecache.store.samples import Rows
from featurecache.store.store import FeatureStore
from featurecache.store.tasks import Task, read_views

MAX_NUMBERS = 1_000_000
"""Per sample, in features for heads."""


class Pair(NamedTuple):
    """A task on a feature set."""

    task: Task
    measure: Measure
    feature_set: FeatureSet
    judged_set: FeatureSet
    features: Features
    judged: Features


Place = tuple[int, int]
"""Of a pair: number of the task, number of the feature set."""


def open_pairs(
    store: FeatureStore,
    tasks: Sequence[Task],
    sets: Sequence[FeatureSet],
    *,
    tta: bool,
    balanced: bool,
    max_numbers: int = MAX_NUMBERS,
) -> dict[Place, Pair]:
    """Open each feature set once, for all tasks, with what its heads are judged on.

    Raises
    ------
    RequestError
        A set with views without the plain features that heads are judged on; test-time views where there are none;
        features
        with more numbers per sample than heads for pooled ones can be fitted to.
    """
    judged_sets = [_judged_set_of(store, feature_set, tta=tta) for feature_set in sets]
    measures = [measure_of(task.kind, len(task.classes), balanced=balanced) for task in tasks]
    pairs = {}
    for of_set, (feature_set, judged_set) in enumerate(zip(sets, judged_sets, strict=True)):
        opened = feature_set.open(), judged_set.open()
        if (num_numbers := math.prod(opened[0].view_shape)) > max_numbers:
            raise RequestError(f"tap {feature_set.tap!r} has {num_numbers} numbers per sample; pool it")
        for place, (task, measure) in enumerate(zip(tasks, measures, strict=True)):
            pairs[place, of_set] = Pair(task, measure, feature_set, judged_set, *opened)
    return pairs


def on_the_same_samples(pairs: dict[Place, Pair], memory: int | None = None) -> list[list[Place]]:
    """Return the places of pairs that heads may fit side by side.

    These are tasks of one kind that have the same samples in every part, weighed alike; on one feature set, or on as
    many as are small together and alike in their numbers, within so many bytes of memory. Larger ones are better off in
    processes of their own, or with all the memory for themselves.
    """
    alike: dict[tuple[Any, ...], list[list[Place]]] = {}
    for place, pair in pairs.items():
        shape = pair.features.view_shape
        key: list[Any] = [pair.task.kind, shape, pair.features.num_views, pair.judged.num_views]
        num_samples = 0
        for split in (split for split in SPLITS if pair.task.has(split)):
            rows, _ = rows_of_part(pair.task, pair.features, pair.judged, split)
            weights = pair.task.weights_of(rows)
            key += [split, rows.tobytes(), None if weights is None else weights.tobytes()]
            num_samples += len(rows)
        batches = alike.setdefault(tuple(key), [[]])
        num_sets = len({of_set for _, of_set in [*batches[-1], place]})
        num_views, judged_views = (each.num_views or 1 for each in (pair.features, pair.judged))
        num_read = num_views if judged_views == num_views else num_views + judged_views
        num_rows, width = num_sets * num_samples, math.prod(shape)
        fits = is_small(num_rows * num_views, width) and (memory is None or 4 * num_rows * num_read * width <= memory)
        if num_sets > 1 and not fits:
            batches.append([])
        batches[-1].append(place)
    return [batch for batches in alike.values() for batch in batches]


def rows_of_part(task: Task, features: Features, judged: Features, split: str) -> tuple[Rows, np.ndarray[Any, Any]]:
    """Rows of the samples of a split that are good as what is fitted on and as what is judged on, and what is said."""
    rows, y = task.rows(features, split)
    if judged.num_views == features.num_views:
        return rows, y
    good = np.isin(rows, task.rows(judged, split)[0])
    return rows[good], y[good]


def read_parts(
    task: Task,
    features: Features,
    judged: Features,
    fitted: Sequence[str],
    room: Staging | None = None,
) -> dict[str, Part]:
    """Read every part of a task; of the parts in ``fitted`` also what heads are fitted on, where that is another thing.

    Parameters
    ----------
    room
        Where features are laid out, the parts of a task one after the other; in memory when left out.

    Raises
    ------
    RequestError
        Labelled samples without features.
    TaskError
        A part without good samples.
    """
    rows, parts = labelled_parts(task, features, judged)
    what_is_judged = _laid_out(judged, rows, room)
    same = judged.num_views == features.num_views
    what_is_fitted = {} if same else _laid_out(features, {split: rows[split] for split in fitted}, room)
    shape = features.view_shape
    on_disk = any(isinstance(each, np.memmap) for each in (*what_is_judged.values(), *what_is_fitted.values()))
    return {
        split: replace(
            part,
            fitted=what_is_fitted.get(split, what_is_judged[split]),
            judged=what_is_judged[split],
            num_tokens=shape[0] if len(shape) == 2 else 1,
            on_disk=on_disk,
        )
        for split, part in parts.items()
    }


def labelled_parts(task: Task, features: Features, judged: Features) -> tuple[dict[str, Rows], dict[str, Part]]:
    """Return the rows of every part of a task, and the parts without any features: enough to divide them.

    Raises
    ------
    TaskError
        A part without good samples.
    """
    rows, parts = {}, {}
    for split in (split for split in SPLITS if task.has(split)):
        rows[split], y = rows_of_part(task, features, judged, split)
        if len(y) == 0:
            raise TaskError(
                f"all {split} samples of task {task.name!r} are bad inputs for tap {features.tap!r}; "
                "see `featurecache info` for the reasons"
            )
        nothing = np.empty((len(y), 1, 0), np.float32)
        groups, weight = task.groups_of(rows[split]), task.weights_of(rows[split])
        parts[split] = Part(y=y, fitted=nothing, judged=nothing, groups=groups, weight=weight)
    return rows, parts


def _laid_out(features: Features, rows: dict[str, Rows], room: Staging | None) -> dict[str, np.ndarray[Any, Any]]:
    """Read the rows of all parts into one array, and return each part's place in it."""
    count = sum(map(len, rows.values()))
    num_views = features.num_views or 1
    shape = (count, num_views, math.prod(features.view_shape))
    whole = np.empty(shape, np.float32) if room is None else room.empty(shape)
    found, start = {}, 0
    for split, some in rows.items():
        found[split] = read_views(features, some, whole[start : start + len(some)])
        start += len(some)
    features.let_go()
    return found


def _judged_set_of(store: FeatureStore, feature_set: FeatureSet, *, tta: bool) -> FeatureSet:
    """Return what heads on a feature set are judged on."""
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
    raise RequestError(
        f"heads on views of tap {tap!r} are judged on its plain features, which are not in {store.path} as {dtype}; "
        f"run `featurecache extract SOURCE --cache {store.path} --backbone {plain.backbone} --tap {tap} "
        f"--dtype {dtype}`, or pass --tta"
    )


def _views_of(store: FeatureStore, plain: FeatureSet) -> FeatureSet:
    """Return the views of the samples of a plain feature set: the most that are cached."""
    tap, dtype = plain.tap, plain.dtype
    found = [
        each for each in store.feature_sets() if each.num_views is not None and (each.tap, each.dtype) == (tap, dtype)
    ]
    found = [each for each in found if each.identity.plain.fingerprint == plain.fingerprint]
    if not found:
        raise RequestError(
            f"{plain} holds no views to judge heads on; leave --tta out, or run `featurecache extract --views K`"
        )
    most = max(each.num_views or 0 for each in found)
    first, *others = [each for each in found if each.num_views == most]
    if others:
        raise RequestError(
            f"--tta may judge on {first} or on {others[0]}; name one with --views {most} --fingerprint, to train on "
            "its views too, or remove the other"
        )
    return first
