"""What engines know of a job: how to have one worker work on it."""

from __future__ import annotations

from typing import Protocol, TypeVar

from featurecache.progress import Progress
from featurecache.specs import ExtractionSettings

Report = TypeVar("Report")
Report_co = TypeVar("Report_co", covariant=True)


class Job(Protocol[Report_co]):
    """What was asked for, in plain values that pickle and mean the same anywhere.

    Workers share what is to do among them by leases in a folder that all of them see.
    """

    @property
    def settings(self) -> ExtractionSettings:
        """How to run."""

    def work(
        self, *, device: str | None = None, cores: int | None = None, progress: Progress | None = None
    ) -> Report_co:
        """Work until nothing is left that this worker could do.

        Parameters
        ----------
        device : str, optional
            Where this worker computes, instead of the device of the settings: ``cuda:1``.
        cores : int, optional
            Cores that this worker counts on; all where left out.
        progress : Progress, optional
            Told how far it is.
        """

    def progress_in_words(self) -> str:
        """Say how far all workers are, by what lies in their folder."""
