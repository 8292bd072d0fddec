"""A trained head with what it was trained and evaluated on.

What a search of one head found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from featurecache.evaluation.measure import ScoreValues
from featurecache.evaluation.scores import Scores
from featurecache.evaluation.task_features import rows_of_split
from featurecache.heads.head import Setting
from featurecache.heads.thresholds import Thresholds
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.samples import Rows
from featurecache.store.tasks import Task

_PLAIN = (
    *("head", "params", "seconds", "protocol", "selection_accuracy", "selection_score", "selection_log_loss"),
    *("balanced", "metric", "reported", "converged"),
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class HeadResult:
    """What a search found: the setting that was chosen, its scores, and the fitted estimator."""

    head: str
    params: Setting
    """The setting that was chosen from the head's grid."""
    protocol: str
    """How the setting was chosen: "validation" or "cross-validation"."""
    selection_accuracy: float | None
    """On the rows by which the setting was chosen; None where there are no classes."""
    selection_score: float
    """The metric by which setting and head are chosen, never on the test split: `Measure.score` on those rows."""
    balanced: bool
    """Classes count alike in fitting, where the head can, and in choosing unless the metric says otherwise."""
    metric: str
    """By which settings and heads are chosen; see `featurecache.evaluation.metrics`."""
    selection_y: np.ndarray
    """Class indices of these rows, (n,) int64."""
    selection_pred: np.ndarray
    """What the chosen setting predicted for them, fitted on others, (n,) int64: for comparisons with other heads."""
    selection_proba: np.ndarray | None
    """Its calibrated probabilities of them, (n, n_classes) float64, where the metric reads them; else None."""
    selection_groups: np.ndarray | None
    """Groups of these rows, (n,), or None."""
    selection_index: np.ndarray
    """Which they are among the samples of their split, (n,) int64."""
    selection_log_loss: float | None
    """Of the calibrated probabilities of these rows; None where there are no classes or no probabilities."""
    validation: Scores | ScoreValues
    """On the validation rows, or out of fold inside train when there are none."""
    test: Scores | ScoreValues | None
    reported: str
    """The split that `y_pred` and `proba` are about: "test" or "validation"."""
    y_pred: np.ndarray
    """Class indices on the reported split, (n,) int64; probabilities of labels, or numbers, (n, n_outputs) float64."""
    proba: np.ndarray
    """Probabilities of classes or labels there, (n, n_classes) float64; of numbers, the numbers."""
    estimator: BaseEstimator
    """Fitted on train, or on train and validation where there is a test split."""
    temperature: float
    """For `featurecache.heads.probability.predict_proba`: what calibrates its probabilities."""
    converged: bool
    n_train: int
    """Rows that `estimator` was fitted on; each view is one."""
    seconds: float
    positive: int = 1
    """Which of two classes is the positive one."""
    thresholds: Thresholds | None = None
    """By which classes or labels are predicted, where thresholds were asked for; those of ``selection_pred`` are of the
    other folds. ``y_pred`` of labels is moved so that what holds is above one half."""
    is_kept: bool = False
    """An earlier training found it, and ``estimator`` is not fitted; see `featurecache.evaluation.kept_results`."""

    def to_json(self) -> dict[str, object]:
        """Return the result as plain, finite JSON values, without arrays and estimator."""
        return {
            **{name: getattr(self, name) for name in _PLAIN},
            "seconds": round(self.seconds, 3),
            "kept": self.is_kept,
            "threshold": None if self.thresholds is None else self.thresholds.to_json(),
            "validation": self.validation.to_json(),
            "test": None if self.test is None else self.test.to_json(),
        }


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
            "judged_on": self.evaluated_on,
            "judged_views": self.eval_set.num_views,
            "task": self.task.name,
            **self.feature_set.to_json(),
        }


def reported_rows(head: TrainedHead) -> tuple[Rows, np.ndarray[Any, Any]]:
    """Return rows and targets of the samples on which the head was tested."""
    return rows_of_split(head.task, head.feature_set.open(), head.eval_set.open(), head.result.reported)


def selection_rows(head: TrainedHead) -> Rows:
    """Return rows of the samples by which the head's setting was chosen, in the order of ``result.selection_y``."""
    split = "validation" if head.result.protocol == "validation" else "train"
    rows, _ = rows_of_split(head.task, head.feature_set.open(), head.eval_set.open(), split)
    return rows[head.result.selection_index]
