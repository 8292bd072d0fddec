"""The searches of a sweep on one task and feature set: in which processes, and with how much memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from joblib import effective_n_jobs

from featurecache.errors import FeatureCacheError, HeadError
from featurecache.evaluation.calibration import calibration
from featurecache.evaluation.limits import reason_to_leave_out
from featurecache.evaluation.measure import Measure
from featurecache.evaluation.memory_budget import MemoryBudget, memory_budget
from featurecache.evaluation.processes import in_processes
from featurecache.evaluation.resampling import Resampling, resample
from featurecache.evaluation.search import WORTH_A_PROCESS, HeadResult, check_streams, search
from featurecache.evaluation.splits import SplitData, check_splits
from featurecache.heads.head import NamedHead
from featurecache.specs import TaskKind

State = Literal["kept", "computed", "left out"]
"""How a result was got. ``left out`` is true of this machine and this moment, and so is never kept."""


class PlannedSearch(NamedTuple):
    """One result to be computed."""

    key: str
    """Of the result."""
    head: NamedHead
    resampling: Resampling


Result = tuple[PlannedSearch, dict[str, Any], State]
Splits = dict[str, SplitData]


def run_searches(
    planned: list[PlannedSearch],
    splits: Splits,
    measure: Measure,
    budget: MemoryBudget,
    folder: Path,
    *,
    n_jobs: int = -1,
    memory: int | None = None,
    named: bool = False,
) -> Iterator[Result]:
    """Compute results in as many processes as are asked for and of use.

    Parameters
    ----------
    planned : list of PlannedSearch
    splits : dict of str to SplitData
        Of the task.
    measure : Measure
    budget : MemoryBudget
        How much may be in memory.
    folder : Path
        Where features are laid out that do not fit there.
    n_jobs : int
        Processes at most, as in joblib.
    memory : int, optional
        Bytes that a head may take beside; see `reason_to_leave_out`.
    named : bool
        Somebody asked for these heads by name.

    Yields
    ------
    (PlannedSearch, dict, State)
        Each with its scores, or with ``error``, as it is ready.
    """
    heads = {each.head.name: each.head for each in planned}
    reasons = {
        name: reason_to_leave_out(head, splits, measure.n_outputs, memory=memory, named=named)
        for name, head in heads.items()
    }
    to_do: dict[Resampling, list[PlannedSearch]] = {}
    for each in planned:
        # Few labels are small, whatever the split is that they are taken from.
        reason = None if each.resampling.takes_labels_away else reasons[each.head.name]
        if reason is None:
            to_do.setdefault(each.resampling, []).append(each)
        else:
            yield each, {"error": f"head {each.head.name!r} {reason}"}, "left out"
    searches = [each for group in to_do.values() for each in group]
    if not searches:
        return
    workers = min(effective_n_jobs(n_jobs), len(searches))
    num_copied = max(num_samples_copied(splits, resampling, measure.kind) for resampling in to_do)
    on_disk = any(data.on_disk for data in splits.values())
    if not on_disk and workers * num_copied * _bytes_of_a_sample(splits["train"]) <= budget.left:
        yield from _in_processes(searches, splits, measure, workers)
        return
    # One resampling after the other: what it takes out is laid out once for all processes.
    for resampling, group in to_do.items():
        with memory_budget(folder, budget.left) as inner:
            resampled = resample(splits, resampling, kind=measure.kind, budget=inner)
            able = []
            for each in group:
                try:
                    check_streams(each.head, resampled["train"], kind=measure.kind)
                    able.append(each)
                except HeadError as error:
                    yield each, {"n_train": len(resampled["train"]), "error": str(error)}, "left out"
            yield from _in_processes(able, resampled, measure, workers, is_resampled=True)


def _in_processes(
    searches: Sequence[PlannedSearch], splits: Splits, measure: Measure, workers: int, *, is_resampled: bool = False
) -> Iterator[Result]:
    arguments = ((each, splits, measure, is_resampled) for each in searches)
    workers, large = min(workers, len(searches)), splits["train"].fit_views.size >= WORTH_A_PROCESS
    if workers <= 1 and not (large and any(not each.head.interruptible for each in searches)):
        for each in arguments:
            yield _compute(*each)
        return
    yield from in_processes(_compute, arguments, workers=max(workers, 1))


def _compute(planned: PlannedSearch, splits: Splits, measure: Measure, is_resampled: bool) -> Result:
    resampling = planned.resampling
    resampled = splits if is_resampled else resample(splits, resampling, kind=measure.kind)
    try:
        checked = check_splits(resampled, measure.check)
        result = search(planned.head, checked, measure, resampling.seed)
    except FeatureCacheError as error:
        return planned, {"n_train": len(resampled["train"]), "error": str(error)}, "computed"
    return planned, _columns_of(result, checked, measure), "computed"


def _columns_of(result: HeadResult, splits: Splits, measure: Measure) -> dict[str, Any]:
    columns = (result.test or result.validation).to_json()
    columns |= {f"score{end}": columns[measure.chosen_by + end] for end in ("", "_low", "_high")}
    if measure.kind == "classification":
        columns |= calibration(splits[result.reported].y, result.proba)
        del columns["bins"]
    return columns | {
        "n_train": result.n_train // splits["train"].fit_views.shape[1],
        "params": json.dumps(result.params, sort_keys=True),
        "selection_accuracy": result.selection_accuracy,
        "selection_score": result.selection_score,
        "seconds": round(result.seconds, 4),
        "converged": bool(result.converged),
    }


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


def _bytes_of_a_sample(data: SplitData) -> int:
    return data.eval_views[:1].nbytes + (0 if data.fit_views is data.eval_views else data.fit_views[:1].nbytes)
