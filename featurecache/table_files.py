"""What a file that is said to hold a table is by its first bytes: text, compressed text, or a sheet of Excel.

A compressed file is inflated as it is read and a sheet comes row by row, both within limits: a few kilobytes can stand
for terabytes, and a cell can say that it is the billionth.
"""

from __future__ import annotations

import gzip
import importlib
import io
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import islice
from pathlib import Path, PurePath
from typing import Any

from featurecache.errors import MissingExtraError

TAB_SUFFIXES = (".tsv", ".tab")
GZIP_SUFFIX = ".gz"
_TEXT_SUFFIXES = (".csv", *TAB_SUFFIXES, ".json", ".jsonl", ".ndjson")
READ_SUFFIXES = (*_TEXT_SUFFIXES, ".parquet", ".xlsx", ".xlsm", *(suffix + GZIP_SUFFIX for suffix in _TEXT_SUFFIXES))
"""Of files that are taken for tables where nothing else says what they are."""

GZIP, ZIP = b"\x1f\x8b", b"PK\x03\x04"
_PICKLE = re.compile(rb"\x80[\x02-\x05]")
_NO_TABLES = (
    (re.compile(rb"\xd0\xcf\x11\xe0"), "an old spreadsheet; save the sheet as"),
    (_PICKLE, "a pickle, which could run code when it is read; load it where you trust it, and save it as"),
    (re.compile(rb"BZh[1-9]1AY&SY"), "compressed by bzip2; unpack it to"),
    (re.compile(rb"\xfd7zXZ\0"), "compressed by xz; unpack it to"),
    (re.compile(rb"\x28\xb5\x2f\xfd"), "compressed by zstd; unpack it to"),
    (re.compile(rb"7z\xbc\xaf\x27\x1c"), "a 7z archive; unpack it to"),
)
"""By the first bytes, what is no table, and what to do."""

_FREE_BYTES, _MOST_TIMES = 1 << 28, 200
"""A table that is inflated may have so many bytes, or so many times those of the file: columns of zeros reach 100."""
_MOST_SHEET_BYTES = 1 << 30
_MOST_SHEET_ROWS = 1 << 20
"""Excel has no more."""
_BLOCK = 1024

Values = tuple[Any, ...]


class TableError(ValueError):
    """A table that cannot be read; the message says why, for whoever asked to say what it was for."""


def table_suffix(path: str | Path) -> str:
    """Return the suffix that says what a table is, in small letters: of ``t.csv.gz`` it is ``.csv``."""
    return PurePath(PurePath(path).name.lower().removesuffix(GZIP_SUFFIX)).suffix


def is_table_name(path: str | Path) -> bool:
    """Tell whether a file is taken for a table by its name."""
    return PurePath(path).name.lower().endswith(READ_SUFFIXES)


def is_pickle(start: bytes) -> bool:
    """Tell by its first bytes whether a file is a pickle; those of protocols 0 and 1 look like text."""
    return _PICKLE.match(start) is not None


def check_is_table(start: bytes) -> None:
    """Raise `TableError` for what is no table, by its first bytes."""
    for mark, what in _NO_TABLES:
        if mark.match(start):
            raise TableError(f"it is {what} CSV UTF-8")


class Inflated(io.RawIOBase):
    """The bytes of a file that gzip compressed; going back to the start inflates it again.

    Parameters
    ----------
    file
        The open file.
    num_bytes : int
        It has.
    """

    def __init__(self, file: io.BufferedReader[Any], num_bytes: int) -> None:
        self._file = gzip.GzipFile(fileobj=file, mode="rb")
        self._most = max(_FREE_BYTES, _MOST_TIMES * num_bytes)

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the place."""
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        """Inflate some bytes.

        Raises
        ------
        TableError
            They are no whole gzip file, or far more than a table has.
        """
        try:
            data = self._file.read(len(buffer))
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise TableError(f"it is no whole gzip file ({error})") from None
        if self._file.tell() > self._most:
            raise TableError(f"it inflates to more than {self._most >> 20} MiB; unpack it, if that is meant")
        buffer[: len(data)] = data
        return len(data)


def sheet_rows(file: Any) -> tuple[Iterator[tuple[int, Values]], str]:
    """Return the numbers and values of the rows of the first sheet that is shown, and a word where there are others.

    Parameters
    ----------
    file
        A binary file, open as long as rows come. Cells hold what was computed when it was saved.

    Raises
    ------
    MissingExtraError
        Without the extra ``excel``.
    TableError
        It is no such file, or too large.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            names = {info.filename for info in archive.infolist()}
            # What a member is said to have is all that is inflated of it.
            num_bytes = sum(info.file_size for info in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise TableError(f"it is no whole Excel file or archive ({error})") from None
    if "xl/workbook.xml" not in names:
        raise TableError("it is an archive and no sheet of Excel; unpack it, or save the sheet as CSV UTF-8")
    if num_bytes > _MOST_SHEET_BYTES:
        raise TableError(f"it inflates to {num_bytes >> 20} MiB; save the sheet as CSV UTF-8")
    if find_spec("openpyxl") is None:
        raise MissingExtraError("openpyxl, which reads Excel files,", "excel")
    openpyxl: Any = importlib.import_module("openpyxl")
    file.seek(0)
    with _strangers_book():
        # Without links: a book may name others, and these anything.
        book = openpyxl.load_workbook(file, read_only=True, data_only=True, keep_links=False)
        sheets = [sheet for sheet in book.worksheets if sheet.sheet_state == "visible"]
    if not sheets:
        raise TableError("it has no sheet with cells")
    others = f"the first of {len(sheets)} sheets is read, {sheets[0].title!r:.100}" if len(sheets) > 1 else ""
    return _rows_of(sheets[0]), others


def _rows_of(sheet: Any) -> Iterator[tuple[int, Values]]:
    sheet.reset_dimensions()  # some programs write wrong ones, and rows are filled up to them
    rows = enumerate(sheet.iter_rows(values_only=True), 1)
    while True:
        with _strangers_book():
            some = list(islice(rows, _BLOCK))
        for number, values in some:
            if number > _MOST_SHEET_ROWS:
                raise TableError(f"its sheet has a row beyond {_MOST_SHEET_ROWS:,}; save it as CSV UTF-8")
            while values and values[-1] in (None, ""):
                values = values[:-1]
            if values:
                yield number, values
        if not some:
            return


@contextmanager
def _strangers_book() -> Iterator[None]:
    """Silence what openpyxl says of styles, and turn what it raises into one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # of XML that a stranger wrote it raises nearly anything
        raise TableError(f"it is no whole Excel file ({type(error).__name__}: {error!s:.100})") from None
