"""What a cache holds, in plain values for people and programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import msgspec
import numpy as np

from featurecache.store.bad_inputs import list_bad
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.listings import merged_rows
from featurecache.store.row_runs import RowRuns
from featurecache.store.soundness import warnings_of
from featurecache.store.store import FeatureStore
from featurecache.store.tasks import Task, class_counts


def describe_cache(store: FeatureStore) -> dict[str, Any]:
    """Describe samples, sources, features, tasks, heads and bad inputs of a cache."""
    held = store.listings.held()
    return {
        "cache": str(store.path),
        "samples": len(store.samples),
        # A listing may be newer than a table restored from a copy.
        "orphaned_samples": len(store.samples) - int(held.count_below([len(store.samples)])[0]),
        "sources": describe_sources(store),
        "features": [describe_features(feature_set) for feature_set in store.feature_sets()],
        "tasks": describe_tasks(store),
        "heads": store.head_names(),
        "bad": list_bad(store),
    }


def describe_features(feature_set: FeatureSet) -> dict[str, Any]:
    """Describe one feature set: what it is, how it was made, and its size."""
    features = feature_set.open()
    # Else a cache whose shards are gone would be described as whole.
    features.check_files()
    # Shards may have been made on several machines; the last stands for them.
    last = features.commits[-1]
    return {
        **feature_set.names,
        "rows": len(features),
        "bad": len(features.bad),
        "shape": list(features.sample_shape),
        "shards": len(features.commits),
        "bytes": features.nbytes,
        "preprocess": asdict(feature_set.identity.preprocess),
        "views": None if feature_set.identity.views is None else asdict(feature_set.identity.views),
        "weights": feature_set.identity.weights,
        **msgspec.to_builtins(feature_set.about),
        "provenance": last.body["provenance"],
        "precision": last.body.get("precision"),
        "warnings": [warning.to_json() for warning in warnings_of(feature_set)],
    }


def describe_tasks(store: FeatureStore) -> list[dict[str, Any]]:
    """Describe every task: classes, splits, where the labels came from, and what trainings on it chose."""
    return [
        {
            "task": task.name,
            "kind": task.kind,
            "classes": class_counts(task),
            "counts": task.counts(),
            "about": task.about,
            "history": [msgspec.to_builtins(about) for about in store.history(task.name).abouts()],
        }
        for task in map(store.task, store.task_names())
    ]


def describe_task(store: FeatureStore, task: Task) -> dict[str, Any]:
    """Describe one task: what it holds, what is doubtful, and the samples of the cache that have no target in it."""
    return {
        "task": task.name,
        "kind": task.kind,
        "classes": class_counts(task),
        "counts": task.counts(),
        "unknown": task.num_unknown(),
        "warnings": [warning.to_json() for warning in task.warnings()],
        "about": task.about,
        "groups": None if task.groups is None else int(task.groups.max()) + 1,
        "domains": _domain_counts(task),
        "weights": None if task.weights is None else [float(task.weights.min()), float(task.weights.max())],
        "unlabelled": count_without_target(store, task),
    }


def _domain_counts(task: Task) -> dict[str, int]:
    if task.domains is None:
        return {}
    counts = np.bincount(task.domains, minlength=len(task.domain_names))
    return dict(zip(task.domain_names, counts.tolist(), strict=True))


def count_without_target(store: FeatureStore, task: Task) -> int:
    """Count the samples that some source holds and the task says nothing of; those with two labels are apart."""
    held = merged_rows(store.listings.all())
    rows = store.samples.rows_of(task.ids)
    return len(held.difference(RowRuns.of(rows[rows >= 0]))) - task.about["num_conflicts"]


def describe_sources(store: FeatureStore) -> list[dict[str, Any]]:
    """Describe what each source held when it was last extracted."""
    return [
        {
            "root": listing.root,
            "files": len(listing),
            "samples": len(listing.held),
            # Files of the same bytes are one sample.
            "copies": listing.num_readable - len(listing.held),
            "unreadable": len(listing.problems),
            "ignored_files": listing.ignored.count,
            "warnings": [warning.to_json() for warning in listing.ignored.warnings()],
        }
        for listing in store.listings.all()
    ]
