"""A table whose rows name pictures: paths, relative to the table, or URLs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

from featurecache.errors import InputError, SourceError, UnknownNameError
from featurecache.sources.path_list import PathList
from featurecache.sources.source import NO_STAMP, Entry, SingleUnit, Stamp, Unit
from featurecache.sources.urls import UrlReader, is_url
from featurecache.specs import MAX_FILE_BYTES
from featurecache.tables import TableError, open_table

# Requests that wait at the same time; names that are asked for before the first of them are passed on.
_AT_ONCE, _BLOCK = 16, 1024


class PathTable(SingleUnit):
    """The pictures that one column of a table names, each once.

    Parameters
    ----------
    url : path
        The table: CSV, TSV, JSON or Parquet.
    path_column : str
        Holds paths, relative to the folder of the table, or URLs.
    allow_local_urls : bool
        URLs may name this machine and its network.
    max_bytes : int
        Larger files and objects are not read.
    delimiter : str, optional
        Between columns; found in the first rows when left out.
    has_header : bool
        The first row names the columns; else they are called ``1``, ``2`` and so on.
    """

    modality = "image"
    has_coarse_stamps = True
    """Servers count in seconds."""

    def __init__(
        self,
        url: str | Path,
        *,
        path_column: str,
        allow_local_urls: bool = False,
        max_bytes: int = MAX_FILE_BYTES,
        delimiter: str | None = None,
        has_header: bool = True,
    ) -> None:
        self.path, self.path_column = Path(url), path_column
        self.delimiter, self.has_header = delimiter, has_header
        # Another column of the same table is another source. A slash in its name would make a folder of the table.
        self.key = str(self.path.with_name(f"{self.path.name}:{path_column.replace('/', '%2F')}").resolve())
        self._urls = UrlReader(max_bytes=max_bytes, allow_local=allow_local_urls)

    @property
    def is_far(self) -> bool:
        """Some of the pictures are on servers."""
        return any(map(is_url, self._names))

    def list(self, unit: Unit) -> Iterator[Entry]:
        """Yield what the rows name, in their order; servers are asked whether objects changed, several at once.

        Raises
        ------
        SourceError
            The table is missing, is no table, lacks the column, or names nothing.
        """
        names = list(self._names)
        files = iter(self._files.list(unit))
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for start in range(0, len(names), _BLOCK):
                block = names[start : start + _BLOCK]
                found = pool.map(self._entry, [name for name in block if is_url(name)])
                # In the order of the table, whichever server answers first.
                for name in block:
                    yield next(found) if is_url(name) else next(files)

    def open(self, name: str, *, stamp: Stamp | None) -> bytes:
        """Return the bytes of a file or an object."""
        if name not in self._names:
            raise InputError("missing", f"{self.path} names no {name!r}")
        return self._urls.read(name, stamp=stamp) if is_url(name) else self._files.open(name, stamp=stamp)

    def _entry(self, name: str) -> Entry:
        try:
            return Entry(name, self._urls.stamp(name))
        except InputError as error:
            return Entry(name, NO_STAMP, error.reason)

    @cached_property
    def _files(self) -> PathList:
        paths = [name for name in self._names if not is_url(name)]
        return PathList(paths, key=self.key, root=self.path.absolute().parent)

    @cached_property
    def _names(self) -> Mapping[str, None]:
        """What the column names, in its order and each once: a picture may stand in several rows."""
        try:
            with open_table(self.path, delimiter=self.delimiter, has_header=self.has_header) as table:
                if self.path_column not in table.columns:
                    advice = "choose one with --path-column"
                    raise SourceError(
                        f"{self.path}: {UnknownNameError('column', self.path_column, table.columns, advice=advice)}"
                    )
                found = dict.fromkeys((row.get(self.path_column) or "").strip() for _, row in table)
        except TableError as error:
            raise SourceError(f"cannot read paths from {self.path}: {error}") from None
        found.pop("", None)
        if not found:
            raise SourceError(f"{self.path} names no pictures in {self.path_column!r}")
        return found
