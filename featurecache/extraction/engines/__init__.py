"""Where workers run. An engine only spreads work: what is computed, and its bytes, are the same everywhere.

An engine of another distribution is found by its entry point in the group ``featurecache.engines``: a class, or any
callable that takes ``progress``, under the name that people give to ``--engine``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from featurecache.errors import RequestError
from featurecache.extraction.engines.job import Job, Report
from featurecache.extraction.engines.local import LocalEngine
from featurecache.extraction.engines.processes import ProcessesEngine
from featurecache.extraction.engines.rank import RankEngine
from featurecache.extraction.engines.ray import RayEngine
from featurecache.plugins import load_named
from featurecache.progress import Progress
from featurecache.specs import ExtractionSettings

GROUP = "featurecache.engines"


class Engine(Protocol):
    """Runs the workers of a job, in this process or in others."""

    def run(self, job: Job[Report]) -> Iterator[Report]:
        """Call the job's `work` as often, and wherever, the engine likes.

        The source was scanned before, or is read by the workers. They share what is to do among them by leases, so
        nothing is given out here, and an engine that starts one worker too many loses nothing.

        Yields
        ------
        Report
            What `work` has returned, one for each worker, as they end; what a worker raised is raised here.
        """


# Searched before entry points, so that no distribution can take the name of one of ours.
OWN: dict[str, Callable[[Progress], Engine]] = {
    "local": LocalEngine,
    "processes": ProcessesEngine,
    "rank": RankEngine,
    "ray": RayEngine,
}


def make_engine(name: str, progress: Progress, *, settings: ExtractionSettings | None = None) -> Engine:
    """Return a new engine by name.

    Parameters
    ----------
    name : str
    progress : Progress
        Told how far it is, where it runs in this process.
    settings : ExtractionSettings, optional
        Of the job that it is to run.

    Raises
    ------
    UnknownNameError
        There is no such engine.
    RequestError
        The settings are for another.
    """
    if settings is not None and settings.num_processes is not None and name in ("local", "rank"):
        raise RequestError(f"--processes is for engines that start several workers; {name} starts none")
    engine: Engine = load_named("engine", name, OWN, group=GROUP)(progress)
    return engine
