"""Workers as tasks of a Ray cluster: as many as its GPUs, or as its machines where it has none."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from featurecache.errors import MissingExtraError, RequestError
from featurecache.extraction.engines.job import Job, Report
from featurecache.machine import at_most_cores, variables_set
from featurecache.progress import Progress
from featurecache.specs import ALL_GPUS
from featurecache.wording import counted

_RETRIES = 20
"""Of a task whose machine or process is lost: a spot machine may be taken away many times in a long run."""
_SECONDS_BETWEEN_REMARKS = 2.0


@dataclass(frozen=True)
class RayEngine:
    """Runs a job on the cluster of ``RAY_ADDRESS``, on the one that this program is connected to, or on this machine.

    A task holds one GPU, or all cores of a machine. One that is lost begins again elsewhere and takes what is left. The
    source and what the workers write must lie where all machines see them under the same path.
    """

    progress: Progress

    def run(self, job: Job[Report]) -> Iterator[Report]:
        """Start the tasks, and yield their reports as they end.

        Raises
        ------
        MissingExtraError
            Ray is not installed.
        RequestError
            GPUs are asked for, and the cluster has none.
        """
        if find_spec("ray") is None:
            raise MissingExtraError("ray, which the engine ray runs on,", "ray")
        ray = import_module("ray")
        is_ours = not ray.is_initialized()
        if is_ours:
            # A worker imports what this program can import: `python:` backbones are found by their module.
            paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
            variables = {"PYTHONPATH": paths, "OMP_WAIT_POLICY": "PASSIVE"}
            options = {"log_to_driver": False, "include_dashboard": False}
            if (address := os.environ.get("RAY_ADDRESS")) is not None:
                ray.init(address=address, runtime_env={"env_vars": variables}, **options)
            else:
                # Workers that Ray has started ahead have this environment; for another one it starts new ones, which
                # takes a second. And nobody here agreed to reports to Ray's authors.
                with variables_set({"RAY_USAGE_STATS_ENABLED": "0", **variables}):
                    ray.init(**options)
        pending = []
        try:
            task = ray.remote(_work)
            pending = [
                task.options(num_cpus=cores, num_gpus=gpus, max_retries=_RETRIES).remote(job, device, cores)
                for device, cores, gpus in self._slots(job, ray.nodes())
            ]
            while pending:
                ended, pending = ray.wait(pending, timeout=_SECONDS_BETWEEN_REMARKS)
                for reference in ended:
                    result = ray.get(reference)
                    if isinstance(result, Exception):
                        raise result
                    yield result
                self.progress.say(f"{job.progress_in_words()}, {counted(len(pending), 'worker')}")
        finally:
            for reference in pending:
                ray.cancel(reference, force=True)
            if is_ours:
                ray.shutdown()

    def _slots(self, job: Job[Report], nodes: list[dict[str, object]]) -> list[tuple[str | None, int, int]]:
        """Return device, cores and GPUs of each task."""
        found: list[tuple[str | None, int, int]] = []
        for node in nodes:
            resources = node["Resources"]
            assert isinstance(resources, dict)
            cores, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
            if not node["Alive"] or not cores:
                continue
            if gpus and job.settings.device in ("auto", "cuda", ALL_GPUS):
                # Ray shows each task its own GPU alone.
                found += [("cuda:0", max(cores // gpus, 1), 1)] * gpus
            elif job.settings.device != ALL_GPUS:
                count = job.settings.num_processes or 1
                found += [("cpu" if job.settings.device == "auto" else None, max(cores // count, 1), 0)] * count
        if not found:
            raise RequestError("the cluster of Ray has no GPU; leave --device out to compute on CPUs")
        return found


def _work(job: Job[Report], device: str | None, cores: int) -> Report | Exception:
    """Work in a task; an error comes back as it is, without the words that Ray would put around it."""
    try:
        with at_most_cores(cores):
            return job.work(device=device, cores=cores)
    except Exception as error:
        return error
