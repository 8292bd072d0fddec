"""What it means to be right about classes, about labels and about numbers: one measure for each kind of task.

A measure says how a head answers, by which figure settings and heads are chosen, and which figures are shown, each with
a 95 % interval. Figures of labels and numbers are scikit-learn's; their intervals, and comparisons of two heads, come
from a bootstrap over samples, or over groups of them (Efron, 1979; Davison & Hinkley, 1997, 3.8), in which each
resample is a weight for each sample: the figures are computed from weights for all resamples at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from scipy.stats import t as student_t
from sklearn.base import BaseEstimator
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    mean_absolute_error,
    precision_recall_fscore_support,
    r2_score,
    recall_score,
    root_mean_squared_error,
)

from featurecache.errors import TaskError
from featurecache.evaluation.comparison import Comparison, compare, verdict_of
from featurecache.evaluation.intervals import holding
from featurecache.evaluation.judging import predictions, probabilities, said
from featurecache.evaluation.parts import Part
from featurecache.evaluation.resampling import (
    average_precision,
    expanded,
    num_units,
    ranked_where,
    slack,
    weights_of_resamples,
)
from featurecache.evaluation.scores import Scores, per_class, score
from featurecache.heads.checks import UNKNOWN, is_partial, known_cells
from featurecache.specs import TaskKind


class Figures(dict[str, float]):
    """Figures by name, each with ``_low`` and ``_high``, and ``n``, the number of samples."""

    def to_json(self) -> dict[str, Any]:
        """Return a dict of plain numbers, all finite."""
        return dict(self)


class Measure(ABC):
    """How heads of one kind of task are judged.

    Parameters
    ----------
    n_outputs : int
        Classes, labels or numbers.
    """

    kind: ClassVar[TaskKind]
    primary: ClassVar[str]
    """The figure by which heads are compared on the last look."""
    titles: ClassVar[dict[str, str]]
    """All figures, the primary first, and what tables call them."""
    balanced: bool = False
    """Classes count alike."""

    def __init__(self, n_outputs: int) -> None:
        self.n_outputs = n_outputs

    @property
    def chosen_by(self) -> str:
        """Name of the figure that `goodness` gives."""
        return self.primary

    def range_of(self, name: str) -> tuple[float, float]:
        """Return the least and the greatest that a figure can be."""
        return 0.0, 1.0

    @abstractmethod
    def check(self, name: str, y: np.ndarray) -> np.ndarray:
        """Return what is said of the samples of a part as an array, or raise `TaskError`."""

    @abstractmethod
    def goodness(self, y: np.ndarray, answers: np.ndarray) -> float:
        """Return the figure by which settings and heads are chosen; the greater the better."""

    @abstractmethod
    def answers(self, estimator: BaseEstimator, part: Part, temperature: float) -> np.ndarray:
        """Return what a head answers, of which `goodness` and `figures` judge."""

    @abstractmethod
    def certainties(self, estimator: BaseEstimator, part: Part, temperature: float, answers: np.ndarray) -> np.ndarray:
        """Return probabilities of classes or labels, (n_samples, n_outputs); the numbers themselves."""

    @abstractmethod
    def figures(
        self, y: np.ndarray, answers: np.ndarray, groups: np.ndarray | None, *, random_state: int
    ) -> Scores | Figures:
        """Return all figures with their intervals."""

    @abstractmethod
    def compare(self, y: np.ndarray, first: np.ndarray, second: np.ndarray, groups: np.ndarray | None) -> Comparison:
        """Compare the answers of two heads for the same samples."""

    @abstractmethod
    def per_output(self, y: np.ndarray, answers: np.ndarray, names: list[str]) -> list[dict[str, Any]]:
        """Return figures of each class, label or number by itself."""


def measure_of(kind: TaskKind, n_outputs: int, *, balanced: bool = False) -> Measure:
    """Return the measure for a kind of task.

    Raises
    ------
    TaskError
        Balanced classes where there are none.
    """
    if kind == "classes":
        return OfClasses(n_outputs, balanced=balanced)
    if balanced:
        raise TaskError(f"balanced classes are for tasks with classes, and this one has {kind}; leave balanced out")
    return OfLabels(n_outputs) if kind == "labels" else OfNumbers(n_outputs)


class OfClasses(Measure):
    """Accuracy, or balanced accuracy."""

    kind = "classes"
    primary = "accuracy"
    titles: ClassVar = {"accuracy": "accuracy", "balanced_accuracy": "balanced", "macro_f1": "macro F1"}

    def __init__(self, n_outputs: int, *, balanced: bool = False) -> None:
        super().__init__(n_outputs)
        self.balanced = balanced

    @property
    def chosen_by(self) -> str:
        """See `Measure`."""
        return "balanced_accuracy" if self.balanced else self.primary

    def check(self, name: str, y: np.ndarray) -> np.ndarray:
        """See `Measure`."""
        if y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= self.n_outputs:
            last = self.n_outputs - 1
            raise TaskError(f"{name} labels are not class indices in 0..{last}; encode labels as class indices")
        if name == "train" and len(classes := np.unique(y)) < 2:
            raise TaskError(
                f"all {len(y)} train rows are of class {int(classes[0])}; a head needs rows of two classes or more"
            )
        return y.astype(np.int64)

    def goodness(self, y: np.ndarray, answers: np.ndarray) -> float:
        """See `Measure`."""
        if self.balanced:
            return float(recall_score(y, answers, labels=np.unique(y), average="macro", zero_division=0.0))
        return float(np.mean(y == answers))

    def answers(self, estimator: BaseEstimator, part: Part, temperature: float) -> np.ndarray:
        """Return class indices (n_samples,)."""
        return predictions(estimator, part, temperature, self.n_outputs)

    def certainties(self, estimator: BaseEstimator, part: Part, temperature: float, answers: np.ndarray) -> np.ndarray:
        """See `Measure`."""
        return probabilities(estimator, part, temperature, self.n_outputs)

    def figures(self, y: np.ndarray, answers: np.ndarray, groups: np.ndarray | None, *, random_state: int) -> Scores:
        """See `Measure`."""
        return score(y, answers, self.n_outputs, groups=groups, random_state=random_state)

    def compare(self, y: np.ndarray, first: np.ndarray, second: np.ndarray, groups: np.ndarray | None) -> Comparison:
        """See `Measure`."""
        return compare(y, first, second, groups, balanced=self.balanced)

    def per_output(self, y: np.ndarray, answers: np.ndarray, names: list[str]) -> list[dict[str, Any]]:
        """See `featurecache.evaluation.scores.per_class`."""
        return per_class(y, answers, names)


class _Resampled(Measure):
    """Figures that are computed from weights."""

    unbounded: ClassVar[tuple[str, ...]] = ()
    """Figures with units, which nothing bounds from above."""

    def answers(self, estimator: BaseEstimator, part: Part, temperature: float) -> np.ndarray:
        """Return what a head says, (n_samples, n_outputs): the mean over what a sample is judged on."""
        return said(estimator, part)

    def certainties(self, estimator: BaseEstimator, part: Part, temperature: float, answers: np.ndarray) -> np.ndarray:
        """Return the answers: they are what `Measure` asks for."""
        return answers

    def figures(self, y: np.ndarray, answers: np.ndarray, groups: np.ndarray | None, *, random_state: int) -> Figures:
        """See `Measure`."""
        weighted = self.weighted(y, answers)
        draws = np.concatenate([weighted(weights) for weights in weights_of_resamples(len(y), groups, random_state)])
        point, count = np.array(self.point(y, answers)), num_units(len(y), groups)
        low, high = expanded(point, np.nanpercentile(draws, [2.5, 97.5], axis=0), count)
        found = Figures(n=len(y))
        for place, name in enumerate(self.titles):
            # Where every resample is alike, the bootstrap claims a certainty that there is not.
            certain = high[place] - low[place] < 1e-12 and name not in self.unbounded
            wider = slack(count) if certain else 0.0
            found[name] = float(point[place])
            least, most = self.range_of(name)
            ends = float(max(low[place] - wider, least)), float(min(high[place] + wider, most))
            found[f"{name}_low"], found[f"{name}_high"] = holding(found[name], *ends)
        return found

    def compare(self, y: np.ndarray, first: np.ndarray, second: np.ndarray, groups: np.ndarray | None) -> Comparison:
        """Compare by a bootstrap of the difference: both heads on the same resamples."""
        place = list(self.titles).index(self.primary)
        one, other = self.weighted(y, first), self.weighted(y, second)
        draws = np.concatenate([one(w)[:, place] - other(w)[:, place] for w in weights_of_resamples(len(y), groups, 0)])
        draws = draws[np.isfinite(draws)]
        difference = float(self.point(y, first)[place] - self.point(y, second)[place])
        if not len(draws):  # what is compared varies in no resample
            return Comparison(difference, -np.inf, np.inf, 1.0, "cannot tell")
        count = num_units(len(y), groups)
        ends = (float(end) for end in expanded(difference, np.percentile(draws, [2.5, 97.5]), count))
        low, high = holding(difference, *ends)
        if high - low < 1e-12:
            low, high = low - slack(count), high + slack(count)
            return Comparison(difference, low, high, 1.0, verdict_of(low, high))
        error = float(draws.std()) * np.sqrt(count / (count - 1))
        p_value = float(2 * student_t.sf(abs(difference) / error, count - 1))
        return Comparison(difference, low, high, p_value, verdict_of(low, high))

    def range_of(self, name: str) -> tuple[float, float]:
        """See `Measure`."""
        return 0.0, np.inf if name in self.unbounded else 1.0

    @abstractmethod
    def point(self, y: np.ndarray, answers: np.ndarray) -> list[float]:
        """Return scikit-learn's figures, in the order of ``titles``."""

    @abstractmethod
    def weighted(self, y: np.ndarray, answers: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """Return what gives the figures (R, n_figures) of the samples for weights (R, n_samples)."""


class OfLabels(_Resampled):
    """Mean average precision; answers are probabilities, and a label is named from one half on."""

    kind = "labels"
    primary = "mean_average_precision"
    titles: ClassVar = {
        "mean_average_precision": "mean AP",
        "micro_f1": "micro F1",
        "macro_f1": "macro F1",
        "exact_match": "all right",
    }

    def check(self, name: str, y: np.ndarray) -> np.ndarray:
        """See `Measure`."""
        if y.ndim != 2 or y.shape[1] != self.n_outputs or not np.isin(y, (0, 1, UNKNOWN)).all():
            raise TaskError(
                f"{name} labels are not 0 or 1 for each of {self.n_outputs} labels, or {UNKNOWN} where not known; "
                "encode them so"
            )
        _check_known(name, y)
        if not (y == 1).any():
            raise TaskError(f"no label holds for any of the {len(y)} {name} rows; nothing can be judged by them")
        return y.astype(np.int64)

    def goodness(self, y: np.ndarray, answers: np.ndarray) -> float:
        """See `Measure`."""
        there = (y == 1).any(axis=0)
        if not is_partial(y):
            return float(average_precision_score(y[:, there], answers[:, there], average="macro"))
        return float(
            np.mean([average_precision_score(*_where_known(y, answers, k)) for k in np.flatnonzero(there).tolist()])
        )

    def point(self, y: np.ndarray, answers: np.ndarray) -> list[float]:
        """See `_Resampled`."""
        named = (answers > 0.5).astype(np.int64)
        if is_partial(y):
            (found,) = self.weighted(y, answers)(np.ones((1, len(y))))
            return [self.goodness(y, answers), *map(float, found[1:])]
        f1 = [float(f1_score(y, named, average=average, zero_division=0.0)) for average in ("micro", "macro")]
        return [self.goodness(y, answers), *f1, float(accuracy_score(y, named))]

    def weighted(self, y: np.ndarray, answers: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """See `_Resampled`."""
        known, holds = known_cells(y), y == 1
        named, judged = answers > 0.5, known.any(axis=1).astype(np.float64)
        right = ((named == holds) | ~known).all(axis=1) * judged
        in_order = [ranked_where(known[:, k], y[:, k], answers[:, k]) for k in np.flatnonzero(holds.any(axis=0))]
        # Labels of which nothing is known have no F1.
        of_labels = known.any(axis=0)
        counts = [(named & holds)[:, of_labels] * 1.0, ((named & known) * 1.0 + holds)[:, of_labels]]
        counted = np.concatenate(counts, axis=1)

        def figures(weights: np.ndarray) -> np.ndarray:
            precisions = np.stack([average_precision(weights, *each) for each in in_order], axis=1)
            found = ~np.isnan(precisions)
            mean = np.where(found, precisions, 0.0).sum(axis=1) / np.maximum(found.sum(axis=1), 1)
            both, either = np.split(weights @ counted, 2, axis=1)
            micro = 2 * both.sum(axis=1) / np.maximum(either.sum(axis=1), 1e-300)
            macro = (2 * both / np.maximum(either, 1e-300)).mean(axis=1)
            all_right = weights @ right / np.maximum(weights @ judged, 1e-300)
            return np.stack([mean, micro, macro, all_right], axis=1)

        return figures

    def per_output(self, y: np.ndarray, answers: np.ndarray, names: list[str]) -> list[dict[str, Any]]:
        """Return average precision (None for a label that no sample has), precision, recall and F1 of each label.

        Each is judged on the samples for which it is known, ``known`` of them; where that is none, it has no figures.
        """
        found: list[dict[str, Any]] = []
        for k, name in enumerate(names):
            holds, values = _where_known(y, answers, k)
            found.append({"label": name, "n": int(holds.sum())})
            if is_partial(y):
                found[-1]["known"] = len(holds)
            found[-1] |= dict.fromkeys(("average_precision", "precision", "recall", "f1"))
            if holds.any():
                found[-1]["average_precision"] = float(average_precision_score(holds, values))
            if len(holds):
                each = precision_recall_fscore_support(holds, values > 0.5, average="binary", zero_division=0.0)
                found[-1] |= zip(("precision", "recall", "f1"), map(float, each[:3]), strict=True)
        return found


class OfNumbers(_Resampled):
    """Coefficient of determination, the mean over the numbers; errors are in their units."""

    kind = "numbers"
    primary = "r2"
    titles: ClassVar = {"r2": "R2", "mean_absolute_error": "mean error", "root_mean_squared_error": "RMSE"}
    unbounded = ("mean_absolute_error", "root_mean_squared_error")

    def check(self, name: str, y: np.ndarray) -> np.ndarray:
        """See `Measure`."""
        if y.ndim != 2 or y.shape[1] != self.n_outputs or y.dtype.kind not in "iuf" or np.isinf(y).any():
            raise TaskError(f"{name} labels are not {self.n_outputs} finite numbers for each row; correct them")
        if np.isnan(y).all():
            raise TaskError(f"{name} labels are not {self.n_outputs} finite numbers for each row: none is known")
        _check_known(name, y)
        if len(y) < 2:
            raise TaskError(f"the {name} part has one row; numbers are judged by how they vary over rows: give it more")
        for k in range(y.shape[1]):
            values = y[np.isfinite(y[:, k]), k]
            if len(values) and (values == values[0]).all() and (name == "train" or len(values) == len(y)):
                raise TaskError(
                    f"number {k + 1} of {y.shape[1]} is {values[0]:g} in all {len(values)} {name} rows, so "
                    "nothing is learned or judged by it; leave that number out, or divide the samples otherwise"
                )
        if not _judged_numbers(y):
            raise TaskError(f"no number varies over the {name} rows where it is known, so nothing can be judged by it")
        return y.astype(np.float64)

    def goodness(self, y: np.ndarray, answers: np.ndarray) -> float:
        """See `Measure`."""
        if not is_partial(y):
            return float(r2_score(y, answers))
        return float(np.mean([r2_score(*_where_known(y, answers, k)) for k in _judged_numbers(y)]))

    def range_of(self, name: str) -> tuple[float, float]:
        """See `_Resampled`: worse than the mean has no end."""
        return (-np.inf, 1.0) if name == "r2" else super().range_of(name)

    def point(self, y: np.ndarray, answers: np.ndarray) -> list[float]:
        """See `_Resampled`."""
        if is_partial(y):
            each = [_where_known(y, answers, k) for k in _judged_numbers(y)]
            figures = ([figure(*one) for one in each] for figure in (mean_absolute_error, root_mean_squared_error))
            return [self.goodness(y, answers), *(float(np.mean(values)) for values in figures)]
        errors = float(mean_absolute_error(y, answers)), float(root_mean_squared_error(y, answers))
        return [self.goodness(y, answers), *errors]

    def weighted(self, y: np.ndarray, answers: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """See `_Resampled`."""
        judged = _judged_numbers(y)
        y, answers, known = y[:, judged], answers[:, judged], np.isfinite(y[:, judged])
        error, centred = (np.where(known, each, 0.0) for each in (y - answers, y - np.nanmean(y, axis=0)))
        counted = np.concatenate([error**2, centred**2, centred, np.abs(error)], axis=1)
        # A resample may hold one number only: what rounding leaves of its spread is none.
        no_spread = 1e-9 * (centred**2).sum(axis=0) / known.sum(axis=0)
        in_part = known.astype(np.float64)

        def figures(weights: np.ndarray) -> np.ndarray:
            total = np.tile(weights @ in_part, 4)
            with np.errstate(divide="ignore", invalid="ignore"):  # a resample may hold no row where a number is known
                squares, spread, mean, absolute = np.split((weights @ counted) / total, 4, axis=1)
            spread = spread - mean**2
            with np.errstate(divide="ignore", invalid="ignore"):
                r2 = np.where(spread > no_spread, 1 - squares / spread, np.nan)
            return np.stack([r2.mean(axis=1), absolute.mean(axis=1), np.sqrt(squares).mean(axis=1)], axis=1)

        return figures

    def per_output(self, y: np.ndarray, answers: np.ndarray, names: list[str]) -> list[dict[str, Any]]:
        """Return figures of each number by itself, and its spread, on the samples for which it is known.

        A number has None for what cannot be told of so few.
        """
        found: list[dict[str, Any]] = []
        for k, name in enumerate(names):
            values, said_of_them = _where_known(y, answers, k)
            figures: dict[str, Any] = dict.fromkeys(
                ("r2", "mean_absolute_error", "root_mean_squared_error", "mean", "standard_deviation")
            )
            if np.ptp(values, axis=0) > 0 if len(values) else False:
                figures["r2"] = float(r2_score(values, said_of_them))
            if len(values):
                figures["mean_absolute_error"] = float(mean_absolute_error(values, said_of_them))
                figures["root_mean_squared_error"] = float(root_mean_squared_error(values, said_of_them))
                figures |= {"mean": float(values.mean()), "standard_deviation": float(values.std())}
            found.append({"number": name, "n": len(values), **figures})
        return found


def _where_known(y: np.ndarray, answers: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what is known of one label or number, and what a head answers there."""
    known = known_cells(y[:, k])
    return y[known, k], answers[known, k]


def _judged_numbers(y: np.ndarray) -> list[int]:
    """Return which numbers can be judged: those that are not all alike where they are known."""
    return [k for k in range(y.shape[1]) if len(np.unique(y[np.isfinite(y[:, k]), k])) > 1]


def _check_known(name: str, y: np.ndarray) -> None:
    """Raise `TaskError` for a label or number of which the train part knows nothing."""
    nothing = np.flatnonzero(~known_cells(y).any(axis=0))
    if name == "train" and len(nothing):
        raise TaskError(
            f"label or number {nothing[0] + 1} of {y.shape[1]} is not known for any of the {len(y)} train rows; leave "
            "it out, or divide the samples otherwise"
        )
