"""What this process may use of its machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_UNKNOWN_MEMORY = 4 << 30
"""Where the system has no simple way to ask."""


def free_memory() -> int:
    """Return how many bytes of memory this process may still take, by the system, its container and its own limit."""
    if sys.platform == "win32":
        return _UNKNOWN_MEMORY
    import resource

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


def num_cores() -> int:
    """Return how many cores this process may use, by its affinity and the quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(min(cores, round(int(quota) / int(period))), 1)
    except (OSError, ValueError):  # no such file, or "max"
        return cores


def allow_more_files() -> bool:
    """Let this process hold as many files open as the system grants, and tell whether that is more than before."""
    if sys.platform == "win32":
        return False
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return False
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):  # some systems promise more than they grant
        return False
    return True
