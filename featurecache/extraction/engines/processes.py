"""Workers in processes of this machine: one for each GPU, or several that share the cores."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from featurecache.code_notice import LOGGER
from featurecache.errors import RequestError, WorkerDiedError
from featurecache.extraction.child_processes import end_with_starter, hear_signals, starting_processes
from featurecache.extraction.engines.job import Job, Report
from featurecache.machine import let_threads_sleep, num_cores
from featurecache.progress import Progress
from featurecache.specs import ALL_GPUS, ExtractionSettings
from featurecache.stopping import remove_temporary, stops_cleanly
from featurecache.wording import counted

_SECONDS_TO_END = 2.5
"""Less than `featurecache.stopping` gives this process to put things in order."""
_MOST_RESTARTS = 3
"""Of all workers together. One that memory ends would be ended again and again."""


@dataclass(frozen=True)
class ProcessesEngine:
    """Runs a job in several processes, each with its share of the cores.

    With ``--device cuda:all`` there is a worker for each GPU, which sees no other. Else there are as many as the
    settings say, two when they don't. A worker that is killed costs what it had not committed: another one takes its
    place.
    """

    progress: Progress

    def run(self, job: Job[Report]) -> Iterator[Report]:
        """Start the workers, and yield their reports as they end.

        Raises
        ------
        RequestError
            A job of samples or a network in memory; more processes than cores.
        WorkerDiedError
            Workers were killed again and again.
        """
        slots = _slots(job.settings)
        cores = num_cores() // len(slots)
        if not cores:
            raise RequestError(
                f"{counted(len(slots), 'process')} on {counted(num_cores(), 'core')} wait for each other; ask for "
                "fewer with --processes"
            )
        workers: list[_Started] = []
        try:
            for slot in slots:
                workers.append(_Started.start(job, slot, cores))
            yield from self._reports(workers, job, cores)
        finally:
            for worker in workers:
                worker.process.terminate()
            for worker in workers:
                worker.process.join(_SECONDS_TO_END)
                if worker.process.is_alive():
                    worker.process.kill()
                    worker.process.join()
                worker.connection.close()

    def _reports(self, workers: list[_Started], job: Job[Report], cores: int) -> Iterator[Report]:
        """Pass on what workers tell, and start another one where one was killed."""
        at_work, restarts, expected = list(workers), 0, 0
        while at_work:
            ready = wait([worker.connection for worker in at_work])
            for worker in [worker for worker in at_work if worker.connection in ready]:
                try:
                    kind, value = worker.connection.recv()
                except EOFError:
                    kind, value = "died", None
                if kind == "start":
                    # All of them count everything that is missing: the first, which sees the most, speaks for all.
                    if value[1] > expected:
                        expected = value[1]
                        self.progress.start(*value)
                elif kind == "advance":
                    self.progress.advance(value[0], bad=value[1])
                elif kind == "say":
                    self.progress.say(value)
                elif kind == "note":
                    if len(workers) == len(at_work) and worker is workers[0]:
                        self.progress.note(value)
                elif kind == "done":
                    at_work.remove(worker)
                    yield value
                elif kind == "failed":
                    raise value
                else:
                    at_work.remove(worker)
                    worker.process.join()
                    restarts += 1
                    if restarts > _MOST_RESTARTS:
                        raise WorkerDiedError(worker.process.exitcode or 0)
                    again = _Started.start(job, worker.slot, cores)
                    workers.append(again)
                    at_work.append(again)


@dataclass(frozen=True)
class _Slot:
    """Where a worker computes: the device as the worker calls it, and the GPU that it may see."""

    device: str | None = None
    visible_gpu: str | None = None


@dataclass(frozen=True)
class _Started:
    """A worker that was started."""

    slot: _Slot
    process: SpawnProcess
    connection: Connection

    @classmethod
    def start(cls, job: Job[Any], slot: _Slot, cores: int) -> _Started:
        context, level = multiprocessing.get_context("spawn"), logging.getLogger(LOGGER).level
        ours, theirs = context.Pipe(duplex=False)
        # No daemon: those may start no processes, and a GPU may need some that decode.
        process = context.Process(target=_serve, args=(theirs, job, slot, cores, level), name="featurecache-worker")
        with starting_processes():
            process.start()
        # The end of the pipe is seen only when nobody else holds its other end.
        theirs.close()
        return cls(slot, process, ours)


def _slots(settings: ExtractionSettings) -> list[_Slot]:
    """Return where each worker computes."""
    if settings.device != ALL_GPUS:
        return [_Slot(settings.device)] * (settings.num_processes or min(2, num_cores()))
    import torch

    count = torch.cuda.device_count()
    if not count:
        raise RequestError("--device cuda:all, but there is no GPU here; leave it out to compute on the CPU")
    listed = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    names = listed if len(listed) == count else [str(index) for index in range(count)]
    per_gpu = max((settings.num_processes or count) // count, 1)
    # Whoever sees one GPU cannot use memory of another by mistake.
    return [_Slot("cuda:0", name) for name in names for _ in range(per_gpu)]


def _serve(connection: Connection, job: Job[Any], slot: _Slot, cores: int, level: int) -> None:
    """Work in a process that was started for it, and tell the starter what happens."""
    logging.getLogger(LOGGER).setLevel(level)  # --quiet holds for workers too
    end_with_starter()
    let_threads_sleep()
    if slot.visible_gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = slot.visible_gpu
    try:
        with stops_cleanly():
            hear_signals()
            report = job.work(device=slot.device, cores=cores, progress=_ToStarter(connection))
        connection.send(("done", report))
    except KeyboardInterrupt:
        remove_temporary()  # the starter says why
    except Exception as error:
        try:
            connection.send(("failed", error))
        except (AttributeError, TypeError, ValueError):  # of somebody else, and it does not travel
            connection.send(("failed", RuntimeError(f"{type(error).__name__}: {error}")))


@dataclass(frozen=True)
class _ToStarter:
    """Progress of a worker, told to the process that started it."""

    connection: Connection

    def start(self, phase: str, total: int) -> None:
        self._tell("start", (phase, total))

    def advance(self, count: int, *, bad: int = 0) -> None:
        self._tell("advance", (count, bad))

    def say(self, text: str) -> None:
        self._tell("say", text)

    def note(self, text: str) -> None:
        self._tell("note", text)

    def _tell(self, kind: str, value: Any) -> None:
        with suppress(OSError):  # the starter is gone, and this process ends soon
            self.connection.send((kind, value))
