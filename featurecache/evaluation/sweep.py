"""A sweep is a table of searches: heads on taps of tasks, with several seeds and few labels; none is computed twice.

A result is named by the digest of all it depends on: identity of the features, ids and targets of the samples in each
split, the resampling, the head with its settings, and the versions of what computes. A sweep that was
killed goes on where it was, and a larger one takes over what a smaller one did.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from featurecache.errors import ReportWarning
from featurecache.evaluation.configuring import HOLDS_ALL_ROWS
from featurecache.evaluation.fit_progress import watched
from featurecache.evaluation.fits import PlannedSearch, Result, num_samples_copied, run_searches
from featurecache.evaluation.kept_results import digest_of_labels, key_parts
from featurecache.evaluation.memory_budget import memory_budget
from featurecache.evaluation.metrics import metric_of
from featurecache.evaluation.plan import Plan, Resampling, resample
from featurecache.evaluation.split_data import SplitData
from featurecache.evaluation.summary import COLUMNS, SweepLine, SweepRow, summarise
from featurecache.evaluation.task_features import TaskFeatures, open_task_features, read_splits, splits_without_features
from featurecache.hashing import digest_json
from featurecache.heads.head import NamedHead
from featurecache.progress import Progress, Silent
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.labels import SPLITS
from featurecache.store.schemas import ResultBody
from featurecache.store.soundness import feature_warnings
from featurecache.store.store import FeatureStore
from featurecache.store.tasks import Task


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A head that was not fitted on the features of a task, because memory or time would not have sufficed."""

    row: SweepRow
    reason: str
    """As the rest of a sentence about the head."""

    def to_json(self) -> dict[str, object]:
        """Return plain JSON values."""
        return _names_of(self.row) | {"head": self.row.head, "reason": self.reason}


@dataclass
class SweepReport:
    """What a sweep found.

    Attributes
    ----------
    rows : list of SweepRow
        One for each search, in the order of tasks, sets, heads and resamplings, without those left out. A head that
        could not be fitted has ``error``.
    num_kept : int
        How many of them were there already.
    left_out : list of LeftOut
        Heads that nobody named and that were not fitted.
    warnings : list of ReportWarning
        Of the features.
    """

    rows: list[SweepRow] = field(default_factory=list)
    num_kept: int = 0
    left_out: list[LeftOut] = field(default_factory=list)
    warnings: list[ReportWarning] = field(default_factory=list)

    @property
    def failed(self) -> list[SweepRow]:
        """Rows of heads that could not be fitted."""
        return [row for row in self.rows if row.error is not None]

    def lines(self) -> list[SweepLine]:
        """Return the means over resamplings; see `summarise`."""
        return summarise(self.rows)

    def to_json(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {
            "summary": [line.to_json() for line in self.lines()],
            "rows": [row.to_json() for row in self.rows],
            "heads_left_out": [head.to_json() for head in self.left_out],
            "warnings": [warning.to_json() for warning in self.warnings],
            "kept": self.num_kept,
            "computed": len(self.rows) - self.num_kept,
        }


def run_sweep(
    store: FeatureStore,
    tasks: Sequence[Task],
    sets: Sequence[FeatureSet],
    plan: Plan,
    *,
    n_jobs: int | None = None,
    memory: int | None = None,
    progress: Progress | None = None,
) -> SweepReport:
    """Compute what no earlier sweep has computed.

    Parameters
    ----------
    store : FeatureStore
        Holds tasks and features, and keeps the results.
    tasks : sequence of Task
    sets : sequence of FeatureSet
    plan : Plan
    n_jobs : int, optional
        As for `evaluate_heads`.
    memory : int, optional
        Bytes of features in memory at most, with what each process takes out of them; half of what is free when left
        out. Where there are more, they are laid out in a file of the cache as in `train_heads`, and so is, for all
        processes together, what a resampling takes out of them. Results don't depend on it.
    progress : Progress, optional
        Told of each result, and of the settings that are being fitted.

    Raises
    ------
    RequestError, UnknownNameError, TaskError
        What does not go with a task, or cannot be split or read. A head that refuses a resampling is a row with
        ``error``; so is one that was asked for by name and has to hold more in memory than may be there.
    """
    progress = progress or Silent()
    num_heads = sum(len(plan.heads_for(task)) for task in tasks)
    progress.start("training heads", len(sets) * len(plan.resamplings()) * num_heads)
    for task in tasks:
        plan.check(task)
    opened = open_task_features(store, tasks, sets, tta=plan.tta, balanced=plan.balanced, metric=plan.metric)
    without_features = [
        splits_without_features(features.task, features.features, features.eval_features)[1] for features in opened
    ]
    for features, splits in zip(opened, without_features, strict=True):
        # What cannot be split must not cost the fits before it, nor the reading of features.
        for resampling in plan.resamplings():
            num_samples_copied(splits, resampling, features.measure.kind)
    report = SweepReport(warnings=feature_warnings(sets))
    with watched(progress) as steps_in:
        for features, splits in zip(opened, without_features, strict=True):
            planned, found, left_out = _planned(features, splits, plan), dict[str, SweepRow](), dict[str, LeftOut]()
            # Closed at once when somebody stops: a file of features may be open.
            with closing(_results(store, features, planned, plan, n_jobs, memory, steps_in)) as results:
                for search, row, state in results:
                    if state == "left out" and not plan.heads:
                        # As the rest of a sentence; what could be done about it is said of heads that were named.
                        reason = str(row.error).removeprefix(f"head {row.head!r} ")
                        reason = HOLDS_ALL_ROWS if reason.startswith(HOLDS_ALL_ROWS) else reason
                        left_out.setdefault(row.head, LeftOut(row, reason))
                    else:
                        found[search.key] = row
                        report.num_kept += state == "kept"
                    progress.advance(1)
            report.rows += [found[search.key] for search in planned if search.key in found]
            report.left_out += left_out.values()
    return report


def _names_of(row: SweepRow) -> dict[str, Any]:
    return {name: getattr(row, name) for name in ("task", "backbone", "fingerprint", "tap", "dtype", "views")}


def _planned(features: TaskFeatures, splits: dict[str, SplitData], plan: Plan) -> list[PlannedSearch]:
    labels = digest_of_labels(features)
    return [
        PlannedSearch(
            _key(head, resampling, features, labels), head, resampling, _row(features, splits, head, resampling)
        )
        for head in plan.heads_for(features.task)
        for resampling in plan.resamplings()
    ]


def _results(
    store: FeatureStore,
    features: TaskFeatures,
    planned: list[PlannedSearch],
    plan: Plan,
    n_jobs: int | None,
    memory: int | None,
    steps_in: Path | None,
) -> Generator[Result]:
    """Yield each result and how it was got; those that are kept first."""
    # What a head does that somebody brought along may change without its name changing.
    brought = {head.name for head in plan.heads if isinstance(head, NamedHead)}
    to_do = []
    for search in planned:
        kept = None if search.head.name in brought else store.recall(ResultBody, search.key)
        if kept is not None and set(kept.row) == set(COLUMNS):
            # The names of a task and its features are this cache's; the scores belong to their contents.
            yield search, SweepRow.from_json(kept.row | _names_of(search.row)), "kept"
        else:
            to_do.append(search)
    if not to_do:
        return
    task = features.task
    fit_splits = [split for split in SPLITS if split != "test" and task.has(split)]
    with memory_budget(store.path, memory) as budget:
        whole = read_splits(task, features.features, features.eval_features, fit_splits, budget)
        for search, row, state in run_searches(
            to_do,
            whole,
            features.measure,
            budget,
            store.path,
            n_jobs=n_jobs,
            memory=memory,
            named=bool(plan.heads),
            steps_in=steps_in,
        ):
            if state == "computed" and search.head.name not in brought:
                store.remember(search.key, ResultBody(row.to_json()))
            yield search, row, state


def _row(features: TaskFeatures, splits: dict[str, SplitData], head: NamedHead, resampling: Resampling) -> SweepRow:
    """Return what is known of a search before it is done."""
    names, measure = dict[str, Any](features.feature_set.to_json()), features.measure
    with_all_labels = resample(splits, replace(resampling, shots=None, share=None), kind=measure.kind)
    split = "test" if resampling.on_test else "validation"
    if resampling.num_folds:
        split = "fold"
    elif not features.task.has(split):  # then a quarter of train stands for it
        split = "held out"
    return SweepRow(
        task=features.task.name,
        kind=measure.kind,
        **names,
        evaluated_on="plain" if features.eval_set.num_views is None else "views",
        head=head.name,
        balanced=measure.balanced,
        **{name: value for name, value in asdict(resampling).items() if name != "on_test"},
        split=split,
        measure=measure.primary,
        n_available=len(with_all_labels["train"]),
    )


def _key(head: NamedHead, resampling: Resampling, features: TaskFeatures, labels: str) -> str:
    measure = features.measure
    # The words of earlier releases, whose results are taken up.
    division = {"look_at_test" if name == "on_test" else name: value for name, value in asdict(resampling).items()}
    document = key_parts(head, features, labels, evaluated="judged")
    document |= {"division": division, "kind": measure.kind, "columns": list(COLUMNS)}
    # Left out where nobody chose one, as results of earlier releases have it.
    if measure.metric != metric_of(measure.kind, None, balanced=measure.balanced):
        document["metric"] = measure.metric
    return digest_json("sweep-result", 3, document)
