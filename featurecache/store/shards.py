"""Immutable HDF5 shards of named arrays: written once, mapped ever after.

A shard is written as an empty HDF5 file (h5py lays it out), then filled with ordinary file writes at the
offsets of its arrays, so that a full disk is an ordinary error instead of a file that looks complete. It is fsynced and
renamed to a name that carries its digest. Readers never ask libhdf5: they map the arrays at the offsets that the
commit record gives, and check each block's checksum on its first use.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import stat
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from featurecache.atomic import fsync_directory, make_folder, partial_name
from featurecache.errors import CorruptError, StoreError
from featurecache.machine import allow_more_files
from featurecache.store.commits import BLOCK_BYTES, ArrayRecord, ShardRecord
from featurecache.store.dtypes import STORED, Array

Layout = Mapping[str, tuple[str, tuple[int, ...]]]
"""Name of each array, its stored type and its shape."""

_ALIGNMENT = 4096  # one page, so that a mapped array starts on a page
_CANNOT_RESERVE = {errno.EOPNOTSUPP, errno.EINVAL}  # file systems without reservation


class ShardWriter:
    """Writes the arrays of one shard in order; use as a context manager, then `finish`.

    Parameters
    ----------
    folder : Path
        That holds, or will hold, ``shards/`` and ``commits/``.
    arrays : mapping of name to (dtype, shape)
        What it will hold.
    attributes : mapping of str to str
        Written to the HDF5 root group, for people who open the file with other programs.
    """

    def __init__(self, folder: Path, arrays: Layout, attributes: Mapping[str, str]) -> None:
        import h5py  # writing only: readers of a cache never load libhdf5

        for name in ("shards", "commits"):
            make_folder(folder / name)
        self._folder = folder / "shards"
        self._partial = partial_name(self._folder / "shard.h5")
        self._arrays = dict(arrays)
        self._sums = {name: _BlockSums() for name in arrays}
        self._offsets: dict[str, int] = {}
        try:
            with h5py.File(
                self._partial,
                "x",
                # Any HDF5 since 1.8 reads the file.
                libver=("earliest", "v108"),
                alignment_threshold=_ALIGNMENT,
                alignment_interval=_ALIGNMENT,
            ) as file:
                for name, value in attributes.items():
                    file.attrs[name] = np.bytes_(value.encode())
                for name, (dtype, shape) in arrays.items():
                    self._offsets[name] = _reserve_array(file, name, dtype, shape)
            # From here on without libhdf5: on a full disk its writes report success and fail at the end of the process.
            self._file = self._partial.open("r+b", buffering=0)
        except BaseException:
            # Nobody else would remove the file: the block of `with` has not begun.
            self._partial.unlink(missing_ok=True)
            raise
        self._reserve()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._partial.unlink(missing_ok=True)

    def append(self, name: str, values: Array) -> None:
        """Write the next rows of one array; ``values`` already has the stored type."""
        data = memoryview(np.ascontiguousarray(values)).cast("B") if values.size else memoryview(b"")
        position = self._offsets[name] + self._sums[name].nbytes
        while data:
            # The system may take only some of the bytes.
            written = os.pwrite(self._file.fileno(), data, position)
            self._sums[name].update(data[:written])
            data, position = data[written:], position + written

    def written(self, name: str) -> Array:
        """Map the rows of an array that were appended so far."""
        dtype, shape = self._arrays[name]
        return np.memmap(self._partial, STORED[dtype], "r", self._offsets[name], shape)

    def finish(self, key: str) -> ShardRecord:
        """Fsync the file and give it its final name; it stays invisible until it is committed."""
        record = self._record()
        # The bytes before the name, the name before the commit: a record that is seen has a whole shard.
        os.fsync(self._file.fileno())
        target = self._folder / f"{key}-{record.sha256[:16]}.h5"
        self._partial.replace(target)
        fsync_directory(self._folder)
        return record

    def _reserve(self) -> None:
        size = os.fstat(self._file.fileno()).st_size
        if not hasattr(os, "posix_fallocate"):
            return
        try:
            os.posix_fallocate(self._file.fileno(), 0, size)
        except OSError as error:
            # All space is asked for at once, so that a full disk shows before anything is computed.
            if error.errno not in _CANNOT_RESERVE:
                # Nobody else would remove the file: the block of `with` has not begun.
                self.__exit__()
                error.add_note(f"while reserving {size} bytes in {self._folder}; free some space and run again")
                raise

    def _record(self) -> ShardRecord:
        arrays = {
            name: ArrayRecord(
                dtype=dtype,
                shape=shape,
                offset=self._offsets[name],
                crc32=self._sums[name].finish(),
                block_bytes=BLOCK_BYTES,
            )
            for name, (dtype, shape) in self._arrays.items()
        }
        for name, array in arrays.items():
            assert self._sums[name].nbytes == array.nbytes, f"array {name!r} was not filled"
        # Of the file as it lies there: arrays are filled in turns, and what h5py laid out counts too.
        hasher, size = hashlib.sha256(), 0
        self._file.seek(0)
        while block := self._file.read(BLOCK_BYTES):
            hasher.update(block)
            size += len(block)
        return ShardRecord(sha256=hasher.hexdigest(), size=size, arrays=arrays)


@dataclass(slots=True)
class MappedShard:
    """The arrays of one shard, mapped read-only; a block is checked against its CRC-32 on first use."""

    path: Path
    record: ShardRecord
    _bytes: Array | None = None
    _checked: dict[str, np.ndarray] = field(default_factory=dict)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Return consecutive rows of an array, not copied; all of them by default.

        Parameters
        ----------
        name : str
        start, stop : int
            Rows of this shard.
        """
        array = self.record.arrays[name]
        stop = array.shape[0] if stop is None else stop
        self._check_blocks(name, array, np.array([start]), np.array([stop]))
        raw = self.mapped()[array.offset : array.offset + array.nbytes]
        return raw.view(STORED[array.dtype]).reshape(array.shape)[start:stop]

    def check_rows(self, name: str, rows: Array) -> tuple[int, bool]:
        """Check the blocks under some rows of this shard.

        Parameters
        ----------
        name : str
            Of an array.
        rows : ndarray of int64

        Returns
        -------
        address : int
            Where in memory the array begins; valid as long as this object lives.
        is_checked : bool
            All blocks of the array have been checked by now.
        """
        array = self.record.arrays[name]
        self._check_blocks(name, array, rows, rows + 1)
        address = int(self.mapped().ctypes.data) + array.offset
        return address, bool(self._checked[name].all())

    def mapped(self) -> Array:
        """Return the bytes of the file; raise `CorruptError` unless it is there and as long as its record says."""
        # On first use, as each file stays open while it is mapped.
        if self._bytes is None:
            self._bytes = _map_file(self.path, self.record.size)
        return self._bytes

    def _check_blocks(self, name: str, array: ArrayRecord, starts: Array, stops: Array) -> None:
        """Check the blocks under local rows ``starts[i]:stops[i]`` that were not checked before."""
        checked = self._checked.setdefault(name, np.zeros(len(array.crc32), bool))
        if checked.all():
            return
        for block in _blocks_of(array, starts, stops):
            if not checked[block]:
                start = array.offset + block * array.block_bytes
                stop = min(start + array.block_bytes, array.offset + array.nbytes)
                if zlib.crc32(self.mapped()[start:stop]) != array.crc32[block]:
                    raise CorruptError(
                        f"{self.path}: block {block} of array {name!r} does not match its checksum; "
                        "run `featurecache repair`, then extract again"
                    )
                checked[block] = True


def _reserve_array(file: Any, name: str, dtype: str, shape: tuple[int, ...]) -> int:
    """Add an array without content to an open HDF5 file and return its offset in the file."""
    from h5py import Dataset, h5d, h5p, h5s, h5t

    properties = h5p.create(h5p.DATASET_CREATE)
    properties.set_layout(h5d.CONTIGUOUS)
    properties.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5d.FILL_TIME_NEVER)
    properties.set_obj_track_times(False)  # equal content must be equal bytes
    kind, space = h5t.py_create(np.dtype(STORED[dtype])), h5s.create_simple(shape)
    dataset = Dataset(h5d.create(file.id, name.encode(), kind, space, dcpl=properties))
    dataset.attrs["dtype"] = np.bytes_(dtype.encode())
    return dataset.id.get_offset()


def _map_file(path: Path, size: int) -> Array:
    """Map a file, each of which stays open for as long as its map lives."""
    try:
        return _map_one_more(path, size)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
    if allow_more_files():
        return _map_file(path, size)
    raise StoreError(
        f"{path} cannot be opened as well: this process may hold no more files open; allow it more (`ulimit "
        "-n`), or extract into larger shards (--shard-rows)"
    )


def _map_one_more(path: Path, size: int) -> Array:
    try:
        # Links are not followed: one could lead out of the cache.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        raise CorruptError(
            f"{path} is missing although it was committed; run `featurecache repair`, then extract again"
        ) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size != size:
            raise CorruptError(
                f"{path} has {status.st_size} bytes, its commit record says {size}; "
                "run `featurecache repair`, then extract again"
            )
        return np.frombuffer(mmap.mmap(descriptor, size, access=mmap.ACCESS_READ), np.uint8)
    finally:
        # The map has a descriptor of its own.
        os.close(descriptor)


def _blocks_of(array: ArrayRecord, starts: Array, stops: Array) -> Iterator[int]:
    row_bytes = array.nbytes // max(array.shape[0], 1)
    first = starts * row_bytes // array.block_bytes
    last = (stops * row_bytes - 1) // array.block_bytes
    # Many rows lie in one block, which is checked once.
    spans = np.unique(np.stack([first, last], axis=1), axis=0)
    return (block for low, high in spans.tolist() for block in range(low, high + 1))


@dataclass(slots=True)
class _BlockSums:
    """CRC-32 of every block of a stream of bytes."""

    nbytes: int = 0
    _sums: list[int] = field(default_factory=list)
    _current: int = 0

    def update(self, data: memoryview) -> None:
        while data:
            left = BLOCK_BYTES - self.nbytes % BLOCK_BYTES
            piece, data = data[:left], data[left:]
            self._current = zlib.crc32(piece, self._current)
            self.nbytes += len(piece)
            if self.nbytes % BLOCK_BYTES == 0:
                self._sums.append(self._current)
                self._current = 0

    def finish(self) -> tuple[int, ...]:
        tail = [self._current] if self.nbytes % BLOCK_BYTES else []
        return (*self._sums, *tail)
