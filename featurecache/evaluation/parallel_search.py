"""Searches of several heads side by side, in as many processes as there are cores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import starmap
from typing import NamedTuple

from joblib import effective_n_jobs

from featurecache.evaluation.fit_progress import FitSteps, watched
from featurecache.evaluation.measure import Measure
from featurecache.evaluation.measures import measure_of
from featurecache.evaluation.processes import in_processes
from featurecache.evaluation.ranking import ranked
from featurecache.evaluation.search import HeadLike, HeadResult, resolve, search
from featurecache.evaluation.split_data import SplitData, Splits, check_splits
from featurecache.heads.head import NamedHead
from featurecache.progress import Progress
from featurecache.specs import TaskKind

WORTH_A_PROCESS = 500_000
"""Below this many feature values, starting a second process takes longer than fitting all heads in this one."""


def evaluate_heads(
    heads: Sequence[HeadLike],
    splits: Splits,
    n_classes: int,
    *,
    n_jobs: int = -1,
    kind: TaskKind = "classification",
    balanced: bool = False,
    metric: str | None = None,
    random_state: int = 0,
    progress: Progress | None = None,
) -> list[HeadResult]:
    """Evaluate several heads, in parallel processes where the data is large enough to be worth it.

    Parameters
    ----------
    heads, splits, n_classes, kind, balanced, metric, random_state
        As for `featurecache.evaluation.search.evaluate_head`.
    n_jobs : int
        Processes at most; -1 is one per core. Results do not depend on it.
    progress : Progress, optional
        Told of each head that is ready, and of the settings of those that are fitted.

    Returns
    -------
    list of HeadResult
        The head to keep first; see `featurecache.evaluation.ranking.ranked`.

    Raises
    ------
    TaskError, HeadError
        As for one head; a head that refuses the data is named.
    """
    named = list({head.name: head for head in (resolve(name, kind) for name in heads)}.values())
    measure = measure_of(kind, n_classes, balanced=balanced, metric=metric)
    return search_all([HeadsAndData(named, splits)], measure, random_state, n_jobs=n_jobs, progress=progress)[0]


class HeadsAndData(NamedTuple):
    """Heads, and what they are fitted and evaluated on."""

    heads: Sequence[NamedHead]
    splits: Splits
    label: str = ""
    """What tells these features from others on progress, such as " on blocks.11:cls"."""


def search_all(
    wanted: Sequence[HeadsAndData],
    measure: Measure,
    random_state: int,
    *,
    n_jobs: int = -1,
    progress: Progress | None = None,
) -> list[list[HeadResult]]:
    """Do the searches of heads on several feature sets, all in the same processes.

    Parameters
    ----------
    wanted : sequence of HeadsAndData
        Held in memory together.
    measure : Measure
    random_state, n_jobs, progress
        As for `evaluate_heads`.

    Returns
    -------
    list of list of HeadResult
        As `evaluate_heads`, for each of ``wanted``.

    Raises
    ------
    TaskError, HeadError
        As `evaluate_heads`.
    """
    checked = [check_splits(data.splits, measure.check) for data in wanted]
    searches = [(number, head) for number, data in enumerate(wanted) for head in data.heads]
    # One that begins last would keep the other processes waiting for it.
    searches.sort(key=lambda found: -found[1].relative_seconds)
    num_values = sum(splits["train"].fit_views.size for splits in checked)
    worth_it = num_values >= WORTH_A_PROCESS and not any(splits["train"].on_disk for splits in checked)
    workers = min(effective_n_jobs(n_jobs), max(len(searches), 1)) if worth_it else 1
    results: list[list[HeadResult]] = [[] for _ in wanted]
    with watched(progress) as folder:
        arguments = (
            (number, head, checked[number], measure, random_state, FitSteps(folder, head.name + wanted[number].label))
            for number, head in searches
        )
        if workers == 1 and not (worth_it and any(not head.interruptible for _, head in searches)):
            found: Iterator[tuple[int, HeadResult]] = starmap(_numbered_search, arguments)
        else:
            # Processes, not threads: scikit-learn silences warnings by settings that threads of one process share.
            found = in_processes(_numbered_search, arguments, workers=workers)
        for number, result in found:
            results[number].append(result)
            if progress is not None:
                progress.advance(1)
    for number, data in enumerate(wanted):
        order = [head.name for head in data.heads]
        results[number].sort(key=lambda result: order.index(result.head))
        results[number] = ranked(results[number], measure, lambda result: result)
    return results


def _numbered_search(
    number: int,
    head: NamedHead,
    splits: dict[str, SplitData],
    measure: Measure,
    random_state: int,
    steps: FitSteps,
) -> tuple[int, HeadResult]:
    """Return the number too: processes are not ready in the order in which they were asked."""
    return number, search(head, splits, measure, random_state, steps)
