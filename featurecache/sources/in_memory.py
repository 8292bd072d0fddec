"""Samples that are in memory already, or that an object in memory knows how to get, as a source.

They live in this process alone: no other engine can open them, and nothing tells whether they changed, so each scan
reads them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurecache.errors import InputError, RequestError
from featurecache.sources.decoding.arrays import array_bytes
from featurecache.sources.files import read_file
from featurecache.sources.source import Entry, SingleUnit, Stamp, Unit
from featurecache.specs import MAX_FILE_BYTES


@dataclass(frozen=True)
class InMemory(SingleUnit):
    """Bytes by name; they are what they are, so they have no stamps."""

    samples: Mapping[str, bytes]
    modality: str
    key: str = "memory"

    def list(self, unit: Unit) -> Iterator[Entry]:
        """Yield the names."""
        return (Entry(name, None) for name in self.samples)

    def open(self, name: str, *, stamp: Stamp | None) -> bytes:
        """Return the bytes of one; raise `InputError` for a name that there is not."""
        if name not in self.samples:
            raise InputError("missing", f"there is no sample {name!r}")
        return self.samples[name]


class IndexedImages(SingleUnit):
    """Pictures by number: arrays, PIL images, encoded bytes, or items of a data set.

    Parameters
    ----------
    get : callable
        Takes a number and returns a picture: bytes of a file, a path, or what `array_bytes` takes.
    names : sequence of str
        Of the pictures, by number.
    key : str
        Names the source in a cache.
    one_at_a_time : bool
        Several threads may not ask at once: the object was written by somebody who did not think of them.
    """

    modality = "image"

    def __init__(
        self, get: Callable[[int], Any], names: Sequence[str], *, key: str = "memory", one_at_a_time: bool = False
    ) -> None:
        self.key, self._get, self._names = key, get, names
        self._lock: AbstractContextManager[Any] = threading.Lock() if one_at_a_time else nullcontext()
        self._index = {name: index for index, name in enumerate(names)}
        if len(self._index) < len(names):
            raise RequestError(f"{key} names a sample twice; give each its own name")

    def list(self, unit: Unit) -> Iterator[Entry]:
        """Yield the names."""
        return (Entry(name, None) for name in self._names)

    def open(self, name: str, *, stamp: Stamp | None) -> bytes:
        """Return a picture as bytes; one that is none is a bad input, and what its object raises is its reason."""
        if (index := self._index.get(name)) is None:
            raise InputError("missing", f"there is no sample {name!r}")
        try:
            with self._lock:
                item = self._get(index)
            return picture_bytes(item)
        except (InputError, MemoryError):
            raise
        except RequestError as error:
            raise InputError("not_an_image", str(error)) from None
        except Exception as error:  # of somebody else's data set: anything
            raise InputError("unreadable", f"{type(error).__name__}: {error}"[:200]) from None


def picture_bytes(item: Any) -> bytes:
    """Return what stands for a picture as bytes.

    Parameters
    ----------
    item : bytes, path, mapping with ``bytes`` or ``path``, PIL image, ndarray or tensor
        Encoded bytes stay as they are, so that the sample has the id of a file with them.

    Raises
    ------
    InputError
        A file that cannot be read.
    RequestError
        No picture.
    """
    if isinstance(item, Mapping) and ("bytes" in item or "path" in item):
        item = item["bytes"] if item.get("bytes") is not None else item["path"]
    if isinstance(item, bytes | bytearray | memoryview):
        return bytes(item)
    if isinstance(item, str | Path):
        return read_file(item, stamp=None, max_bytes=MAX_FILE_BYTES)
    if item is None:
        raise RequestError("there is no picture")
    return array_bytes(item)


def number_names(count: int) -> list[str]:
    """Return what samples without a name are called: by their numbers, from 0."""
    # Of one length, so that sorted by name they stay in order.
    return [f"{index:09d}" for index in range(count)]
