"""Domains: samples of one camera, place or time, named by a split of a task or by a pattern of their paths."""

from __future__ import annotations

from fnmatch import fnmatchcase

import numpy as np

from featurecache.errors import RequestError
from featurecache.store.features import Features
from featurecache.store.labels import SPLITS
from featurecache.store.samples import Rows
from featurecache.store.store import FeatureStore
from featurecache.store.tasks import Task


def rows_of_domain(store: FeatureStore, task: Task, domain: str) -> Rows:
    """Return the rows of a split, or of the samples for fitting whose paths fit a pattern.

    Parameters
    ----------
    store : FeatureStore
    task : Task
    domain : str

    Raises
    ------
    RequestError
        No path fits, or all do.
    """
    able = [split for split in SPLITS[1:] if task.has(split)]
    rows = store.samples.rows_of(task.ids)
    if domain in able:
        return rows[task.splits == SPLITS.index(domain)]
    rows = rows[(rows >= 0) & (task.splits != SPLITS.index("test"))]
    found = rows[[fnmatchcase(name, domain) for name in store.samples.uris_of(rows)]]
    if len(found) in (0, len(rows)):
        what = "no sample" if len(found) == 0 else "no other sample"
        raise RequestError(
            f"{what} of task {task.name!r} for fitting has a path that fits {domain!r}; name a pattern of paths, such "
            f"as 'webcam/*', or a split ({', '.join(able)})"
        )
    return found


def cached_rows_of_domain(store: FeatureStore, task: Task, domain: str, features: Features) -> Rows:
    """Return the rows with features of a split, or of all samples, with a label or not, whose paths fit a pattern.

    Parameters
    ----------
    store : FeatureStore
    task : Task
    domain : str
    features : Features

    Raises
    ------
    RequestError
        No path of a sample with features fits, or all do.
    """
    if domain in SPLITS and task.has(domain):
        return task.rows(features, domain)[0]
    rows = np.arange(len(store.samples))
    rows = rows[features.usable(rows)]
    found = rows[[fnmatchcase(name, domain) for name in store.samples.uris_of(rows)]]
    if len(found) in (0, len(rows)):
        what = "no sample" if len(found) == 0 else "no other sample"
        able = [split for split in SPLITS[1:] if task.has(split)]
        raise RequestError(
            f"{what} with features has a path that fits {domain!r}; name a pattern of paths, such as 'webcam/*', or a "
            f"split ({', '.join(able)})"
        )
    return found
