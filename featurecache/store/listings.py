"""Listings: which files a source holds today, and the row of each. Rewritten whenever the source changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featurecache.errors import CorruptError, RequestError
from featurecache.hashing import digest_bytes
from featurecache.ignored import IgnoredFiles
from featurecache.store.commits import Commit
from featurecache.store.folders import ShardFolder
from featurecache.store.leases import Leases
from featurecache.store.samples import Rows
from featurecache.store.schemas import SOURCE
from featurecache.store.shards import MappedShard
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

    @property
    def unique_rows(self) -> Rows:
        """Rows that the source holds, sorted, each once."""
        return self._first[0]

    def paths_of(self, rows: Rows | Sequence[int]) -> list[str]:
        """One path (the first) for each row; the rows must be in the listing."""
        return [self.paths[number] for number in self.indices_of(rows).tolist()]

    def indices_of(self, rows: Rows | Sequence[int]) -> NDArray[np.int64]:
        """Return the index of the first path of each row, in `paths` and `stamps`; the rows must be in the listing."""
        held, first = self._first
        rows = np.asarray(rows, np.int64)
        index = np.searchsorted(held, rows)
        if len(rows) and (index.max() >= len(held) or (held[index] != rows).any()):
            raise RequestError(f"{self.root} does not hold all of the rows asked for; extract it again")
        return first[index]

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


@dataclass(frozen=True, slots=True, eq=False)
class Listings:
    """The newest listing of every source that was extracted into a cache."""

    path: Path
    """Of the folder that holds one folder of shards for each source."""

    def load(self, source: str | Path) -> Listing | None:
        """Return the last listing of a source, if there is one: by its key, or by the path of its folder."""
        # By its key first: a URL would be no URL any more as a path.
        by_key = self._folder(source).newest(listing_of)
        return self._folder(Path(source)).newest(listing_of) if by_key is None and isinstance(source, str) else by_key

    def all(self) -> list[Listing]:
        """Return the last listing of every source, the one extracted last at the end."""
        folders = sorted(self.path.iterdir()) if self.path.is_dir() else []
        listings = [ShardFolder(folder, SOURCE).newest(listing_of) for folder in folders if folder.is_dir()]
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
        order = 1 + max((other.order for other in self.all()), default=0)
        body = {
            "root": listing.root,
            "problems": listing.problems,
            "order": order,
            "ignored": listing.ignored.to_json(),
        }
        folder.publish_next(arrays, body, kind="source view")
        # If another writer was first, or is already further, its listing is as good: both scans are fresh.
        return folder.newest(listing_of) or listing

    def leases(self, source: str) -> Leases:
        """Return the leases that scans of a source take, by its key."""
        return Leases(self._folder(source).path / "leases")

    def _folder(self, source: str | Path) -> ShardFolder:
        key = str(source.resolve()) if isinstance(source, Path) else source
        # Names of files need not be valid UTF-8.
        return ShardFolder(self.path / digest_bytes(key.encode(errors="surrogateescape"))[:16], SOURCE)


def merged_rows(listings: Sequence[Listing]) -> Rows:
    """Rows that any of the listings holds, sorted, each once."""
    return np.unique(np.concatenate([listing.unique_rows for listing in listings] or [np.zeros(0, np.int64)]))


def listing_of(commit: Commit, shard: MappedShard) -> Listing:
    """Return the listing that a commit holds.

    Raises
    ------
    CorruptError
        Its paths or rows are impossible.
    """
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
