"""One input of a source, to be read when its turn comes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from featurecache.errors import InputError
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
    """A file to read; with ``id`` (hex) given, it must still hold the bytes that were seen at the scan."""

    path: Path
    id: str | None = None

    @property
    def name(self) -> str:
        """Where it lies."""
        return str(self.path)

    def read(self, max_bytes: int | None = None) -> bytes:
        """Return the file's bytes; a file beyond the limit is not read at all."""
        try:
            with self.path.open("rb", buffering=0) as file:
                if max_bytes is not None and (size := os.fstat(file.fileno()).st_size) > max_bytes:
                    raise InputError("too_large", f"the file has {size} bytes, the limit is {max_bytes}")
                data = file.read()
        except FileNotFoundError:
            raise InputError("missing", "the file was removed while the run went on") from None
        except OSError as error:
            raise InputError("unreadable", error.strerror or type(error).__name__) from None
        if self.id is not None and digest_bytes(data) != self.id:
            raise InputError("changed", "the file was edited while the run went on")
        return data


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
