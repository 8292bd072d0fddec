"""What a measure is: how heads of one kind of task predict, and by which scores they are chosen and shown.

Scores of labels and numbers are scikit-learn's; their intervals, and comparisons of two heads, come from a bootstrap
over samples, or over groups of them (Efron, 1979; Davison & Hinkley, 1997, 3.8), in which each resample is a weight for
each sample: the scores are computed from weights for all resamples at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np
from scipy.stats import t as student_t
from sklearn.base import BaseEstimator

from featurecache.errors import TaskError
from featurecache.evaluation.bootstrap import (
    bounds_of_share,
    expanded,
    num_units,
    unseen_variance,
    weights_of_resamples,
)
from featurecache.evaluation.comparison import Comparison, verdict_of
from featurecache.evaluation.intervals import LEAST_GROUPS, holding
from featurecache.evaluation.prediction import per_view
from featurecache.evaluation.scores import OutputScores, Scores
from featurecache.evaluation.split_data import SplitData
from featurecache.heads.checks import is_known
from featurecache.heads.probability import predict_outputs
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
    """

    kind: ClassVar[TaskKind]
    primary: ClassVar[str]
    """The score by which heads are compared on the test split."""
    titles: Mapping[str, str]
    """All scores, the primary first, and what tables call them."""
    balanced: bool = False
    """Classes count alike."""

    def __init__(self, n_outputs: int) -> None:
        self.n_outputs = n_outputs

    @property
    def chosen_by(self) -> str:
        """Name of the score that `score` gives."""
        return self.primary

    def range_of(self, name: str) -> tuple[float, float]:
        """Return the least and the greatest that a score can be."""
        return 0.0, 1.0

    @abstractmethod
    def check(self, name: str, y: np.ndarray) -> np.ndarray:
        """Return the targets of the samples of split ``name`` as an array, or raise `TaskError`."""

    @abstractmethod
    def score(self, y: np.ndarray, predictions: np.ndarray) -> float:
        """Return the score by which settings and heads are chosen; the greater the better."""

    def weights(self, y: np.ndarray) -> np.ndarray | None:
        """Return how much each sample counts, (n_samples,) float64 with mean 1; None: all alike."""
        return None

    def right(self, y: np.ndarray, predictions: np.ndarray) -> np.ndarray:
        """Return what each sample adds to `score`, (n_samples,) float32, where that is a mean of them; else zeros.

        Parameters
        ----------
        y, predictions
            As for `score`.
        """
        return np.zeros(len(y), np.float32)

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
        self, y: np.ndarray, predictions: np.ndarray, groups: np.ndarray | None, *, random_state: int
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
        random_state : int
            Of the bootstrap.
        """

    @abstractmethod
    def compare(self, y: np.ndarray, first: np.ndarray, second: np.ndarray, groups: np.ndarray | None) -> Comparison:
        """Compare the predictions of two heads for the same samples.

        Parameters
        ----------
        y, groups
            As for `scores`.
        first, second : ndarray
            Predictions of each.
        """

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


class ResampledMeasure(Measure):
    """Scores that are computed from weights."""

    def predict(self, estimator: BaseEstimator, data: SplitData, temperature: float) -> np.ndarray:
        """Return what a head predicts, (n_samples, n_outputs): the mean over what a sample is evaluated on.

        Parameters
        ----------
        estimator, data, temperature
            As for `Measure.predict`.
        """
        return per_view(data, lambda rows: predict_outputs(estimator, rows)).mean(axis=1)

    def predict_proba(
        self, estimator: BaseEstimator, data: SplitData, temperature: float, predictions: np.ndarray
    ) -> np.ndarray:
        """Return the predictions: they are what `Measure` asks for.

        Parameters
        ----------
        estimator, data, temperature, predictions
            As for `Measure.predict_proba`.
        """
        return predictions

    def scores(
        self, y: np.ndarray, predictions: np.ndarray, groups: np.ndarray | None, *, random_state: int
    ) -> ScoreValues:
        """Return all scores with their intervals.

        Parameters
        ----------
        y, predictions, groups, random_state
            As for `Measure.scores`.
        """
        weighted = self.weighted(y, predictions)
        draws = np.concatenate([weighted(weights) for weights in weights_of_resamples(len(y), groups, random_state)])
        point, count, sizes = np.array(self.point(y, predictions)), num_units(len(y), groups), self.sizes(y)
        draws[:, np.isnan(point)] = 0.0
        low, high = expanded(point, np.nanpercentile(draws, [2.5, 97.5], axis=0), count)
        found = ScoreValues(n=len(y))
        for index, name in enumerate(self.titles):
            if np.isnan(point[index]):
                found |= dict.fromkeys((name, f"{name}_low", f"{name}_high"))
                continue
            value = found[name] = float(point[index])
            least, most = self.range_of(name)
            ends = float(max(low[index], least)), float(min(high[index], most))
            if sizes and count >= LEAST_GROUPS:
                ends = bounds_of_share(min(value, 1.0), float(np.nanstd(draws[:, index])), sizes[index], count)
            # Rounding leaves a little of a width of none, which says nothing of the samples that were not drawn.
            is_known = count >= LEAST_GROUPS and ends[1] - ends[0] > 1e-12
            found[f"{name}_low"], found[f"{name}_high"] = holding(value, *ends) if is_known else (None, None)
        return found

    def compare(self, y: np.ndarray, first: np.ndarray, second: np.ndarray, groups: np.ndarray | None) -> Comparison:
        """Compare by a bootstrap of the difference: both heads on the same resamples.

        Parameters
        ----------
        y, first, second, groups
            As for `Measure.compare`.
        """
        index = list(self.titles).index(self.primary)
        one, other = self.weighted(y, first), self.weighted(y, second)
        # Both heads on the same resamples: what makes a sample hard cancels.
        draws = np.concatenate([one(w)[:, index] - other(w)[:, index] for w in weights_of_resamples(len(y), groups, 0)])
        # A resample may hold one number only, whose R2 is not defined.
        draws = draws[np.isfinite(draws)]
        difference = float(self.point(y, first)[index] - self.point(y, second)[index])
        count, sizes = num_units(len(y), groups), self.sizes(y)
        # What is compared may vary in no resample; of few groups it is not known how much they differ.
        if not len(draws) or count < LEAST_GROUPS:
            return Comparison(difference, -np.inf, np.inf, 1.0, "cannot tell")
        low, high = (float(end) for end in expanded(difference, np.percentile(draws, [2.5, 97.5]), count))
        # As if one answer more were different: heads that differ nowhere are not equal for certain, and those that
        # differ once are hardly less so.
        unseen = unseen_variance(sizes[index], count) / sizes[index] if sizes else 0.0
        half = float(student_t.ppf(0.975, count - 1)) * np.sqrt(unseen)
        low, high = (
            difference - float(np.hypot(difference - low, half)),
            difference + float(np.hypot(high - difference, half)),
        )
        # The bootstrap divides by n: a t-test of few units needs n - 1.
        error = np.sqrt(float(draws.var()) * count / (count - 1) + unseen)
        p_value = float(2 * student_t.sf(abs(difference) / error, count - 1)) if error else 1.0
        verdict = "the same answers" if np.array_equal(first, second) else verdict_of(low, high)
        return Comparison(difference, low, high, p_value, verdict)

    def sizes(self, y: np.ndarray) -> list[float]:
        """Return how many right or wrong answers each score is of, in the order of ``titles``; of numbers, nothing."""
        return []

    @abstractmethod
    def point(self, y: np.ndarray, predictions: np.ndarray) -> list[float]:
        """Return scikit-learn's scores, in the order of ``titles``."""

    @abstractmethod
    def weighted(self, y: np.ndarray, predictions: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """Return what gives the scores (R, n_figures) of the samples for weights (R, n_samples)."""


def where_known(y: np.ndarray, predictions: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what is known of one label or number, and what a head predicts there.

    Parameters
    ----------
    y, predictions : ndarray (n_samples, n_outputs)
    k : int
        Which label or number.
    """
    # Unknown is not negative: scores are of what is known.
    known = is_known(y[:, k])
    return y[known, k], predictions[known, k]


def check_known(name: str, y: np.ndarray) -> None:
    """Raise `TaskError` for a label or number of which the train split knows nothing."""
    nothing = np.flatnonzero(~is_known(y).any(axis=0))
    if name == "train" and len(nothing):
        raise TaskError(
            f"label or number {nothing[0] + 1} of {y.shape[1]} is not known for any of the {len(y)} train rows; leave "
            "it out, or divide the samples otherwise"
        )
