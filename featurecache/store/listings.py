"""Listings: which files a source holds today, and the row of each. Rewritten whenever the source changed.

Of a source that comes in units only what is listed of a changed unit is written anew: see `unit_listings`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurecache.errors import CorruptError, RequestError
from featurecache.hashing import digest_bytes
from featurecache.ignored import IgnoredFiles
from featurecache.store.commits import Commit
from featurecache.store.folders import ShardFolder
from featurecache.store.leases import Leases
from featurecache.store.row_runs import RowRuns
from featurecache.store.samples import Rows
from featurecache.store.schemas import SOURCE
from featurecache.store.shards import MappedShard
from featurecache.store.unit_listings import PARTS, UnitIndex, UnitPart, UnitWriter, parts_of, read_part
from featurecache.text import TextColumn


@dataclass(frozen=True)
class Listing:
    """The files of one source, in sorted order.

    ``rows`` has -1 for a file that could not be read; ``problems`` says why.
    """

    root: str
    """Key of the source: the absolute path of a folder, a URL."""
    paths: TextColumn
    stamps: NDArray[np.int64]
    """By which a file is known to be unchanged, ``(n, 4)``: size, mtime, ctime, inode."""
    rows: Rows
    problems: dict[str, str]
    order: int = 0
    """Greater than that of all sources extracted before: of two labels of one sample the later source's counts."""
    ignored: IgnoredFiles = field(default_factory=IgnoredFiles)
    """Files that are no inputs; none in the records of earlier releases."""

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Row of each readable path; an object for each file, so not for what must stay small."""
        return {path: row for path, row in zip(self.paths, self.rows.tolist(), strict=True) if row >= 0}

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_readable(self) -> int:
        """Files that have a row; copies count."""
        return int((self.rows >= 0).sum())

    @cached_property
    def held(self) -> RowRuns:
        """Rows that the source holds."""
        return RowRuns.of(self._first[0])

    @property
    def unique_rows(self) -> Rows:
        """Rows that the source holds, sorted, each once: eight bytes for each, where `held` has runs of them."""
        return self.held.rows()

    def paths_of(self, rows: Rows | Sequence[int]) -> list[str]:
        """One path (the first) for each row; the rows must be in the listing."""
        return self.names_of(self.indices_of(rows))

    def names_of(self, indices: NDArray[np.int64]) -> list[str]:
        """Return some of the paths by index."""
        return [self.paths[index] for index in indices.tolist()]

    def stamps_of(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return some of the stamps by index."""
        return self.stamps[indices]

    def find_rows(self, rows: Sequence[int]) -> tuple[NDArray[np.int64], Rows]:
        """Return the index of every path, copies among them, whose row is one of some, and its row."""
        indices = np.flatnonzero(np.isin(self.rows, rows))
        return indices, self.rows[indices]

    def indices_of(self, rows: Rows | Sequence[int]) -> NDArray[np.int64]:
        """Return the index of the first path of each row, in `paths` and `stamps`; the rows must be in the listing."""
        held, first = self._first
        rows = np.asarray(rows, np.int64)
        index = np.searchsorted(held, rows)
        if len(rows) and (index.max() >= len(held) or (held[index] != rows).any()):
            raise self._lacks_rows()
        return first[index]

    def _lacks_rows(self) -> RequestError:
        return RequestError(f"{self.root} does not hold all of the rows asked for; extract it again")

    @cached_property
    def _first(self) -> tuple[Rows, Rows]:
        """Rows held, and the index of the first path of each."""
        held, first = np.unique(self.rows, return_index=True)
        # Files that could not be read have row -1, and come first in the order of rows.
        readable = int(np.searchsorted(held, 0))
        return held[readable:], first[readable:]

    def same_as(self, other: Listing | None) -> bool:
        """Tell whether two listings hold the same files, unchanged."""
        return (
            other is not None
            and self.paths == other.paths
            and self.problems == other.problems
            and self.ignored == other.ignored
            and np.array_equal(self.stamps, other.stamps)
            and np.array_equal(self.rows, other.rows)
        )


class UnitListing(Listing):
    """The samples of a source that comes in units; columns of all of them are made only where they are asked for.

    Parameters
    ----------
    index : UnitIndex
    body : mapping
        Of the commit.
    """

    def __init__(self, index: UnitIndex, body: Mapping[str, Any]) -> None:
        # Not those of the base, which are columns.
        vars(self).update(index=index, root=body["root"], order=body["order"])

    index: UnitIndex

    @cached_property
    def problems(self) -> dict[str, str]:
        """Why samples could not be read, by their names."""
        found = ((part.prefixes[unit], part.problems(unit)) for part, unit in self.index)
        return {prefix + name: why for prefix, of_unit in found for name, why in of_unit.items()}

    @cached_property
    def ignored(self) -> IgnoredFiles:
        """What the units hold besides samples."""
        return IgnoredFiles.joined(part.ignored(unit) for part, unit in self.index)

    @cached_property
    def paths(self) -> TextColumn:
        """All names."""
        return TextColumn.pack(unit.prefix + name for unit in self.index.listed() for name in unit.names.encoded())

    @cached_property
    def stamps(self) -> NDArray[np.int64]:
        """Stamps of all."""
        return self.stamps_of(np.arange(len(self)))

    @cached_property
    def rows(self) -> Rows:
        """Row of each, -1 for what could not be read."""
        rows = np.full(len(self), -1, np.int64)
        for start, stop, index in np.stack(self.index.runs, axis=1).tolist():
            rows[index : index + stop - start] = np.arange(start, stop)
        return rows

    def __len__(self) -> int:
        return int(self.index.offsets[-1])

    @property
    def num_readable(self) -> int:
        """Samples that have a row; copies count."""
        starts, stops, _ = self.index.runs
        return int((stops - starts).sum())

    @cached_property
    def held(self) -> RowRuns:
        """Rows that the source holds."""
        return RowRuns.union([self.index.runs[:2]])

    def names_of(self, indices: NDArray[np.int64]) -> list[str]:
        """Return some of the names by index."""
        return [os.fsdecode(name) for name in self.index.names_of(indices)]

    def stamps_of(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return some of the stamps by index."""
        units = self.index.unit_of(indices)
        stamps = np.stack([part.stamps[unit] for part, unit in self.index])[units]
        stamps[:, 0] = self.index.sizes_of(indices, units)
        return stamps

    def indices_of(self, rows: Rows | Sequence[int]) -> NDArray[np.int64]:
        """Return the index of the first sample of each row; the rows must be in the listing."""
        starts, stops, indices = self.index.first_runs
        rows = np.asarray(rows, np.int64)
        run = np.searchsorted(starts, rows, side="right") - 1
        if len(rows) and (run.min() < 0 or (rows >= stops[run]).any()):
            raise self._lacks_rows()
        return indices[run] + rows - starts[run]

    def find_rows(self, rows: Sequence[int]) -> tuple[NDArray[np.int64], Rows]:
        """Return the index of every sample, copies among them, whose row is one of some, and its row."""
        starts, stops, first = self.index.runs
        wanted = np.unique(np.asarray(rows, np.int64))
        low, high = np.searchsorted(wanted, starts), np.searchsorted(wanted, stops)
        run = np.repeat(np.arange(len(starts)), high - low)
        found = wanted[np.arange(len(run)) - np.repeat(np.cumsum(high - low) - high, high - low)]
        # Runs come in the order of indices.
        return first[run] + found - starts[run], found


@dataclass(frozen=True, slots=True, eq=False)
class Listings:
    """The newest listing of every source that was extracted into a cache."""

    path: Path
    """Of the folder that holds one folder of shards for each source."""

    def load(self, source: str | Path, *, without_damaged: bool = False) -> Listing | None:
        """Return the last listing of a source, if there is one: by its key, or by the path of its folder.

        Parameters
        ----------
        source : str or Path
        without_damaged : bool
            Of a listing by units leave out those that cannot be read, which a scan is to list anew.
        """
        # By its key first: a URL would be no URL any more as a path.
        by_key = _newest(self._folder(source), without_damaged=without_damaged)
        return _newest(self._folder(Path(source))) if by_key is None and isinstance(source, str) else by_key

    def all(self) -> list[Listing]:
        """Return the last listing of every source, the one extracted last at the end."""
        folders = sorted(self.path.iterdir()) if self.path.is_dir() else []
        listings = [_newest(ShardFolder(folder, SOURCE)) for folder in folders if folder.is_dir()]
        return sorted((listing for listing in listings if listing is not None), key=lambda listing: listing.order)

    def names(self, source: str | Path | None = None) -> Sequence[str]:
        """Return the names of the samples of a source, or of all sources, by which labels find them."""
        listings = self.all() if source is None else filter(None, [self.load(source)])
        paths = [listing.paths for listing in listings]
        return paths[0] if len(paths) == 1 else [*chain.from_iterable(paths)]

    def save(self, listing: Listing) -> Listing:
        """Make ``listing`` the newest of its source and return it as it is mapped from the disk.

        Views are derived, so older ones are dropped.
        """
        folder = self._folder(listing.root)
        arrays = {
            "stamp": ("int64", listing.stamps.astype("<i8", copy=False)),
            "row": ("int64", listing.rows.astype("<i8", copy=False)),
            **listing.paths.arrays(),
        }
        body = {
            "root": listing.root,
            "problems": listing.problems,
            "order": self.next_order(),
            "ignored": listing.ignored.to_json(),
        }
        folder.publish_next(arrays, body, kind="source view")
        # If another writer was first, or is already further, its listing is as good: both scans are fresh.
        return _newest(folder) or listing

    def generation(self, source: str) -> int:
        """Return a number that grows with each listing of a source; 0 where there is none."""
        return self._folder(source).next_generation

    def writer(self, source: str) -> UnitWriter:
        """Return what writes the next listing of a source by its units."""
        return UnitWriter(self._folder(source), source, self.generation(source))

    def held(self) -> RowRuns:
        """Return the rows that any source holds, those of `loose` among them."""
        # In this order, or what is finished in between would be in neither.
        parts = self.loose()
        return RowRuns.union((runs.starts, runs.stops) for runs in (*(p.held for p in parts), merged_rows(self.all())))

    def loose(self, known: Sequence[UnitPart] = ()) -> list[UnitPart]:
        """Return what is listed of units and no listing names yet: by a run that goes on, or is to be gone on with.

        Parameters
        ----------
        known : sequence of UnitPart
            Those that were read before.
        """
        folders = list(self.path.iterdir()) if self.path.is_dir() else []
        mine = [ShardFolder(folder, SOURCE) for folder in folders if (folder / PARTS).is_dir()]
        return [part for folder in mine for part in UnitWriter(folder, "", folder.next_generation).loose(known)]

    def next_order(self) -> int:
        """Return a number above the order of all listings."""
        folders = list(self.path.iterdir()) if self.path.is_dir() else []
        newest = [ShardFolder(folder, SOURCE).last() for folder in folders if folder.is_dir()]
        return 1 + max((commit.body["order"] for commit in newest if commit is not None), default=0)

    def leases(self, source: str) -> Leases:
        """Return the leases that scans of a source take, by its key."""
        return Leases(self._folder(source).path / "leases")

    def _folder(self, source: str | Path) -> ShardFolder:
        key = str(source.resolve()) if isinstance(source, Path) else source
        # Names of files need not be valid UTF-8.
        return ShardFolder(self.path / digest_bytes(key.encode(errors="surrogateescape"))[:16], SOURCE)


def merged_rows(listings: Sequence[Listing]) -> RowRuns:
    """Rows that any of the listings holds."""
    return RowRuns.union((listing.held.starts, listing.held.stops) for listing in listings)


def _newest(folder: ShardFolder, *, without_damaged: bool = False) -> Listing | None:
    return folder.newest(lambda commit, shard: listing_of(folder, commit, shard, without_damaged=without_damaged))


def listing_of(folder: ShardFolder, commit: Commit, shard: MappedShard, *, without_damaged: bool = False) -> Listing:
    """Return the listing that a commit holds.

    Parameters
    ----------
    folder : ShardFolder
        Of the listing.
    commit, shard : Commit, MappedShard
    without_damaged : bool
        As for `Listings.load`.

    Raises
    ------
    CorruptError
        Its paths or rows are impossible.
    """
    if "unit" in commit.shard.arrays:
        return UnitListing(_units_of(folder, commit, shard, without_damaged=without_damaged), commit.body)
    stamps, rows = shard.read("stamp"), shard.read("row")
    try:
        paths = TextColumn(shard.read("text"), shard.read("text_start"))
        if rows.min(initial=-1) < -1:
            raise ValueError("negative rows")
    except ValueError as error:
        raise CorruptError(f"{shard.path} holds {error}; extract the source again") from None
    body = commit.body
    # None in records of earlier releases.
    ignored = IgnoredFiles.from_json(body["ignored"]) if body.get("ignored") else IgnoredFiles()
    return Listing(body["root"], paths, stamps, rows, body["problems"], body["order"], ignored)


def _units_of(folder: ShardFolder, commit: Commit, shard: MappedShard, *, without_damaged: bool) -> UnitIndex:
    """Return the units that a listing names."""
    units, parts = shard.read("unit"), list[UnitPart | None]()
    for key in commit.body["parts"]:
        try:
            parts.append(read_part(parts_of(folder), key))
        except CorruptError:
            if not without_damaged:
                raise
            parts.append(None)
    found, kept, number_of = list[UnitPart](), list[tuple[int, int]](), dict[int, int]()
    before: bytes | None = None
    for at, unit in units.tolist():
        part = parts[at] if 0 <= at < len(parts) else None
        if part is None and without_damaged:
            continue
        prefix = part.prefixes.bytes_at(unit) if part is not None and 0 <= unit < len(part.prefixes) else None
        if part is None or prefix is None or (before is not None and prefix <= before):
            raise CorruptError(f"{shard.path} names units that are not there; extract the source again")
        before = prefix
        if at not in number_of:
            number_of[at] = len(found)
            found.append(part)
        kept.append((number_of[at], unit))
    return UnitIndex(found, np.array(kept, np.int64).reshape(-1, 2))
