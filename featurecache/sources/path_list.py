"""Files by their paths, as a source of its own: a list in a program, or the column of a data frame."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from featurecache.errors import InputError, RequestError
from featurecache.files import reason_of, why_not_regular
from featurecache.sources.files import read_file
from featurecache.sources.source import NO_STAMP, UNSETTLED_NS, Entry, SingleUnit, Stamp, Unit
from featurecache.specs import MAX_FILE_BYTES


class PathList(SingleUnit):
    """Images by their paths, whatever their suffix.

    Parameters
    ----------
    paths : sequence of path
        Named as they are given.
    key : str
        Names the source in a cache.
    root : path, optional
        Where relative paths begin; the current folder when left out.
    """

    modality = "image"

    def __init__(self, paths: Sequence[str | Path], *, key: str = "memory", root: Path | None = None) -> None:
        self.key, self._root = key, root or Path()
        self._paths = {str(path): self._root / path for path in paths}
        if len(self._paths) < len(paths):
            raise RequestError(f"{key} names a path twice; name each once")

    def list(self, unit: Unit) -> Iterator[Entry]:
        """Yield the paths; why one cannot be read stands with it."""
        settled = time.time_ns() - UNSETTLED_NS
        for name, path in self._paths.items():
            try:
                status = os.stat(path)  # noqa: PTH116 - a million of them
            except OSError as error:
                yield Entry(name, NO_STAMP, why_not_regular(path) or reason_of(error))
                continue
            yield Entry(name, stamp_of(status, settled))

    def open(self, name: str, *, stamp: Stamp | None) -> bytes:
        """Return the bytes of a file; see `featurecache.sources.files.read_file`."""
        if name not in self._paths:
            raise InputError("missing", f"there is no sample {name!r}")
        return read_file(self._paths[name], stamp=stamp, max_bytes=MAX_FILE_BYTES)


def stamp_of(status: os.stat_result, settled: int) -> Stamp:
    """Return the stamp of a file; it says nothing yet where the file was written after ``settled``.

    Parameters
    ----------
    status : os.stat_result
    settled : int
        Nanoseconds of the clock: what was written later could be written again within one tick.
    """
    mtime, ctime = status.st_mtime_ns, status.st_ctime_ns
    return status.st_size, mtime, ctime if mtime < settled and ctime < settled else -1, status.st_ino
