"""A sweep is a table of searches: heads on taps of tasks, with several seeds and few labels; none is computed twice.

A result is named by the digest of all it depends on: identity of the features, ids and targets of the samples in each
split, the resampling, the head with its settings, and the versions of what computes. A sweep that was
killed goes on where it was, and a larger one takes over what a smaller one did.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from featurecache.evaluation.fits import PlannedSearch, State, num_samples_copied, run_searches
from featurecache.evaluation.measures import OfClasses, OfLabels, OfNumbers
from featurecache.evaluation.memory_budget import memory_budget
from featurecache.evaluation.plan import Plan
from featurecache.evaluation.resampling import Resampling, resample
from featurecache.evaluation.splits import SplitData
from featurecache.evaluation.task_features import (
    TaskFeatures,
    open_task_features,
    read_splits,
    rows_of_split,
    splits_without_features,
)
from featurecache.hashing import digest_bytes, digest_json
from featurecache.heads.head import NamedHead
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.labels import SPLITS
from featurecache.store.store import FeatureStore
from featurecache.store.tasks import Task
from featurecache.versions import installed_versions

_SCORES = dict.fromkeys(name for measure in (OfClasses, OfLabels, OfNumbers) for name in measure.titles)
COLUMNS = (
    "task", "kind", "backbone", "fingerprint", "tap", "dtype", "views", "judged_on", "head", "balanced", "seed", "fold",
    "num_folds", "shots", "share", "part", "n_train", "n_available", "n", "params", "measure", "score",
    "score_low", "score_high",
    *(name + end for name in _SCORES for end in ("", "_low", "_high")), "log_loss",
    "expected_calibration_error", "selection_accuracy", "selection_score", "seconds", "converged", "error",
)  # fmt: skip
"""Of a row of the table. ``score`` is the score that ``measure`` names, by which settings are chosen; scores of other
kinds of task are None. ``n_available`` samples could have been fitted on, had no labels been taken away. A head that
could not be fitted has ``error`` and no scores."""
_COMPUTES = ("featurecache", "joblib", "numpy", "scikit-learn", "scipy", "torch")


def run_sweep(
    store: FeatureStore,
    tasks: Sequence[Task],
    sets: Sequence[FeatureSet],
    plan: Plan,
    *,
    n_jobs: int = -1,
    memory: int | None = None,
    on_result: Callable[[dict[str, Any], bool], None] = lambda row, kept: None,
    on_left_out: Callable[[dict[str, Any]], None] = lambda row: None,
) -> list[dict[str, Any]]:
    """Compute what no earlier sweep has computed.

    Parameters
    ----------
    store : FeatureStore
        Holds tasks and features, and keeps the results.
    tasks : sequence of Task
    sets : sequence of FeatureSet
    plan : Plan
    n_jobs : int
        Processes at most, as in joblib; results don't depend on it.
    memory : int, optional
        Bytes of features in memory at most, with what each process takes out of them; half of what is free when left
        out. Where there are more, they are laid out in a file of the cache as in `train_heads`, and so is, for all
        processes together, what a resampling takes out of them. Results don't depend on it.
    on_result : callable
        Called with each row, and whether it was there before.
    on_left_out : callable
        Called with the row, whose ``error`` says why, of each head that was not asked for by name and that would have
        to hold more in memory than may be there.

    Returns
    -------
    rows
        One for each search, by column, in the order of tasks, sets, heads and resamplings, without those left out.

    Raises
    ------
    RequestError, UnknownNameError, TaskError
        What does not go with a task, or cannot be split or read. A head that refuses a resampling is a row with
        ``error``; so is one that was asked for by name and has to hold more in memory than may be there.
    """
    for task in tasks:
        plan.check(task)
    opened = open_task_features(store, tasks, sets, tta=plan.tta, balanced=plan.balanced)
    without_features = [splits_without_features(each.task, each.features, each.eval_features)[1] for each in opened]
    for each, splits in zip(opened, without_features, strict=True):
        # What cannot be split must not cost the fits before it, nor the reading of features.
        for resampling in plan.resamplings():
            num_samples_copied(splits, resampling, each.measure.kind)
    rows = []
    for each, splits in zip(opened, without_features, strict=True):
        planned = _planned(each, plan)
        found: dict[str, dict[str, Any]] = {}
        # Closed at once when somebody stops: a file of features may be open.
        with closing(_results(store, each, splits, planned, plan, n_jobs, memory)) as results:
            for key, row, state in results:
                if state == "left out" and not plan.heads:
                    on_left_out(row)
                else:
                    found[key] = row
                    on_result(row, state == "kept")
        rows += [found[one.key] for one in planned if one.key in found]
    return rows


def _planned(features: TaskFeatures, plan: Plan) -> list[PlannedSearch]:
    labels = _digest_of_labels(features)
    return [
        PlannedSearch(_key(head, resampling, features, labels), head, resampling)
        for head in plan.heads_for(features.task)
        for resampling in plan.resamplings()
    ]


def _results(
    store: FeatureStore,
    features: TaskFeatures,
    splits: dict[str, SplitData],
    planned: list[PlannedSearch],
    plan: Plan,
    n_jobs: int,
    memory: int | None,
) -> Generator[tuple[str, dict[str, Any], State]]:
    """Yield the key of each result with its row and how it was got; those that are kept first."""
    # What a head does that somebody brought along may change without its name changing.
    brought = {head.name for head in plan.heads if isinstance(head, NamedHead)}
    to_do = []
    for each in planned:
        row = None if each.head.name in brought else store.recall_result(each.key)
        if row is not None and set(row) == set(COLUMNS):
            # The names of a task and its features are this cache's; the scores belong to their contents.
            yield each.key, row | _names(features), "kept"
        else:
            to_do.append(each)
    if not to_do:
        return
    task = features.task
    fit_splits = [split for split in SPLITS if split != "test" and task.has(split)]
    with memory_budget(store.path, memory) as budget:
        whole = read_splits(task, features.features, features.eval_features, fit_splits, budget)
        results = run_searches(
            to_do, whole, features.measure, budget, store.path, n_jobs=n_jobs, memory=memory, named=bool(plan.heads)
        )
        for each, scores, state in results:
            row = dict.fromkeys(COLUMNS) | _names(features) | _about(each, features, splits) | scores
            if state == "computed" and each.head.name not in brought:
                store.remember_result(each.key, row)
            yield each.key, row, state


def _about(planned: PlannedSearch, features: TaskFeatures, splits: dict[str, SplitData]) -> dict[str, Any]:
    resampling, measure = planned.resampling, features.measure
    with_all_labels = resample(splits, replace(resampling, shots=None, share=None), kind=measure.kind)
    own_split = resampling.num_folds or features.task.has(resampling.evaluated_on)
    return {
        "judged_on": "plain" if features.eval_set.num_views is None else "views",
        "kind": measure.kind,
        "measure": measure.chosen_by,
        "head": planned.head.name,
        "balanced": measure.balanced,
        "seed": resampling.seed,
        "fold": resampling.fold,
        "num_folds": resampling.num_folds,
        "shots": resampling.shots,
        "share": resampling.share,
        "n_available": len(with_all_labels["train"]),
        "part": resampling.evaluated_on if own_split else "held out",
    }


def _names(features: TaskFeatures) -> dict[str, Any]:
    feature_set = features.feature_set
    return {
        "task": features.task.name,
        "backbone": feature_set.identity.backbone,
        "fingerprint": feature_set.fingerprint,
        "tap": feature_set.tap,
        "dtype": feature_set.dtype,
        "views": feature_set.num_views,
    }


def _digest_of_labels(features: TaskFeatures) -> str:
    """Digest which samples are in each split, and their targets."""
    task = features.task
    assert task.samples is not None
    document: dict[str, Any] = {"kind": task.kind, "classes": task.classes}
    exact = "<f8" if task.kind == "regression" else "<i8"
    for split in SPLITS:
        if task.has(split):
            rows, y = rows_of_split(task, features.features, features.eval_features, split)
            groups, weights = task.groups_of(rows), task.weights_of(rows)
            content = task.samples.ids[rows].tobytes() + y.astype(exact).tobytes()
            content += b"" if groups is None else groups.astype("<i4").tobytes()
            content += b"" if weights is None else weights.astype("<f8").tobytes()
            document[split] = digest_bytes(content)
    return digest_json("labels", 2, document)


def _key(head: NamedHead, resampling: Resampling, features: TaskFeatures, labels: str) -> str:
    measure = features.measure
    fit_set, eval_set = ([each.fingerprint, each.tap, each.dtype] for each in (features.feature_set, features.eval_set))
    document = {
        "features": fit_set,
        "judged": eval_set,
        "labels": labels,
        "head": [head.name, repr(head.estimator), head.settings_for(1_000_000)],
        # The words of earlier releases, whose results are taken up.
        "division": {
            "seed": resampling.seed,
            "fold": resampling.fold,
            "num_folds": resampling.num_folds,
            "shots": resampling.shots,
            "share": resampling.share,
            "look_at_test": resampling.on_test,
        },
        "kind": measure.kind,
        "balanced": measure.balanced,
        "versions": installed_versions(_COMPUTES),
        "columns": list(COLUMNS),
    }
    return digest_json("sweep-result", 2, document)
