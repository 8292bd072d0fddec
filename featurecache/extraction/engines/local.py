"""The default engine: one worker, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from featurecache.extraction.job import ExtractionJob
from featurecache.extraction.work import work
from featurecache.extraction.worker_report import WorkerReport
from featurecache.progress import Progress


@dataclass(frozen=True)
class LocalEngine:
    """Runs a job in this process, with all cores."""

    progress: Progress

    def run(self, job: ExtractionJob) -> Iterator[WorkerReport]:
        """Work, and report it."""
        yield work(job, progress=self.progress)
