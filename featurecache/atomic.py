"""Publication of files: a name that people see is complete, and a published file is never replaced by accident.

The order is always: write under a temporary name in the same folder, fsync, move to the final name, fsync the
folder. Without the last step a power cut can undo the move although the program was told that it happened.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from featurecache.stopping import temporary

PARTIAL_SUFFIX = ".partial"
_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_CANNOT_EXCHANGE = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EXDEV}
_HERE, _NO_REPLACE = -100, 1  # AT_FDCWD and RENAME_NOREPLACE of Linux
_EXCHANGE = 2  # RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS


def partial_name(path: Path) -> Path:
    """Return a fresh temporary sibling of ``path``; rename is atomic only within one file system."""
    return temporary(path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}"))


def is_partial(path: Path) -> bool:
    """Tell whether ``path`` is a leftover of an interrupted publication."""
    return path.name.startswith(".") and path.name.endswith(PARTIAL_SUFFIX)


@contextmanager
def published(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """Yield a temporary sibling of ``path``; fsync it and move it into place on success, remove it on failure.

    Raises
    ------
    FileExistsError
        Without ``replace``, where something has come to be there meanwhile; it stays as it is.
    """
    partial = partial_name(path)
    try:
        yield partial
        fsync_file(partial)
        if replace:
            partial.replace(path)
        elif not _link_if_absent(partial, path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        fsync_directory(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def published_folder(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """Do what `published` does for a folder of files; of a folder that is replaced, nothing remains."""
    partial = partial_name(path)
    partial.mkdir()
    try:
        yield partial
        for file in partial.iterdir():
            fsync_file(file)
        fsync_directory(partial)
        _move_folder(partial, path, replace=replace)
        fsync_directory(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _move_folder(partial: Path, path: Path, *, replace: bool) -> None:
    """Give a folder its name; what had the name before has the temporary one then."""
    try:
        partial.rename(path)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        if not replace:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        # No rename replaces a folder that has files in it, so the two names are exchanged in one step.
        if not _exchange(partial, path):
            _exchange_in_two_steps(partial, path)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names at once; False where the system or the file system cannot do that."""
    if sys.platform == "win32":
        return False
    library = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    if hasattr(library, "renameat2"):
        failed = library.renameat2(_HERE, names[0], _HERE, names[1], _EXCHANGE)
    elif hasattr(library, "renamex_np"):  # macOS
        failed = library.renamex_np(*names, _EXCHANGE)
    else:
        return False
    if failed and (number := ctypes.get_errno()) not in _CANNOT_EXCHANGE:
        raise OSError(number, os.strerror(number), str(other))
    return not failed


def _exchange_in_two_steps(partial: Path, path: Path) -> None:
    """Do what `_exchange` does on volumes without it (NFS): whoever is killed between the steps leaves no folder."""
    # Not noted as temporary: it is all that there is until the other has its name.
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")
    path.rename(aside)
    try:
        partial.rename(path)
    except BaseException:
        aside.rename(path)
        raise
    aside.rename(partial)


def publish_bytes(path: Path, data: bytes, *, replace: bool = True) -> None:
    """Write ``data`` to ``path``, replacing what was there, all or nothing.

    Raises
    ------
    FileExistsError
        Without ``replace``, where something is there.
    """
    with published(path, replace=replace) as partial:
        partial.write_bytes(data)


def publish_once(path: Path, data: bytes) -> bool:
    """Write ``data`` to ``path`` unless something is there already; tell whether this call wrote it.

    The first writer wins: a hard link, unlike a rename, fails when the name exists.
    """
    partial = partial_name(path)
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        won = _link_if_absent(partial, path)
        fsync_directory(path.parent)  # whoever lost relies on what is there as well
        return won
    finally:
        partial.unlink(missing_ok=True)


def _link_if_absent(partial: Path, path: Path) -> bool:
    try:
        os.link(partial, path)
    except FileExistsError:
        # A network file system may report this for our own link when its first reply was lost.
        return partial.samefile(path)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        return _rename_if_absent(partial, path)
    return True


def _rename_if_absent(partial: Path, path: Path) -> bool:
    """Do what a hard link does where there are none (FAT, some network volumes): never replace."""
    if os.name == "nt":  # renaming fails there when the name exists
        try:
            partial.rename(path)
        except FileExistsError:
            return False
        return True
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "renameat2"):
        raise OSError(errno.EOPNOTSUPP, "this file system has no hard links; put the cache on another one", str(path))
    if library.renameat2(_HERE, os.fsencode(partial), _HERE, os.fsencode(path), _NO_REPLACE) == 0:
        return True
    number = ctypes.get_errno()
    if number == errno.EEXIST:
        return False
    raise OSError(number, "cannot publish without replacing; put the cache on another file system", str(path))


def make_folder(path: Path) -> None:
    """Make a folder and those above it, each name flushed to the disk: a file is as durable as the way to it."""
    # Those above it may be new too, and a name is as lasting as the name of its folder.
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        fsync_directory(folder.absolute().parent)


def fsync_file(path: Path) -> None:
    """Flush the bytes of ``path`` to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_directory(path: Path) -> None:
    """Flush the names in ``path`` to the disk (a no-op where folders cannot be opened, as on Windows)."""
    if os.name == "nt":
        return
    fsync_file(path)
