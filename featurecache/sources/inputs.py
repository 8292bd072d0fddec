"""One input of a source, to be read when its turn comes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from featurecache.errors import InputError
from featurecache.files import GrowingError, TooLargeError, open_regular, read_open, reason_of
from featurecache.hashing import digest_bytes


class Input(Protocol):
    """Something whose bytes can be had."""

    @property
    def name(self) -> str:
        """What people call it."""
        ...

    def read(self, max_bytes: int | None = None) -> bytes:
        """Return its bytes; one beyond the limit is not read at all.

        Raises
        ------
        InputError
            It cannot be read, or is not what it was at the scan.
        """
        ...


@dataclass(frozen=True, slots=True)
class FileInput:
    """A file to read; with ``id`` (hex) given, it must still hold the bytes that were seen at the scan.

    A ``stamp`` (size, mtime and ctime in ns, inode) that the file had then, still has, and has after reading, tells
    that without a digest: any write since would have given it another ctime.
    """

    path: Path
    id: str | None = None
    stamp: tuple[int, int, int, int] | None = None

    @property
    def name(self) -> str:
        """Where it lies."""
        return str(self.path)

    def read(self, max_bytes: int | None = None) -> bytes:
        """Return the file's bytes; a file beyond the limit is not read at all."""
        try:
            with open_regular(self.path, max_bytes=max_bytes) as (file, before):
                data = read_open(file, before)
                untouched = self.stamp is not None and self._has_stamp(before, os.fstat(file.fileno()))
        except FileNotFoundError:
            raise InputError("missing", "the file was removed while the run went on") from None
        except TooLargeError as error:
            raise InputError("too_large", reason_of(error)) from None
        except GrowingError as error:
            raise InputError("changed", reason_of(error)) from None
        except OSError as error:
            raise InputError("unreadable", reason_of(error)) from None
        if self.id is not None and not untouched and digest_bytes(data) != self.id:
            raise InputError("changed", "the file was edited while the run went on")
        return data

    def _has_stamp(self, *statuses: os.stat_result) -> bool:
        return all((s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) == self.stamp for s in statuses)


@dataclass(frozen=True, slots=True)
class TextInput:
    """A text that is in memory already."""

    name: str
    data: bytes

    def read(self, max_bytes: int | None = None) -> bytes:
        """Return its bytes."""
        if max_bytes is not None and len(self.data) > max_bytes:
            raise InputError("too_large", f"the text has {len(self.data)} bytes, the limit is {max_bytes}")
        return self.data
