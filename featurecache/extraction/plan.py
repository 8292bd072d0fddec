"""What has to be computed: wanted rows minus cached rows, cut into shard jobs. Pure; knows no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from featurecache.store.samples import Rows


@dataclass(frozen=True)
class ShardJob:
    """Rows to compute together, and the taps that miss them."""

    taps: tuple[str, ...]
    rows: Rows

    @property
    def key(self) -> str:
        """Key of the commits that this job makes."""
        return f"{self.rows[0]:012d}"


def plan_extraction(wanted: Rows, cached: Mapping[str, Rows], *, shard_rows: int) -> list[ShardJob]:
    """Cut the rows that some tap misses into jobs of at most ``shard_rows`` rows.

    Rows missed by the same taps go together, so one forward pass serves all of them. A job's rows depend only on
    what is wanted and cached, so a resumed run makes the same shards as one that was never interrupted.

    Parameters
    ----------
    wanted : ndarray of int64
        Rows that the source holds, sorted, each once.
    cached : mapping of str to ndarray of int64
        For each wanted tap, the rows that are cached already.
    shard_rows : int
        Most rows in a job.
    """
    missed = np.array([~np.isin(wanted, rows) for rows in cached.values()], bool).reshape(len(cached), len(wanted))
    patterns, which = np.unique(missed, axis=1, return_inverse=True)
    jobs = []
    for number, pattern in enumerate(patterns.T):
        taps = tuple(tap for tap, misses in zip(cached, pattern, strict=True) if misses)
        rows = wanted[which.ravel() == number] if taps else wanted[:0]
        jobs += [ShardJob(taps, rows[start : start + shard_rows]) for start in range(0, len(rows), shard_rows)]
    return sorted(jobs, key=lambda job: int(job.rows[0]))
