"""A trained head with what it was trained and evaluated on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from featurecache.evaluation.head_result import HeadResult
from featurecache.evaluation.task_features import rows_of_split
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.samples import Rows
from featurecache.store.tasks import Task


@dataclass(frozen=True)
class TrainedHead:
    """A head, what it was trained on, and how it did."""

    task: Task
    feature_set: FeatureSet
    result: HeadResult
    eval_set: FeatureSet
    """What it was evaluated on: the feature set itself, the plain one of a set of views, or views of a plain one."""

    def __repr__(self) -> str:
        return f"TrainedHead({self.result.head!r} {self.result.params} on {self.feature_set!r})"

    @property
    def evaluated_on(self) -> str:
        """``plain`` or ``views``."""
        return "plain" if self.eval_set.num_views is None else "views"

    @property
    def num_fitted(self) -> int:
        """Samples that the evaluated fit has seen."""
        return self.result.n_train // (self.feature_set.num_views or 1)

    def to_json(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {
            **self.result.to_json(),
            "n_fitted": self.num_fitted,
            "views": self.feature_set.num_views,
            "judged_on": self.evaluated_on,
            "judged_views": self.eval_set.num_views,
            "tap": self.feature_set.tap,
            "task": self.task.name,
            "backbone": self.feature_set.identity.backbone,
            "dtype": self.feature_set.dtype,
            "fingerprint": self.feature_set.fingerprint,
        }


def reported_rows(head: TrainedHead) -> tuple[Rows, np.ndarray[Any, Any]]:
    """Return rows and targets of the samples on which the head was tested."""
    return rows_of_split(head.task, head.feature_set.open(), head.eval_set.open(), head.result.reported)


def selection_rows(head: TrainedHead) -> Rows:
    """Return rows of the samples by which the head's setting was chosen, in the order of ``result.selection_y``."""
    split = "validation" if head.result.protocol == "validation" else "train"
    rows, _ = rows_of_split(head.task, head.feature_set.open(), head.eval_set.open(), split)
    return rows[head.result.selection_index]
