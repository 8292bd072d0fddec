"""Where shard jobs run. An engine only spreads work: the jobs, and the bytes they write, are the same everywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

from featurecache.errors import UnknownNameError

Job = TypeVar("Job")
Result = TypeVar("Result")


class Engine(Protocol):
    """Runs independent jobs somewhere; the order of results is free."""

    def map(self, work: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """Yield the result of each job; an error in a job is raised here."""
        ...


class LocalEngine:
    """Runs jobs one after the other in this process."""

    def map(self, work: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """Yield the result of each job, in order."""
        return map(work, jobs)


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
