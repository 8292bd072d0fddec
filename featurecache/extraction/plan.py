"""What has to be computed: rows of the source minus cached rows, cut into shards. Knows no torch.

Where the cuts are follows from the number of rows that the source holds, and not from what is cached or who works: any
number of workers, and a run that is resumed, plan the same shards. Unless a size was asked for, shards are large at
first and small at the end, where each worker is to find a last one that takes about as long as those of the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from featurecache.store.feature_sets import FeatureSet
from featurecache.store.row_runs import RowRuns
from featurecache.store.samples import Rows

# A shard is this share of what is left, so that sixteen workers could end together (guided self-scheduling,
# Polychronopoulos and Kuck 1987).
_SHARE_OF_THE_REST = 16
# Opening a committed shard takes 0.16 ms: a hundred million rows in shards of 16,384 are planned in about a second.
LARGEST_SHARD = 16_384
# A shard's last batch is filled up with zeros, and each tap has a file for each shard: seconds of work on a CPU.
SMALLEST_SHARD = 256
# Batches of GPUs hold hundreds of inputs, and a thousand of them take a second.
SMALLEST_SHARD_ON_GPU = 2_048


@dataclass(frozen=True)
class PlannedShard:
    """Rows to compute together, as runs, and the taps that miss them."""

    taps: tuple[str, ...]
    runs: RowRuns

    @property
    def rows(self) -> Rows:
        """All of them; of a plan of a hundred million rows they are made shard by shard."""
        return self.runs.rows()

    @property
    def key(self) -> str:
        """Key of the commits that it leads to."""
        return f"{self.runs.starts[0]:012d}"


def missing_shards(
    sets: Sequence[FeatureSet],
    rows: RowRuns | Rows,
    *,
    postponed: Iterable[int] = (),
    shard_rows: int | None = None,
    smallest: int = SMALLEST_SHARD,
) -> list[PlannedShard]:
    """Return what some feature sets miss of some rows.

    Parameters
    ----------
    sets : sequence of FeatureSet
        One for each tap.
    rows : RowRuns or ndarray of int64
        Those that the source holds.
    postponed : iterable of int
        Some of them that are left for another run.
    shard_rows, smallest : int
        As in `plan_extraction`.

    Raises
    ------
    CorruptError
        The file of a committed shard is gone: it must not pass for cached.
    """
    cached = {}
    for feature_set in sets:
        features = feature_set.open()
        features.check_files()  # sizes only: this is done at each run, and checksums come with reading
        left = RowRuns.of(np.fromiter(postponed, np.int64))
        cached[feature_set.tap] = RowRuns.union((runs.starts, runs.stops) for runs in (features.held, left))
    return plan_extraction(rows, cached, shard_rows=shard_rows, smallest=smallest)


def plan_extraction(
    rows: RowRuns | Rows,
    cached: Mapping[str, RowRuns | Rows],
    *,
    shard_rows: int | None = None,
    smallest: int = SMALLEST_SHARD,
) -> list[PlannedShard]:
    """Cut the rows that some tap misses into shards.

    Rows missed by the same taps go together, so one forward pass serves all of them.

    Parameters
    ----------
    rows : RowRuns or ndarray of int64
        Those that the source holds.
    cached : mapping of str to RowRuns or ndarray of int64
        For each tap, the rows that are cached already.
    shard_rows : int, optional
        Most rows in a shard; by default as many as suit the number of rows.
    smallest : int
        Rows of the smallest shards where the sizes are chosen here.
    """
    rows = RowRuns.of(rows)
    groups: dict[tuple[str, ...], RowRuns] = {(): rows}
    for tap, held in cached.items():
        runs, split = RowRuns.of(held), {}
        for taps, group in groups.items():
            split[taps], split[(*taps, tap)] = group.intersection(runs), group.difference(runs)
        groups = {taps: group for taps, group in split.items() if len(group)}
    starts = _starts(len(rows), shard_rows, smallest)
    shards = [
        PlannedShard(taps, piece)
        for taps, group in groups.items()
        if taps
        # Of each shard, and not of each row: of a hundred million rows a search for each would take seconds.
        for piece in _cut(group, group.count_below(rows.at(starts[:-1])), np.diff(starts))
    ]
    # In the order of the rows, whatever misses them: shards that follow each other read files that lie together.
    return sorted(shards, key=lambda shard: int(shard.runs.starts[0]))


def _starts(num_rows: int, shard_rows: int | None, smallest: int) -> Rows:
    """Return where the shards of so many rows begin, and where the last one ends."""
    if shard_rows is not None:
        return np.append(np.arange(0, num_rows, shard_rows), num_rows)
    starts = [0]
    while (left := num_rows - starts[-1]) > 0:
        share = left // (_SHARE_OF_THE_REST * smallest) * smallest
        starts.append(min(starts[-1] + min(max(share, smallest), LARGEST_SHARD), num_rows))
    return np.array(starts, np.int64)


def _cut(group: RowRuns, firsts: Rows, sizes: Rows) -> Iterator[RowRuns]:
    """Cut some of the rows where their shards begin; neighbours that fit into one shard stay together.

    Parameters
    ----------
    group : RowRuns
    firsts : ndarray of int64, shape (n_shards,)
        Index in the group of the first row of each shard.
    sizes : ndarray of int64, shape (n_shards,)
        Rows of each shard where none is cached.
    """
    # What is left over here and there, new files among old ones, would else be a shard for each.
    begin, most = 0, 0
    for first, end, size in zip(firsts, [*firsts[1:], len(group)], sizes, strict=True):
        if end > first and end - begin > most:
            if first > begin:
                yield group.part(begin, first)
            begin, most = first, size
    if begin < len(group):
        yield group.part(begin, len(group))
