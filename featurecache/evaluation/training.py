"""Heads trained on cached features of a task: one result for each feature set and head.

Heads that are trained on augmented views are judged on the plain features of the same samples, or on the mean of the
probabilities over their views.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from featurecache.errors import ReportWarning, unique_warnings
from featurecache.evaluation.affording import cannot_afford, check_affordable
from featurecache.evaluation.calibration import calibration
from featurecache.evaluation.comparison import Comparison
from featurecache.evaluation.measures import measure_of
from featurecache.evaluation.pairs import MAX_NUMBERS, Place, on_the_same_samples, open_pairs, read_parts, rows_of_part
from featurecache.evaluation.parts import Part
from featurecache.evaluation.protocol import HeadResult, evaluate_heads
from featurecache.evaluation.scores import confusion
from featurecache.evaluation.selection import HOLDS_ALL_ROWS, NEEDS_ALL_KNOWN
from featurecache.evaluation.staging import staging
from featurecache.heads.registry import list_heads, make_head
from featurecache.specs import TASK_NOUN
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.labels import SPLITS
from featurecache.store.samples import Rows
from featurecache.store.soundness import feature_warnings
from featurecache.store.store import FeatureStore
from featurecache.store.tasks import Task


@dataclass(frozen=True)
class TrainedHead:
    """A head, what it was trained on, and how it did."""

    task: Task
    feature_set: FeatureSet
    result: HeadResult
    judged_set: FeatureSet
    """What it was judged on: the feature set itself, the plain one of a set of views, or views of a plain one."""

    @property
    def judged_on(self) -> str:
        """``plain`` or ``views``."""
        return "plain" if self.judged_set.num_views is None else "views"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            **self.result.to_json(),
            "views": self.feature_set.num_views,
            "judged_on": self.judged_on,
            "judged_views": self.judged_set.num_views,
            "tap": self.feature_set.tap,
            "task": self.task.name,
            "backbone": self.feature_set.identity.backbone,
            "dtype": self.feature_set.dtype,
            "fingerprint": self.feature_set.fingerprint,
        }


@dataclass
class TrainingReport:
    """All trained heads, best selection score first, and what was left out."""

    task: Task
    heads: list[TrainedHead]
    left_out: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Labelled samples without features: where first seen -> (status, reason)."""
    heads_left_out: dict[str, str] = field(default_factory=dict)
    """Heads that were not trained although all were asked for: name -> reason."""
    warnings: list[ReportWarning] = field(default_factory=list)
    """What is doubtful, of the task, the features and the fits."""

    @property
    def best(self) -> TrainedHead:
        """The head with the best selection score."""
        return self.heads[0]

    def join(self, other: TrainingReport) -> None:
        """Take the heads of another report on the same task."""
        self.heads = sorted(self.heads + other.heads, key=lambda head: -head.result.selection_score)
        self.left_out |= other.left_out
        self.heads_left_out |= other.heads_left_out
        self.warnings = unique_warnings([*self.warnings, *other.warnings])

    def against_chosen(self, head: TrainedHead) -> Comparison | None:
        """Compare a head with the chosen one; None for the chosen one itself."""
        return None if head is self.best else self.compare(head, self.best)

    def compare(self, head: TrainedHead, other: TrainedHead) -> Comparison | None:
        """Compare two heads on the rows by which both were chosen; None where they were chosen in different ways."""
        best = other.result
        if head is other or head.result.protocol != best.protocol:
            return None
        rows, rows_of_best = selection_rows(head), selection_rows(other)
        _, here, there = np.intersect1d(rows, rows_of_best, assume_unique=True, return_indices=True)
        groups = None if best.selection_groups is None else best.selection_groups[there]
        y, first, second = best.selection_y[there], head.result.selection_pred[here], best.selection_pred[there]
        measure = measure_of(self.task.kind, len(self.task.classes), balanced=best.balanced)
        return measure.compare(y, first, second, groups)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        best = self.best.to_json()
        compared = [(head, self.against_chosen(head)) for head in self.heads]
        return {
            "task": self.task.name,
            "kind": self.task.kind,
            "figures": measure_of(self.task.kind, len(self.task.classes)).titles,
            "classes": self.task.classes,
            "counts": self.task.counts(),
            "about": self.task.about,
            "chosen": {name: best[name] for name in ("head", "tap", "params", "fingerprint", "views", "judged_on")},
            "left_out": [
                {"path": path, "status": status, "reason": reason} for path, (status, reason) in self.left_out.items()
            ],
            "heads_left_out": self.heads_left_out,
            "warnings": [warning.to_json() for warning in self.warnings],
            "last_look": self.last_look(),
            "results": [
                {**head.to_json(), "against_chosen": None if comparison is None else comparison.to_json()}
                for head, comparison in compared
            ],
        }

    def last_look(self) -> dict[str, Any]:
        """Where the chosen head was right and wrong: figures for each class, label or number.

        Of classes also the confusion matrix and the calibration.
        """
        _, y_true = reported_rows(self.best)
        y_pred = self.best.result.y_pred
        measure = measure_of(self.task.kind, len(self.task.classes))
        look = {
            "part": self.best.result.reported,
            f"per_{TASK_NOUN[self.task.kind]}": measure.per_output(y_true, y_pred, self.task.classes),
        }
        if self.task.kind != "classes":
            return look
        return look | {
            "calibration": calibration(y_true, self.best.result.proba),
            "confusion": confusion(y_true, y_pred, len(self.task.classes)).tolist(),
        }


def train_heads(
    store: FeatureStore,
    task: Task,
    sets: Sequence[FeatureSet],
    heads: Sequence[str] = (),
    *,
    tta: bool = False,
    balanced: bool = False,
    n_jobs: int = -1,
    memory: int | None = None,
    random_state: int = 0,
    on_result: Callable[[HeadResult], None] | None = None,
    max_numbers: int = MAX_NUMBERS,
) -> TrainingReport:
    """Train heads on every feature set; see `evaluate_head` for how hyper-parameters are chosen.

    Parameters
    ----------
    store : FeatureStore
        The cache that holds task and features.
    task : Task
        Labels and splits.
    sets : sequence of FeatureSet
        What to train on. Of a set with views, each view is a row to train on.
    heads : sequence of str
        Names of heads; when empty, all that can weigh samples where these have weights, and that read features from
        the disk where memory does not hold them.
    tta : bool
        Judge heads on the mean of the probabilities over the cached views of each sample, instead of on its plain
        features: over those of a set with views, or the most that are cached beside a plain one.
    balanced : bool
        Choose by balanced accuracy, and give all classes the same total weight where the head can; for tasks with
        classes only.
    n_jobs : int
        As in joblib; results don't depend on it.
    memory : int, optional
        Bytes of features in memory at most, half of what is free when left out. Where there are more, they are laid
        out in a file of the cache for the time of the training, and read block by block.
    random_state : int
        Seed of heads, folds and bootstrap.
    on_result : callable, optional
        Called with each result as it comes, of the feature sets in any order.
    max_numbers : int
        Features that have more numbers per sample are refused: heads for pooled features would take for ever.

    Raises
    ------
    RequestError
        A set with views without the plain features that heads are judged on; test-time views without views.
    """
    for name in heads:
        make_head(name, kind=task.kind)  # an unknown name must not cost the fits before it
    report = TrainingReport(task, [], warnings=unique_warnings([*task.warnings(), *feature_warnings(sets)]))
    pairs = open_pairs(store, [task], sets, tta=tta, balanced=balanced, max_numbers=max_numbers)
    for pair in pairs.values():
        report.left_out |= {**task.left_out(pair.features), **task.left_out(pair.judged)}
    # Samples of the last part are looked at once and never fitted on.
    fitted = [split for split in SPLITS if task.has(split)][:-1]
    found: dict[Place, list[HeadResult]] = {}
    for places in on_the_same_samples(pairs, memory):
        with staging(store.path, memory) as room:
            taps = [read_parts(task, pairs[place].features, pairs[place].judged, fitted, room) for place in places]
            on_disk = any(parts["train"].on_disk for parts in taps)
            able = list_heads(
                kind=task.kind, weighted=task.weights is not None, streaming=on_disk, partial=task.is_partial
            )
            report.heads_left_out |= {} if heads else _left_out(task, able)
            for name in heads:
                check_affordable(name, taps[0], len(task.classes), memory=memory)
            if not heads:
                dear = _too_dear(able, task, taps[0], memory)
                # On the features of one tap it may be too much, and on those of another not.
                where = "" if len(sets) == 1 else f" (on {pairs[places[0]].feature_set.tap})"
                report.heads_left_out |= {name: reason + where for name, reason in dear.items()}
                able = [name for name in able if name not in dear]
            results = evaluate_heads(
                list(heads) or able,
                taps,
                len(task.classes),
                n_jobs=n_jobs,
                kind=task.kind,
                balanced=balanced,
                random_state=random_state,
                progress=on_result,
            )
        found |= zip(places, results, strict=True)
    for place, pair in pairs.items():
        report.heads += [TrainedHead(task, pair.feature_set, result, pair.judged_set) for result in found[place]]
    report.heads.sort(key=lambda head: -head.result.selection_score)
    return report


def _too_dear(able: Sequence[str], task: Task, parts: Mapping[str, Part], memory: int | None) -> dict[str, str]:
    """Return why heads that nobody named are left out because of their cost, by name."""
    reasons = {name: cannot_afford(name, parts, len(task.classes), memory=memory, asked_for=False) for name in able}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _left_out(task: Task, able: Sequence[str]) -> dict[str, str]:
    """Say of each head for a task that is not among those that can be fitted, why."""
    weighing = list_heads(kind=task.kind, weighted=task.weights is not None)
    partial = list_heads(kind=task.kind, partial=task.is_partial)
    return {
        name: "cannot weigh samples"
        if name not in weighing
        else NEEDS_ALL_KNOWN
        if name not in partial
        else HOLDS_ALL_ROWS
        for name in list_heads(kind=task.kind)
        if name not in able
    }


def reported_rows(head: TrainedHead) -> tuple[Rows, np.ndarray[Any, Any]]:
    """Rows of the samples, and what is said of them, on which the head's last look was taken."""
    return rows_of_part(head.task, head.feature_set.open(), head.judged_set.open(), head.result.reported)


def selection_rows(head: TrainedHead) -> Rows:
    """Rows of the samples by which the head's setting was chosen, in the order of ``result.selection_y``."""
    split = "validation" if head.result.protocol == "validation" else "train"
    return rows_of_part(head.task, head.feature_set.open(), head.judged_set.open(), split)[0]
