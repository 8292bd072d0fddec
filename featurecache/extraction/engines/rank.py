"""One worker of many that something else started: torchrun, srun, a job array."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from featurecache.errors import RequestError
from featurecache.extraction.engines.job import Job, Report
from featurecache.machine import num_cores
from featurecache.progress import Progress
from featurecache.specs import ALL_GPUS

_RANKS = ("RANK", "SLURM_PROCID", "SLURM_ARRAY_TASK_ID")
_LOCAL_RANKS = ("LOCAL_RANK", "SLURM_LOCALID")
_LOCAL_SIZES = ("LOCAL_WORLD_SIZE", "SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE")


@dataclass(frozen=True)
class RankEngine:
    """Runs a job's worker in this process, as one of those that share the cache; whoever started them ends them.

    The first that comes scans the source, and the others wait for its listing; or each reads blocks of it. On a machine
    with several GPUs the worker takes that of its local rank, and its share of the cores.
    """

    progress: Progress

    def run(self, job: Job[Report]) -> Iterator[Report]:
        """Work, and report it.

        Raises
        ------
        RequestError
            Nothing says which of several this process is.
        """
        _check_rank(os.environ)
        local_rank, local_size = _number(os.environ, _LOCAL_RANKS) or 0, _number(os.environ, _LOCAL_SIZES) or 1
        device = None
        if job.settings.device in ("auto", "cuda", ALL_GPUS):
            import torch

            count = torch.cuda.device_count()
            # Slurm may show each task its own GPU alone, which is number 0 to it.
            device = f"cuda:{local_rank % count}" if count else "cpu"
        # A batch system that binds tasks to cores has divided them already: then this process sees no others.
        cores = max(num_cores() // local_size, 1) if num_cores() == (os.cpu_count() or 1) else None
        yield job.work(device=device, cores=cores, progress=self.progress)


def rank_and_size(environment: Mapping[str, str]) -> tuple[str, int]:
    """Return what this process is called among those that were started together, and how many they are.

    Parameters
    ----------
    environment : mapping of str to str
        As ``os.environ``.

    Raises
    ------
    RequestError
        Nothing says it.
    """
    _check_rank(environment)
    tasks, arrays = (_number(environment, (name,)) for name in ("SLURM_NTASKS", "SLURM_ARRAY_TASK_COUNT"))
    if "RANK" in environment:
        name, size = environment["RANK"], _number(environment, ("WORLD_SIZE",))
    else:
        # Each task of an array may be several of srun, and calls itself the only one where it is not.
        name = "-".join(environment.get(name, "0") for name in ("SLURM_ARRAY_TASK_ID", "SLURM_PROCID"))
        size = None if tasks is arrays is None else (tasks or 1) * (arrays or 1)
    if not size:
        raise RequestError(
            "nothing says how many processes write one table: set WORLD_SIZE, as torchrun does (srun sets "
            "SLURM_NTASKS, and job arrays SLURM_ARRAY_TASK_COUNT)"
        )
    return name, size


def _check_rank(environment: Mapping[str, str]) -> None:
    if _number(environment, _RANKS) is None:
        raise RequestError(
            f"the engine rank is for processes that torchrun, srun or a job array starts: none of {', '.join(_RANKS)} "
            "is set; use --engine processes for several on this machine"
        )


def _number(environment: Mapping[str, str], names: tuple[str, ...]) -> int | None:
    """Return the first of some variables that begins with a number: Slurm writes ``8(x2),4`` for what nodes have."""
    found = (re.match(r"\d+", environment.get(name, "")) for name in names)
    return next((int(match[0]) for match in found if match is not None), None)
