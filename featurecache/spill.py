"""Bytes that will be wanted once more: in memory while they are few, and beyond that in a temporary file."""

from __future__ import annotations

import shutil
import tempfile
import threading
from typing import IO

from featurecache.machine import free_memory

# Of the memory, index included; decoding and the network need the rest.
_MEMORY_SHARE, _MOST_MEMORY = 1 / 8, 1 << 30
# Of what is free in the temporary folder: others write there, and perhaps this program its own shards.
_DISK_SHARE = 1 / 2
# What the index takes for one entry with a key of 32 bytes (measured: 265), counted as memory.
_ENTRY_BYTES = 300


class Spill:
    """Keeps bytes by a key until it is closed; many threads may use it at once.

    Parameters
    ----------
    memory_bytes, disk_bytes : int, optional
        So many at most, in memory and on disk: by default an eighth of the memory up to 1 GiB, and half of the free
        space of the temporary folder (``TMPDIR``). What comes beyond that is not kept.
    """

    def __init__(self, *, memory_bytes: int | None = None, disk_bytes: int | None = None) -> None:
        self._memory_bytes = (
            min(int(_MEMORY_SHARE * free_memory()), _MOST_MEMORY) if memory_bytes is None else memory_bytes
        )
        self._disk_bytes = disk_bytes
        self._held: dict[bytes, bytes | tuple[int, int]] = {}
        self._in_memory = 0
        self._file: IO[bytes] | None = None
        self._file_end = 0
        self._lock = threading.Lock()
        self._is_closed = False

    def add(self, key: bytes, data: bytes) -> None:
        """Keep bytes where there is room for them; what a key has is not replaced."""
        with self._lock:
            if self._is_closed or key in self._held or self._in_memory + _ENTRY_BYTES > self._memory_bytes:
                return
            # Half of the memory stays free for the index of what goes to the disk.
            if self._in_memory + _ENTRY_BYTES + len(data) <= self._memory_bytes // 2:
                self._held[key] = data
                self._in_memory += len(data)
            elif (span := self._write(data)) is not None:
                self._held[key] = span
            else:
                return
            self._in_memory += _ENTRY_BYTES

    def get(self, key: bytes) -> bytes | None:
        """Return what is kept under a key; None where nothing is."""
        with self._lock:
            held = self._held.get(key)
            if held is None or isinstance(held, bytes):
                return held
            start, length = held
            assert self._file is not None
            try:
                self._file.seek(start)
                data = self._file.read(length)
            except OSError:  # a disk that fails: its source still has it
                return None
        return data if len(data) == length else None

    def __contains__(self, key: object) -> bool:
        return key in self._held

    def close(self) -> None:
        """Forget everything, and keep nothing from now on."""
        with self._lock:
            self._is_closed = True
            self._held.clear()
            if self._file is not None:
                self._file.close()
                self._file = None

    def _write(self, data: bytes) -> tuple[int, int] | None:
        """Append to the file; None where it would be too large, or there is no room for it."""
        try:
            if self._disk_bytes is None:
                self._disk_bytes = int(_DISK_SHARE * shutil.disk_usage(tempfile.gettempdir()).free)
            if self._file_end + len(data) > self._disk_bytes:
                return None
            if self._file is None:
                # Without a name from the start: even a process that is killed leaves nothing behind.
                # Without a buffer: what a full disk did not take must not be tried again at each step after it.
                self._file = tempfile.TemporaryFile(prefix="featurecache-", buffering=0)  # noqa: SIM115 - see `close`
            self._file.seek(self._file_end)
            is_whole = self._file.write(data) == len(data)
        except OSError:
            is_whole = False
        if not is_whole:
            self._disk_bytes = 0
            return None
        self._file_end += len(data)
        return self._file_end - len(data), len(data)
