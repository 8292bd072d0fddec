"""What a kept result is named by: its samples with their targets, and the versions of what computes."""

from __future__ import annotations

from typing import Any

from featurecache.evaluation.task_features import TaskFeatures, rows_of_split
from featurecache.hashing import digest_bytes, digest_json
from featurecache.heads.head import NamedHead
from featurecache.store.labels import SPLITS
from featurecache.versions import installed_versions

COMPUTES = ("featurecache", "joblib", "numpy", "scikit-learn", "scipy", "torch")
"""Packages whose versions a result depends on."""


def key_parts(head: NamedHead, features: TaskFeatures, labels: str, *, evaluated: str) -> dict[str, Any]:
    """Return what every result of a head depends on; ``evaluated`` names what it is evaluated on."""
    fit_set, eval_set = (
        [feature_set.fingerprint, feature_set.tap, feature_set.dtype]
        for feature_set in (features.feature_set, features.eval_set)
    )
    return {
        "features": fit_set,
        evaluated: eval_set,
        "labels": labels,
        # Its settings on very many rows stand for the grid: that of few rows may be cut.
        "head": [head.name, repr(head.estimator), head.settings_for(1_000_000)],
        "balanced": features.measure.balanced,
        "versions": installed_versions(COMPUTES),
    }


def digest_of_labels(features: TaskFeatures) -> str:
    """Digest which samples are in each split, and their targets."""
    task = features.task
    assert task.samples is not None
    document: dict[str, object] = {"kind": task.kind, "classes": task.classes}
    # The little-endian bytes of one type, so that the digest is the same on every machine.
    exact = "<f8" if task.kind == "regression" else "<i8"
    for split in SPLITS:
        if task.has(split):
            rows, y = rows_of_split(task, features.features, features.eval_features, split)
            groups, weights = task.groups_of(rows), task.weights_of(rows)
            content = task.samples.ids[rows].tobytes() + y.astype(exact).tobytes()
            content += b"" if groups is None else groups.astype("<i4").tobytes()
            content += b"" if weights is None else weights.astype("<f8").tobytes()
            document[split] = digest_bytes(content)
    return digest_json("labels", 2, document)
