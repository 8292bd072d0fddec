"""What the results of a sweep say: means over resamplings, their intervals, and which heads are worse than the best.

A row of the table that a sweep makes: one search, and what came of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from operator import attrgetter

import numpy as np
from scipy.stats import t as student_t

from featurecache.evaluation.class_measure import OfClasses
from featurecache.evaluation.comparison import Verdict, verdict_of
from featurecache.evaluation.intervals import Z95, holding, wilson
from featurecache.evaluation.measures import OfLabels, measure_of
from featurecache.evaluation.metrics import SCORES_OF_METRICS, is_less_better
from featurecache.evaluation.number_measure import OfNumbers
from featurecache.specs import TaskKind

# A table has the same columns whatever kinds of task are in it, so that tables of several sweeps fit together.
_ALWAYS = [name for measure in (OfClasses, OfLabels, OfNumbers) for name in measure.score_titles]
_SCORES = dict.fromkeys([*_ALWAYS, *(name for metrics in SCORES_OF_METRICS.values() for name, _ in metrics.values())])
_SCORE_COLUMNS = tuple(name + end for name in _SCORES for end in ("", "_low", "_high"))
COLUMNS = (
    "task", "kind", "backbone", "fingerprint", "tap", "dtype", "views", "judged_on", "head", "balanced", "seed", "fold",
    "num_folds", "shots", "share", "part", "n_train", "n_available", "n", "params", "measure", "score",
    "score_low", "score_high", *_SCORE_COLUMNS, "scores_of_numbers",
    "expected_calibration_error", "selection_accuracy", "selection_score", "seconds", "converged", "error",
)  # fmt: skip
"""Of tables and kept results. ``score`` is the score that ``measure`` names, by which settings are chosen; scores of
other kinds of task are None. ``scores_of_numbers`` is JSON: of several numbers, the errors of each in its unit."""
# Results are kept under names that earlier releases wrote: other columns would be other results, computed again.
_ATTRIBUTES = {"judged_on": "evaluated_on", "part": "split"}

Value = str | int | float | None
"""Of a column."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepNames:
    """What a head was fitted on and how, but for the resampling; means are over rows that have all of it in common.

    Attributes
    ----------
    task, kind, backbone, fingerprint, tap, dtype, views
        The task, and the features that the head was fitted on.
    measure : str
        The score by which settings are chosen.
    shots, share
        As in `Resampling`.
    split : str
        What the head was evaluated on: ``fold``, ``validation``, ``test``, or ``held out`` of train.
    evaluated_on : str
        ``plain`` features, or ``views``.
    head, balanced
        What was fitted, and whether classes count alike.
    """

    task: str
    kind: TaskKind
    measure: str
    shots: int | None
    share: float | None
    split: str
    backbone: str
    fingerprint: str
    tap: str
    dtype: str
    views: int | None
    evaluated_on: str
    head: str
    balanced: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepRow(SweepNames):
    """A head on the features of a task under one resampling, and its scores.

    Attributes
    ----------
    seed, fold, num_folds
        As in `Resampling`.
    n_available : int
        Samples that could have been fitted on, had no labels been taken away.
    n_train, n : int or None
        Samples that were fitted on, and evaluated on.
    scores : mapping of str to float
        Those of the kind of task, with ``_low`` and ``_high``, which may be None; none where the head could not be
        fitted.
    params : str or None
        The chosen setting, as JSON.
    expected_calibration_error : float or None
        Of classes.
    selection_accuracy, selection_score, seconds, converged
        As in `HeadResult`.
    error : str or None
        Why the head could not be fitted.
    """

    seed: int
    fold: int | None
    num_folds: int | None
    n_available: int
    n_train: int | None = None
    n: int | None = None
    scores: Mapping[str, float | None] = field(default_factory=dict)
    params: str | None = None
    expected_calibration_error: float | None = None
    selection_accuracy: float | None = None
    selection_score: float | None = None
    seconds: float | None = None
    converged: bool | None = None
    error: str | None = None

    @property
    def score(self) -> float:
        """The score that ``measure`` names; only of a head that could be fitted."""
        value = self.scores[self.measure]
        assert value is not None, "scores have values, only bounds may have none"
        return value

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The 95 % interval of the score; None where no interval can be given."""
        low, high = (self.scores.get(f"{self.measure}_{end}") for end in ("low", "high"))
        return None if low is None or high is None else (low, high)

    @property
    def num_evaluated(self) -> int:
        """Samples that the score is of."""
        assert self.n is not None, "the head could not be fitted"
        return self.n

    @property
    def set_key(self) -> str:
        """Equal to `FeatureSet.key` of the features."""
        return f"{self.fingerprint} {self.tap} {self.dtype}"

    def to_json(self) -> dict[str, Value]:
        """Return the value of each of `COLUMNS`."""
        values = asdict(self)
        values |= {column: values[attribute] for column, attribute in _ATTRIBUTES.items()}
        values |= {f"score{end}": self.scores.get(self.measure + end) for end in ("", "_low", "_high")}
        values |= self.scores
        # Tables of several tasks fit together, whatever their numbers are called.
        of_numbers = {name: value for name, value in self.scores.items() if name not in _SCORE_COLUMNS}
        values["scores_of_numbers"] = json.dumps(of_numbers) if of_numbers else None
        return {column: values.get(column) for column in COLUMNS}

    @classmethod
    def from_json(cls, values: Mapping[str, Value]) -> SweepRow:
        """Return the row that `to_json` gave these values."""
        kept = {_ATTRIBUTES.get(column, column): value for column, value in values.items()}
        scores = {name: value for name in _SCORE_COLUMNS if (value := kept.pop(name)) is not None}
        scores |= json.loads(str(kept.pop("scores_of_numbers") or "{}"))
        for name in ("score", "score_low", "score_high"):
            del kept[name]
        return cls(**kept, scores=scores)  # type: ignore[arg-type]


_shared_by = attrgetter("task", "kind", "measure", "shots", "share", "split")
"""What lines have in common that are compared: scores of another kind, or of other labels, are not of one scale."""
_NAMES = [field.name for field in fields(SweepNames)]
_names_of = attrgetter(*_NAMES)


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepLine(SweepNames):
    """A head on the features of a task, with as many labels to fit on: the mean over its resamplings.

    Attributes
    ----------
    num_resamplings, num_failed : int
        Over how many of them the means are, and in how many the head could not be fitted.
    score, low, high : float or None
        The mean score and its 95 % interval; None where all failed, bounds also where no interval can be given.
    accuracy : float or None
        Of classes.
    n_train, n_available, seconds : float or None
        Means.
    against_best : str or None
        How the line compares with the best one of its task with as many labels; None for that one, and where the two
        have no two resamplings in common.
    """

    num_resamplings: int
    num_failed: int
    score: float | None = None
    low: float | None = None
    high: float | None = None
    accuracy: float | None = None
    n_train: float | None = None
    n_available: float | None = None
    seconds: float | None = None
    against_best: Verdict | None = None

    def to_json(self) -> dict[str, object]:
        """Return plain JSON values, by the names that earlier releases gave them."""
        earlier = {"split": "part", "evaluated_on": "judged_on", "num_resamplings": "divisions", "num_failed": "failed"}
        return {earlier.get(name, name): value for name, value in asdict(self).items()}


def summarise(rows: Sequence[SweepRow]) -> list[SweepLine]:
    """Return one line for each head on each tap of each task with the same labels to fit on, the best first.

    Where each resampling is evaluated on samples of its own (folds, or held out by seed), the interval of the mean is
    that of the corrected resampled t-test (Nadeau & Bengio, "Inference for the generalization error", Machine Learning
    52, 2003): variance times ``1 / J + n_test / n_train``. Where all are evaluated on one split, or fewer labels are
    drawn than there are, the spread between draws and the sampling of that split are added: binomial for accuracy, for
    other scores what the bootstrap intervals of the resamplings imply. A line is compared with the best one resampling
    by resampling, likewise.

    Parameters
    ----------
    rows
        From `featurecache.evaluation.sweep.run_sweep`; those with ``error`` are only counted.
    """
    groups: dict[tuple[object, ...], list[SweepRow]] = {}
    for row in rows:
        groups.setdefault(_names_of(row), []).append(row)
    # Rows that failed have no score, and stay out of all comparisons.
    lines = [(_line(group), [row for row in group if row.error is None]) for group in groups.values()]
    lines.sort(key=lambda line: (_sort_key(line[0]), math.inf if line[0].score is None else -_gain(line[0])))
    best: dict[tuple[object, ...], list[SweepRow]] = {}
    found = []
    for line, good in lines:
        first = best.setdefault(_shared_by(line), good)
        verdict = None if first is good or line.score is None else _against(good, first)
        found.append(replace(line, against_best=verdict))
    return found


def uncompared(lines: Sequence[SweepLine]) -> list[SweepLine]:
    """Return the lines of `summarise` that could not be compared with the best of their task, and are not that."""
    best: dict[tuple[object, ...], SweepLine] = {}
    for line in lines:
        best.setdefault(_shared_by(line), line)
    return [
        line
        for line in lines
        if line is not best[_shared_by(line)] and line.score is not None and line.against_best is None
    ]


def _gain(line: SweepLine | SweepRow) -> float:
    """Return the score of a line that has one, the greater the better."""
    assert line.score is not None
    return -line.score if is_less_better(line.measure) else line.score


def _sort_key(line: SweepLine) -> list[tuple[int, float, str]]:
    """Return a key by which names sort as names and numbers as numbers: 5 shots before 10, before all."""
    return [
        (2, 0.0, "")
        if shared is None
        else (0, float(shared), "")
        if isinstance(shared, int | float)
        else (1, 0.0, str(shared))
        for shared in _shared_by(line)
    ]


def _line(group: list[SweepRow]) -> SweepLine:
    good = [row for row in group if row.error is None]
    names = dict(zip(_NAMES, _names_of(group[0]), strict=True))
    line = SweepLine(**names, num_resamplings=len(good), num_failed=len(group) - len(good))
    if not good:
        return line
    score = _mean([row.score for row in good])
    # A mean of equal scores, and the bounds of one of them, may differ in the last digit.
    bounds = _interval(good)
    low, high = (None, None) if bounds is None else holding(score, *bounds)
    return replace(
        line,
        score=score,
        low=low,
        high=high,
        accuracy=_mean([row.scores["accuracy"] for row in good]) if line.kind == "classification" else None,
        n_train=_mean([row.n_train for row in good]),
        n_available=_mean([row.n_available for row in good]),
        seconds=_mean([row.seconds for row in good]),
    )


def _mean(values: Sequence[float | None]) -> float:
    return float(np.mean(np.array(values, np.float64)))


def _interval(rows: list[SweepRow]) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean score over resamplings; None where some of them have none."""
    first, bounds = rows[0], [row.bounds for row in rows]
    if len(rows) == 1:
        return first.bounds
    scores = np.array([row.score for row in rows])
    mean = float(scores.mean())
    sampling = [_sampling_variance(row, mean) for row in rows]
    half = _half_width(scores, rows, None if None in sampling else _mean(sampling))
    if half is None:
        return None
    if half:
        least, most = measure_of(first.kind, 1, balanced=first.balanced).range_of(first.measure)
        return max(mean - half, least), min(mean + half, most)
    # All alike, which is no certainty: as with one resampling.
    if first.measure == "accuracy":
        low, high = wilson(round(mean * first.num_evaluated), first.num_evaluated)
        return float(low), float(high)
    given = [ends for ends in bounds if ends is not None]
    return (min(low for low, _ in given), max(high for _, high in given)) if len(given) == len(rows) else None


def _sampling_variance(row: SweepRow, score: float) -> float | None:
    """Return the variance of a score that comes from which samples are evaluated; None where it is not known."""
    if row.measure == "accuracy":
        return score * (1 - score) / row.num_evaluated
    return None if row.bounds is None else ((row.bounds[1] - row.bounds[0]) / (2 * Z95)) ** 2


def _half_width(values: np.ndarray, rows: list[SweepRow], sampling: float | None) -> float | None:
    """Return half of a 95 % interval of a mean over resamplings, None where it is not known.

    Parameters
    ----------
    values : ndarray (n_resamplings,)
    rows : list of SweepRow
    sampling : float or None
        Variance of the evaluated split, where it is known.
    """
    spread, count = float(values.var(ddof=1)), len(values)
    # With fewer labels, drawings overlap less, and their spread counts as it is.
    all_labels = rows[0].shots is None and rows[0].share in (None, 1.0)
    if rows[0].split in ("fold", "held out") and all_labels:
        share = _mean([row.n for row in rows]) / _mean([row.n_train for row in rows])
        of_draws, of_samples = spread * (1 / count + share), 0.0
    elif sampling is None:
        return None
    else:
        of_draws, of_samples = spread / count, sampling
    return math.hypot(float(student_t.ppf(0.975, count - 1)) * math.sqrt(of_draws), Z95 * math.sqrt(of_samples))


def _against(rows: list[SweepRow], best: list[SweepRow]) -> Verdict | None:
    """Say whether a line is worse than the best; None for one resampling, as `train` compares by sample."""
    # Paired: the same seed draws the same samples for both heads.
    theirs = {(row.seed, row.fold): row for row in best}
    shared = [(row, theirs[row.seed, row.fold]) for row in rows if (row.seed, row.fold) in theirs]
    if len(shared) < 2:
        return None
    differences = np.array([_gain(row) - _gain(other) for row, other in shared])
    mean = float(differences.mean())
    sampling = [_sampling_variance_of_difference(*pair) for pair in shared]
    half = _half_width(differences, [row for row, _ in shared], None if None in sampling else _mean(sampling))
    return "cannot tell" if half is None else verdict_of(mean - half, mean + half)


def _sampling_variance_of_difference(row: SweepRow, other: SweepRow) -> float | None:
    """Return what the variance of a difference of scores, on the same samples, is at most; it is not known here."""
    if row.measure == "accuracy":
        # Of one sample, the difference is 1, 0 or -1, and its variance at most the share of samples that are evaluated
        # differently, which is at most the sum of both shares of errors.
        return min(2 - row.score - other.score, 1.0) / row.num_evaluated
    # Both heads find the same samples hard, so their scores go up and down together, not against each other.
    one, another = (_sampling_variance(line, line.score) for line in (row, other))
    return None if one is None or another is None else one + another
