"""The one way to open a file that somebody named: regular files only, and no more bytes than it had when it was opened.

A named pipe would keep a reader waiting for ever, a device such as /dev/zero never ends, and a link may lead to either.
So what a name stands for is asked before it is opened, and once more of what was opened.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from featurecache.errors import FeatureCacheError

_KINDS = (
    (stat.S_ISDIR, "it is a folder, not a file"),
    (stat.S_ISFIFO, "it is a named pipe, not a file"),
    (stat.S_ISSOCK, "it is a socket, not a file"),
    (stat.S_ISCHR, "it is a device, not a file"),
    (stat.S_ISBLK, "it is a device, not a file"),
)
# Without O_NONBLOCK, opening a pipe that has the name of a file by now would wait for a writer.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


class FileError(FeatureCacheError, OSError):
    """A name that stands for no regular file of the wanted size; ``strerror`` says why."""

    def __str__(self) -> str:
        return f"cannot read {self.filename}: {self.strerror}" if self.filename else str(self.strerror)


class TooLargeError(FileError):
    """A file beyond the limit; nothing of it was read."""


class GrowingError(FileError):
    """A file that became longer while it was read."""


@contextmanager
def open_regular(path: str | Path, *, max_bytes: int | None = None) -> Iterator[tuple[FileIO, os.stat_result]]:
    """Open a regular file, unbuffered, and yield it with its status; links are followed.

    Parameters
    ----------
    path : path
    max_bytes : int, optional
        A larger file is refused before anything of it is read.

    Raises
    ------
    FileNotFoundError
        There is no such name.
    FileError
        It is a pipe, a socket, a device, a folder, or a link that leads nowhere or in a circle.
    TooLargeError
        It is beyond the limit.
    """
    _check(path, _status(path), max_bytes)  # some devices do something when they are opened
    descriptor = os.open(path, _FLAGS)
    try:
        status = os.fstat(descriptor)
        # Once more: the name may stand for something else by now.
        _check(path, status, max_bytes)
        with open(descriptor, "rb", buffering=0, closefd=False) as file:
            yield file, status
    finally:
        os.close(descriptor)


def blocks_of(file: FileIO, status: os.stat_result, *, block_bytes: int = 1 << 20) -> Iterator[bytes]:
    """Yield the bytes of an open file in blocks, as many as its status says.

    Parameters
    ----------
    file : FileIO
    status : os.stat_result
        Of when it was opened.
    block_bytes : int

    Raises
    ------
    GrowingError
        It has more: somebody is writing to it, and may never end.
    """
    left = status.st_size
    while block := file.read(min(block_bytes, left + 1)):
        left -= len(block)
        if left < 0:
            raise GrowingError(errno.EFBIG, "it grew while it was read")
        yield block


def why_not_regular(path: str | Path) -> str | None:
    """Return why a name stands for no regular file, or nothing where it stands for one."""
    try:
        _check(path, _status(path), None)
    except OSError as error:
        return reason_of(error)
    return None


def reason_of(error: OSError) -> str:
    """Return what went wrong with a file in a few words."""
    if isinstance(error, FileNotFoundError):
        return "it does not exist"
    return error.strerror or type(error).__name__


def _status(path: str | Path) -> os.stat_result:
    try:
        return os.stat(path)  # noqa: PTH116 - once for every file
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise FileError(error.errno, "it is a link that leads back to itself", str(path)) from None
        if error.errno == errno.ENOENT and Path(path).is_symlink():
            raise FileError(
                error.errno, f"it is a link that leads nowhere (to {str(Path(path).readlink())!r:.200})", str(path)
            ) from None
        raise


def _check(path: str | Path, status: os.stat_result, max_bytes: int | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = next((text for is_kind, text in _KINDS if is_kind(status.st_mode)), "it is no regular file")
        raise FileError(errno.EINVAL, kind, str(path))
    if max_bytes is not None and status.st_size > max_bytes:
        raise TooLargeError(errno.EFBIG, f"the file has {status.st_size} bytes, the limit is {max_bytes}", str(path))
