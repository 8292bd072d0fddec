"""The default engine: one worker, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from featurecache.extraction.engines.job import Job, Report
from featurecache.progress import Progress


@dataclass(frozen=True)
class LocalEngine:
    """Runs a job in this process, with all cores."""

    progress: Progress

    def run(self, job: Job[Report]) -> Iterator[Report]:
        """Work, and report it."""
        yield job.work(progress=self.progress)
