"""Which of several heads is kept: the one with the best probabilities among those that are about as often right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from featurecache.evaluation.comparison import is_within_chance
from featurecache.evaluation.measure import Measure

if TYPE_CHECKING:
    from featurecache.evaluation.head_result import HeadResult

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
