"""What a search of one head found."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.base import BaseEstimator

from featurecache.evaluation.measure import ScoreValues
from featurecache.evaluation.scores import Scores
from featurecache.heads.head import Setting
from featurecache.heads.thresholds import Thresholds

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
