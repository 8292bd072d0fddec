"""What a measure is: how heads of one kind of task predict, and by which scores they are chosen and shown."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import ClassVar

import numpy as np
from sklearn.base import BaseEstimator

from featurecache.errors import TaskError
from featurecache.evaluation.bootstrap import bounds_of_share, num_units
from featurecache.evaluation.comparison import Comparison, compare_rows
from featurecache.evaluation.intervals import LEAST_ROWS, holding, mean_interval, standard_error
from featurecache.evaluation.metrics import OF_PROBA, SCORES_OF_METRICS, is_less_better, metric_of
from featurecache.evaluation.scores import OutputScores, Scores
from featurecache.evaluation.split_data import SplitData
from featurecache.heads.checks import is_known
from featurecache.heads.thresholds import ThresholdRule
from featurecache.specs import TaskKind


class ScoreValues(dict[str, float | None]):
    """Scores by name, each with ``_low`` and ``_high``, and ``n``, the number of samples.

    Bounds are None where no interval can be given: of fewer than 5 samples or groups, and of errors that are all 0. So
    is a score of a number that is known for none of the samples.
    """

    def to_json(self) -> dict[str, float | None]:
        """Return a dict of plain numbers, all finite, and None."""
        return dict(self)


class Measure(ABC):
    """How heads of one kind of task are evaluated.

    Parameters
    ----------
    n_outputs : int
        Classes, labels or numbers.
    metric : str, optional
        By which settings and heads are chosen, as in `featurecache.evaluation.metrics`; the default of the kind when
        left out.
    balanced : bool
        Classes count alike in fitting and calibrating, and the default metric is balanced accuracy.
    threshold : ThresholdRule, optional
        For what thresholds are chosen, of two classes or of labels.
    positive : int
        Which of two classes is the positive one.

    Attributes
    ----------
    primary : str
        The metric by its name among the scores.
    titles : dict
        All scores, the primary first, and what tables call them.
    is_plain : bool
        The metric is one of ``score_titles``; others are scored from what each row adds to them.
    sign : float
        The metric times this is the greater the better.
    reads_proba : bool
        The metric of a task with classes reads probabilities instead of predicted classes.
    keeps_proba : bool
        Probabilities of classes are needed of the samples by which settings are chosen.
    """

    kind: ClassVar[TaskKind]
    score_titles: Mapping[str, str]
    """The scores that there are whatever the metric is, and what tables call them."""

    def __init__(
        self,
        n_outputs: int,
        metric: str | None = None,
        *,
        balanced: bool = False,
        threshold: ThresholdRule | None = None,
        positive: int = 1,
    ) -> None:
        self.n_outputs, self.balanced, self.threshold, self.positive = n_outputs, balanced, threshold, positive
        self.metric = metric_of(self.kind, metric, balanced=balanced)
        self.primary, title = SCORES_OF_METRICS[self.kind][self.metric]
        self.titles = {self.primary: title, **self.score_titles}
        self.sign = -1.0 if is_less_better(self.primary) else 1.0
        self.is_plain = self.primary in self.score_titles
        is_of_classes = self.kind == "classification"
        self.reads_proba = is_of_classes and self.metric in OF_PROBA
        self.keeps_proba = is_of_classes and (self.reads_proba or threshold is not None)

    def outputs(self, predictions: np.ndarray, proba: np.ndarray | None) -> np.ndarray:
        """Return what the metric reads: predictions, or probabilities.

        Parameters
        ----------
        predictions : ndarray
            What `predict` returned.
        proba : ndarray or None
            What `predict_proba` returned; needed where `reads_proba` is true.
        """
        if self.kind == "multilabel" and self.metric in OF_PROBA and proba is not None:
            return proba  # predictions may have been moved so that thresholds are at one half
        if not self.reads_proba:
            return predictions
        assert proba is not None, "the metric reads probabilities"
        return proba

    def range_of(self, name: str) -> tuple[float, float]:
        """Return the least and the greatest that a score can be."""
        if name == "r2":  # worse than the mean has no end
            return -np.inf, 1.0
        if self.kind == "regression" or is_less_better(name):  # nor has an error, or log loss
            return 0.0, np.inf
        return 0.0, 1.0

    @abstractmethod
    def check(self, name: str, y: np.ndarray) -> np.ndarray:
        """Return the targets of the samples of split ``name`` as an array, or raise `TaskError`."""

    @abstractmethod
    def score(self, y: np.ndarray, outputs: np.ndarray) -> float:
        """Return the metric by which settings and heads are chosen.

        Parameters
        ----------
        y, outputs : ndarray
            Targets, as `check` returns them, and what `outputs` returned.
        """

    def row_scores(self, y: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """Return what each sample adds to `score`, (n_samples,) float64, the greater the better.

        The mean is the score, times `sign`; see `featurecache.evaluation.metrics`. Zeros where it is not known.

        Parameters
        ----------
        y, outputs
            As for `score`.
        """
        # Settings of numbers and labels are chosen by the metric alone: no test between rows looks at these.
        return np.zeros(len(y))

    def weighted_score(self, y: np.ndarray, outputs: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """Return what gives the score, times `sign`, for weights of the samples (R, n_samples): an array (R,).

        Parameters
        ----------
        y, outputs
            As for `score`.
        """
        rows = self.row_scores(y, outputs)

        def score(weights: np.ndarray) -> np.ndarray:
            with np.errstate(invalid="ignore"):  # a resample may leave no row out
                return np.asarray(weights @ rows / weights.sum(axis=1))

        return score

    def check_defined(self, rows: str, y: np.ndarray) -> None:
        """Raise `TaskError` where the metric needs two classes, and samples with targets ``y`` are of one."""
        if self.metric not in ("roc_auc", "average_precision") or self.kind == "regression":
            return
        columns = [y] if y.ndim == 1 else list(y.T)
        if not any(len(np.unique(column[is_known(column)])) > 1 for column in columns):
            what = "of one class" if y.ndim == 1 else "alike in each label"
            raise TaskError(
                f"all {len(y)} {rows} are {what}, where {self.metric} is not defined; choose another --metric, or give "
                "them samples of other classes"
            )

    @abstractmethod
    def predict(self, estimator: BaseEstimator, data: SplitData, temperature: float) -> np.ndarray:
        """Return what a head predicts, as `score` and `scores` take it.

        Parameters
        ----------
        estimator : fitted estimator
        data : SplitData
        temperature : float
            Divides the decision values, or the logarithms of probabilities.
        """

    @abstractmethod
    def predict_proba(
        self, estimator: BaseEstimator, data: SplitData, temperature: float, predictions: np.ndarray
    ) -> np.ndarray:
        """Return probabilities of classes or labels, (n_samples, n_outputs); the numbers themselves.

        Parameters
        ----------
        estimator, data, temperature
            As for `predict`.
        predictions : ndarray
            What `predict` returned.
        """

    @abstractmethod
    def scores(
        self,
        y: np.ndarray,
        predictions: np.ndarray,
        groups: np.ndarray | None,
        *,
        proba: np.ndarray | None = None,
        random_state: int,
    ) -> Scores | ScoreValues:
        """Return all scores with their intervals.

        Parameters
        ----------
        y : ndarray
            Targets, as `check` returns them.
        predictions : ndarray
            What `predict` returned.
        groups : ndarray of int (n_samples,), or None
            Samples with the same number are drawn together.
        proba : ndarray or None
            What `predict_proba` returned; needed where `reads_proba` is true.
        random_state : int
            Of the bootstrap.
        """

    def compare(self, y: np.ndarray, first: np.ndarray, second: np.ndarray, groups: np.ndarray | None) -> Comparison:
        """Compare two heads on the same samples.

        Parameters
        ----------
        y, groups
            As for `scores`.
        first, second : ndarray
            `outputs` of each.
        """
        rows, of_second = self.row_scores(y, first), self.row_scores(y, second)
        found = compare_rows(rows, of_second, groups, most=self.range_of(self.primary)[1])
        return replace(found, verdict="the same answers") if np.array_equal(first, second) else found

    def primary_score(
        self, y: np.ndarray, outputs: np.ndarray, groups: np.ndarray | None, smallest: np.ndarray
    ) -> dict[str, float | None]:
        """Return the metric with its interval, from what each sample adds to it.

        Parameters
        ----------
        y, outputs
            As for `score`.
        groups : ndarray of int (n_samples,), or None
        smallest : ndarray of int (n_outputs,)
            Samples of each class or label, or without it if these are fewer: what the area under its curve is of.
        """
        value, rows = self.score(y, outputs), self.row_scores(y, outputs)
        ends = mean_interval(rows, groups)
        if is_less_better(self.primary) and ends is not None:
            ends = max(-ends[1], 0.0), -ends[0]
        elif ends is not None:
            sizes = smallest[smallest > 0]
            count, size = num_units(len(y), groups), len(sizes) / float(np.sum(1 / sizes))
            error = standard_error(rows, groups)
            # One sample of a rare class weighs too much, as in balanced accuracy.
            few = self.kind == "classification" and smallest.min() < LEAST_ROWS
            ends = None if few else bounds_of_share(value, error, size, count)
        low, high = (None, None) if ends is None else holding(value, *ends)
        return {self.primary: value, f"{self.primary}_low": low, f"{self.primary}_high": high}

    @abstractmethod
    def per_output(self, y: np.ndarray, predictions: np.ndarray, names: list[str]) -> list[OutputScores]:
        """Return scores of each class, label or number by itself.

        Parameters
        ----------
        y, predictions
            As for `scores`.
        names : list of str
            Of the classes, labels or numbers.
        """
