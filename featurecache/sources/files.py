"""Files that somebody named one by one, and how any file of a source is read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from featurecache.errors import InputError
from featurecache.files import GrowingError, TooLargeError, blocks_of, open_regular, reason_of
from featurecache.sources.source import Entry, SingleUnit, Stamp, Unit
from featurecache.specs import MAX_FILE_BYTES


@dataclass(frozen=True)
class NamedFiles(SingleUnit):
    """Images by their paths; a named file counts whatever its suffix."""

    paths: Sequence[Path]
    max_bytes: int = MAX_FILE_BYTES

    modality = "image"

    @property
    def key(self) -> str:
        """The first of them: such a source has no listing in a cache."""
        return str(self.paths[0])

    def list(self, unit: Unit) -> Iterator[Entry]:
        """Yield the paths as they were given; why one cannot be read is an error where it is read."""
        return (Entry(str(path), None) for path in self.paths)

    def open(self, name: str, *, stamp: Stamp | None) -> bytes:
        """Return the bytes of a file; see `read_file`."""
        return read_file(name, stamp=stamp, max_bytes=self.max_bytes)


def read_file(path: str | Path, *, stamp: Stamp | None, max_bytes: int) -> bytes:
    """Return the bytes of a regular file.

    Parameters
    ----------
    path : path
    stamp : Stamp, optional
        That the file must have before and after it is read: any write gives it another ctime.
    max_bytes : int
        Nothing is read of a larger file.

    Raises
    ------
    InputError
        ``missing``, ``too_large``, ``changed`` or ``unreadable``.
    """
    try:
        with open_regular(path, max_bytes=max_bytes) as (file, before):
            data = b"".join(blocks_of(file, before, block_bytes=before.st_size + 1))
            after = os.fstat(file.fileno())
    except FileNotFoundError:
        raise InputError("missing", "the file was removed while the run went on") from None
    except TooLargeError as error:
        raise InputError("too_large", reason_of(error)) from None
    except GrowingError as error:
        raise InputError("changed", reason_of(error)) from None
    except OSError as error:
        raise InputError("unreadable", reason_of(error)) from None
    # Before and after: a write while the file was read leaves half of each content.
    for status in (before, after):
        if stamp not in (None, (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)):
            raise InputError("changed", "the file was edited while the run went on")
    return data
