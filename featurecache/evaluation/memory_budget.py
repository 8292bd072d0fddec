"""Where features of a training or a sweep are held: in memory while there is enough, in a file of the cache beyond."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from featurecache.atomic import partial_name
from featurecache.errors import RequestError
from featurecache.machine import free_memory

_SHARE = 0.5
"""Of the memory that is free: heads need some too."""


def memory_for_features(max_bytes: int | None = None) -> int:
    """Return how many bytes of features may be in memory: half of what is free where nobody says."""
    return int(_SHARE * free_memory()) if max_bytes is None else max_bytes


class MemoryBudget:
    """Gives out arrays; the larger ones are files in ``folder``, which `memory_budget` removes.

    Parameters
    ----------
    folder : Path
        Of the cache. A file that a killed process leaves there is removed by `featurecache gc`.
    max_bytes : int, optional
        Of features in memory; half of what is free when left out.
    """

    def __init__(self, folder: Path, max_bytes: int | None = None) -> None:
        self._folder = folder
        self.left = memory_for_features(max_bytes)
        """Bytes of features that may still be in memory."""
        self.files: list[Path] = []

    def empty(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return an array of float32 to be filled, a ``numpy.memmap`` where memory would not hold it.

        Raises
        ------
        RequestError
            The disk would not hold it either.
        """
        # float32, whatever the stored type: heads compute in it.
        size = 4 * int(np.prod(shape, dtype=np.int64))
        if size <= self.left:
            self.left -= size
            return np.empty(shape, np.float32)
        path = partial_name(self._folder / "features")
        self.files.append(path)
        try:
            with path.open("xb") as file:
                _reserve(file, size)
        except OSError as error:
            raise RequestError(
                f"{size / 1e9:.1f} GB of features fit neither into memory ({self.left / 1e9:.1f} GB may be used) nor "
                f"into {self._folder} ({error.strerror}); free some space there, or choose a smaller tap"
            ) from error
        return np.memmap(path, np.float32, "r+", shape=shape)


def _reserve(file: BinaryIO, size: int) -> None:
    """Take the space now, or raise `OSError`: writing to a map of a full disk would kill the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    if shutil.disk_usage(Path(file.name).parent).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)
    file.truncate(size)


@contextmanager
def memory_budget(folder: Path, max_bytes: int | None = None) -> Iterator[MemoryBudget]:
    """Give a `MemoryBudget`, and remove its files in any case; arrays that still live stay readable."""
    opened = MemoryBudget(folder, max_bytes)
    try:
        yield opened
    finally:
        # What a head holds on to lives on in the map; the name of its file does not.
        for path in opened.files:
            path.unlink(missing_ok=True)
