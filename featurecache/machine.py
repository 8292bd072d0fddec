"""What this process may use of its machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_UNKNOWN_MEMORY = 4 << 30
"""Where the system has no simple way to ask."""


def free_memory() -> int:
    """Return how many bytes of memory this process may still take, by the system, its container and its own limit."""
    if sys.platform == "win32":
        return _UNKNOWN_MEMORY
    import resource

    # The least of all limits that can be read; none of them knows of the others.
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    if (limit := resource.getrlimit(resource.RLIMIT_DATA)[0]) != resource.RLIM_INFINITY:
        found.append(limit)
    for path, name in ((Path("/proc/meminfo"), "MemAvailable:"), (Path("/sys/fs/cgroup/memory.max"), "")):
        try:
            line = next(line for line in path.read_text().splitlines() if line.startswith(name))
            found.append(int(line.removeprefix(name).split()[0]) * (1024 if name else 1))
        except (OSError, StopIteration, ValueError):  # no such file, or "max"
            continue
    return min(found)


_most_cores: ContextVar[int | None] = ContextVar("most_cores", default=None)


def let_threads_sleep() -> None:
    """Have OpenMP's threads sleep while they wait, unless the user has said otherwise; to be called before torch comes.

    By default they spin. Two processes on two cores then took 14.9 s for what takes 4.2 s now, and one alone 3.5 s.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@contextmanager
def at_most_cores(count: int | None) -> Iterator[None]:
    """Let `num_cores` return at most ``count`` for the length of the block: several workers share one machine."""
    before = _most_cores.set(count)
    try:
        yield
    finally:
        _most_cores.reset(before)


def num_cores() -> int:
    """Return how many cores this process may use: by its affinity, the quota of its container and `at_most_cores`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = min(cores, _most_cores.get() or cores)
    try:
        # A container may have many cores and the right to use two of them.
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        # Rounded: of a core and a half, two threads make better use than one.
        return max(min(cores, round(int(quota) / int(period))), 1)
    except (OSError, ValueError):  # no such file, or "max"
        return cores


@contextmanager
def variables_set(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the environment while the block runs, for what reads them in it and for processes it starts."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def allow_more_files() -> bool:
    """Let this process hold as many files open as the system grants, and tell whether that is more than before."""
    if sys.platform == "win32":
        return False
    import resource

    # A cache of ten thousand shards maps them all.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return False
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):  # some systems promise more than they grant
        return False
    return True
