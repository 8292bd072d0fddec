"""What a worker did; reports of several workers add up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from featurecache.extraction.meter import Usage


@dataclass(frozen=True)
class WorkerReport:
    """What one worker found and did, in plain values.

    Attributes
    ----------
    sets : tuple of str
        Folder, in the cache, of each feature set of the job.
    num_rows : int
        Rows that this worker committed, of all sets; with views, plain ones and those of views count separately.
    postponed : mapping of int to (str, str)
        Rows whose inputs changed or vanished during the run, with name and reason: the next run takes them.
    runtime : str or None
        That computed; ``None`` where nothing was to be done.
    trial : mapping of str to float
        Inputs per second of each runtime that was tried before one was chosen.
    startup_seconds : float
        Until the network was loaded and its runtime ready and compared with what had been made before.
    usage : tuple of Usage
        Where the time went, for each pass over inputs.
    """

    sets: tuple[str, ...] = ()
    num_rows: int = 0
    postponed: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    runtime: str | None = None
    trial: Mapping[str, float] = field(default_factory=dict)
    startup_seconds: float = 0.0
    usage: tuple[Usage, ...] = ()

    def __add__(self, other: WorkerReport) -> WorkerReport:
        return WorkerReport(
            sets=tuple(dict.fromkeys([*self.sets, *other.sets])),
            num_rows=self.num_rows + other.num_rows,
            postponed={**self.postponed, **other.postponed},
            runtime=other.runtime or self.runtime,
            trial={**self.trial, **other.trial},
            startup_seconds=self.startup_seconds + other.startup_seconds,
            usage=(*self.usage, *other.usage),
        )


@dataclass
class Round:
    """What came of the shards of one plan, or of several.

    Attributes
    ----------
    num_rows : int
        That were committed.
    postponed : dict of int to (str, str)
        Rows whose inputs changed or vanished, with name and reason: left for the next run.
    leased : bool
        Another worker is at a shard, or was first: what it leaves over is for another plan.
    """

    num_rows: int = 0
    postponed: dict[int, tuple[str, str]] = field(default_factory=dict)
    leased: bool = False

    def add(self, other: Round) -> None:
        """Count what came of more shards."""
        self.num_rows += other.num_rows
        self.postponed |= other.postponed
        self.leased |= other.leased
