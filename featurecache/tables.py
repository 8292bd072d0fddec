"""Tables that are read: text as different programs write it, JSON, Parquet and Excel, row by row as text."""

from __future__ import annotations

import codecs
import csv
import importlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

from featurecache.errors import MissingExtraError
from featurecache.files import open_regular, reason_of
from featurecache.json_tables import (
    MAX_LIST_BYTES,
    JsonRow,
    JsonTableError,
    OneObjectError,
    columns_of,
    is_json,
    is_list,
    rows_of_coco,
    rows_of_lines,
    rows_of_list,
)
from featurecache.table_dialects import (
    IMAGE_SUFFIXES,
    SAMPLE,
    comments_above,
    delimiter_of,
    num_above,
    quotes_are_letters,
    says_types,
)
from featurecache.table_files import GZIP, TAB_SUFFIXES, ZIP, Inflated, check_is_table, sheet_rows, table_suffix
from featurecache.table_files import TableError as TableError
from featurecache.table_files import is_table_name as is_table_name

Row = dict[str | None, str | None]
"""Fields by column."""

_NAMED_DELIMITER = re.compile(r"sep=(.)\r?\n")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    # Before UTF-16, whose mark is the beginning of this one.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_MAX_FIELD = 16_000_000
"""Characters in one field; a quote that is left open must not swallow a file of any size."""


ROWS_IN_A_GROUP = 4096
"""Of Parquet: what is held in memory."""


# Compared without case, spaces, strokes and dashes; the first that a table has is taken.
PATH_COLUMNS = (
    *("path", "paths", "filepath", "filepaths", "file", "filename", "filenames", "fname", "fn", "image", "images"),
    *("imagepath", "imagepaths", "imagefile", "imagefilename", "imagename", "imagenames", "imageurl", "imageindex"),
    *("imageid", "img", "imgpath", "imgfile", "imgfilename", "imgname", "imgid", "isicid", "idcode", "photo"),
    *("picture", "picturename", "url", "uid", "id"),
)


@dataclass(frozen=True, slots=True)
class TableFormat:
    """How a table of text is written.

    Attributes
    ----------
    encoding : str
        By its name in Python.
    delimiter : str
        Between columns.
    num_skipped : int
        Lines before the table: ``sep=;``, which a spreadsheet writes for itself, and comments.
    has_quotes : bool
        Quotes stand around fields; else they are letters like others.
    """

    encoding: str
    delimiter: str
    num_skipped: int = 0
    has_quotes: bool = True


@dataclass(frozen=True, slots=True)
class Table:
    """A table while it is open: its columns, and its rows as they come.

    Attributes
    ----------
    columns : list of str
        Without spaces around; of a table without a header, ``1``, ``2`` and so on.
    rows : iterator of (int, dict)
        The line where each row ends, and its fields by column.
    format : TableFormat or None
        None where it is no text.
    remarks : tuple of str
        What was left out of it.
    """

    columns: list[str]
    rows: Iterator[tuple[int, Row]]
    format: TableFormat | None = None
    remarks: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[tuple[int, Row]]:
        return self.rows


@contextmanager
def open_table(
    path: Path, *, raw: bool = False, delimiter: str | None = None, has_header: bool = True
) -> Iterator[Table]:
    """Read a table: text with columns between commas, semicolons, tabs or strokes, JSON, Parquet, or a sheet of Excel.

    Parameters
    ----------
    path : Path
        The file. Text is in UTF-8, UTF-16 or Windows' cp1252, and may be compressed by gzip.
    raw : bool
        For a table of texts: keep bytes that are no UTF-8 (`to_bytes` brings them back) instead of taking them for
        cp1252.
    delimiter : str, optional
        Between columns; found in the first rows when left out.
    has_header : bool
        The first row names the columns.

    Raises
    ------
    TableError
        It is missing, unreadable, or no table.
    """
    # The limit is the module's: it is put back for other readers of this process.
    before = csv.field_size_limit(_MAX_FIELD)
    try:
        with open_regular(path) as (file, status):
            buffered: io.BufferedReader[Any] = io.BufferedReader(file)
            start = buffered.peek(64)[:64]
            if start.startswith(GZIP):
                buffered = io.BufferedReader(Inflated(buffered, status.st_size))
                start = buffered.peek(64)[:64]
                if start.startswith((GZIP, ZIP, b"PAR1")):
                    raise TableError("it is compressed by gzip over what is compressed already; unpack it")
            check_is_table(start)
            if start.startswith(b"PAR1"):
                yield _parquet_table(path)
            elif start.startswith(ZIP):
                yield _sheet_table(buffered, has_header=has_header)
            elif is_json(start):
                yield _json_table(buffered, start)
            else:
                yield _text_table(buffered, path, raw=raw, delimiter=delimiter, has_header=has_header)
    except UnicodeDecodeError:
        raise TableError("it is no text in UTF-8, UTF-16 or cp1252; save it as CSV UTF-8") from None
    except JsonTableError as error:
        raise TableError(str(error)) from None
    except csv.Error as error:
        raise TableError(f"{error}; is a quote left open?") from None
    except OSError as error:
        raise TableError(reason_of(error)) from None
    finally:
        csv.field_size_limit(before)


def _text_table(
    file: io.BufferedReader[Any], path: Path, *, raw: bool, delimiter: str | None, has_header: bool
) -> Table:
    encoding = _encoding_of(file, raw=raw)
    errors = "surrogateescape" if raw else "strict"
    text = io.TextIOWrapper(file, newline="", encoding=encoding, errors=errors)
    sample = text.read(SAMPLE)
    text.seek(0)
    skipped = 0
    if named := _NAMED_DELIMITER.match(sample):
        skipped, sample = 1, sample[named.end() :]
        delimiter = delimiter or named[1]
        text.readline()
    default = "\t" if table_suffix(path) in TAB_SUFFIXES else ","
    beginning, below = comments_above(sample)
    mark = delimiter or delimiter_of(below or sample, default)
    num_comments = num_above(beginning, below, mark, lambda row: has_header and bool(sample_columns(row)))
    skipped += num_comments
    found = TableFormat(encoding, mark, skipped)
    if found.delimiter == "\t" and quotes_are_letters(islice(_lines(text), num_comments, None)):
        found = replace(found, has_quotes=False)
    text.seek(0)
    for _ in range(skipped):
        text.readline()
    # Strict: a stray quote would quietly swallow the rows that follow.
    lines = csv.reader(
        _lines(text),
        delimiter=found.delimiter,
        strict=True,
        quoting=csv.QUOTE_MINIMAL if found.has_quotes else csv.QUOTE_NONE,
    )
    rows = ((lines.line_num + skipped, row) for row in lines if row)
    number, first = next(rows, (0, list[str]()))
    if not first:
        raise TableError("it is empty; its first line names the columns")
    columns = [name.strip() for name in first] if has_header else [str(k + 1) for k in range(len(first))]
    # The two rows in which Orange says types and roles of columns are no samples.
    ahead = [(number, first)] if not has_header else list(islice(rows, 2))
    if has_header and table_suffix(path) == ".tab" and says_types([row for _, row in ahead]):
        ahead = []
    remarks = (f"lines above the table that begin with # are left out: {num_comments}",) if num_comments else ()
    return Table(columns, ((number, _by_column(columns, row)) for number, row in chain(ahead, rows)), found, remarks)


def _by_column(columns: Sequence[str], fields: Sequence[str]) -> Row:
    """Return fields by column: None where a row has too few, and under None what is too many."""
    row: Row = dict(zip_longest(columns, fields[: len(columns)]))
    if len(fields) > len(columns):
        row[None] = "\n".join(fields[len(columns) :])
    return row


def _encoding_of(file: io.BufferedReader[Any], *, raw: bool) -> str:
    """Return the encoding of a file of text, and go back to its start."""
    start = file.peek(4)[:4]
    for mark, encoding in _MARKS:
        if start.startswith(mark):
            return encoding
    if not raw and b"\0" in start:  # letters of two bytes, without the mark
        return "utf-16-be" if start[:1] == b"\0" else "utf-16-le"
    if raw:
        return "utf-8"
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        while block := file.read(1 << 20):
            decoder.decode(block)
        decoder.decode(b"", final=True)
        return "utf-8"
    except UnicodeDecodeError:
        return "cp1252"
    finally:
        # The decoder has read to the end, or to the first byte that is no UTF-8.
        file.seek(0)


def _parquet_table(path: Path) -> Table:
    if find_spec("pyarrow") is None:
        raise MissingExtraError("pyarrow", "parquet")
    parquet: Any = importlib.import_module("pyarrow.parquet")
    arrow: Any = importlib.import_module("pyarrow")
    try:
        file = parquet.ParquetFile(path)
    except arrow.ArrowException as error:
        raise TableError(f"it is no whole Parquet file ({error})") from None

    def rows() -> Iterator[tuple[int, Row]]:
        number = 0
        for batch in file.iter_batches(ROWS_IN_A_GROUP):
            for values in batch.to_pylist():
                number += 1
                yield number, _fields_of(values)

    return Table(file.schema_arrow.names, rows())


def _sheet_table(file: io.BufferedReader[Any], *, has_header: bool) -> Table:
    rows, others = sheet_rows(file)
    fields = ((number, [field_of(value) or "" for value in values]) for number, values in rows)
    number, first = next(fields, (0, list[str]()))
    if not first:
        raise TableError("its first sheet is empty; its first row names the columns")
    columns = [name.strip() for name in first] if has_header else [str(k + 1) for k in range(len(first))]
    ahead = [] if has_header else [(number, first)]
    # Cells at the end of a row that are empty are not written.
    whole = ((number, row + [""] * (len(columns) - len(row))) for number, row in chain(ahead, fields))
    every = ((number, _by_column(columns, row)) for number, row in whole)
    return Table(columns, every, remarks=(others,) if others else ())


def _json_table(file: io.BufferedReader[Any], start: bytes) -> Table:
    found: Iterable[JsonRow]
    if is_list(start):
        found = rows_of_list(file.read(MAX_LIST_BYTES + 1))
        columns = columns_of(found)
    else:
        text = io.TextIOWrapper(file, encoding=json.detect_encoding(start[:4]))
        try:
            # Names of columns may come late: all lines are read for them first, and none is held.
            columns = columns_of(rows_of_lines(_lines(text)))
        except (OneObjectError, TableError):  # or one of the longest lines
            text.detach().seek(0)
            if (rows := rows_of_coco(file.read(MAX_LIST_BYTES + 1))) is None:
                raise
            every = ((number, _fields_of(values)) for number, values in rows)
            return Table(columns_of(rows), every, remarks=("the labels of an image are the categories of its boxes",))
        text.seek(0)
        found = rows_of_lines(_lines(text))
    missing = dict.fromkeys(columns)
    return Table(columns, ((number, _fields_of(missing | values)) for number, values in found))


def _fields_of(values: Mapping[str, Any]) -> Row:
    """Return a row of plain values as fields; a cell without a value is an empty one, as a row of text has them."""
    fields = {name: field_of(value) for name, value in values.items()}
    return {name: "" if field is None else field for name, field in fields.items()}


class ListField(str):
    """A field that held several values, of a data frame or of Parquet."""

    items: tuple[str, ...]

    def __new__(cls, items: Iterable[Any]) -> ListField:
        """Join the values."""
        known = tuple(str(item) for item in items)
        field = super().__new__(cls, ";".join(known))
        field.items = known
        return field


def field_of(value: Any) -> str | None:
    """Return a plain value as the field of a table: text as it is, nothing for what frames hold for an empty cell.

    Parameters
    ----------
    value : object
        Of a data frame, or of Parquet. A whole number that is held as a float is written as a whole number.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, list | tuple | set | frozenset) or getattr(value, "ndim", 0) > 0:
        return ListField(value)
    try:
        if value is None or bool(value != value):
            return None
    except TypeError:  # pandas.NA, which is neither equal nor unequal
        return None
    is_whole = isinstance(value, float) and value.is_integer()
    return str(int(value)) if is_whole else str(value)


def sample_columns(columns: Sequence[str]) -> list[str]:
    """Return those columns that are known to name samples, the one that is taken first."""
    plain = {plain_name(name): name for name in reversed(columns)}
    return [plain[name] for name in PATH_COLUMNS if name in plain]


def columns_of_files(columns: Sequence[str], sample: Sequence[Mapping[str | None, str | None]]) -> list[str]:
    """Return those columns whose entries all end as names of image files do.

    Parameters
    ----------
    columns : sequence of str
    sample : sequence of mapping
        The first rows.
    """
    found = []
    for name in columns:
        entries = {(row.get(name) or "").strip().lower() for row in sample} - {""}
        if entries and all(entry.endswith(IMAGE_SUFFIXES) for entry in entries):
            found.append(name)
    return found


def first_line_is_row(columns: Sequence[str]) -> bool:
    """Tell whether what should be names of columns are entries: one ends as names of image files do."""
    return any(name.strip().lower().endswith(IMAGE_SUFFIXES) for name in columns)


def plain_name(name: str) -> str:
    """Return the name of a column without case, spaces, strokes and dashes."""
    return re.sub(r"[\s_-]", "", name).casefold()


def _lines(text: io.TextIOWrapper) -> Iterator[str]:
    """Yield the lines of a table; a file without line ends, such as a disk image, must not fill the memory."""
    while line := text.readline(_MAX_FIELD + 1):
        if len(line) > _MAX_FIELD:
            raise TableError(f"a line has more than {_MAX_FIELD:,} characters; is it a table?")
        yield line


def to_bytes(field: str) -> bytes:
    """Return the bytes of a field as they stand in a table that was read raw."""
    return field.encode("utf-8", "surrogateescape")
