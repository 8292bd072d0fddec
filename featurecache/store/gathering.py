"""Scattered rows of many mapped shards in one step of numpy, as quickly as from a single array.

Shard by shard, every row would be copied twice: out of its shard, then into the result. But all mapped
shards lie in one address space, so there is a step of bytes (the greatest common divisor of a row's bytes and of the
distances between the shards) such that every row of every shard begins a whole number of steps behind the lowest
shard. Seen that way, the shards are one long array of overlapping rows, and a gather is one index into it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from featurecache.store.dtypes import STORED, Array
from featurecache.store.samples import Rows
from featurecache.store.shards import MappedShard


class RowGatherer:
    """Takes rows of one array name out of many shards.

    Parameters
    ----------
    name : str
        The array in each shard.
    dtype : str
        Its stored type.
    open_shard : callable
        Returns a shard by number, always the same object, so that its mapping lives as long as this does.
    num_shards : int
        How many there are.
    """

    def __init__(self, name: str, dtype: str, open_shard: Callable[[int], MappedShard], num_shards: int) -> None:
        self._name, self._dtype, self._open = name, dtype, open_shard
        self._addresses = np.zeros(num_shards, np.int64)
        self._is_checked = np.zeros(num_shards, bool)

    def take(self, shards: Rows, local: Rows, sample_shape: tuple[int, ...]) -> Array:
        """Return the rows ``local[i]`` of ``shards[i]``, ``(n, *sample_shape)`` of the stored type.

        Raises
        ------
        CorruptError
            A block under one of the rows does not match its checksum.
        """
        stored = np.dtype(STORED[self._dtype])
        row_bytes = math.prod(sample_shape) * stored.itemsize
        if len(local) == 0 or row_bytes == 0:
            return np.empty((len(local), *sample_shape), stored)
        self._check(shards, local)
        # Shards that were not touched so far have no address.
        mapped = self._addresses[self._addresses > 0]
        lowest = int(mapped.min())
        step = math.gcd(row_bytes, int(np.gcd.reduce(mapped - lowest)))
        steps = (self._addresses - lowest)[shards] // step + local * (row_bytes // step)
        # Rows of bytes that begin at every step of an address. What lies between the shards is never indexed.
        about = {"data": (lowest, True), "shape": (int(steps.max()) + 1,), "strides": (step,)}  # read-only
        memory = SimpleNamespace(__array_interface__={"version": 3, "typestr": f"|V{row_bytes}", **about})
        return np.asarray(memory)[steps].view(stored).reshape(len(local), *sample_shape)

    def _check(self, shards: Rows, local: Rows) -> None:
        """Map the shards, and check the blocks under the rows that were not checked before."""
        fresh = np.flatnonzero(~self._is_checked[shards])
        for number, mine in by_shard(shards[fresh]):
            shard = self._open(number)
            self._addresses[number], self._is_checked[number] = shard.check_rows(self._name, local[fresh[mine]])


def by_shard(shards: Rows) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield each shard that occurs, and where."""
    # Stable: rows of a shard stay in the order in which they are asked for.
    order = np.argsort(shards, kind="stable")
    for mine in np.split(order, np.flatnonzero(np.diff(shards[order])) + 1):
        if len(mine):  # of no rows there is one empty piece
            yield int(shards[mine[0]]), mine
