"""Fits in other processes, or wherever a `joblib.parallel_config` sends them; they end at once when somebody stops.

==================  =====================================  ==========================================================
backend             splits come to a worker                when somebody stops
==================  =====================================  ==========================================================
loky (the default)  by memory map                          processes are killed: compiled code hears no signal
multiprocessing     by memory map                          processes are killed
threading           as they are                            fits that have begun go on to their end
ray, dask, others   by value; splits that lie in a file    as the backend does it
                    are fitted on in this process
==================  =====================================  ==========================================================
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from itertools import islice
from typing import Any, TypeVar

from joblib import Parallel, delayed
from joblib.externals.loky import reusable_executor
from joblib.parallel import LokyBackend, MultiprocessingBackend, get_active_backend

from featurecache.evaluation.split_data import SplitData
from featurecache.heads.recorded_warnings import warnings_by_thread
from featurecache.heads.threads import one_thread

Result = TypeVar("Result")
_SECONDS_BETWEEN_CHECKS = 0.5
_CALLS_AT_A_TIME = 4
"""For each worker, where results come in lists: fewer let workers wait for the slowest, more are lost with a kill."""


@dataclass(frozen=True, slots=True)
class FitBackend:
    """Where fits run.

    Attributes
    ----------
    backend : joblib.parallel.ParallelBackendBase
    count : int
        Workers it would use.
    """

    backend: Any
    count: int

    @classmethod
    def active(cls, n_jobs: int | None) -> FitBackend:
        """Return what the `joblib.parallel_config` around the call says, or loky.

        Parameters
        ----------
        n_jobs : int, optional
            As in joblib; when left out the count of ``parallel_config``, and all workers where that has none.
        """
        backend, count = get_active_backend()
        if n_jobs is None:
            n_jobs = -1 if count is None else count
        workers = 1 if n_jobs == 1 else int(backend.effective_n_jobs(n_jobs))
        # Inside its workers joblib names a backend that nobody chose: threads, in which fits would not end.
        return cls(LokyBackend(nesting_level=0) if backend.nesting_level else backend, workers)

    @property
    def starts_slowly(self) -> bool:
        """Tell whether starting it takes seconds: each of its processes imports all libraries."""
        return isinstance(self.backend, LokyBackend)

    @property
    def has_own_processes(self) -> bool:
        """Tell whether its workers are children of this process."""
        # Not a subclass: ray's backend is one of multiprocessing's.
        return isinstance(self.backend, LokyBackend) or type(self.backend) is MultiprocessingBackend

    @property
    def has_threads(self) -> bool:
        """Tell whether its workers are threads of this process."""
        return bool(getattr(self.backend, "uses_threads", False))

    def reads(self, splits: Mapping[str, SplitData]) -> bool:
        """Tell whether its workers can read these splits: in memory, or in files that they certainly see."""
        here = self.has_own_processes or self.has_threads
        return here or not any(data.on_disk for data in splits.values())

    def run(
        self, work: Callable[..., Result], arguments: Iterable[tuple[object, ...]], *, workers: int
    ) -> Iterator[tuple[int, Result]]:
        """Yield the index of each tuple of arguments, and what ``work`` returns for it, as soon as it is ready.

        Whatever ends this early (Ctrl-C, a signal that raises, an error, a caller that wants no more) kills the
        processes first: libsvm runs for minutes in compiled code that asks for nothing, and would go on without us.

        Parameters
        ----------
        work : callable
            What a fresh process can import.
        arguments : iterable of tuple
        workers : int
            Calls at a time.
        """
        parent = os.getpid() if self.has_own_processes else None
        calls = (delayed(_call)(parent, index, work, some) for index, some in enumerate(arguments))
        # joblib takes one process for none; of two, only so many get work at a time.
        num_workers = max(workers, 2) if self.has_own_processes else workers
        with ExitStack() as stack:
            if self.has_threads:
                # Each thread limits the arithmetic of all, and lifts the limit when it ends; so this one holds it.
                import_module("torch")
                stack.enter_context(one_thread())
                stack.enter_context(warnings_by_thread())
            try:  # processes are started by the call, before there are results
                if self.backend.supports_return_generator:
                    unordered = {"return_as": "generator_unordered", "pre_dispatch": workers}
                    yield from Parallel(n_jobs=num_workers, backend=self.backend, **unordered)(calls)
                    return
                parallel = stack.enter_context(Parallel(n_jobs=num_workers, backend=self.backend, pre_dispatch="all"))
                while some := list(islice(calls, workers * _CALLS_AT_A_TIME)):
                    yield from parallel(some)
            except BaseException:
                # joblib keeps its processes for the next call; a public way to end them at once is not there.
                executor = reusable_executor._executor
                if self.starts_slowly and executor is not None:
                    executor.shutdown(wait=False, kill_workers=True)
                raise


def _call(
    parent: int | None, index: int, work: Callable[..., Result], arguments: tuple[object, ...]
) -> tuple[int, Result]:
    # Where joblib may start no process, inside a daemon for one, it calls this in the process that asked.
    if parent not in (None, os.getpid()):
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
