"""Heads trained on cached features of a task: one result for each feature set and head.

Heads that are trained on augmented views are evaluated on the plain features of the same samples, or on the mean of the
probabilities over their views.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import TYPE_CHECKING

import numpy as np

from featurecache.display import html_table
from featurecache.errors import HeadError, ReportWarning, unique_warnings
from featurecache.evaluation.calibration import Details, calibration
from featurecache.evaluation.changes import Changes
from featurecache.evaluation.chosen_score import ChosenScore, chosen_score, ranked
from featurecache.evaluation.comparison import Comparison
from featurecache.evaluation.configuring import HOLDS_ALL_ROWS, NEEDS_ALL_KNOWN, HeadLike, reason_to_leave_out, resolve
from featurecache.evaluation.kept_results import KeptResults
from featurecache.evaluation.measure import Measure
from featurecache.evaluation.measures import measure_of
from featurecache.evaluation.memory_budget import MemoryBudget, memory_budget
from featurecache.evaluation.score_plot import plot_results
from featurecache.evaluation.scores import confusion
from featurecache.evaluation.search import HeadsAndData, search_all
from featurecache.evaluation.split_data import SplitData
from featurecache.evaluation.table_verdicts import compare_heads
from featurecache.evaluation.task_features import (
    MAX_NUMBERS,
    TaskFeatures,
    groups_in_memory,
    open_task_features,
    read_splits,
)
from featurecache.evaluation.trained_head import TrainedHead, reported_rows, selection_rows
from featurecache.heads.head import NamedHead
from featurecache.heads.registry import find_head, list_heads
from featurecache.progress import Progress
from featurecache.specs import as_tuple
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.labels import SPLITS
from featurecache.store.soundness import feature_warnings
from featurecache.store.store import FeatureStore
from featurecache.store.tasks import Task
from featurecache.wording import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CHOSEN = ("head", "backbone", "tap", "dtype", "views", "judged_on", "judged_views", "fingerprint", "params")
"""What says which head was chosen."""


@dataclass
class TrainingReport:
    """All trained heads, the chosen one first, and what was left out."""

    task: Task
    heads: list[TrainedHead]
    left_out: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Labelled samples without features: where first seen -> (status, reason)."""
    heads_left_out: dict[str, str] = field(default_factory=dict)
    """Heads that were not trained although all were asked for: name -> reason."""
    warnings: list[ReportWarning] = field(default_factory=list)
    """What is doubtful, of the task, the features and the fits."""
    changes: Changes | None = None
    """What changed since the training before, where the history of the task is kept."""

    def __repr__(self) -> str:
        best, name = self.best.result, self.measure.primary
        scores = (best.test or best.validation).to_json()
        value, low, high = (scores.get(f"{name}{end}") for end in ("", "_low", "_high"))
        interval = "" if low is None or high is None else f" ({low:.3f} to {high:.3f})"
        figure = "" if value is None else f", {best.reported} {name.replace('_', ' ')} {value:.3f}{interval}"
        return f"TrainingReport({self.task.name!r}: {best.head} of {counted(len(self.heads), 'head')}{figure})"

    def _repr_html_(self) -> str:
        primary = self.measure.primary
        rows = [
            (head.result.head, head.feature_set.tap, f"{head.result.selection_score:.3f}", head.result.protocol)
            for head in self.heads
        ]
        return html_table(repr(self), ["head", "tap", f"{primary} that chose it", "by"], rows)

    @property
    def best(self) -> TrainedHead:
        """The chosen head; see `featurecache.evaluation.chosen_score`."""
        return self.heads[0]

    def join(self, other: TrainingReport) -> None:
        """Take the heads of another report on the same task."""
        self.heads += other.heads
        self.heads = ranked(self.heads, self.measure, lambda head: head.result)
        self.left_out |= other.left_out
        self.heads_left_out |= other.heads_left_out
        self.warnings = unique_warnings([*self.warnings, *other.warnings])

    def comparisons(self) -> list[Comparison | None]:
        """Compare each head with the chosen one, by verdicts that hold for the whole table; in the order of ``heads``.

        None for the chosen one, and for heads that were chosen in another way, on other rows.
        """
        y, predictions, groups = _shared_rows(self.heads, self.measure)
        found = iter(compare_heads(self.measure, y, predictions, 0, groups))
        protocol = self.best.result.protocol
        compared = [next(found) if head.result.protocol == protocol else None for head in self.heads]
        return [None, *compared[1:]]

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draw the score that chose each head, with its interval, the chosen head on top.

        Parameters
        ----------
        axes : matplotlib.axes.Axes, optional
            Where to draw; a new figure when left out.

        Returns
        -------
        matplotlib.axes.Axes
        """
        metric = self.measure.primary
        return plot_results([head.to_json() for head in self.heads], metric, self.measure.titles[metric], axes)

    def chosen_score(self) -> ChosenScore | None:
        """Return the chosen head's score on the rows that chose it, corrected for that; None of a single head."""
        y, predictions, groups = _shared_rows(self.heads, self.measure)
        return chosen_score(self.measure, y, predictions, groups)

    def compare(self, head: TrainedHead, other: TrainedHead) -> Comparison | None:
        """Compare two heads by themselves on the rows by which both were chosen; None where these are not the same.

        Parameters
        ----------
        head, other : TrainedHead
            Named in advance: of a head that was chosen among several, `comparisons` is right.
        """
        if head is other or head.result.protocol != other.result.protocol:
            return None
        y, (first, second), groups = _shared_rows([head, other], self.measure)
        return self.measure.compare(y, first, second, groups)

    @property
    def measure(self) -> Measure:
        """The measure of the task, by which the heads were chosen."""
        task, result = self.task, self.best.result
        return measure_of(
            task.kind,
            len(task.classes),
            balanced=result.balanced,
            metric=result.metric,
            names=task.classes,
            positive=result.positive,
        )

    def to_json(self) -> dict[str, object]:
        """Return plain JSON values."""
        best = self.best.to_json()
        compared, chosen = zip(self.heads, self.comparisons(), strict=True), self.chosen_score()
        return {
            "task": self.task.name,
            "kind": self.task.kind,
            "figures": dict(self.measure.titles),
            "metric": self.measure.metric,
            "classes": self.task.classes,
            "counts": self.task.counts(),
            "about": self.task.about,
            "chosen": {name: best[name] for name in _CHOSEN},
            "chosen_score": None if chosen is None else chosen.to_json(),
            "left_out": [
                {"path": path, "status": status, "reason": reason} for path, (status, reason) in self.left_out.items()
            ],
            "heads_left_out": self.heads_left_out,
            "warnings": [warning.to_json() for warning in self.warnings],
            "changes": None if self.changes is None else self.changes.to_json(),
            "last_look": {"part": self.best.result.reported, **self.details().to_json(self.task.kind)},
            "results": [
                {**head.to_json(), "against_chosen": None if comparison is None else comparison.to_json()}
                for head, comparison in compared
            ],
        }

    def details(self) -> Details:
        """Return where the chosen head was right and wrong."""
        rows, y_true = reported_rows(self.best)
        y_pred, n_classes = self.best.result.y_pred, len(self.task.classes)
        per_output = self.measure.per_output(y_true, y_pred, self.task.classes)
        if self.task.kind != "classification":
            return Details(per_output)
        measured = calibration(y_true, self.best.result.proba, self.task.groups_of(rows))
        return Details(per_output, measured, confusion(y_true, y_pred, n_classes))


def train_heads(
    store: FeatureStore,
    task: Task,
    sets: Sequence[FeatureSet],
    heads: str | Sequence[HeadLike] = (),
    *,
    tta: bool = False,
    balanced: bool = False,
    metric: str | None = None,
    threshold: str | None = None,
    positive: str | None = None,
    n_jobs: int | None = None,
    memory: int | None = None,
    random_state: int = 0,
    progress: Progress | None = None,
    max_numbers: int = MAX_NUMBERS,
    take_up: bool = False,
) -> TrainingReport:
    """Train heads on every feature set; see `featurecache.evaluation.search` for how settings are chosen.

    Parameters
    ----------
    store : FeatureStore
        The cache that holds task and features.
    task : Task
        Targets and splits.
    sets : sequence of FeatureSet
        What to train on. Of a set with views, each view is a row to train on.
    heads : sequence of str or NamedHead
        Names of heads, or estimators with names; when empty, all that can weigh samples where these have weights, and
        that read features from the disk where memory does not hold them.
    tta : bool
        Evaluate heads on the mean of the probabilities over the cached views of each sample, instead of on its plain
        features: over those of a set with views, or the most that are cached for a plain one.
    balanced : bool
        Choose by balanced accuracy, and give all classes the same total weight where the head can; for tasks with
        classes only.
    metric : str, optional
        Choose by this metric instead of accuracy, mean average precision or R2: scikit-learn's name, such as
        ``roc_auc`` (see `featurecache.evaluation.metrics`).
    threshold : str, optional
        From which probability on the positive of two classes, or each of several labels, is predicted: ``f1``,
        ``recall=0.95``, ``precision=0.9`` or ``cost=5:1`` (what a missed positive and what a false alarm costs); see
        `featurecache.heads.thresholds`. Chosen for each head on the samples by which its setting is chosen.
    positive : str, optional
        Name of the positive class; the second of the task when left out.
    n_jobs : int, optional
        As for `evaluate_heads`.
    memory : int, optional
        Bytes of features in memory at most, half of what is free when left out. Where there are more, they are laid
        out in a file of the cache for the time of the training, and read block by block.
    random_state : int
        Seed of heads, folds and bootstrap.
    progress : Progress, optional
        Told of each head on each feature set, and of the settings that are being fitted.
    max_numbers : int
        Features that have more numbers per sample are refused: heads for pooled features would take for ever.
    take_up : bool
        Take up results of earlier trainings of which nothing has changed, and keep those of this one, for heads that
        are asked for by name. The estimators of results that are taken up are not fitted.

    Raises
    ------
    RequestError
        A set with views without the plain features that heads are evaluated on; test-time views without views.
    HeadError
        All heads are left out.
    """
    heads = as_tuple(heads)
    named = [resolve(head, task.kind) for head in heads]  # an unknown name must not cost the fits before it
    # What a head does that somebody brought along may change without its name changing.
    brought = frozenset(head.name for head in heads if isinstance(head, NamedHead))
    report = TrainingReport(task, [], warnings=unique_warnings([*task.warnings(), *feature_warnings(sets)]))
    opened = open_task_features(
        store,
        [task],
        sets,
        tta=tta,
        balanced=balanced,
        metric=metric,
        threshold=threshold,
        positive=positive,
        max_numbers=max_numbers,
    )
    measure = opened[0].measure
    for group in groups_in_memory(opened, memory):
        with memory_budget(store.path, memory) as budget:
            requests = [
                _heads_and_data(features, named, report, budget, memory, with_tap=len(sets) > 1) for features in group
            ]
            if take_up and threshold is None:  # what is kept has no thresholds
                requests = [
                    request._replace(kept=KeptResults(store, features, random_state, brought))
                    for request, features in zip(requests, group, strict=True)
                ]
            found = search_all(requests, measure, random_state, n_jobs=n_jobs, progress=progress)
        for features, results in zip(group, found, strict=True):
            report.heads += [TrainedHead(task, features.feature_set, result, features.eval_set) for result in results]
    if not report.heads:
        reasons = "; ".join(f"{head} {reason}" for head, reason in report.heads_left_out.items())
        raise HeadError(f"no head can be fitted on these features ({reasons}); name one with --head")
    report.heads = ranked(report.heads, measure, lambda head: head.result)
    return report


def _heads_and_data(
    features: TaskFeatures,
    named: Sequence[NamedHead],
    report: TrainingReport,
    budget: MemoryBudget,
    memory: int | None,
    *,
    with_tap: bool,
) -> HeadsAndData:
    """Read the splits of a task, and choose the heads that are fitted on them; the report gets what is left out."""
    task = features.task
    # Of either features: a sample without one of them is in no split.
    report.left_out |= {**task.left_out(features.features), **task.left_out(features.eval_features)}
    # Samples of the last split are used once and never fitted on.
    fit_splits = [split for split in SPLITS if task.has(split)][:-1]
    splits = read_splits(task, features.features, features.eval_features, fit_splits, budget)
    # On the features of one tap a head may need too much, and on those of another not.
    where = f" on {features.feature_set.tap}" if with_tap else ""
    for head in named:
        if reason := reason_to_leave_out(head, splits, len(task.classes), memory=memory, named=True):
            raise HeadError(f"head {head.name!r} {reason}; choose another head, or fewer features")
    return HeadsAndData(named or _able_heads(task, splits, memory, report.heads_left_out, where), splits, where)


def _able_heads(
    task: Task, splits: Mapping[str, SplitData], memory: int | None, left_out: dict[str, str], where: str
) -> list[NamedHead]:
    """Return the heads that can be fitted on some features, and add to those left out why."""
    able = []
    for head in (find_head(name, kind=task.kind) for name in list_heads(kind=task.kind)):
        if task.weights is not None and not head.takes_weights:
            left_out[head.name] = "cannot weigh samples"
        elif task.is_partial and not head.takes_unknown:
            left_out[head.name] = NEEDS_ALL_KNOWN
        # Not an error where nobody named the head: the others are trained.
        elif splits["train"].on_disk and not head.streams:
            left_out[head.name] = HOLDS_ALL_ROWS
        elif reason := reason_to_leave_out(head, splits, len(task.classes), memory=memory, named=False):
            left_out[head.name] = reason + (where and f" ({where.strip()})")
        else:
            able.append(head)
    return able


def _shared_rows(
    heads: Sequence[TrainedHead], measure: Measure
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray | None]:
    """Return targets, what the metric reads of each head, and groups, of the rows by which all of them were chosen.

    Heads that were chosen in another way than the first, on other rows, are left out.
    """
    heads = [head for head in heads if head.result.protocol == heads[0].result.protocol]
    rows = [selection_rows(head) for head in heads]
    # Heads on other features may lack samples that were bad there.
    shared = reduce(partial(np.intersect1d, assume_unique=True), rows)
    where = [np.argsort(some)[np.searchsorted(np.sort(some), shared)] for some in rows]
    results = [head.result for head in heads]
    groups, first = results[0].selection_groups, where[0]
    read = [measure.outputs(result.selection_pred, result.selection_proba) for result in results]
    outputs = [values[indices] for values, indices in zip(read, where, strict=True)]
    return results[0].selection_y[first], outputs, None if groups is None else groups[first]
