"""How far probabilities can be taken at their word.

Where a head was right and wrong: each class, label or number by itself, and what is mistaken for what.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import binom

from featurecache.evaluation.intervals import mean_interval
from featurecache.evaluation.metrics import log_loss_rows
from featurecache.evaluation.scores import OutputScores
from featurecache.records import PlainValues
from featurecache.specs import TASK_NOUN, TaskKind

NUM_BINS = 10
LEAST_SAMPLES = 200
"""Of fewer, the calibration error of probabilities that are right is above 0.06, and says nothing."""


@dataclass(frozen=True, slots=True)
class Bin:
    """Samples whose predictions have about the same probability."""

    n: int
    probability: float
    """Mean of the probabilities of their predictions."""
    right: float
    """Share of their predictions that are right."""


@dataclass(frozen=True, slots=True)
class Calibration(PlainValues):
    """How the probabilities of predictions compare with how often these are right.

    Attributes
    ----------
    log_loss : float
        In nats.
    brier_score : float
        Mean of the squared differences between probabilities and what happened, summed over the classes (Brier,
        Monthly Weather Review 78, 1950): from 0 to 2.
    log_loss_low, log_loss_high, brier_score_low, brier_score_high : float or None
        Ends of 95 % intervals of these means, by Student's t; None of fewer than five samples or groups.
    expected_calibration_error : float or None
        Mean difference between the probability of the prediction and the share of right predictions, over bins of about
        as many samples each (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3; equal bins
        after Nguyen & O'Connor, EMNLP 2015). None of fewer than `LEAST_SAMPLES`.
    error_by_chance : float or None
        What that is on average of probabilities that are right.
    bins : list of Bin
        From the least certain to the most; none of fewer than `LEAST_SAMPLES`.
    """

    log_loss: float
    log_loss_low: float | None
    log_loss_high: float | None
    brier_score: float
    brier_score_low: float | None
    brier_score_high: float | None
    expected_calibration_error: float | None
    error_by_chance: float | None
    bins: list[Bin]


def calibration(y: np.ndarray, proba: np.ndarray, groups: np.ndarray | None = None) -> Calibration:
    """Compare the probabilities of a head's predictions with how often they are right.

    Parameters
    ----------
    y : ndarray of shape (n_samples,), class indices
    proba : ndarray of shape (n_samples, n_classes)
        Rows sum to one; of samples that nothing was fitted on.
    groups : ndarray of int (n_samples,), optional
        Samples of one group are alike: intervals are of as many groups.
    """
    squares = ((proba - np.eye(proba.shape[1])[y]) ** 2).sum(axis=1)
    error, by_chance, bins = _calibration_error(y, proba) if len(y) >= LEAST_SAMPLES else (None, None, [])
    losses = -log_loss_rows(proba[np.arange(len(y)), y])
    values: dict[str, float | None] = {}
    for name, of_rows in (("log_loss", losses), ("brier_score", squares)):
        low, high = mean_interval(of_rows, groups) or (None, None)
        # Neither is below 0, which Student's t does not know.
        low = None if low is None else max(low, 0.0)
        values |= {name: float(of_rows.mean()), f"{name}_low": low, f"{name}_high": high}
    return Calibration(
        **values,  # type: ignore[arg-type]
        expected_calibration_error=error,
        error_by_chance=by_chance,
        bins=bins,
    )


def _calibration_error(y: np.ndarray, proba: np.ndarray) -> tuple[float, float, list[Bin]]:
    confidence, right = proba.max(axis=1), proba.argmax(axis=1) == y
    # As many samples in each bin: with bins of equal width, nearly all samples of a good head lie in the last one.
    rows_of_bins = np.array_split(np.argsort(confidence, kind="stable"), NUM_BINS)
    bins = [Bin(len(rows), float(confidence[rows].mean()), float(right[rows].mean())) for rows in rows_of_bins]
    error, by_chance = 0.0, 0.0
    for some in bins:
        error += some.n * abs(some.probability - some.right)
        # By how much a binomial number differs from its mean on average (de Moivre, 1730).
        above = np.floor(some.n * some.probability) + 1
        by_chance += float(2 * above * binom.pmf(above, some.n, some.probability) * (1 - some.probability))
    return error / len(y), by_chance / len(y), bins


@dataclass(frozen=True, slots=True, eq=False)
class Details:
    """Where a head was right and wrong.

    Attributes
    ----------
    per_output : list of OutputScores
        Of each class, label or number.
    calibration : Calibration or None
        Of classes.
    confusion : ndarray of int64 (n_classes, n_classes), or None
        Of classes: rows are true, columns predicted.
    """

    per_output: list[OutputScores]
    calibration: Calibration | None = None
    confusion: np.ndarray | None = None

    def to_json(self, kind: TaskKind) -> dict[str, object]:
        """Return plain JSON values, for a task of a kind."""
        # Keys of a report are the words for this kind of task: per_class, per_label, per_number.
        values: dict[str, object] = {f"per_{TASK_NOUN[kind]}": self.per_output}
        if self.calibration is not None and self.confusion is not None:
            values |= {"calibration": self.calibration.to_json(), "confusion": self.confusion.tolist()}
        return values
