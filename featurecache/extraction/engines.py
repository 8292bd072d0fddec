"""Where shard jobs run. An engine only spreads work: the jobs, and the bytes they write, are the same everywhere.

A worker takes jobs as a stream, because it begins the next one while the last one is still on its way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

from featurecache.errors import UnknownNameError

Job = TypeVar("Job")
Result = TypeVar("Result")
Work = Callable[[Iterable[Job]], Iterator[Result]]
"""Does jobs as they come, and yields one result for each."""


class Engine(Protocol):
    """Runs independent jobs somewhere; the order of results is free."""

    def map(self, work: Work[Job, Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """Yield the result of each job; an error in a job is raised here.

        An engine with several workers gives each one its own ``work`` and its own stream of jobs.
        """
        ...


class LocalEngine:
    """Runs jobs one after the other in this process."""

    def map(self, work: Work[Job, Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """Yield the result of each job."""
        return work(jobs)


_ENGINES: dict[str, Callable[[], Engine]] = {"local": LocalEngine}


def make_engine(name: str) -> Engine:
    """Return a new engine by name."""
    if name not in _ENGINES:
        raise UnknownNameError("engine", name, _ENGINES)
    return _ENGINES[name]()


def register_engine(name: str, factory: Callable[[], Engine]) -> None:
    """Make an engine of your own known by a name."""
    if name in _ENGINES:
        raise ValueError(f"engine {name!r} is already registered")
    _ENGINES[name] = factory
