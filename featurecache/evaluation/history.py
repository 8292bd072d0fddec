"""Trainings kept in the history of their task, each compared with the one before it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurecache.errors import FeatureCacheError, ReportWarning, shortened
from featurecache.evaluation.changes import Changes
from featurecache.evaluation.measures import measure_of
from featurecache.evaluation.trained_head import TrainedHead, reported_rows, selection_rows
from featurecache.evaluation.training import TrainingReport
from featurecache.store.history import History, PastTraining
from featurecache.store.result_schemas import HistoryBody
from featurecache.store.samples import find_ids
from featurecache.store.store import FeatureStore
from featurecache.store.tasks import Task


def remember_training(store: FeatureStore, report: TrainingReport) -> Changes | None:
    """Add a training to the history of its task, and return what changed since the one before, if there is one.

    Parameters
    ----------
    store : FeatureStore
    report : TrainingReport
        Gets a warning where the history cannot be read or written: a training does not fail for that.
    """
    try:
        history, head = store.history(report.task.name), report.best
        about = _describe(report)
        before = history.last()
        changes = None if before is None else _changes(history, before, head, about)
        history.add(about, *_evaluated(head))
    except (FeatureCacheError, OSError) as error:
        text = f"this training cannot be compared with earlier ones, or is not kept for later ones ({shortened(error)})"
        report.warnings.append(ReportWarning(kind="history", count=1, text=text))
        return None
    return changes


def _describe(report: TrainingReport) -> HistoryBody:
    head, task = report.best, report.task
    result, names = head.result, dict[str, Any](head.feature_set.to_json())
    return HistoryBody(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        kind=task.kind,
        classes=task.classes,
        counts=task.counts(),
        head=result.head,
        params=result.params,
        **names,
        evaluated_on=head.evaluated_on,
        protocol=result.protocol,
        chosen_by=report.measure.primary,
        selection_score=result.selection_score,
        reported=result.reported,
        primary=report.measure.primary,
        scores=(result.test or result.validation).to_json(),
        n_fitted=head.num_fitted,
        num_heads=len(report.heads),
    )


def _evaluated(
    head: TrainedHead,
) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Return ids, targets and predictions of what a head was evaluated on, and which of these are reported."""
    assert head.task.samples is not None
    result = head.result
    rows, targets, predictions = [], [], []
    # Of a head that was chosen on the split that is reported there is one prediction for each sample.
    if result.protocol == "cross-validation" or result.reported == "test":
        rows.append(selection_rows(head))
        targets.append(result.selection_y)
        predictions.append(result.selection_pred)
    some, reported_y = reported_rows(head)
    rows.append(some)
    targets.append(reported_y)
    predictions.append(result.y_pred)
    is_reported = np.repeat([True] if len(rows) == 1 else [False, True], [len(some) for some in rows])
    ids = head.task.samples.ids[np.concatenate(rows)]
    y, y_pred = (np.concatenate(values).astype(np.float64) for values in (targets, predictions))
    # Classes are one column, labels and numbers several: the history has one layout for all kinds.
    return ids, y.reshape(len(y), -1), y_pred.reshape(len(y_pred), -1), is_reported


def _changes(history: History, before: PastTraining, head: TrainedHead, about: HistoryBody) -> Changes:
    task = head.task
    assert task.samples is not None
    rows, y = reported_rows(head)
    ids = task.samples.ids[rows]
    earlier = [past.ids[past.is_reported] for past in history.all() if past.about.reported == about.reported]
    times_reported = 1 + sum(bool((find_ids(ids, seen) >= 0).any()) for seen in earlier)
    reported = np.flatnonzero(before.is_reported)
    where = find_ids(ids, before.ids[reported])
    shared, found = where >= 0, reported[where[where >= 0]]
    as_now = _as_now(before, task)
    changes = Changes(
        number=before.number + 1,
        times_reported=times_reported,
        before=before.about,
        now=about,
        num_relabelled=0,
        num_shared=int(shared.sum()),
    )
    if as_now is None or before.about.reported != about.reported or not shared.any():
        return changes
    targets, predictions = (values[found] for values in as_now)
    y = y[shared]
    is_other = (
        y.reshape(targets.shape) != targets if task.kind != "regression" else ~np.isclose(y, targets, equal_nan=True)
    )
    relabelled = int(is_other.reshape(len(y), -1).any(axis=1).sum())
    changes = replace(changes, num_relabelled=relabelled)
    # Of earlier trainings no probabilities of classes are kept, and their predictions may be of classes that are gone.
    is_of_classes = task.kind == "classification"
    others = ("f1_macro", "roc_auc", "average_precision", "log_loss") if is_of_classes else ("roc_auc", "log_loss")
    metric = None if head.result.metric in others else head.result.metric
    measure = measure_of(task.kind, len(task.classes), balanced=head.result.balanced, metric=metric)
    if task.kind == "multilabel" and not (y == 1).any():  # then average precision is not defined
        return changes
    now = head.result.y_pred[shared]
    return replace(
        changes,
        score_before=measure.score(y, predictions),
        score_now=measure.score(y, now),
        compared_by=measure.primary,
        comparison=measure.compare(y, now, predictions, task.groups_of(rows[shared])),
    )


def _as_now(past: PastTraining, task: Task) -> tuple[np.ndarray, np.ndarray] | None:
    """Return targets and predictions of an earlier training in the terms of the task of now; None where it has others.

    Classes go by their names: another folder moves the indices of those behind it. A class that is gone is -1.
    """
    if past.kind != task.kind:
        return None
    if task.kind != "classification":
        return (past.targets, past.predictions) if past.about.classes == task.classes else None
    index_of = {name: index for index, name in enumerate(task.classes)}
    indices = np.array([index_of.get(name, -1) for name in past.about.classes])
    targets, predictions = (indices[values[:, 0].astype(np.int64)] for values in (past.targets, past.predictions))
    return targets, predictions
