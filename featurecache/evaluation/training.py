"""Heads trained on cached features of a task: one result for each feature set and head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from featurecache.errors import RequestError
from featurecache.evaluation.protocol import HeadResult, evaluate_heads
from featurecache.evaluation.scores import confusion, per_class
from featurecache.heads.registry import list_heads, make_head
from featurecache.store.labels import SPLITS
from featurecache.store.samples import Rows
from featurecache.store.store import FeatureSet, FeatureStore
from featurecache.store.tasks import Task


@dataclass(frozen=True)
class TrainedHead:
    """A head, what it was trained on, and how it did."""

    task: Task
    feature_set: FeatureSet
    result: HeadResult

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            **self.result.to_json(),
            "tap": self.feature_set.tap,
            "task": self.task.name,
            "backbone": self.feature_set.identity.backbone,
            "dtype": self.feature_set.dtype,
            "fingerprint": self.feature_set.fingerprint,
        }


@dataclass
class TrainingReport:
    """All trained heads, best selection accuracy first, and what was left out."""

    task: Task
    heads: list[TrainedHead]
    left_out: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Labelled samples without features: where first seen -> (status, reason)."""

    @property
    def best(self) -> TrainedHead:
        """The head with the best selection accuracy."""
        return self.heads[0]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        best = self.best.to_json()
        return {
            "task": self.task.name,
            "classes": self.task.classes,
            "counts": self.task.counts(),
            "about": self.task.about,
            "chosen": {name: best[name] for name in ("head", "tap", "params", "fingerprint")},
            "left_out": [
                {"path": path, "status": status, "reason": reason} for path, (status, reason) in self.left_out.items()
            ],
            "last_look": self.last_look(),
            "results": [head.to_json() for head in self.heads],
        }

    def last_look(self) -> dict[str, Any]:
        """Where the chosen head was right and wrong: confusion matrix and figures for each class."""
        _, y_true = reported_rows(self.best)
        y_pred = self.best.result.y_pred
        return {
            "part": self.best.result.reported,
            "confusion": confusion(y_true, y_pred, len(self.task.classes)).tolist(),
            "per_class": per_class(y_true, y_pred, self.task.classes),
        }


def train_heads(
    store: FeatureStore,
    task: Task,
    sets: Sequence[FeatureSet],
    heads: Sequence[str] = (),
    *,
    n_jobs: int = -1,
    random_state: int = 0,
    on_result: Callable[[HeadResult], None] | None = None,
) -> TrainingReport:
    """Train heads on every feature set; see `evaluate_heads` for how hyper-parameters are chosen.

    Parameters
    ----------
    store : FeatureStore
        The cache that holds task and features.
    task : Task
        Labels and splits.
    sets : sequence of FeatureSet
        What to train on.
    heads : sequence of str
        Names of heads; all of them when empty.
    n_jobs : int
        As in joblib; results don't depend on it.
    random_state : int
        Seed of heads, folds and bootstrap.
    on_result : callable, optional
        Called with each result as it comes.
    """
    names = list(heads) or list_heads()
    for name in names:
        make_head(name)  # an unknown name must not cost the fits before it
    report = TrainingReport(task, [])
    for feature_set in sets:
        features = feature_set.open()
        if features.sample_shape and np.prod(features.sample_shape) > 1_000_000:
            raise RequestError(
                f"tap {feature_set.tap!r} has {np.prod(features.sample_shape)} numbers per sample; pool it"
            )
        report.left_out |= task.left_out(features)
        parts = {split: task.select(features, split) for split in SPLITS if task.has(split)}
        results = evaluate_heads(
            names, parts, len(task.classes), n_jobs=n_jobs, random_state=random_state, progress=on_result
        )
        report.heads += [TrainedHead(task, feature_set, result) for result in results]
    report.heads.sort(key=lambda head: -head.result.selection_accuracy)
    return report


def reported_rows(head: TrainedHead) -> tuple[Rows, np.ndarray[Any, Any]]:
    """Rows and classes of the samples on which the head's last look was taken."""
    return head.task.rows(head.feature_set.open(), head.result.reported)
