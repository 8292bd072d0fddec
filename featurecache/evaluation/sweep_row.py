"""A row of the table that a sweep makes: one search, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from featurecache.evaluation.class_measure import OfClasses
from featurecache.evaluation.measures import OfLabels
from featurecache.evaluation.metrics import SCORES_OF_METRICS
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
