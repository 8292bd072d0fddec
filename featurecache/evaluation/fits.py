"""The searches of a sweep on one task and feature set: in which processes, and with how much memory."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import starmap
from pathlib import Path
from typing import Any, Literal, NamedTuple

from featurecache.errors import FeatureCacheError, HeadError
from featurecache.evaluation.calibration import calibration
from featurecache.evaluation.configuring import check_streams, reason_to_leave_out
from featurecache.evaluation.fit_progress import FitSteps
from featurecache.evaluation.measure import Measure
from featurecache.evaluation.memory_budget import MemoryBudget, memory_budget
from featurecache.evaluation.plan import Resampling, resample
from featurecache.evaluation.processes import FitBackend
from featurecache.evaluation.search import WORTH_A_PROCESS, search
from featurecache.evaluation.split_data import SplitData, check_splits
from featurecache.evaluation.summary import SweepRow
from featurecache.evaluation.trained_head import HeadResult
from featurecache.heads.head import NamedHead
from featurecache.specs import TaskKind

State = Literal["kept", "computed", "left out"]
"""How a result was got. ``left out`` is true of this machine and this moment, and so is never kept."""


_SECONDS_TO_START = 8.0
"""Of searches in this process; starting others, which import all libraries again, pays only for more than that."""


class PlannedSearch(NamedTuple):
    """A search that is to be done."""

    key: str
    """Of its result."""
    head: NamedHead
    resampling: Resampling
    row: SweepRow
    """What is known before."""


Result = tuple[PlannedSearch, SweepRow, State]
Splits = dict[str, SplitData]


def run_searches(
    planned: list[PlannedSearch],
    splits: Splits,
    measure: Measure,
    budget: MemoryBudget,
    folder: Path,
    *,
    n_jobs: int | None = None,
    memory: int | None = None,
    named: bool = False,
    steps_in: Path | None = None,
) -> Iterator[Result]:
    """Do searches in as many processes as are asked for and of use; yield each row, with scores or ``error``.

    Parameters
    ----------
    planned : list of PlannedSearch
    splits, measure
        Of the task.
    budget, folder
        How much may be in memory, and where features are laid out that do not fit there.
    n_jobs : int, optional
        As for `evaluate_heads`.
    memory, named
        As for `reason_to_leave_out`.
    steps_in : Path, optional
        Folder of `fit_progress.watched`.
    """
    reasons = {
        head.name: reason_to_leave_out(head, splits, measure.n_outputs, memory=memory, named=named)
        for head in {planned_search.head.name: planned_search.head for planned_search in planned}.values()
    }
    to_do: dict[Resampling, list[PlannedSearch]] = {}
    for planned_search in planned:
        # Few labels are small, whatever the split is that they are taken from.
        reason = None if planned_search.resampling.takes_labels_away else reasons[planned_search.head.name]
        if reason is None:
            to_do.setdefault(planned_search.resampling, []).append(planned_search)
        else:
            yield _left_out(planned_search, f"head {planned_search.head.name!r} {reason}")
    searches = [planned_search for group in to_do.values() for planned_search in group]
    if not searches:
        return
    backend = FitBackend.active(n_jobs)
    if _fit_in_memory(to_do, splits, measure.kind, budget.left // min(backend.count, len(searches))):
        yield from _in_processes(searches, splits, measure, backend, steps_in)
        return
    # One resampling after the other: what it takes out is laid out once for all processes.
    for resampling, group in to_do.items():
        with memory_budget(folder, budget.left) as inner:
            resampled = resample(splits, resampling, kind=measure.kind, budget=inner)
            able = []
            for planned_search in group:
                try:
                    check_streams(planned_search.head, resampled["train"], kind=measure.kind)
                    able.append(planned_search)
                except HeadError as error:
                    yield _left_out(planned_search, str(error), n_train=len(resampled["train"]))
            yield from _in_processes(able, resampled, measure, backend, steps_in, is_resampled=True)


def _left_out(planned: PlannedSearch, error: str, **known: Any) -> Result:
    return planned, replace(planned.row, error=error, **known), "left out"


def _fit_in_memory(resamplings: Iterable[Resampling], splits: Splits, kind: TaskKind, max_bytes: int) -> bool:
    """Tell whether each process may make its own copies of what a resampling takes out of the splits."""
    if any(data.on_disk for data in splits.values()):
        return False
    train = splits["train"]
    views = [train.eval_views] if train.fit_views is train.eval_views else [train.eval_views, train.fit_views]
    sample_bytes = sum(view[:1].nbytes for view in views)
    return max(num_samples_copied(splits, resampling, kind) for resampling in resamplings) * sample_bytes <= max_bytes


def num_samples_copied(splits: Splits, resampling: Resampling, kind: TaskKind) -> int:
    """Return of how many samples a process of its own makes copies, to resample the splits.

    Parameters
    ----------
    splits : dict of str to SplitData
    resampling : Resampling
    kind : str
        Of the task.
    """
    resampled = resample(splits, resampling, kind=kind).values()
    copied = [data for data in resampled if all(data is not whole for whole in splits.values())]
    # Splits come to another process one by one, and folds are of two of them.
    joined = [splits["train"], splits["validation"]] if resampling.num_folds and "validation" in splits else []
    return sum(map(len, copied + joined))


def _in_processes(
    searches: Sequence[PlannedSearch],
    splits: Splits,
    measure: Measure,
    backend: FitBackend,
    steps_in: Path | None,
    *,
    is_resampled: bool = False,
) -> Iterator[Result]:
    to_do = list(searches)
    is_large = splits["train"].fit_views.size >= WORTH_A_PROCESS
    workers = backend.count if backend.reads(splits) else 1
    start, done = time.perf_counter(), 0.0
    # Those of small features are done here while it seems that all soon are.
    while to_do and not is_large and (backend.starts_slowly or workers == 1):
        planned_search = to_do.pop(0)
        yield _search(planned_search, splits, measure, is_resampled, steps_in)
        done += planned_search.head.relative_seconds
        still = sum(planned_search.head.relative_seconds for planned_search in to_do)
        if workers > 1 and (time.perf_counter() - start) * still > _SECONDS_TO_START * done:
            break
    arguments = ((planned_search, splits, measure, is_resampled, steps_in) for planned_search in to_do)
    workers = min(workers, len(to_do))
    # A head that no signal reaches gets a process of its own even alone, so that Ctrl-C ends it.
    unreachable = is_large and any(not planned_search.head.interruptible for planned_search in to_do)
    if workers <= 1 and not (unreachable and backend.has_own_processes):
        yield from starmap(_search, arguments)
    else:
        yield from (result for _, result in backend.run(_search, arguments, workers=max(workers, 1)))


def _search(
    planned: PlannedSearch, splits: Splits, measure: Measure, is_resampled: bool, steps_in: Path | None
) -> Result:
    row, resampling = planned.row, planned.resampling
    resampled = splits if is_resampled else resample(splits, resampling, kind=measure.kind)
    steps = FitSteps(steps_in, f"{row.head} on {row.tap}, task {row.task}")
    try:
        checked = check_splits(resampled, measure.check)
        result = search(planned.head, checked, measure, resampling.seed, steps)
    except FeatureCacheError as error:
        return planned, replace(row, n_train=len(resampled["train"]), error=str(error)), "computed"
    return planned, _completed(row, result, checked), "computed"


def _completed(row: SweepRow, result: HeadResult, splits: Splits) -> SweepRow:
    scores: dict[str, float | None] = (result.test or result.validation).to_json()
    scores = {name: value for name, value in scores.items() if value is not None and name != "n"}
    if row.kind == "classification":
        reported = splits[result.reported]
        measured = calibration(reported.y, result.proba, reported.groups)
        row = replace(row, expected_calibration_error=measured.expected_calibration_error)
        scores |= {name: value for name, value in asdict(measured).items() if name.startswith("log_loss")}
    return replace(
        row,
        n=len(result.y_pred),
        n_train=result.n_train // splits["train"].fit_views.shape[1],
        scores=scores,
        params=json.dumps(result.params, sort_keys=True),
        selection_accuracy=result.selection_accuracy,
        selection_score=result.selection_score,
        seconds=round(result.seconds, 4),
        converged=bool(result.converged),
    )
