"""Fits in processes of their own, which end at once when somebody stops: compiled code hears no signal."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import TypeVar

from joblib import Parallel, delayed
from joblib.externals.loky import reusable_executor

Result = TypeVar("Result")
_SECONDS_BETWEEN_CHECKS = 0.5


def in_processes(
    work: Callable[..., Result], arguments: Iterable[tuple[object, ...]], *, workers: int
) -> Iterator[tuple[int, Result]]:
    """Yield the index of each tuple of arguments, and what ``work`` returns for it, as soon as it is ready.

    Whatever ends this early (Ctrl-C, a signal that raises, an error, a caller that wants no more) kills the processes
    first: libsvm runs for minutes in compiled code that asks for nothing, and would go on without us.

    Parameters
    ----------
    work : callable
        What a fresh process can import; features are mapped into the processes, not copied to each.
    arguments : iterable of tuple
    workers : int
        Calls at a time.
    """
    # joblib takes one process for none; of two, only so many get work at a time.
    parallel = Parallel(n_jobs=max(workers, 2), backend="loky", return_as="generator_unordered", pre_dispatch=workers)
    try:  # processes are started by the call, before there are results
        yield from parallel(delayed(_call)(os.getpid(), index, work, some) for index, some in enumerate(arguments))
    except BaseException:
        # joblib keeps its processes for the next call; a public way to end them at once is not there.
        executor = reusable_executor._executor
        if executor is not None:
            executor.shutdown(wait=False, kill_workers=True)
        raise


def _call(parent: int, index: int, work: Callable[..., Result], arguments: tuple[object, ...]) -> tuple[int, Result]:
    _end_with(parent)
    return index, work(*arguments)


# Once for each process, which serves many calls.
@cache
def _end_with(parent: int) -> None:
    """End this process soon after its parent is gone, also one that was killed and could tell nobody.

    Otherwise a fit in compiled code would keep a core busy for hours, for a result that nobody takes.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_SECONDS_BETWEEN_CHECKS)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()
