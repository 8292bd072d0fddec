"""Scores that are computed from weights, with intervals and comparisons by the bootstrap.

Scores of labels and numbers are scikit-learn's; their intervals, and comparisons of two heads, come from a bootstrap
over samples, or over groups of them (Efron, 1979; Davison & Hinkley, 1997, 3.8), in which each resample is a weight for
each sample: the scores are computed from weights for all resamples at once.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

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
from featurecache.evaluation.measure import Measure, ScoreValues
from featurecache.evaluation.split_data import SplitData
from featurecache.heads.checks import is_known
from featurecache.heads.probability import predict_outputs
from featurecache.wording import counted


class ResampledMeasure(Measure):
    """Scores that are computed from weights, those of ``score_titles``; see `Measure.is_plain`."""

    def predict(self, estimator: BaseEstimator, data: SplitData, temperature: float) -> np.ndarray:
        """Return what a head predicts, (n_samples, n_outputs): the mean over what a sample is evaluated on.

        Parameters
        ----------
        estimator, data, temperature
            As for `Measure.predict`.
        """
        return data.per_view(lambda rows: predict_outputs(estimator, rows)).mean(axis=1)

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
        weighted = self.weighted(y, predictions)
        draws = np.concatenate([weighted(weights) for weights in weights_of_resamples(len(y), groups, random_state)])
        point, count, sizes = np.array(self.point(y, predictions)), num_units(len(y), groups), self.sizes(y)
        draws[:, np.isnan(point)] = 0.0
        low, high = expanded(point, np.nanpercentile(draws, [2.5, 97.5], axis=0), count)
        found = ScoreValues(n=len(y))
        for index, name in enumerate(self.score_titles):
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
        if not self.is_plain:
            return super().compare(y, first, second, groups)
        index = list(self.score_titles).index(self.primary)
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
        verdict = verdict_of(low, high, are_equal=np.array_equal(first, second))
        return Comparison(difference, low, high, p_value, verdict)

    def weighted_score(self, y: np.ndarray, outputs: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """See `Measure`.

        Parameters
        ----------
        y, outputs
            As for `Measure.weighted_score`.
        """
        if not self.is_plain:
            return super().weighted_score(y, outputs)
        index, weighted = list(self.score_titles).index(self.primary), self.weighted(y, outputs)
        return lambda weights: weighted(weights)[:, index]

    def sizes(self, y: np.ndarray) -> list[float]:
        """Return of how many right or wrong predictions each of ``score_titles`` is; nothing for numbers."""
        return []

    @abstractmethod
    def point(self, y: np.ndarray, predictions: np.ndarray) -> list[float]:
        """Return scikit-learn's scores, in the order of ``score_titles``."""

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
            f"label or number {nothing[0] + 1} of {y.shape[1]} is not known for any of "
            f"{counted(len(y), 'train row')}; leave "
            "it out, or divide the samples otherwise"
        )
