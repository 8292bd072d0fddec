"""The fits of a sweep that are still to be done: which go together, in which processes, and with how much memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from joblib import effective_n_jobs

from featurecache.errors import FeatureCacheError, HeadError
from featurecache.evaluation.affording import cannot_afford
from featurecache.evaluation.calibration import calibration
from featurecache.evaluation.divisions import Division, divide
from featurecache.evaluation.measures import Measure
from featurecache.evaluation.parts import Part, check_parts
from featurecache.evaluation.processes import in_processes
from featurecache.evaluation.protocol import (
    UNINTERRUPTIBLE,
    HeadResult,
    are_built_in,
    evaluate_tasks,
    is_worth_a_process,
)
from featurecache.evaluation.selection import check_streams
from featurecache.evaluation.staging import Staging, staging
from featurecache.heads.registry import fits_tasks
from featurecache.specs import TaskKind

State = Literal["asked for", "kept", "computed", "no room"]
"""What is known of a result. ``no room`` is true of this machine and this moment, and so is never kept."""


class Cell(NamedTuple):
    """One result to be computed."""

    key: str
    """Of the result."""
    place: int
    """Of the pair: a task on a feature set."""
    labels: str
    """Digest of its samples and of what is said of them."""
    head: str
    division: Division


Job = list[Cell]
"""Of pairs that a head fits side by side; all have the same head and division."""
Result = tuple[Cell, dict[str, Any], State]


def computed(
    cells: list[Cell],
    parts: list[dict[str, Part]],
    measures: list[Measure],
    n_jobs: int,
    num_taken: int,
    folder: Path,
    room: Staging,
    *,
    memory: int | None = None,
    asked_for: bool = False,
) -> Iterator[Result]:
    """Compute cells of pairs on the same samples, in as many processes as are asked for and of use.

    Parameters
    ----------
    cells : list of Cell
    parts, measures : list
        Of each pair, a task on a feature set.
    n_jobs : int
        Processes at most, as in joblib.
    num_taken : int
        Of how many samples a process makes copies for a pair; see `num_samples_taken`.
    folder : Path
        Where features are laid out that do not fit in memory.
    room : Staging
        How much there may be.
    memory : int, optional
        Bytes that a head may take beside; see `cannot_afford`.
    asked_for : bool
        Somebody named these heads.

    Yields
    ------
    (Cell, dict, State)
        Each with its figures, or with ``error``, as it is ready.
    """
    kind = measures[0].kind
    reasons = _too_dear(cells, parts, measures, memory, asked_for=asked_for)
    dear = {
        cell.key: reasons[cell.head, cell.place]
        for cell in cells
        if _is_whole(cell) and (cell.head, cell.place) in reasons
    }
    for cell in cells:
        if cell.key in dear:
            yield cell, {"error": f"head {cell.head!r} {dear[cell.key]}"}, "no room"
    if not (cells := [cell for cell in cells if cell.key not in dear]):
        return
    jobs = _jobs(cells, parts, kind)
    workers = min(effective_n_jobs(n_jobs), len(jobs)) if are_built_in((cell.head for cell in cells), kind) else 1
    on_disk = any(part.on_disk for each in parts for part in each.values())
    num_taken *= max(map(len, jobs))
    if not on_disk and workers * num_taken * _bytes_of_a_sample(parts[0]["train"]) <= room.left:
        yield from _in_processes(jobs, parts, measures, workers)
        return
    # One division after the other: what it takes out is laid out once for all processes.
    alike: dict[tuple[Division, tuple[int, ...]], list[Job]] = {}
    for job in jobs:
        alike.setdefault((job[0].division, tuple(cell.place for cell in job)), []).append(job)
    for (division, places), mine in alike.items():
        with staging(folder, room.left) as inner:
            divided = {place: divide(parts[place], division, kind=kind, room=inner) for place in places}
            train = divided[places[0]]["train"]
            for job in list(mine):
                try:
                    check_streams(job[0].head, train, kind=kind)
                except HeadError as error:
                    mine.remove(job)
                    for cell in job:
                        yield cell, {"n_train": len(train), "error": str(error)}, "no room"
            yield from _in_processes(mine, divided, measures, workers, is_divided=True)


def _too_dear(
    cells: list[Cell], parts: list[dict[str, Part]], measures: list[Measure], memory: int | None, *, asked_for: bool
) -> dict[tuple[str, int], str]:
    """Return why heads cannot be fitted on some pairs, by their name and the place of the pair."""
    whole = {(cell.head, cell.place) for cell in cells if _is_whole(cell)}
    reasons = {
        (head, place): cannot_afford(head, parts[place], measures[place].n_outputs, memory=memory, asked_for=asked_for)
        for head, place in whole
    }
    return {key: reason for key, reason in reasons.items() if reason is not None}


def _is_whole(cell: Cell) -> bool:
    """Tell whether a head is fitted on all labels; few are small, whatever the part is that they are taken from."""
    return not cell.division.takes_labels_away


def _jobs(cells: list[Cell], parts: list[dict[str, Part]], kind: TaskKind) -> list[Job]:
    """Return cells that are computed together, with a head that can.

    They are of tasks whose samples a division leaves alone, or of equal ones, which it divides alike.
    """
    jobs: dict[tuple[str, Division, str | int], Job] = {}
    for cell in cells:
        of_these: str | int = cell.place
        if fits_tasks(cell.head, kind=kind):
            of_these = "any" if cell.division.is_the_tasks_own(parts[cell.place]) else cell.labels
        jobs.setdefault((cell.head, cell.division, of_these), []).append(cell)
    return list(jobs.values())


def _in_processes(
    jobs: list[Job],
    parts: Sequence[dict[str, Part]] | dict[int, dict[str, Part]],
    measures: list[Measure],
    workers: int,
    *,
    is_divided: bool = False,
) -> Iterator[Result]:
    def arguments(job: Job) -> tuple[Any, ...]:
        return job, [parts[cell.place] for cell in job], [measures[cell.place] for cell in job], is_divided

    workers = min(workers, len(jobs))
    long = any(job[0].head in UNINTERRUPTIBLE for job in jobs) and is_worth_a_process(
        parts[cell.place]["train"].fitted.size for job in jobs for cell in job
    )
    if workers <= 1 and not (long and are_built_in((job[0].head for job in jobs), measures[0].kind)):
        for job in jobs:
            yield from _compute(*arguments(job))
        return
    for results in in_processes(_compute, map(arguments, jobs), workers=max(workers, 1)):
        yield from results


def _compute(job: Job, parts: list[dict[str, Part]], measures: list[Measure], is_divided: bool) -> list[Result]:
    if len(job) > 1:
        try:
            return _evaluated(job, parts, measures, is_divided=is_divided)
        except FeatureCacheError:
            pass  # of one of the tasks: each by itself says of which
    results = []
    for cell, part, measure in zip(job, parts, measures, strict=True):
        try:
            results += _evaluated([cell], [part], [measure], is_divided=is_divided)
        except FeatureCacheError as error:
            divided = part if is_divided else divide(part, cell.division, kind=measure.kind)
            results.append((cell, {"n_train": len(divided["train"]), "error": str(error)}, "computed"))
    return results


def _evaluated(job: Job, parts: list[dict[str, Part]], measures: list[Measure], *, is_divided: bool) -> list[Result]:
    head, division = job[0].head, job[0].division
    divided = [
        part if is_divided else divide(part, division, kind=measure.kind)
        for part, measure in zip(parts, measures, strict=True)
    ]
    checked = [check_parts(part, measure.check) for part, measure in zip(divided, measures, strict=True)]
    results = evaluate_tasks(head, checked, measures, division.seed)
    return [
        (cell, _figures(result, part, measure), "computed")
        for cell, result, part, measure in zip(job, results, checked, measures, strict=True)
    ]


def _figures(result: HeadResult, parts: dict[str, Part], measure: Measure) -> dict[str, Any]:
    figures = (result.test or result.validation).to_json()
    figures |= {f"score{end}": figures[measure.chosen_by + end] for end in ("", "_low", "_high")}
    if measure.kind == "classes":
        figures |= calibration(parts[result.reported].y, result.proba)
        del figures["bins"]
    return figures | {
        "n_train": result.n_train // parts["train"].fitted.shape[1],
        "params": json.dumps(result.params, sort_keys=True),
        "selection_accuracy": result.selection_accuracy,
        "selection_score": result.selection_score,
        "seconds": round(result.seconds, 4),
        "converged": bool(result.converged),
    }


def num_samples_taken(parts: dict[str, Part], division: Division, kind: TaskKind) -> int:
    """Return of how many samples a process of its own makes copies, to take a division out of the parts."""
    taken = [part for part in divide(parts, division, kind=kind).values() if all(part is not p for p in parts.values())]
    # Parts come to another process one by one, and folds are of two of them.
    joined = [parts["train"], parts["validation"]] if division.num_folds and "validation" in parts else []
    return sum(map(len, taken + joined))


def _bytes_of_a_sample(part: Part) -> int:
    return part.judged[:1].nbytes + (0 if part.fitted is part.judged else part.fitted[:1].nbytes)
