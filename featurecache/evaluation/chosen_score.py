"""The score of the best of many heads, corrected for having been chosen as the best.

The best of many scores on the same rows is too high: that of 13 taps and 6 heads on random labels of two classes is
0.64 on average, where 0.5 is true. The choice is therefore repeated on bootstrap resamples of the rows, and what was
chosen is scored on the rows that the resample left out (Tsamardinos, Greasidou & Borboudakis, "Bootstrapping the
out-of-sample predictions for efficient and accurate cross-validation", Machine Learning 107, 2018). No head is fitted
again. Intervals are those of so many fewer rows, and hold the true score also where each head's setting was chosen on
the same rows before (``python scripts/trials verdicts``).

Which of several heads is kept: the one with the best probabilities among those that are about as often right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from featurecache.evaluation.bootstrap import num_units, weights_of_resamples
from featurecache.evaluation.comparison import is_within_chance
from featurecache.evaluation.intervals import holding, wilson
from featurecache.evaluation.measure import Measure
from featurecache.records import PlainValues

if TYPE_CHECKING:
    from featurecache.evaluation.trained_head import HeadResult

_FEWEST_UNITS = 5
"""Fewer groups, or rows, leave out too few for an interval."""
# The ends of the interval are then the 12th scores from either side; it is wide, and need not be sharper than that.
_RESAMPLES, _AT_ONCE = 500, 100


@dataclass(frozen=True, kw_only=True, slots=True)
class ChosenScore(PlainValues):
    """What the chosen head scored on the rows that chose it, and what choosing made of that.

    Attributes
    ----------
    observed : float
        Too high by the choice.
    corrected : float
        Mean over resamples of the score, on rows that were left out, of the head that the others chose.
    low, high : float or None
        95 % interval of ``corrected``; None where there are too few rows or groups.
    num_heads : int
        Among which was chosen.
    """

    observed: float
    corrected: float
    low: float | None
    high: float | None
    num_heads: int


def chosen_score(
    measure: Measure,
    y: np.ndarray,
    predictions: Sequence[np.ndarray],
    groups: np.ndarray | None,
    *,
    random_state: int = 0,
) -> ChosenScore | None:
    """Correct the best score of several heads for the choice; None of a single head, or where no resample has a score.

    Parameters
    ----------
    measure : Measure
        Of the task.
    y : ndarray (n,) or (n, n_outputs)
        Targets.
    predictions : sequence of ndarray
        `Measure.outputs` of each head for these rows, which it was not fitted on; the chosen one first.
    groups : ndarray of int (n,), or None
        Rows with the same number are drawn, and left out, together.
    random_state : int
        Of the bootstrap.
    """
    if len(predictions) < 2:
        return None
    scores = _weighted_scores(measure, y, predictions)
    found = []
    for weights in _blocks(len(y), groups, random_state):
        inside, outside = scores(weights), scores((weights == 0).astype(np.float64))
        # A head whose score is not defined on a resample is not chosen there.
        chosen = np.where(np.isfinite(inside), inside, -np.inf).argmax(axis=1)
        found.append(outside[np.arange(len(weights)), chosen])
    left_out = measure.sign * np.concatenate(found)
    # Sums over rows in the place of areas under curves may lead beyond the greatest there is.
    left_out = left_out[np.isfinite(left_out)].clip(*measure.range_of(measure.primary))
    if not len(left_out):
        return None
    corrected = float(left_out.mean())
    low: float | None = None
    high: float | None = None
    if num_units(len(y), groups) >= _FEWEST_UNITS:
        low, high = holding(corrected, *(float(end) for end in np.percentile(left_out, [2.5, 97.5])))
        least, most = measure.range_of(measure.primary)
        if high - low < 1e-12 and measure.kind != "regression":
            # All resamples are alike, which is no certainty: a share of so many rows could be as far off.
            count = num_units(len(y), groups)
            wider = 1 - float(wilson(count, count)[0])
            low, high = max(low - wider, least), min(high + wider, most)
    observed = measure.score(y, predictions[0])
    return ChosenScore(observed=observed, corrected=corrected, low=low, high=high, num_heads=len(predictions))


def _blocks(num_samples: int, groups: np.ndarray | None, random_state: int) -> Iterator[np.ndarray]:
    """Yield the weights of resamples, few at a time: each is multiplied with the rows of all heads."""
    num_left = _RESAMPLES
    for weights in weights_of_resamples(num_samples, groups, random_state):
        for start in range(0, min(len(weights), num_left), _AT_ONCE):
            yield weights[start : min(start + _AT_ONCE, num_left)]
        num_left -= len(weights)
        if num_left <= 0:
            return


def _weighted_scores(
    measure: Measure, y: np.ndarray, predictions: Sequence[np.ndarray]
) -> Callable[[np.ndarray], np.ndarray]:
    """Return what gives the score of each head for weights (R, n): an array (R, n_heads), NaN where it has none."""
    if measure.metric not in ("accuracy", "balanced_accuracy") or measure.kind != "classification":
        of_heads = [measure.weighted_score(y, predicted) for predicted in predictions]
        return lambda weights: np.stack([score(weights) for score in of_heads], axis=1)
    right = np.stack([predicted == y for predicted in predictions], axis=1).astype(np.float64)
    # Accuracy is the mean over one class that holds all rows.
    classes = np.unique(y) if measure.metric == "balanced_accuracy" else [None]
    of_classes = [np.ones(len(y), bool) if label is None else y == label for label in classes]

    def scores(weights: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):  # a resample may hold no row of a class
            shares = [
                weights[:, rows] @ right[rows] / weights[:, rows].sum(axis=1, keepdims=True) for rows in of_classes
            ]
        known = [np.isfinite(share) for share in shares]
        count = np.sum(known, axis=0)
        total = np.sum([np.where(there, share, 0.0) for there, share in zip(known, shares, strict=True)], axis=0)
        return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan))

    return scores


Trained = TypeVar("Trained")


def ranked(heads: Sequence[Trained], measure: Measure, result_of: Callable[[Trained], HeadResult]) -> list[Trained]:
    """Return heads in an order whose first is the one to keep.

    It is chosen as settings are (see `featurecache.evaluation.selection`): by log loss, among the heads whose metric is
    within one standard error of the best. All others follow by their score; of equals, the order stays.

    Parameters
    ----------
    heads : sequence
    measure : Measure
        Of the task.
    result_of : callable
        Returns the result of a head.
    """
    by_score = sorted(heads, key=lambda head: -measure.sign * result_of(head).selection_score)
    if len(by_score) < 2 or measure.kind != "classification":
        return by_score
    top = result_of(by_score[0])
    able = [head for head in by_score if _within_chance(result_of(head), top, measure)]
    losses = [result_of(head).selection_log_loss for head in able]
    if any(loss is None for loss in losses):  # one without probabilities may be as right as any
        return by_score
    first = able[int(np.argmin(np.array(losses, np.float64)))]
    return [first, *(head for head in by_score if head is not first)]


def _within_chance(result: HeadResult, top: HeadResult, measure: Measure) -> bool:
    """Tell whether the samples by which both were chosen leave open which is right more often."""
    right, of_top = (
        measure.row_scores(one.selection_y, measure.outputs(one.selection_pred, one.selection_proba))
        for one in (result, top)
    )
    if np.array_equal(result.selection_y, top.selection_y):
        return is_within_chance(of_top - right, top.selection_groups)
    # Samples that are bad for one network are not for another; then errors are not paired.
    error = np.sqrt(right.var() / len(right) + of_top.var() / len(of_top))
    return bool(of_top.mean() - right.mean() <= error)
