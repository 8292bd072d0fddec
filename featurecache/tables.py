"""Tables that people have: CSV and TSV files with a header, read row by row as text."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_TAB_SUFFIXES = (".tsv", ".tab")
_MAX_FIELD = 16_000_000
"""Characters in one field; a quote that is left open must not swallow a file of any size."""


class TableError(ValueError):
    """A table that cannot be read; the message says why, for whoever asked to say what it was for."""


class Table:
    """A table while it is open: its columns, and its rows as they come.

    Parameters
    ----------
    path : Path
        For messages.
    reader : csv.DictReader
        Reads the rows.
    """

    def __init__(self, path: Path, reader: csv.DictReader[str]) -> None:
        self.path, self._reader = path, reader
        self.columns = list(reader.fieldnames or [])
        if len(self.columns) == 1 and any(mark in self.columns[0] for mark in ";\t"):
            wanted = "tabs" if path.suffix.lower() in _TAB_SUFFIXES else "commas"
            raise TableError(f"the columns must be separated by {wanted}, the first line is {self.columns[0]!r:.200}")

    def __iter__(self) -> Iterator[tuple[int, dict[str, str | None]]]:
        """Yield the line where each row ends, and its fields by column."""
        for row in self._reader:
            yield self._reader.line_num, row


@contextmanager
def open_table(path: Path, *, raw: bool = False) -> Iterator[Table]:
    """Read a table; ``.tsv`` is separated by tabs, everything else by commas.

    Parameters
    ----------
    path : Path
        The file, in UTF-8.
    raw : bool
        For a table of texts: keep bytes that are no UTF-8 (`to_bytes` brings them back) instead of refusing the file,
        and refuse quotes that are not where quotes belong.

    Raises
    ------
    TableError
        It is missing, unreadable, or no table.
    """
    dialect = csv.excel_tab if path.suffix.lower() in _TAB_SUFFIXES else csv.excel
    before = csv.field_size_limit(_MAX_FIELD)
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape" if raw else "strict") as file:
            # Of texts, a stray quote would quietly swallow the rows that follow.
            yield Table(path, csv.DictReader(file, dialect=dialect, strict=raw))
    except UnicodeDecodeError:
        raise TableError("it is not UTF-8 text; save it as CSV UTF-8") from None
    except csv.Error as error:
        raise TableError(f"{error}; is a quote left open?") from None
    except OSError as error:
        raise TableError(error.strerror or type(error).__name__) from None
    finally:
        csv.field_size_limit(before)


def to_bytes(field: str) -> bytes:
    """Return the bytes of a field as they stand in a table that was read raw."""
    return field.encode("utf-8", "surrogateescape")
