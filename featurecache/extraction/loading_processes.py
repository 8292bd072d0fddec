"""Processes that load into memory which they share with this one.

Threads are the rule: they need no start, and share one source. But a quarter of a millisecond of loading a photograph
holds the interpreter's lock, so all threads of one process together load about 4,000 a second, and a GPU takes more.

The memory is an anonymous file of `multiprocessing`, and ends with the last process that has it, however that ends.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from featurecache.devices import pinned
from featurecache.errors import InputError, LoadingDiedError, RequestError
from featurecache.extraction.child_processes import end_with_starter, hear_signals, starting_processes
from featurecache.extraction.loading_pools import Item, LoadingThreads, ToLoad, batches_ahead, load_all
from featurecache.extraction.meter import Meter, Spent
from featurecache.machine import num_cores
from featurecache.sources.inputs import Input
from featurecache.sources.opening import SourceSpec, open_spec
from featurecache.sources.source import Source, Stamp

if TYPE_CHECKING:
    from featurecache.extraction.modality import InputDigests, Modality

_log = logging.getLogger(__name__)

VARIABLE = "FEATURECACHE_LOADING"
"""``threads`` or ``processes``, in the environment, whatever the machine."""
# With fewer cores threads load about as much; of fewer inputs, most are loaded before all processes have started.
_LEAST_CORES, _LEAST_INPUTS = 8, 20_000
# Batches that a runtime may hold, beyond those that are loaded ahead; of more, threads fill some memory of their own.
_HELD_BY_RUNTIME = 5
# Of the file system of shared memory; whoever writes to memory that is not there is killed.
_MOST_OF_SHARED = 0.8
# That a process may take to start: on some file systems imports are slow.
_SECONDS_TO_START = 300


def open_processes(
    source: SourceSpec | None,
    modality: Modality,
    batch_size: int,
    num_workers: int | None,
    meter: Meter,
    *,
    device: str,
    num_inputs: int,
) -> LoadingProcesses | None:
    """Start processes that load, where that pays off and can be; None: threads are to do it.

    Parameters
    ----------
    source, modality, batch_size, num_workers, meter, device
        See `LoadingProcesses`; a source that lives in this process alone is None.
    num_inputs : int
        That are to be loaded.

    Raises
    ------
    RequestError
        The variable of the environment says something else than how to load.
    """
    asked = os.environ.get(VARIABLE, "")
    if asked not in ("", "threads", "processes"):
        raise RequestError(f"{VARIABLE} is {asked!r}; known: threads, processes")
    on_gpu = device.partition(":")[0] == "cuda"
    pays_off = on_gpu and (num_workers or num_cores()) >= _LEAST_CORES and num_inputs >= _LEAST_INPUTS
    if asked == "threads" or not (asked or pays_off):
        return None
    num_bytes = _num_batches(batch_size) * modality.empty(1).nbytes * batch_size
    reason = None
    if source is None:
        reason = "the samples are in the memory of this process"
    elif multiprocessing.current_process().daemon:
        reason = "this process is a daemon, which may start none"
    elif not _has_room(num_bytes):
        reason = f"/dev/shm has no {num_bytes >> 20} MiB to spare (docker: --shm-size)"
    if source is None or reason is not None:
        _log.warning("decoding in threads, not in processes: %s", reason)
        return None
    pool = LoadingProcesses(source, modality, batch_size, num_workers, meter, device=device)
    if asked:  # else threads load until all processes have started
        pool.wait_for_start()
    return pool


class LoadingProcesses:
    """Processes that load images into shared memory; threads load until they have started, and what cannot travel.

    Parameters
    ----------
    source : SourceSpec
        Each process opens it anew.
    modality : Modality
    batch_size : int
    num_workers : int or None
        Processes; None is one per core.
    meter : Meter
        Told what they do.
    device : str
        Where batches go.
    """

    def __init__(
        self,
        source: SourceSpec,
        modality: Modality,
        batch_size: int,
        num_workers: int | None,
        meter: Meter,
        *,
        device: str = "cpu",
    ) -> None:
        self.batch_size, self.num_workers, self._meter = batch_size, num_workers or num_cores(), meter
        self._threads = LoadingThreads(modality, batch_size, self.num_workers, meter, device=device)
        blank = modality.empty(1)[0]
        context = multiprocessing.get_context("spawn")
        memory = context.RawArray("B", _num_batches(batch_size) * batch_size * blank.nbytes)
        self._slots = np.frombuffer(memory, blank.dtype).reshape(-1, *blank.shape)
        self._pinned = ExitStack()
        self._pinned.enter_context(pinned(self._slots, device))
        self._free = list(self._slots.reshape(-1, batch_size, *blank.shape))
        self._all_started = context.Barrier(self.num_workers)
        self._executor = ProcessPoolExecutor(
            self.num_workers, context, initializer=_begin, initargs=(source, modality, memory, self._all_started)
        )
        # Each call starts a process. It waits for the others, so that none of them takes two.
        with starting_processes():
            self._starting = [self._executor.submit(_start) for _ in range(self.num_workers)]
        self._failed = False

    def take(self) -> NDArray[Any]:
        """See `LoadingPool.take`."""
        return self._free.pop() if self._free else self._threads.take()

    def give_back(self, batch: NDArray[Any]) -> None:
        """See `LoadingPool.give_back`."""
        if self._index_of(batch) is None:
            self._threads.give_back(batch)
        else:
            self._free.append(batch)

    def submit(self, to_load: ToLoad) -> Future[None]:
        """See `LoadingPool.submit`.

        Raises
        ------
        LoadingDiedError
            A process was killed.
        """
        tasks = self._tasks_of(to_load) if self._have_started() else None
        if tasks is None:
            return self._threads.submit(to_load)
        done: Future[None] = Future()
        try:
            sent = self._executor.submit(_load, tasks)
        except BrokenProcessPool as error:
            raise LoadingDiedError from error
        sent.add_done_callback(partial(self._settle, done, to_load))
        return done

    def close(self) -> None:
        """See `LoadingPool.close`."""
        if not all(future.done() for future in self._starting):
            self._all_started.abort()
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._threads.close()
        self._pinned.close()

    def wait_for_start(self) -> None:
        """Wait until all processes have started, or one of them has failed to."""
        wait(self._starting)

    def _have_started(self) -> bool:
        if self._starting and all(future.done() for future in self._starting):
            error = next((error for future in self._starting if (error := future.exception()) is not None), None)
            self._starting, self._failed = [], error is not None
            if error is not None:
                _log.warning("decoding in threads: the processes for it did not start (%s)", error)
        return not self._starting and not self._failed

    def _tasks_of(self, to_load: ToLoad) -> list[_Task] | None:
        """Return what a process has to know to load these; None where one of them is for threads."""
        tasks = []
        for item, source in to_load:
            if source.kept is not None and source.id is not None and bytes.fromhex(source.id) in source.kept:
                return None
            indices = [index for slot in item.slots if (index := self._index_of(slot)) is not None]
            if len(indices) < len(item.slots):
                return None
            tasks.append(_Task(source.entry, source.id, source.stamp, item.digested, indices))
        return tasks

    def _index_of(self, array: NDArray[Any]) -> int | None:
        """Return which slot of the shared memory an array, perhaps of several, begins with."""
        index = (array.ctypes.data - self._slots.ctypes.data) // self._slots[0].nbytes
        return index if 0 <= index < len(self._slots) else None

    def _settle(self, done: Future[None], to_load: ToLoad, sent: Future[tuple[list[_Loaded], Spent]]) -> None:
        """Tell the items, and whoever waits for them, what came of a call."""
        if sent.cancelled():
            done.cancel()
        elif isinstance(error := sent.exception(), BrokenProcessPool):
            done.set_exception(LoadingDiedError())
        elif error is not None:
            done.set_exception(error)
        else:
            loaded, spent = sent.result()
            for (item, _), found in zip(to_load, loaded, strict=True):
                item.problem, item.cut, item.digests, item.remark = found
            self._meter.add_loading(spent, elsewhere=True)
            done.set_result(None)


class _Task(NamedTuple):
    """An input, as it travels."""

    entry: str
    id: str | None
    stamp: Stamp | None
    digested: bool
    indices: Sequence[int]
    """Of the slots."""


class _Loaded(NamedTuple):
    """What an item is told."""

    problem: InputError | None
    cut: bool
    digests: InputDigests | None
    remark: str


def _num_batches(batch_size: int) -> int:
    return batches_ahead(batch_size) + _HELD_BY_RUNTIME


def _has_room(num_bytes: int) -> bool:
    # Where there is no such folder, multiprocessing takes another one, or a mapping without a file.
    folder = Path("/dev/shm")
    return not folder.exists() or num_bytes <= _MOST_OF_SHARED * shutil.disk_usage(folder).free


@dataclass(frozen=True)
class _Process:
    """What a process that loads holds."""

    source: Source
    modality: Modality
    slots: NDArray[Any]
    blank: NDArray[Any]
    all_started: Any


_process: _Process | None = None


def _begin(spec: SourceSpec, modality: Modality, memory: Any, all_started: Any) -> None:
    """Prepare this process."""
    global _process
    end_with_starter()
    # The starter hears it too, and ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    hear_signals()
    # Views are made by torch, which this process has not imported yet: each would compute on all cores.
    os.environ["OMP_NUM_THREADS"] = "1"
    modality.undisturbed().__enter__()  # for as long as the process lives
    blank = modality.empty(1)[0]
    slots = np.frombuffer(memory, blank.dtype).reshape(-1, *blank.shape)
    _process = _Process(open_spec(spec), modality, slots, blank, all_started)


def _start() -> None:
    assert _process is not None
    _process.all_started.wait(_SECONDS_TO_START)


def _load(tasks: Sequence[_Task]) -> tuple[list[_Loaded], Spent]:
    """Load some inputs into the shared memory."""
    assert _process is not None
    to_load = [
        (
            Item(slots=[_process.slots[index] for index in task.indices], digested=task.digested),
            Input(_process.source, task.entry, task.id, task.stamp),
        )
        for task in tasks
    ]
    spent = load_all(to_load, _process.modality, _process.blank)
    return [_Loaded(item.problem, item.cut, item.digests, item.remark) for item, _ in to_load], spent
