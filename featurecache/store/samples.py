"""The sample table: every input ever seen, once, in the order in which they came. It only grows.

A sample's id is the SHA-256 of its bytes; its row number is its position here and in every feature array. The columns
stay where they are mapped: of ten million samples nothing is copied but what is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurecache.errors import CorruptError
from featurecache.store.dtypes import Array
from featurecache.store.folders import ShardFolder
from featurecache.store.schemas import SAMPLES
from featurecache.store.shards import MappedShard
from featurecache.text import PrefixedText, TextColumn, narrowed
from featurecache.wording import counted

Ids = NDArray[np.uint8]
"""Sample ids, ``(n, 32)`` uint8."""
Rows = NDArray[np.int64]
"""Row numbers of the sample table, ``(n,)`` int64."""

# Samples added in one shard; more are added in several, so that memory stays flat.
_MOST_ROWS = SAMPLES.most_rows
# Rows of a column that are searched at a time: 8 MiB of ids.
_BLOCK = 1 << 18


class SampleTable:
    """All samples of a cache.

    Parameters
    ----------
    folder : ShardFolder
        Holds one shard for each time that samples were added.
    """

    def __init__(self, folder: ShardFolder) -> None:
        self._folder = folder
        # By file name: commits are read again at each reload, maps of files stay.
        self._shards: dict[str, MappedShard] = {}
        self.reload()

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def ids(self) -> Column:
        """Sample ids by row, ``(n_samples, 32)`` uint8."""
        return Column(self, "id")

    @property
    def sizes(self) -> Column:
        """Bytes of each input, ``(n_samples,)`` uint64."""
        return Column(self, "size")

    def uris_of(self, rows: Sequence[int] | range | Rows) -> list[str]:
        """Return where each of some inputs was first seen, relative to its source; for people, never opened."""
        rows = np.asarray(rows, np.int64)
        if len(rows) and (rows.min() < 0 or not self.reaches(int(rows.max()))):
            raise CorruptError(
                f"the sample table has {counted(len(self), 'row')}, not row {rows.max()}: a part of samples/ is "
                "missing; "
                "restore it from a copy of the cache, or extract into a new one"
            )
        shard = np.searchsorted(self._starts, rows, side="right") - 1
        texts = {number: self._text(number) for number in np.unique(shard).tolist()}
        local = (rows - self._starts[shard]).tolist()
        return [texts[number][index] for number, index in zip(shard.tolist(), local, strict=True)]

    def rows_of(self, ids: Ids) -> Rows:
        """Return the row of each id, -1 where it is not in the table."""
        return find_ids(ids, self.ids)

    def append(
        self,
        ids: Ids,
        uris: Sequence[str],
        sizes: Array,
        *,
        prefixes: TextColumn | None = None,
        prefix_of: NDArray[np.int64] | None = None,
    ) -> Rows:
        """Add the samples that are not in the table yet and return the row of each, ``(n,)`` int64.

        Parameters
        ----------
        ids : ndarray of uint8, shape (n, 32)
        uris : sequence of str
            Where each was seen, relative to its source.
        sizes : ndarray of int, shape (n,)
            Bytes of each input.
        prefixes, prefix_of : TextColumn, ndarray of int64, shape (n,)
            What stands in front of ``uris``, and the index of that of each, which grow: it is stored once for all that
            share it. Caches where this was done say so in ``FORMAT.json``: earlier releases cannot read it.

        Notes
        -----
        Safe against other writers: whoever loses the race for the next row tries again.
        """
        column = TextColumn.pack(uris)
        while True:
            rows = self.rows_of(ids)
            absent = np.flatnonzero(rows < 0)
            if len(absent) == 0:
                return rows
            new = absent[first_indices(ids[absent])]
            for first in range(0, len(new), _MOST_ROWS):
                added = new[first : first + _MOST_ROWS]
                arrays: dict[str, tuple[str, Array]] = {"id": ("uint8", ids[added])}
                if prefixes is None or prefix_of is None:
                    arrays |= {"size": ("uint64", sizes[added].astype("<u8")), **column.take(added).arrays()}
                else:
                    arrays |= {"size": narrowed(sizes[added], "int32", "int64"), **column.take(added).compact()}
                    arrays |= _prefix_arrays(prefixes, prefix_of[added])
                won = self._folder.publish(f"{len(self):012d}", arrays, {"start": len(self)}, kind="samples")
                self.reload()
                # Another writer has these row numbers: which samples are still absent is looked up again.
                if not won:
                    break

    def reload(self) -> None:
        """See what other writers have added."""
        commits, starts = self._folder.commits(), [0]
        for commit in commits:
            # With a gap, all rows behind it would be taken for others.
            if commit.body.get("start") != starts[-1] or commit.key != f"{starts[-1]:012d}":
                raise CorruptError(
                    f"the sample table has a gap before row {commit.body.get('start')}: a part of samples/ is missing; "
                    "restore it from a copy of the cache, or extract into a new one"
                )
            starts.append(starts[-1] + commit.shard.arrays["id"].shape[0])
        self._commits, self._starts = commits, np.array(starts, np.int64)

    def reaches(self, row: int) -> bool:
        """Tell whether the table has a row, which another writer may have added since this one was opened."""
        if row >= len(self):
            self.reload()
        return row < len(self)

    def blocks(self, name: str, start: int = 0, stop: int | None = None) -> Iterator[Array]:
        """Yield consecutive pieces of a column, each as it is mapped.

        Parameters
        ----------
        name : str
            ``id`` or ``size``.
        start, stop : int
            Rows; all by default.
        """
        stop = len(self) if stop is None else stop
        while start < stop:
            number = int(np.searchsorted(self._starts, start, side="right")) - 1
            begin, end = self._starts[number], min(stop, int(self._starts[number + 1]), start + _BLOCK)
            yield _of_one_type(name, self._shard(number).read(name, int(start - begin), int(end - begin)))
            start = end

    def take(self, name: str, rows: Rows) -> Array:
        """Return some rows of a column."""
        if len(rows) == 0:
            return np.zeros((0, 32), np.uint8) if name == "id" else np.zeros(0, np.uint64)
        if rows.min() < 0 or not self.reaches(int(rows.max())):
            raise IndexError(f"the table has {counted(len(self), 'row')}")
        if rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
            # Neighbours in one shard are a view of its map, not a copy.
            pieces = list(self.blocks(name, int(rows[0]), int(rows[-1]) + 1))
            return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        shard = np.searchsorted(self._starts, rows, side="right") - 1
        numbers = np.unique(shard).tolist()
        columns = {number: _of_one_type(name, self._shard(number).read(name)) for number in numbers}
        taken = np.empty((len(rows), *columns[numbers[0]].shape[1:]), columns[numbers[0]].dtype)
        for number in numbers:
            mine = shard == number
            taken[mine] = columns[number][rows[mine] - self._starts[number]]
        return taken

    def _shard(self, number: int) -> MappedShard:
        commit = self._commits[number]
        if commit.file_name not in self._shards:
            self._shards[commit.file_name] = self._folder.open(commit)
        return self._shards[commit.file_name]

    def _text(self, number: int) -> TextColumn | PrefixedText:
        shard = self._shard(number)
        try:
            if "unit_start" in shard.record.arrays:
                prefixes = TextColumn(shard.read("unit_text"), shard.read("unit_text_start"))
                rests = TextColumn.of_lengths(shard.read("text"), shard.read("text_length"))
                return PrefixedText(prefixes, shard.read("unit_start"), rests)
            return TextColumn(shard.read("text"), shard.read("text_start"))
        except ValueError as error:
            raise CorruptError(f"{shard.path} holds {error}; run `featurecache verify`") from None


def _of_one_type(name: str, values: Array) -> Array:
    """Return sizes as one type, whatever they are stored as."""
    return values.astype(np.uint64, copy=False) if name == "size" else values


def _prefix_arrays(prefixes: TextColumn, prefix_of: NDArray[np.int64]) -> dict[str, tuple[str, Array]]:
    """Return what says which samples share a prefix."""
    used, firsts = np.unique(prefix_of, return_index=True)
    texts = prefixes.take(used).arrays()
    return {
        "unit_start": ("int64", np.append(firsts, len(prefix_of))),
        **{f"unit_{name}": array for name, array in texts.items()},
    }


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """One column of the sample table, read by row: ``column[rows]``, ``column[5]``, ``np.asarray(column)``."""

    table: SampleTable
    name: str

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, rows: Any) -> Array:
        if isinstance(rows, slice):
            return self.table.take(self.name, np.arange(*rows.indices(len(self))))
        taken = self.table.take(self.name, np.atleast_1d(np.asarray(rows, np.int64)))
        return taken[0] if np.ndim(rows) == 0 else taken

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        values = self[:]
        return values if dtype is None else values.astype(dtype)


def find_ids(ids: Ids, table: Column | Ids) -> Rows:
    """Return the position of each id in a table of different ids, -1 where it is not there.

    The ids are sorted and the table streams past them, so memory grows with their number, not with the table.
    """
    found = np.full(len(ids), -1, np.int64)
    if len(ids) == 0:
        return found
    order, firsts = _grouped(ids)
    groups = ids[order[firsts]]
    index_of_group = np.full(len(groups), -1, np.int64)
    start = 0
    for block in table.table.blocks(table.name) if isinstance(table, Column) else [table]:
        group, index = _matches(groups, np.ascontiguousarray(block))
        fresh = index_of_group[group] < 0
        index_of_group[group[fresh][::-1]] = start + index[fresh][::-1]  # the first one counts
        start += len(block)
    found[order] = np.repeat(index_of_group, np.diff([*firsts.tolist(), len(order)]))
    return found


def some_rows(rows: Rows, most: int, random_state: int = 0) -> Rows:
    """Return at most so many of the rows, drawn at random, in their order.

    Parameters
    ----------
    rows : ndarray of int64 (n,)
    most : int
    random_state : int
    """
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(random_state).permutation(rows)[:most])


def first_indices(ids: Ids) -> NDArray[np.int64]:
    """Return where each different id occurs first, in order."""
    order, firsts = _grouped(ids)
    return np.sort(order[firsts])


def _grouped(ids: Ids) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return a stable order that sorts the ids, and where in it each different id begins."""
    keys = _prefixes(ids)
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    tied = np.flatnonzero(keys[1:] == keys[:-1])
    different = (ids[order[tied]] != ids[order[tied + 1]]).any(axis=1)
    if different.any():  # the first eight bytes don't decide: never so with honest digests
        order = np.argsort(_whole(ids), kind="stable")
        new = (ids[order[1:]] != ids[order[:-1]]).any(axis=1)
    else:
        new = np.ones(max(len(ids) - 1, 0), bool)
        new[tied] = False
    return order, np.concatenate([np.zeros(min(len(ids), 1), np.int64), np.flatnonzero(new) + 1])


def _matches(groups: Ids, block: Ids) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return pairs of positions in two sets of different ids, the first of them sorted, where the ids are equal."""
    keys = _prefixes(groups)
    if (keys[1:] == keys[:-1]).any():
        group = np.searchsorted(_whole(groups), _whole(block))
    else:
        block_keys = _prefixes(block)
        order = np.argsort(block_keys)  # sorted searches stay in the processor's cache
        group = np.empty(len(block), np.int64)
        group[order] = np.searchsorted(keys, block_keys[order])
    index = np.flatnonzero(group < len(groups))
    index = index[_prefixes(block[index]) == keys[group[index]]]
    index = index[(block[index] == groups[group[index]]).all(axis=1)]
    return group[index], index


def _prefixes(ids: Ids) -> Array:
    # Big-endian, so that the numbers sort as the bytes do.
    return np.ascontiguousarray(ids[:, :8]).view(">u8").ravel().astype(np.uint64)


def _whole(ids: Ids) -> Array:
    return np.ascontiguousarray(ids).view("V32").ravel()
