"""Where an extraction runs. An engine only spreads work: what is computed, and its bytes, are the same everywhere.

An engine of another distribution is found by its entry point in the group ``featurecache.engines``: a class, or any
callable that takes ``progress``, under the name that people give to ``--engine``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from featurecache.extraction.engines.local import LocalEngine
from featurecache.extraction.job import ExtractionJob
from featurecache.extraction.worker_report import WorkerReport
from featurecache.plugins import load_named
from featurecache.progress import Progress

GROUP = "featurecache.engines"


class Engine(Protocol):
    """Runs the workers of a job, in this process or in others."""

    def run(self, job: ExtractionJob) -> Iterator[WorkerReport]:
        """Call `featurecache.extraction.work.work` with the job as often, and wherever, the engine likes.

        The source was scanned before. Workers share what is to do among them by leases in the cache, so nothing is
        given out here, and an engine that starts one worker too many loses nothing.

        Yields
        ------
        WorkerReport
            One for each worker, as they end; what a worker raised is raised here.
        """


# Searched before entry points, so that no distribution can take the name of one of ours.
OWN: dict[str, Callable[[Progress], Engine]] = {"local": LocalEngine}


def make_engine(name: str, progress: Progress) -> Engine:
    """Return a new engine by name; it reports to ``progress`` where it runs in this process."""
    engine: Engine = load_named("engine", name, OWN, group=GROUP)(progress)
    return engine
