"""A table as a source of texts: every row is an input, recognised by the bytes of its text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featurecache.errors import SourceError, UnknownNameError
from featurecache.sources.folder import Entries
from featurecache.sources.inputs import TextInput
from featurecache.tables import Table, TableError, open_table, to_bytes
from featurecache.text import TextColumn

_BLOCK = 1 << 18


@dataclass(frozen=True)
class TableSource:
    """The texts in one column of a CSV or TSV file.

    It is read once, when it is first looked at; later edits of the file are for the next source.

    Parameters
    ----------
    path : Path
        The file.
    text_column : str
        The column that holds the texts.
    id_column : str, optional
        The column that names the rows, each once; ``row 000000001`` and so on where left out.
    """

    path: Path
    text_column: str
    id_column: str | None = None

    modality = "text"
    noun = "rows"

    @property
    def root(self) -> Path:
        """The table and its column: another column of the same table is another source."""
        return self.path.with_name(f"{self.path.name}:{self.text_column.replace('/', '%2F')}")

    def check(self) -> None:
        """Raise `SourceError` when there is no such table or column, or no row in it."""
        _ = self._rows

    def find(self) -> Entries:
        """List the rows, sorted by the bytes of their keys.

        Raises
        ------
        SourceError
            The table is missing, is no table, lacks a column, has no rows, or names one twice.
        """
        keys, texts, order = self._keys, self._texts, self._order
        lengths = np.diff(texts.starts).astype(np.int64)[order]
        stamps = np.zeros((len(keys), 4), np.int64)
        # The ctime of -1 says: look at it again. The table is read in any case, and one file's stamp speaks of no row.
        stamps[:, 0], stamps[:, 2] = lengths, -1
        return Entries(keys.take(order), stamps, {})

    def identify(
        self, listing: Entries, places: NDArray[np.int64], *, on_read: Callable[[int], None] = lambda count: None
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
        """Yield blocks of (places, ids): ids are the SHA-256 of the texts' bytes."""
        for first in range(0, len(places), _BLOCK):
            block = places[first : first + _BLOCK]
            texts = self._texts.take(self._order[block])
            digests = b"".join(sha256(text).digest() for text in texts.encoded())
            on_read(len(block))
            yield block, np.frombuffer(digests, np.uint8).reshape(-1, 32)

    def inputs(
        self, paths: Sequence[str], ids: Sequence[str] = (), stamps: NDArray[np.int64] | None = None
    ) -> list[TextInput]:
        """Return the texts of some rows, by key; they are in memory, so they are what they were at the scan."""
        places = (self._place_of[path] for path in paths)
        return [TextInput(path, self._bytes(place)) for path, place in zip(paths, places, strict=True)]

    def all_inputs(self) -> list[TextInput]:
        """Return every text, in the order of the table."""
        return [TextInput(key, text) for key, text in zip(self._keys, self._texts.encoded(), strict=True)]

    def _bytes(self, place: int) -> bytes:
        start, stop = int(self._texts.starts[place]), int(self._texts.starts[place + 1])
        return self._texts.text[start:stop].tobytes()

    @property
    def _keys(self) -> TextColumn:
        return self._rows[0]

    @property
    def _texts(self) -> TextColumn:
        return self._rows[1]

    @cached_property
    def _place_of(self) -> dict[str, int]:
        return {key: place for place, key in enumerate(self._keys)}

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        keys = list(self._keys.encoded())
        return np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)

    @cached_property
    def _rows(self) -> tuple[TextColumn, TextColumn]:
        """Keys and texts, in the order of the table."""
        keys, texts = list[bytes](), list[bytes]()
        try:
            with open_table(self.path, raw=True) as table:
                self._check_columns(table)
                for line, row in table:
                    texts.append(self._field(row, self.text_column, line))
                    keys.append(self._key(row, line, len(texts)))
        except TableError as error:
            raise SourceError(f"cannot read texts from {self.path}: {error}") from None
        if not texts:
            raise SourceError(f"{self.path} has a header but no rows")
        self._check_unique(keys)
        return TextColumn.pack(keys), TextColumn.pack(texts)

    def _check_columns(self, table: Table) -> None:
        for option, column in (("--text-column", self.text_column), ("--id-column", self.id_column)):
            if column is not None and column not in table.columns:
                error = UnknownNameError("column", column, table.columns, advice=f"choose one with {option}")
                raise SourceError(f"{self.path}: {error}")

    def _field(self, row: dict[str, str | None], column: str, line: int) -> bytes:
        field = row.get(column)
        if field is None or None in row:
            more = "more" if None in row else "fewer"
            raise SourceError(f"{self.path} line {line} has {more} fields than the header; put texts in double quotes")
        return to_bytes(field)

    def _key(self, row: dict[str, str | None], line: int, number: int) -> bytes:
        if self.id_column is None:
            return f"row {number:09d}".encode()
        if not (key := self._field(row, self.id_column, line)):
            raise SourceError(f"{self.path} line {line}: the {self.id_column} is empty; fill it or drop the line")
        return key

    def _check_unique(self, keys: list[bytes]) -> None:
        first: dict[bytes, int] = {}
        for number, key in enumerate(keys, start=1):
            if (before := first.setdefault(key, number)) != number:
                name = key.decode("utf-8", "replace")
                raise SourceError(
                    f"{self.path}: {self.id_column} {name!r} names rows {before} and {number}; give each row its own"
                )
