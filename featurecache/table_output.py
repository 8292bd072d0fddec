"""Tables that are written, whole or not at all: CSV, TSV and Parquet, with texts that steer no program."""

from __future__ import annotations

import csv
import importlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from featurecache.atomic import published
from featurecache.errors import MissingExtraError, plain_text
from featurecache.table_files import TAB_SUFFIXES, TableError
from featurecache.tables import ROWS_IN_A_GROUP, to_bytes

TABLE_SUFFIXES = (".csv", ".tsv", ".tab", ".parquet")
"""Of tables that are written."""
# The last four are full-width forms, which some spreadsheets take for the plain ones.
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def write_table(
    path: Path,
    columns: Sequence[str],
    rows: Iterable[Mapping[str, Any]],
    *,
    replace: bool = True,
    numbers: Collection[str] | None = None,
    raw: bool = False,
) -> None:
    """Write a table as its rows come, whole or not at all: ``.parquet``, ``.tsv``, or else CSV.

    Parameters
    ----------
    path : Path
    columns : sequence of str
    rows : iterable of mapping
        Plain values by column; None becomes an empty field, or null.
    replace : bool
        Replace a file that is there.
    numbers : collection of str, optional
        Columns of floats; the others are text. When left out, Parquet takes the types from all rows, and holds them in
        memory.
    raw : bool
        Write texts as they are, not as `safe_row` has them.

    Raises
    ------
    MissingExtraError
        Parquet without the extra ``parquet``.
    TableError
        A place that cannot be written.
    """
    if not raw:
        rows = ({safe_text(name): value for name, value in safe_row(row).items()} for row in rows)
        columns = [safe_text(name) for name in columns]
        numbers = None if numbers is None else [safe_text(name) for name in numbers]
    write = _write_parquet if path.suffix.lower() == ".parquet" else _write_text
    try:
        with published(path, replace=replace) as partial:
            write(partial, path, columns, _with_own_errors(rows), numbers)
    except _RowsError as error:
        raise error.args[0] from None
    except FileExistsError:
        raise TableError("it is there by now; pass --replace, or name another place") from None
    except OSError as error:
        raise TableError(f"it cannot be written ({error.strerror or type(error).__name__})") from None


def safe_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row that steers no program which shows it: texts came from names of files and classes."""
    return {column: safe_text(value) if isinstance(value, str) else value for column, value in row.items()}


def safe_text(text: str) -> str:
    """Return a text as a cell of a table that strangers' names may stand in.

    Control characters and marks that turn text are written out (bytes that are no UTF-8 stay: they name a file). What a
    spreadsheet would take for a formula gets an apostrophe in front; numbers stay numbers.
    """
    if not text.isprintable():  # most are, and millions of rows are written
        text = "".join(char if "\udc80" <= char <= "\udcff" else plain_text(char) for char in text)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) and not _NUMBER.fullmatch(text) else text


class _RowsError(Exception):
    """What the rows failed with, which is no failure to write; its one argument."""


def _with_own_errors(rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    try:
        yield from rows
    except OSError as error:
        raise _RowsError(error) from None


def _write_text(
    partial: Path, path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]], _: Collection[str] | None
) -> None:
    dialect = csv.excel_tab if path.suffix.lower() in TAB_SUFFIXES else csv.excel
    # Names of files may be any bytes.
    with partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, columns, dialect=dialect, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def _write_parquet(
    partial: Path, _: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]], numbers: Collection[str] | None
) -> None:
    if find_spec("pyarrow") is None:
        raise MissingExtraError("pyarrow", "parquet")
    arrow: Any = importlib.import_module("pyarrow")
    parquet: Any = importlib.import_module("pyarrow.parquet")
    # Types are known once all rows are.
    if numbers is None:
        parquet.write_table(arrow.table(_parquet_columns(list(rows), columns)), partial)
        return
    schema = arrow.schema([(name, arrow.float64() if name in numbers else arrow.string()) for name in columns])
    # In groups: a table of ten million predictions is never held as a whole.
    remaining = iter(rows)
    with parquet.ParquetWriter(partial, schema) as writer:
        while group := list(islice(remaining, ROWS_IN_A_GROUP)):
            writer.write_table(arrow.table(_parquet_columns(group, columns), schema=schema))


def _parquet_columns(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> dict[str, list[Any]]:
    """Return the values of each column, texts with marks for the bytes that are no UTF-8: Parquet has no other."""
    return {
        name: [
            to_bytes(value).decode(errors="replace") if isinstance(value, str) else value
            for value in (row[name] for row in rows)
        ]
        for name in columns
    }


def check_writable(path: Path) -> None:
    """Raise what `write_table` would raise for this place, before there is anything to lose."""
    if path.suffix.lower() == ".parquet" and find_spec("pyarrow") is None:
        raise MissingExtraError("pyarrow", "parquet")
    if path.is_dir():
        raise TableError("it is a folder; name a file")
    if not path.parent.is_dir():
        raise TableError(f"there is no folder {path.parent}; make it, or name another place")
