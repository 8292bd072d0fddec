"""A table as a source of texts: every row is an input, recognised by the bytes of its text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from featurecache.errors import InputError, SourceError, UnknownNameError
from featurecache.sources.source import Entry, SingleUnit, Stamp, Unit
from featurecache.tables import Row, Table, TableError, open_table, to_bytes
from featurecache.text import TextColumn


class TextTable(SingleUnit):
    """The texts in one column of a table: CSV, TSV, JSON or Parquet.

    It is read once, when it is first needed; later edits of the file are for the next source. Its rows have no
    stamps: that of the file says nothing of its rows, and the table is read in any case.

    Parameters
    ----------
    url : path
        The file.
    text_column : str
        The column that holds the texts.
    id_column : str, optional
        The column that names the rows, each once; ``row 000000001`` and so on where left out.
    delimiter : str, optional
        Between columns; found in the first rows when left out.
    has_header : bool
        The first row names the columns; else they are called ``1``, ``2`` and so on.
    """

    modality = "text"

    def __init__(
        self,
        url: str | Path,
        *,
        text_column: str,
        id_column: str | None = None,
        delimiter: str | None = None,
        has_header: bool = True,
    ) -> None:
        self.path, self.text_column, self.id_column = Path(url), text_column, id_column
        self.delimiter, self.has_header = delimiter, has_header
        # Another column of the same table is another source. A slash in its name would make a folder of the table.
        self.key = str(self.path.with_name(f"{self.path.name}:{text_column.replace('/', '%2F')}").resolve())

    def list(self, unit: Unit) -> Iterator[Entry]:
        """Yield the rows, in the order of the table.

        Raises
        ------
        SourceError
            The table is missing, is no table, lacks a column, has no rows, or names one twice.
        """
        return (Entry(key, None) for key in self._rows[0])

    def read(self, unit: Unit) -> Iterator[tuple[str, bytes]]:
        """Yield the keys and texts, in the order of the table."""
        keys, texts = self._rows
        return zip(keys, texts.encoded(), strict=True)

    def open(self, name: str, *, stamp: Stamp | None) -> bytes:
        """Return the text of a row; it is in memory, so it is what it was at the scan.

        Raises
        ------
        InputError
            No row has this name.
        """
        if (index := self._index_of.get(name)) is None:
            raise InputError("missing", f"{self.path} has no row {name!r}")
        return self._rows[1].bytes_at(index)

    @cached_property
    def _index_of(self) -> dict[str, int]:
        return {key: index for index, key in enumerate(self._rows[0])}

    @cached_property
    def _rows(self) -> tuple[TextColumn, TextColumn]:
        """Keys and texts, in the order of the table."""
        keys, texts = list[bytes](), list[bytes]()
        try:
            # As bytes: an id is the digest of what the table holds, also where that is no UTF-8.
            with open_table(self.path, raw=True, delimiter=self.delimiter, has_header=self.has_header) as table:
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

    def _field(self, row: Row, column: str, line: int) -> bytes:
        field = row.get(column)
        if field is None or None in row:
            more = "more" if None in row else "fewer"
            raise SourceError(f"{self.path} line {line} has {more} fields than the header; put texts in double quotes")
        return to_bytes(field)

    def _key(self, row: Row, line: int, number: int) -> bytes:
        if self.id_column is None:
            return f"row {number:09d}".encode()
        if not (key := self._field(row, self.id_column, line)):
            raise SourceError(f"{self.path} line {line}: the {self.id_column} is empty; fill it or drop the line")
        return key

    def _check_unique(self, keys: Sequence[bytes]) -> None:
        first: dict[bytes, int] = {}  # and not a set, so that the message names both rows
        for number, key in enumerate(keys, start=1):
            if (before := first.setdefault(key, number)) != number:
                name = key.decode("utf-8", "replace")
                raise SourceError(
                    f"{self.path}: {self.id_column} {name!r} names rows {before} and {number}; give each row its own"
                )
