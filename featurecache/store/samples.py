"""The sample table: every input ever seen, once, in the order in which they came. It only grows.

A sample's id is the SHA-256 of its bytes; its row number is its position here and in every feature array.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from featurecache.errors import CorruptError
from featurecache.store import strings
from featurecache.store.commits import Commit
from featurecache.store.dtypes import Array
from featurecache.store.folders import ShardFolder

Ids = NDArray[np.uint8]
"""Sample ids, ``(n, 32)`` uint8."""
Rows = NDArray[np.int64]
"""Row numbers of the sample table, ``(n,)`` int64."""


class SampleTable:
    """All samples of a cache.

    Parameters
    ----------
    folder : ShardFolder
        Holds one shard for each time that samples were added.
    """

    def __init__(self, folder: ShardFolder) -> None:
        self._folder = folder
        self._parts = _checked(folder.commits())

    def __len__(self) -> int:
        return sum(_num_rows(part) for part in self._parts)

    @cached_property
    def ids(self) -> Ids:
        """Sample ids by row, ``(n_samples, 32)`` uint8."""
        parts = [self._folder.open(part).read("id") for part in self._parts]
        return np.concatenate(parts) if parts else np.zeros((0, 32), np.uint8)

    @cached_property
    def sizes(self) -> NDArray[np.uint64]:
        """Bytes of each input, ``(n_samples,)`` uint64."""
        parts = [self._folder.open(part).read("size") for part in self._parts]
        return np.concatenate(parts) if parts else np.zeros(0, np.uint64)

    @cached_property
    def uris(self) -> list[str]:
        """Where each input was first seen, relative to its source; for people, never opened."""
        shards = [self._folder.open(part) for part in self._parts]
        return [uri for shard in shards for uri in strings.unpack(shard.read("text"), shard.read("text_start"))]

    def rows_of(self, ids: Ids) -> Rows:
        """Return the row of each id, -1 where it is not in the table."""
        return self._index.find(ids)

    def append(self, ids: Ids, uris: Sequence[str], sizes: Array) -> Rows:
        """Add the samples that are not in the table yet and return the row of each, ``(n,)`` int64.

        Safe against other writers: whoever loses the race for the next row looks again.
        """
        while True:
            rows = self.rows_of(ids)
            _, first = np.unique(ids[rows < 0], axis=0, return_index=True)
            new = np.flatnonzero(rows < 0)[np.sort(first)]
            if len(new) == 0:
                return rows
            self._publish(ids[new], [uris[i] for i in new], sizes[new])
            self.reload()

    def check(self) -> None:
        """Raise `CorruptError` if a sample occurs twice."""
        if len(np.unique(self.ids, axis=0)) != len(self):
            raise CorruptError("sample table: a sample occurs twice")

    def reload(self) -> None:
        """See what other writers have added."""
        self.__dict__ = {"_folder": self._folder, "_parts": _checked(self._folder.commits())}

    def _publish(self, ids: Ids, uris: Sequence[str], sizes: Array) -> None:
        arrays = {"id": ("uint8", ids), "size": ("uint64", sizes.astype("<u8")), **strings.pack(uris)}
        self._folder.publish(f"{len(self):012d}", arrays, {"start": len(self)}, kind="samples")

    @cached_property
    def _index(self) -> IdIndex:
        return IdIndex(self.ids)


class IdIndex:
    """Finds ids in an ``(n, 32)`` array by their sorted first eight bytes; 16 bytes of memory for each id."""

    def __init__(self, ids: Ids) -> None:
        self._ids = ids
        keys = _prefixes(ids)
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]

    def find(self, ids: Ids) -> Rows:
        """Return the position of each id, -1 where there is none."""
        found = np.full(len(ids), -1, np.int64)
        if len(self._keys) == 0 or len(ids) == 0:
            return found
        keys = _prefixes(ids)
        place = np.searchsorted(self._keys, keys)
        pending = np.arange(len(ids))
        while len(pending):  # more than one round only for ids that share eight bytes
            inside = place[pending] < len(self._keys)
            pending = pending[inside]
            pending = pending[self._keys[place[pending]] == keys[pending]]
            candidates = self._order[place[pending]]
            equal = (self._ids[candidates] == ids[pending]).all(axis=1)
            found[pending[equal]] = candidates[equal]
            pending = pending[~equal]
            place[pending] += 1
        return found


def _checked(parts: list[Commit]) -> list[Commit]:
    """Refuse a table with a gap: all rows behind it would be taken for others."""
    row = 0
    for part in parts:
        if part.body.get("start") != row or part.key != f"{row:012d}":
            raise CorruptError(
                f"the sample table has a gap before row {part.body.get('start')}: a part of samples/ is missing; "
                "restore it from a copy of the cache, or extract into a new one"
            )
        row += _num_rows(part)
    return parts


def _prefixes(ids: Ids) -> Array:
    return np.ascontiguousarray(ids[:, :8]).view(">u8").ravel().astype(np.uint64)


def _num_rows(part: Commit) -> int:
    return part.shard.arrays["id"].shape[0]
