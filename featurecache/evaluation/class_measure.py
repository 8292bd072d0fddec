"""What it means to be right about classes."""

from __future__ import annotations

from types import MappingProxyType

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.metrics import precision_recall_fscore_support, recall_score

from featurecache.errors import TaskError
from featurecache.evaluation.comparison import Comparison, compare
from featurecache.evaluation.measure import Measure, ScoreValues
from featurecache.evaluation.metrics import (
    average_precision,
    balanced_weights,
    f1_rows,
    log_loss_rows,
    mean_rows,
    roc_auc,
)
from featurecache.evaluation.scores import OutputScores, Scores, score
from featurecache.evaluation.split_data import SplitData
from featurecache.heads.probability import predict_proba
from featurecache.wording import counted


class OfClasses(Measure):
    """Accuracy, or another metric of predicted classes or of their probabilities.

    The area under the ROC curve is the mean over the classes, each against the others; so is average precision, but
    that of two classes is of the second.
    """

    kind = "classification"
    score_titles = MappingProxyType({"accuracy": "accuracy", "balanced_accuracy": "balanced", "macro_f1": "macro F1"})

    def check(self, name: str, y: np.ndarray) -> np.ndarray:
        """See `Measure`."""
        if y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= self.n_outputs:
            last = self.n_outputs - 1
            raise TaskError(f"{name} labels are not class indices in 0..{last}; encode labels as class indices")
        if name == "train" and len(classes := np.unique(y)) < 2:
            raise TaskError(
                f"{counted(len(y), 'train row', verb='is')} of class {int(classes[0])} alone; a head needs rows "
                "of two classes or more"
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
        if self.metric == "balanced_accuracy":
            return float(recall_score(y, outputs, labels=np.unique(y), average="macro", zero_division=0.0))
        return self.sign * float(np.mean(self.row_scores(y, outputs)))

    def row_scores(self, y: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """See `Measure`.

        Parameters
        ----------
        y, outputs
            As for `Measure.row_scores`.
        """
        match self.metric:
            case "balanced_accuracy":
                return (y == outputs) * balanced_weights(y)
            case "f1_macro":
                return f1_rows(y, outputs, self.n_outputs)
            case "log_loss":
                return log_loss_rows(outputs[np.arange(len(y)), y])
            case "roc_auc" | "average_precision":
                # Two classes are one question: of the second, as scikit-learn has it, unless another is named.
                classes = [self.positive] if self.n_outputs == 2 else np.unique(y).tolist()
                component = roc_auc if self.metric == "roc_auc" else average_precision
                holds = ((y == label).astype(np.int64) for label in classes)
                return mean_rows(holds, (outputs[:, label] for label in classes), component)
        return (y == outputs).astype(np.float64)

    def predict(self, estimator: BaseEstimator, data: SplitData, temperature: float) -> np.ndarray:
        """Return class indices (n_samples,).

        Parameters
        ----------
        estimator, data, temperature
            As for `Measure.predict`.
        """
        if data.eval_views.shape[1] > 1:
            # The class that is most probable on average, which need not be the one that most views vote for.
            proba = data.per_view(lambda rows: predict_proba(estimator, rows, temperature, self.n_outputs))
            return np.asarray(proba.mean(axis=1).argmax(axis=1))
        # Not the greatest probability: heads without probabilities would need a temperature for that.
        return data.per_view(lambda rows: np.asarray(estimator.predict(rows), np.int64))[:, 0, 0]

    def predict_proba(
        self, estimator: BaseEstimator, data: SplitData, temperature: float, predictions: np.ndarray
    ) -> np.ndarray:
        """Return probabilities of classes, the mean over the views of a sample.

        Parameters
        ----------
        estimator, data, temperature, predictions
            As for `Measure.predict_proba`.
        """
        return data.per_view(lambda rows: predict_proba(estimator, rows, temperature, self.n_outputs)).mean(axis=1)

    def scores(
        self,
        y: np.ndarray,
        predictions: np.ndarray,
        groups: np.ndarray | None,
        *,
        proba: np.ndarray | None = None,
        random_state: int,
    ) -> Scores | ScoreValues:
        """Return all scores with their intervals; of the metric too, where that reads probabilities.

        Parameters
        ----------
        y, predictions, groups, proba, random_state
            As for `Measure.scores`.
        """
        found = score(y, predictions, self.n_outputs, groups=groups)
        if not self.reads_proba:
            return found
        counts = np.bincount(y, minlength=self.n_outputs)
        smallest = np.minimum(counts, len(y) - counts)
        return ScoreValues(found.to_json() | self.primary_score(y, self.outputs(predictions, proba), groups, smallest))

    def compare(self, y: np.ndarray, first: np.ndarray, second: np.ndarray, groups: np.ndarray | None) -> Comparison:
        """Compare two heads.

        Parameters
        ----------
        y, first, second, groups
            As for `Measure.compare`.
        """
        if self.metric not in ("accuracy", "balanced_accuracy"):
            return super().compare(y, first, second, groups)
        return compare(y, first, second, groups, balanced=self.metric == "balanced_accuracy")

    def per_output(self, y: np.ndarray, predictions: np.ndarray, names: list[str]) -> list[OutputScores]:
        """Return scikit-learn's precision, recall and F1 of each class; a ratio without any row to count is 0.

        Parameters
        ----------
        y, predictions, names
            As for `Measure.per_output`.
        """
        precision, recall, f1, support = precision_recall_fscore_support(
            y, predictions, labels=np.arange(len(names)), average=None, zero_division=0.0
        )
        return [
            {"class": name, "n": int(n), "precision": float(p), "recall": float(r), "f1": float(f)}
            for name, n, p, r, f in zip(names, support, precision, recall, f1, strict=True)
        ]
