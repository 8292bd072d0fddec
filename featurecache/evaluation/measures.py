"""What it means to be right about labels, and the measure for each kind of task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MappingProxyType

import numpy as np
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, precision_recall_fscore_support

from featurecache.errors import TaskError
from featurecache.evaluation.bootstrap import average_precision, ranked
from featurecache.evaluation.class_measure import OfClasses
from featurecache.evaluation.measure import Measure, ScoreValues
from featurecache.evaluation.metrics import log_loss_rows, mean_rows, roc_auc
from featurecache.evaluation.number_measure import OfNumbers
from featurecache.evaluation.resampled_measure import ResampledMeasure, check_known, where_known
from featurecache.evaluation.scores import OutputScores
from featurecache.heads.checks import UNKNOWN, is_known, is_partial
from featurecache.heads.thresholds import ThresholdRule
from featurecache.specs import TaskKind, task_kind
from featurecache.wording import counted


def measure_of(
    kind: TaskKind,
    n_outputs: int,
    *,
    balanced: bool = False,
    metric: str | None = None,
    names: Sequence[str] = (),
    threshold: ThresholdRule | None = None,
    positive: int = 1,
) -> Measure:
    """Return the measure for a kind of task.

    Parameters
    ----------
    kind : str
    n_outputs : int
        Classes, labels or numbers.
    balanced : bool
        Classes count alike.
    metric : str, optional
        By which settings and heads are chosen; see `featurecache.evaluation.metrics`.
    names : sequence of str
        Of several numbers, for the scores that each has by itself; counted through when left out.
    threshold, positive
        As the attributes of `Measure`; for two classes, and for labels.

    Raises
    ------
    TaskError
        Balanced classes where there are none, or a metric that tasks of this kind do not have.
    UnknownNameError
        There is no such metric.
    """
    kind = task_kind(kind)
    if threshold is not None and (kind == "regression" or (kind == "classification" and n_outputs != 2)):
        what = "numbers" if kind == "regression" else f"{counted(n_outputs, 'class')}"
        raise TaskError(f"thresholds are for two classes and for labels, and this task has {what}; leave them out")
    if kind == "classification":
        return OfClasses(n_outputs, metric, balanced=balanced, threshold=threshold, positive=positive)
    if balanced:
        raise TaskError(
            f"balanced classes are for tasks with classes, and this one is of kind {kind}; leave balanced out"
        )
    if kind == "regression":
        return OfNumbers(n_outputs, names, metric=metric)
    return OfLabels(n_outputs, metric, threshold=threshold)


class OfLabels(ResampledMeasure):
    """Mean average precision; predictions are probabilities, and a label is named from one half on."""

    kind = "multilabel"
    score_titles = MappingProxyType(
        {
            "mean_average_precision": "mean AP",
            "micro_f1": "micro F1",
            "macro_f1": "macro F1",
            "exact_match": "all right",
        }
    )

    def check(self, name: str, y: np.ndarray) -> np.ndarray:
        """See `Measure`."""
        if y.ndim != 2 or y.shape[1] != self.n_outputs or not np.isin(y, (0, 1, UNKNOWN)).all():
            raise TaskError(
                f"{name} labels are not 0 or 1 for each of {counted(self.n_outputs, 'label')}, or {UNKNOWN} where "
                "not known; "
                "encode them so"
            )
        check_known(name, y)
        # Average precision of a label that no sample has is not defined.
        if not (y == 1).any():
            raise TaskError(
                f"no label holds for any of {counted(len(y), f'{name} row')}; nothing can be evaluated by them"
            )
        if name != "train":
            self.check_defined(f"{name} rows", y)
        return y.astype(np.int64)

    def score(self, y: np.ndarray, outputs: np.ndarray) -> float:
        """See `Measure`.

        Parameters
        ----------
        y, outputs
            As for `Measure.score`.
        """
        if not self.is_plain:
            return self.sign * float(np.mean(self.row_scores(y, outputs)))
        if self.metric == "average_precision":
            return _mean_average_precision(y, outputs)
        return self.point(y, outputs)[list(self.score_titles).index(self.primary)]

    def row_scores(self, y: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """See `Measure`; of the area under the ROC curve and of log loss.

        Parameters
        ----------
        y, outputs
            As for `Measure.row_scores`.
        """
        if self.metric == "roc_auc":
            return mean_rows(list(y.T), list(outputs.T), roc_auc)
        if self.metric == "log_loss":
            known = is_known(y)
            of_known = np.where(known, log_loss_rows(np.where(y == 1, outputs, 1 - outputs)), 0.0)
            # The mean over labels of the mean over the rows where each is known.
            times = known.sum(axis=0)
            return len(y) * (of_known / np.maximum(times, 1)).sum(axis=1) / np.count_nonzero(times)
        return super().row_scores(y, outputs)

    def scores(
        self,
        y: np.ndarray,
        predictions: np.ndarray,
        groups: np.ndarray | None,
        *,
        proba: np.ndarray | None = None,
        random_state: int,
    ) -> ScoreValues:
        """Return all scores with their intervals.

        Parameters
        ----------
        y, predictions, groups, proba, random_state
            As for `Measure.scores`.
        """
        found = super().scores(y, predictions, groups, random_state=random_state)
        if not self.is_plain:
            smallest = np.minimum((y == 1).sum(axis=0), (y == 0).sum(axis=0))
            found |= self.primary_score(y, self.outputs(predictions, proba), groups, smallest)
        return found

    def point(self, y: np.ndarray, predictions: np.ndarray) -> list[float]:
        """See `ResampledMeasure`."""
        named, mean = (predictions > 0.5).astype(np.int64), _mean_average_precision(y, predictions)
        if is_partial(y):
            (found,) = self.weighted(y, predictions)(np.ones((1, len(y))))
            return [mean, *map(float, found[1:])]
        f1 = [float(f1_score(y, named, average=average, zero_division=0.0)) for average in ("micro", "macro")]
        return [mean, *f1, float(accuracy_score(y, named))]

    def sizes(self, y: np.ndarray) -> list[float]:
        """See `ResampledMeasure`."""
        times = (y == 1).sum(axis=0)
        times = times[times > 0]
        # A mean over labels is known as badly as its rarest label.
        mean = float(len(times) / np.mean(1 / times))
        return [mean, float(times.sum()), mean, float(is_known(y).any(axis=1).sum())]

    def weighted(self, y: np.ndarray, predictions: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """See `ResampledMeasure`."""
        known, holds = is_known(y), y == 1
        named, evaluated = predictions > 0.5, known.any(axis=1).astype(np.float64)
        right = ((named == holds) | ~known).all(axis=1) * evaluated
        in_order = [ranked(y[:, k], predictions[:, k], known[:, k]) for k in np.flatnonzero(holds.any(axis=0))]
        # Labels of which nothing is known have no F1.
        of_labels = known.any(axis=0)
        counts = [(named & holds)[:, of_labels] * 1.0, ((named & known) * 1.0 + holds)[:, of_labels]]
        counted = np.concatenate(counts, axis=1)

        def scores(weights: np.ndarray) -> np.ndarray:
            precisions = np.stack([average_precision(weights, *order) for order in in_order], axis=1)
            # A resample in which no sample has a label says nothing of that label.
            found = ~np.isnan(precisions)
            mean = np.where(found, precisions, 0.0).sum(axis=1) / np.maximum(found.sum(axis=1), 1)
            both, either = np.split(weights @ counted, 2, axis=1)
            micro = 2 * both.sum(axis=1) / np.maximum(either.sum(axis=1), 1e-300)
            macro = (2 * both / np.maximum(either, 1e-300)).mean(axis=1)
            all_right = weights @ right / np.maximum(weights @ evaluated, 1e-300)
            return np.stack([mean, micro, macro, all_right], axis=1)

        return scores

    def per_output(self, y: np.ndarray, predictions: np.ndarray, names: list[str]) -> list[OutputScores]:
        """Return average precision (None for a label that no sample has), precision, recall and F1 of each label.

        Each is evaluated on the samples for which it is known, ``known`` of them; where that is none, it has no scores.

        Parameters
        ----------
        y, predictions, names
            As for `Measure.per_output`.
        """
        found: list[OutputScores] = []
        for k, name in enumerate(names):
            holds, values = where_known(y, predictions, k)
            found.append({"label": name, "n": int(holds.sum())})
            if is_partial(y):
                found[-1]["known"] = len(holds)
            found[-1] |= dict.fromkeys(("average_precision", "precision", "recall", "f1"))
            if holds.any():
                found[-1]["average_precision"] = float(average_precision_score(holds, values))
            if len(holds):
                rates = precision_recall_fscore_support(holds, values > 0.5, average="binary", zero_division=0.0)
                found[-1] |= zip(("precision", "recall", "f1"), map(float, rates[:3]), strict=True)
        return found


def _mean_average_precision(y: np.ndarray, predictions: np.ndarray) -> float:
    there = (y == 1).any(axis=0)
    if not is_partial(y):
        return float(average_precision_score(y[:, there], predictions[:, there], average="macro"))
    known = [where_known(y, predictions, k) for k in np.flatnonzero(there).tolist()]
    return float(np.mean([average_precision_score(*one) for one in known]))
