"""Domains: samples of one camera, site or time, named as a task has them, by its split or by a pattern of paths."""

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
    """Return the rows of a split, or of the samples for fitting of a domain or whose paths fit a pattern.

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
    rows = store.samples.rows_of(task.ids)
    if domain in SPLITS[1:] and task.has(domain):
        return rows[task.splits == SPLITS.index(domain)]
    rows = rows[(rows >= 0) & (task.splits != SPLITS.index("test"))]
    return _of_domain(store, task, domain, rows, f"of task {task.name!r} for fitting")


def cached_rows_of_domain(store: FeatureStore, task: Task, domain: str, features: Features) -> Rows:
    """Return the rows with features of a split or domain, or of all samples, with a label or not, of some paths.

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
    return _of_domain(store, task, domain, rows, "with features")


def _of_domain(store: FeatureStore, task: Task, domain: str, rows: Rows, which: str) -> Rows:
    """Return those rows that the task says are of a domain; where it knows none of that name, those of some paths."""
    if domain in task.domain_names:
        assert task.domains is not None
        found = rows[np.isin(rows, store.samples.rows_of(task.ids[task.domains == task.domain_names.index(domain)]))]
    else:
        found = rows[[fnmatchcase(name, domain) for name in store.samples.uris_of(rows)]]
    # All samples are no domain either: nothing would be left to compare it with.
    if len(found) in (0, len(rows)):
        what = "no sample" if len(found) == 0 else "no other sample"
        domains = f"a domain ({', '.join(task.domain_names)}), " if task.domain_names else ""
        splits = ", ".join(split for split in SPLITS[1:] if task.has(split))
        raise RequestError(
            f"{what} {which} has a path that fits {domain!r}; name {domains}a pattern of paths, such as 'webcam/*', or "
            f"a split ({splits})"
        )
    return found
