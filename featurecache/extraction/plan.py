"""What has to be computed: rows of the source minus cached rows, cut into shards. Knows no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from featurecache.store.feature_sets import FeatureSet
from featurecache.store.samples import Rows


@dataclass(frozen=True)
class PlannedShard:
    """Rows to compute together, and the taps that miss them."""

    taps: tuple[str, ...]
    rows: Rows

    @property
    def key(self) -> str:
        """Key of the commits that it leads to."""
        return f"{self.rows[0]:012d}"


def missing_shards(sets: Sequence[FeatureSet], rows: Rows, *, shard_rows: int) -> list[PlannedShard]:
    """Return what some feature sets miss of some rows.

    Parameters
    ----------
    sets : sequence of FeatureSet
        One for each tap.
    rows : ndarray of int64
        Sorted, each once.
    shard_rows : int
        Most rows in a shard.

    Raises
    ------
    CorruptError
        The file of a committed shard is gone: it must not pass for cached.
    """
    cached = {}
    for feature_set in sets:
        features = feature_set.open()
        features.check_files()  # sizes only: this is done at each run, and checksums come with reading
        cached[feature_set.tap] = features.rows
    return plan_extraction(rows, cached, shard_rows=shard_rows)


def plan_extraction(rows: Rows, cached: Mapping[str, Rows], *, shard_rows: int) -> list[PlannedShard]:
    """Cut the rows that some tap misses into shards of at most ``shard_rows`` rows.

    Rows missed by the same taps go together, so one forward pass serves all of them. A shard's rows depend only on
    what the source holds and what is cached, so a resumed run makes the same shards as one that was never interrupted.

    Parameters
    ----------
    rows : ndarray of int64
        Those that the source holds, sorted, each once.
    cached : mapping of str to ndarray of int64
        For each tap, the rows that are cached already.
    shard_rows : int
        Most rows in a shard.
    """
    groups: dict[tuple[str, ...], Rows] = {(): rows}
    for tap, held in cached.items():
        split = {}
        for taps, group in groups.items():
            # By numpy's table of integers: of ten million rows, a search for each of them would take a second.
            is_held = np.isin(group, held, assume_unique=True)
            split[taps], split[(*taps, tap)] = group[is_held], group[~is_held]
        groups = {taps: group for taps, group in split.items() if len(group)}
    shards = [
        PlannedShard(taps, group[start : start + shard_rows])
        for taps, group in groups.items()
        if taps
        for start in range(0, len(group), shard_rows)
    ]
    # In the order of the rows, whatever misses them: shards that follow each other read files that lie together.
    return sorted(shards, key=lambda shard: int(shard.rows[0]))
