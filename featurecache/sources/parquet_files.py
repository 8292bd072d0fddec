"""Parquet files whose rows are samples, as data sets of Hugging Face are published: one file, or a pattern.

A sample is named by the file and the number of the row. Only the column of the samples is read, some pages of it at a
time, and the footer alone tells how many rows there are.
"""

from __future__ import annotations

import importlib
import io
import json
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from featurecache.errors import InputError, MissingExtraError, SourceError, UnknownNameError, shortened
from featurecache.files import open_regular, reason_of
from featurecache.sources.datasets import LABEL_COLUMNS
from featurecache.sources.file_units import FileUnits
from featurecache.sources.remote_files import RemoteFiles
from featurecache.sources.source import Entry, Stamp, Unit
from featurecache.specs import MAX_FILE_BYTES
from featurecache.tables import field_of
from featurecache.wording import counted

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

PARQUET_SUFFIX = ".parquet"
# What is decoded at once: a row group may be the whole file, and is not held. Pages are, which pyarrow writes of 1,024
# rows or more.
_BATCH_BYTES, _MOST_BATCH_ROWS = 1 << 22, 256
# Rows that were read last are kept, as threads ask for neighbours in any order: so many bytes, but so many rows at
# least; and those of so many files, as a batch of inputs may lie in several.
_KEPT_BYTES, _KEPT_ROWS, _MOST_OPEN = 1 << 26, 128, 4
# Ahead of what was read last; beyond that a row group that lies between is passed over.
_MOST_PASSED = 1024
# A footer that says more is taken for a wrong one: names of all rows are listed.
_MOST_ROWS = 10_000_000


class ParquetRows(FileUnits):
    """Base of sources in one column of Parquet files, of which each is a unit.

    Parameters
    ----------
    url : str
        A path or URL of one file, or a pattern of several.
    column : str, optional
        Holds the samples.
    max_bytes : int
        Larger samples are not read.
    """

    suffix = PARQUET_SUFFIX
    reads_units = True
    noun = "image"
    """What a sample is called in messages."""

    def __init__(self, url: str, *, column: str | None = None, max_bytes: int = MAX_FILE_BYTES) -> None:
        super().__init__(url, max_bytes=max_bytes)
        self.column = column
        # Another column of the same files is another source.
        self.key += "" if column is None else f":{column.replace('/', '%2F')}"
        self._readers: dict[str, tuple[Stamp | None, _Reader]] = {}
        self._opening = threading.Lock()

    def find_column(self, schema: Any, where: str) -> str:
        """Return the path of the column of samples.

        Parameters
        ----------
        schema : pyarrow.Schema
        where : str
            The file.

        Raises
        ------
        SourceError
            There is none.
        """
        raise NotImplementedError

    def list(self, unit: Unit) -> Iterator[Entry]:
        """Yield the rows of a file, whose sizes are known once they are read.

        Raises
        ------
        SourceError
            It is no Parquet file, or has no such column.
        """
        stamp, reader = self._reader(unit)
        if reader.num_rows > _MOST_ROWS:
            raise SourceError(
                f"{unit.name} says that it has {counted(reader.num_rows, 'row')}, more than {_MOST_ROWS:,}; split it"
            )
        stamp, prefix = None if stamp is None else (0, *stamp[1:]), self._short_names[unit.name]
        return (Entry(f"{prefix}/{number:09d}", stamp) for number in range(reader.num_rows))

    def read(self, unit: Unit) -> Iterator[tuple[str, bytes]]:
        """Yield the samples of a file by one pass over their column."""
        prefix = self._short_names[unit.name]
        with self._explained(unit):
            _, reader = self._reader(unit)
            for first, values in reader.batches(0):
                for index in range(len(values)):
                    data = values[index].as_py()
                    if data is not None and len(data) <= self._max_bytes:
                        yield f"{prefix}/{first + index:09d}", data

    def open(self, name: str, *, stamp: Stamp | None) -> bytes:
        """Return one sample; those near it come with it, and are at hand for whoever asks next."""
        unit = self._unit_of(name)
        number = name.removeprefix(f"{self._short_names[unit.name]}/")
        try:
            now, reader = self._reader(unit)
            if len(number) != 9 or not number.isdecimal() or int(number) >= reader.num_rows:
                raise InputError("missing", f"{unit.name} has no row {number}")
            if stamp is not None and (now is None or now[1:] != stamp[1:]):
                raise InputError("changed", "the file was replaced while the run went on")
            with self._explained(unit):
                data = reader.row(int(number))
        except SourceError as error:
            raise InputError("unreadable", str(error)) from None
        if data is None:
            raise InputError("empty", "the row holds no bytes")
        if len(data) > self._max_bytes:
            raise InputError("too_large", f"the {self.noun} has {len(data)} bytes, the limit is {self._max_bytes}")
        return data

    def labels(self, column: str | None = None) -> Iterator[tuple[str, str]]:
        """Yield the name of each row and what its label is, as a field of a table.

        Parameters
        ----------
        column : str, optional
            That says the label; the one that is called as labels are where left out.

        Raises
        ------
        SourceError
            No file has such a column.
        """
        wanted, others = LABEL_COLUMNS if column is None else [column], dict[str, None]()
        found = False
        for unit in self.units():
            prefix = self._short_names[unit.name]
            with self._explained(unit):
                file, _ = self._file(unit)
                others |= dict.fromkeys(file.schema_arrow.names)
                column = next((name for name in wanted if name in file.schema_arrow.names), None)
                if column is None:
                    continue
                found = True
                classes, number = _classes_of(file.schema_arrow, column), 0
                for batch in file.iter_batches(columns=[column]):
                    for value in batch.column(0).to_pylist():
                        # In Hugging Face's numbers of classes -1 stands for what is not known.
                        known = classes.get(value) if classes else value
                        if known is not None:
                            yield f"{prefix}/{number:09d}", field_of(known) or ""
                        number += 1
        if not found and wanted is not LABEL_COLUMNS:
            error = UnknownNameError("column", wanted[0], list(others), advice="choose one with --label-column")
            raise SourceError(f"{self.url}: {error}")
        if not found:
            raise SourceError(
                f"{self.url} has no column called {', '.join(LABEL_COLUMNS[:-1])} or {LABEL_COLUMNS[-1]}; it has: "
                f"{shortened(', '.join(others))}; name the one with labels with --label-column, or give a table"
            )

    def _reader(self, unit: Unit) -> tuple[Stamp | None, _Reader]:
        """Return what reads a file, opened anew where it is another one than before."""
        now = self._stamp(unit)
        with self._opening:
            stamp, reader = self._readers.pop(unit.name, (None, None))
            if reader is None or stamp != now:
                with self._explained(unit):
                    reader = _Reader(*self._file(unit))
            self._readers[unit.name] = now, reader
            for name in [*self._readers][:-_MOST_OPEN]:
                del self._readers[name]
        return now, reader

    def _file(self, unit: Unit) -> tuple[Any, str]:
        """Return an open file, and the path of its column of images."""
        arrow, parquet = modules()
        if self.is_far:
            files, path = self._remote(unit)
            file = arrow.PythonFile(_FarFile(files, path, int(self._about(unit)["size"])), mode="r")
        else:
            with open_regular(unit.name):  # no pipe, which would be waited for
                file = arrow.OSFile(unit.name)
        # With a buffer, or a column of a row group would be read whole before its first row is there.
        opened = parquet.ParquetFile(file, pre_buffer=False, buffer_size=_BATCH_BYTES)
        return opened, self.find_column(opened.schema_arrow, unit.name)

    @contextmanager
    def _explained(self, unit: Unit) -> Iterator[None]:
        arrow, _ = modules()
        try:
            yield
        except arrow.ArrowException as error:
            raise SourceError(f"{unit.name} is no whole Parquet file: {shortened(str(error), 200)}") from None
        except OSError as error:
            if error.errno is None:  # what pyarrow says of pages that it cannot decode
                raise SourceError(f"{unit.name} is no whole Parquet file: {shortened(str(error), 200)}") from None
            raise SourceError(f"cannot read {unit.name}: {reason_of(error)}") from None


class _Reader:
    """The samples of one file, batch by batch, or from any row on; several threads may ask.

    Parameters
    ----------
    file : pyarrow.parquet.ParquetFile
    column : str
        Path of the column of samples.
    """

    def __init__(self, file: Any, column: str) -> None:
        self._file, self._column, about = file, column, file.metadata
        groups = [about.row_group(number) for number in range(about.num_row_groups)]
        self._starts = [0, *accumulate(group.num_rows for group in groups)]
        self.num_rows = self._starts[-1]
        place = next(place for place in range(about.num_columns) if about.schema.column(place).path == column)
        size = sum(group.column(place).total_uncompressed_size for group in groups)
        self._batch_rows = min(max(_BATCH_BYTES * self.num_rows // max(size, 1), 1), _MOST_BATCH_ROWS)
        # The file is asked by one thread at a time; the kept rows are another matter, which one waits for.
        self._asking, self._keeping = threading.Lock(), threading.Lock()
        self._batches: Iterator[tuple[int, Any]] = iter(())
        self._kept: deque[tuple[int, Any]] = deque()
        self._next = 0

    def batches(self, group: int) -> Iterator[tuple[int, Any]]:
        """Yield the number of a row, and the samples from there on as bytes, beginning with a row group."""
        first, groups = self._starts[group], range(group, len(self._starts) - 1)
        batches = self._file.iter_batches(self._batch_rows, groups, columns=[self._column], use_threads=False)
        while True:
            with self._asking:
                if (batch := next(batches, None)) is None:
                    return
            values = batch.column(0)
            if hasattr(values, "flatten") and values.type.num_fields:
                values = values.flatten()[0]  # of a struct, what is null as a whole holds no bytes either
            yield first, as_bytes(values)
            first += len(values)

    def row(self, number: int) -> bytes | None:
        """Return one sample, None where the row has none."""
        with self._keeping:
            group = bisect_right(self._starts, number) - 1
            is_far_ahead = number >= self._next + _MOST_PASSED and self._starts[group] > self._next
            if not self._kept or number < self._kept[0][0] or is_far_ahead:
                self._batches, self._next = self.batches(group), self._starts[group]
                self._kept.clear()
            while self._next <= number:
                if (batch := next(self._batches, None)) is None:
                    raise InputError("unreadable", "the file ends before this row")
                self._kept.append(batch)
                self._next = batch[0] + len(batch[1])
                self._drop()
            first, values = next(batch for batch in reversed(self._kept) if batch[0] <= number)
            data: bytes | None = values[number - first].as_py()
            return data

    def _drop(self) -> None:
        """Forget what was read first of what is kept."""
        while self._next - self._kept[0][0] - len(self._kept[0][1]) >= _KEPT_ROWS:
            if sum(values.nbytes for _, values in self._kept) <= _KEPT_BYTES:
                return
            self._kept.popleft()


class _FarFile(io.RawIOBase):
    """A file that is far away, read in pieces as they are asked for.

    Parameters
    ----------
    files : RemoteFiles
    path : str
        On its file system.
    size : int
        Of the file.
    """

    def __init__(self, files: RemoteFiles, path: str, size: int) -> None:
        self._files, self._path, self._size, self._position = files, path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        target = memoryview(buffer)
        if not (length := max(min(len(target), self._size - self._position), 0)):
            return 0
        data = self._files.cat(self._path, start=self._position, size=length)
        target[: len(data)] = data
        self._position += len(data)
        return len(data)


def as_bytes(values: Any) -> Any:
    """Return an array of bytes, or of texts as their UTF-8, which is not checked: a text may be damaged."""
    arrow, _ = modules()
    if arrow.types.is_binary(values.type) or arrow.types.is_large_binary(values.type):
        return values
    if arrow.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    is_large = arrow.types.is_large_string(values.type)
    return values.cast(arrow.large_binary() if is_large else arrow.binary())


def _classes_of(schema: Any, column: str) -> Mapping[Any, str]:
    """Return the names of classes by their numbers, where Hugging Face has left them in a file."""
    with suppress(ValueError, KeyError, TypeError):
        about = json.loads((schema.metadata or {})[b"huggingface"])
        return {number: str(name) for number, name in enumerate(about["info"]["features"][column]["names"])}
    return {}


def modules() -> tuple[Any, Any]:
    if find_spec("pyarrow") is None:
        raise MissingExtraError("pyarrow", "parquet")
    return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
