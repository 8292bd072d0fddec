"""Predictions by thresholds, and figures of these that the choice of the thresholds does not flatter.

Thresholds are chosen by the predictions of the setting that was chosen, for samples that it was not fitted on: those by
which it was chosen, never those that are reported. On these samples themselves, each fold is predicted by the
thresholds that the others give.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from featurecache.errors import TaskError
from featurecache.evaluation.measure import Measure
from featurecache.evaluation.selection import Chosen, fold_numbers
from featurecache.evaluation.split_data import SplitData
from featurecache.heads.thresholds import Thresholds, choose_thresholds


def decide(
    measure: Measure, held_out: SplitData, chosen: Chosen, random_state: int
) -> tuple[Thresholds | None, Chosen]:
    """Return the thresholds that a measure asks for, and what was chosen with predictions by thresholds.

    Parameters
    ----------
    measure : Measure
    held_out : SplitData
        The samples by which the setting was chosen.
    chosen : Chosen
    random_state : int
        Of the folds.
    """
    if measure.threshold is None:
        return None, chosen
    y, rule, positive = held_out.y, measure.threshold, measure.positive
    # Of labels the predictions stand for probabilities, and no others are kept.
    proba = chosen.y_pred.clip(0, 1) if chosen.proba is None else chosen.proba
    thresholds = choose_thresholds(rule, y, proba, positive)
    y_pred = thresholds.decide(proba)
    # By their own thresholds the samples would look better than new ones: these were chosen to fit them.
    for rows in _folds(held_out, random_state):
        others = np.delete(np.arange(len(y)), rows)
        y_pred[rows] = choose_thresholds(rule, y[others], proba[others], positive).decide(proba[rows])
    score = measure.score(y, measure.outputs(y_pred, proba))
    return thresholds, replace(chosen, y_pred=y_pred, proba=proba, score=score)


def _folds(held_out: SplitData, random_state: int) -> list[np.ndarray]:
    """Return the samples of each fold; none where all are of one group, and known by the threshold of all."""
    try:
        fold = fold_numbers(held_out.y, held_out.groups, random_state=random_state)
    except TaskError:
        return []
    return [np.flatnonzero(fold == number) for number in range(int(fold.max()) + 1)]
