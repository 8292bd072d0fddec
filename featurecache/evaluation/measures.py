"""What it means to be right about classes, about labels and about numbers: one measure for each kind of task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MappingProxyType

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    precision_recall_fscore_support,
    recall_score,
)

from featurecache.errors import TaskError
from featurecache.evaluation.bootstrap import average_precision, ranked
from featurecache.evaluation.comparison import Comparison, compare
from featurecache.evaluation.measure import Measure, ResampledMeasure, check_known, where_known
from featurecache.evaluation.number_measure import OfNumbers
from featurecache.evaluation.prediction import split_classes, split_proba
from featurecache.evaluation.scores import OutputScores, Scores, per_class, score
from featurecache.evaluation.split_data import SplitData
from featurecache.heads.checks import UNKNOWN, is_known, is_partial
from featurecache.specs import TaskKind, task_kind


def measure_of(kind: TaskKind, n_outputs: int, *, balanced: bool = False, names: Sequence[str] = ()) -> Measure:
    """Return the measure for a kind of task.

    Parameters
    ----------
    kind : str
    n_outputs : int
        Classes, labels or numbers.
    balanced : bool
        Classes count alike.
    names : sequence of str
        Of several numbers, for the scores that each has by itself; counted through when left out.

    Raises
    ------
    TaskError
        Balanced classes where there are none.
    """
    kind = task_kind(kind)
    if kind == "classification":
        return OfClasses(n_outputs, balanced=balanced)
    if balanced:
        raise TaskError(
            f"balanced classes are for tasks with classes, and this one is of kind {kind}; leave balanced out"
        )
    return OfLabels(n_outputs) if kind == "multilabel" else OfNumbers(n_outputs, names)


class OfClasses(Measure):
    """Accuracy, or balanced accuracy."""

    kind = "classification"
    primary = "accuracy"
    titles = MappingProxyType({"accuracy": "accuracy", "balanced_accuracy": "balanced", "macro_f1": "macro F1"})

    def __init__(self, n_outputs: int, *, balanced: bool = False) -> None:
        super().__init__(n_outputs)
        self.balanced = balanced

    @property
    def chosen_by(self) -> str:
        """See `Measure`."""
        return "balanced_accuracy" if self.balanced else self.primary

    def check(self, name: str, y: np.ndarray) -> np.ndarray:
        """See `Measure`."""
        if y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= self.n_outputs:
            last = self.n_outputs - 1
            raise TaskError(f"{name} labels are not class indices in 0..{last}; encode labels as class indices")
        if name == "train" and len(classes := np.unique(y)) < 2:
            raise TaskError(
                f"all {len(y)} train rows are of class {int(classes[0])}; a head needs rows of two classes or more"
            )
        return y.astype(np.int64)

    def score(self, y: np.ndarray, predictions: np.ndarray) -> float:
        """See `Measure`."""
        if self.balanced:
            return float(recall_score(y, predictions, labels=np.unique(y), average="macro", zero_division=0.0))
        return float(np.mean(y == predictions))

    def weights(self, y: np.ndarray) -> np.ndarray | None:
        """See `Measure`: balanced, all classes that occur have the same total."""
        if not self.balanced:
            return None
        counts = np.bincount(y)
        return np.asarray(len(y) / (np.count_nonzero(counts) * counts[y]))

    def right(self, y: np.ndarray, predictions: np.ndarray) -> np.ndarray:
        """See `Measure`.

        Parameters
        ----------
        y, predictions
            As for `score`.
        """
        weight = self.weights(y)
        right = y == predictions
        return np.asarray(right if weight is None else right * weight, np.float32)

    def predict(self, estimator: BaseEstimator, data: SplitData, temperature: float) -> np.ndarray:
        """Return class indices (n_samples,).

        Parameters
        ----------
        estimator, data, temperature
            As for `Measure.predict`.
        """
        return split_classes(estimator, data, temperature, self.n_outputs)

    def predict_proba(
        self, estimator: BaseEstimator, data: SplitData, temperature: float, predictions: np.ndarray
    ) -> np.ndarray:
        """See `Measure`.

        Parameters
        ----------
        estimator, data, temperature, predictions
            As for `Measure.predict_proba`.
        """
        return split_proba(estimator, data, temperature, self.n_outputs)

    def scores(self, y: np.ndarray, predictions: np.ndarray, groups: np.ndarray | None, *, random_state: int) -> Scores:
        """Return all scores with their intervals.

        Parameters
        ----------
        y, predictions, groups, random_state
            As for `Measure.scores`.
        """
        return score(y, predictions, self.n_outputs, groups=groups)

    def compare(self, y: np.ndarray, first: np.ndarray, second: np.ndarray, groups: np.ndarray | None) -> Comparison:
        """Compare two heads.

        Parameters
        ----------
        y, first, second, groups
            As for `Measure.compare`.
        """
        return compare(y, first, second, groups, balanced=self.balanced)

    def per_output(self, y: np.ndarray, predictions: np.ndarray, names: list[str]) -> list[OutputScores]:
        """Return precision, recall and F1 of each class.

        Parameters
        ----------
        y, predictions, names
            As for `Measure.per_output`.
        """
        return per_class(y, predictions, names)


class OfLabels(ResampledMeasure):
    """Mean average precision; predictions are probabilities, and a label is named from one half on."""

    kind = "multilabel"
    primary = "mean_average_precision"
    titles = MappingProxyType(
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
                f"{name} labels are not 0 or 1 for each of {self.n_outputs} labels, or {UNKNOWN} where not known; "
                "encode them so"
            )
        check_known(name, y)
        # Average precision of a label that no sample has is not defined.
        if not (y == 1).any():
            raise TaskError(f"no label holds for any of the {len(y)} {name} rows; nothing can be evaluated by them")
        return y.astype(np.int64)

    def score(self, y: np.ndarray, predictions: np.ndarray) -> float:
        """See `Measure`."""
        there = (y == 1).any(axis=0)
        if not is_partial(y):
            return float(average_precision_score(y[:, there], predictions[:, there], average="macro"))
        return float(
            np.mean([average_precision_score(*where_known(y, predictions, k)) for k in np.flatnonzero(there).tolist()])
        )

    def point(self, y: np.ndarray, predictions: np.ndarray) -> list[float]:
        """See `ResampledMeasure`."""
        named = (predictions > 0.5).astype(np.int64)
        if is_partial(y):
            (found,) = self.weighted(y, predictions)(np.ones((1, len(y))))
            return [self.score(y, predictions), *map(float, found[1:])]
        f1 = [float(f1_score(y, named, average=average, zero_division=0.0)) for average in ("micro", "macro")]
        return [self.score(y, predictions), *f1, float(accuracy_score(y, named))]

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
