"""What has to be computed: wanted rows minus cached rows, cut into shards. Knows no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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


def missing_shards(sets: Sequence[FeatureSet], wanted: Rows, *, shard_rows: int) -> list[PlannedShard]:
    """Return what some feature sets miss of the wanted rows.

    Parameters
    ----------
    sets : sequence of FeatureSet
        One for each tap.
    wanted : ndarray of int64
        Rows, sorted, each once.
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
        features.check_files()
        cached[feature_set.tap] = features.rows
    return plan_extraction(wanted, cached, shard_rows=shard_rows)


def plan_extraction(wanted: Rows, cached: Mapping[str, Rows], *, shard_rows: int) -> list[PlannedShard]:
    """Cut the rows that some tap misses into shards of at most ``shard_rows`` rows.

    Rows missed by the same taps go together, so one forward pass serves all of them. A shard's rows depend only on
    what is wanted and cached, so a resumed run makes the same shards as one that was never interrupted.

    Parameters
    ----------
    wanted : ndarray of int64
        Rows that the source holds, sorted, each once.
    cached : mapping of str to ndarray of int64
        For each wanted tap, the rows that are cached already.
    shard_rows : int
        Most rows in a shard.
    """
    groups: dict[tuple[str, ...], Rows] = {(): wanted}
    for tap, held in cached.items():
        split = {}
        for taps, rows in groups.items():
            misses = ~_contains(held, rows)
            split[taps], split[(*taps, tap)] = _split(rows, misses)
        groups = {taps: rows for taps, rows in split.items() if len(rows)}
    shards = [
        PlannedShard(taps, rows[start : start + shard_rows])
        for taps, rows in groups.items()
        if taps
        for start in range(0, len(rows), shard_rows)
    ]
    # In the order of the rows, whatever misses them: shards that follow each other read files that lie together.
    return sorted(shards, key=lambda shard: int(shard.rows[0]))


def _contains(held: Rows, rows: Rows) -> NDArray[np.bool_]:
    """Tell which of the rows are among those held, both sorted."""
    if len(held) == 0:
        return np.zeros(len(rows), bool)
    index = np.searchsorted(held, rows)
    np.minimum(index, len(held) - 1, out=index)
    return held[index] == rows


def _split(rows: Rows, misses: NDArray[np.bool_]) -> tuple[Rows, Rows]:
    """Return the rows that are held and those that are missed, without a copy where they are all of one kind.

    Of ten million rows, a first run and a run over untouched inputs are all of one kind.
    """
    if misses.all():
        return rows[:0], rows
    if not misses.any():
        return rows, rows[:0]
    return rows[~misses], rows[misses]
