"""Files to features: threads read and decode ahead while the runtime works on earlier batches.

Threads, not processes: Pillow releases the interpreter lock while it decodes and resizes, and nothing has to be
copied between processes. Batches have one fixed shape (the last is padded with zeros, bad inputs are zeros), because a
batch of another shape changes the last bits of the features.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featurecache.errors import InputError
from featurecache.hashing import digest_bytes
from featurecache.sources.images import load_image
from featurecache.specs import PreprocessSpec
from featurecache.store.dtypes import LARGEST, encode

# B batch, H height, W width, C channels

_BATCHES_AHEAD = 4

TRANSIENT = frozenset({"missing", "changed", "unreadable", "no_memory"})
"""Statuses that say nothing about the bytes: the row is left for the next run instead of being kept as bad."""


class Runtime(Protocol):
    """What this module needs of a runtime."""

    @property
    def name(self) -> str:
        """Which runtime it is."""
        ...

    def map(self, batches: Iterable[NDArray[np.uint8]]) -> Iterator[dict[str, NDArray[np.float32]]]:
        """Yield ``{tap: features}`` for each batch, in order."""
        ...


@dataclass(frozen=True, slots=True)
class FileInput:
    """A file to read; with ``id`` (hex) given, it must still hold the bytes that were seen at the scan."""

    path: Path
    id: str | None = None

    def read(self, max_bytes: int | None = None) -> bytes:
        """Return the file's bytes; a file beyond the limit is not read at all."""
        try:
            if max_bytes is not None and (size := self.path.stat().st_size) > max_bytes:
                raise InputError("too_large", f"the file has {size} bytes, the limit is {max_bytes}")
            data = self.path.read_bytes()
        except FileNotFoundError:
            raise InputError("missing", "the file was removed while the run went on") from None
        except OSError as error:
            raise InputError("unreadable", error.strerror or type(error).__name__) from None
        if self.id is not None and digest_bytes(data) != self.id:
            raise InputError("changed", "the file was edited while the run went on")
        return data


@dataclass(frozen=True, slots=True)
class Outcome:
    """Features of some inputs in their order; ``problems[i]`` is ``None`` where input i is good."""

    features: dict[str, NDArray[np.float32]]
    problems: list[InputError | None]


def run_pipeline(
    inputs: Sequence[FileInput],
    runtime: Runtime,
    preprocess: PreprocessSpec,
    *,
    batch_size: int,
    num_workers: int | None = None,
) -> Iterator[Outcome]:
    """Yield the features of all inputs, one batch at a time, in their order, with bounded memory."""
    loading: deque[_Batch] = deque()

    def images() -> Generator[NDArray[np.uint8], None, None]:
        with closing(_load_batches(inputs, preprocess, batch_size=batch_size, num_workers=num_workers)) as batches:
            for batch in batches:
                loading.append(batch)
                yield batch.images_BHWC

    with closing(images()) as feed:
        for features in runtime.map(feed):
            batch = loading.popleft()
            count = len(batch.problems)
            yield Outcome({tap: values[:count] for tap, values in features.items()}, batch.problems)


def to_stored(
    values: NDArray[np.float32], problems: list[InputError | None], dtype: str
) -> tuple[NDArray[Any], dict[int, InputError]]:
    """Convert features to a stored type; rows that have none, or none that fit the type, become NaN.

    Returns
    -------
    stored : ndarray, shape of ``values``
        Bytes of the stored type.
    problems : dict of int to InputError
        Every row that is NaN, and why.
    """
    found = {place: problem for place, problem in enumerate(problems) if problem is not None}
    largest = np.abs(values.reshape(len(values), -1)).max(axis=1, initial=0)  # NaN wins
    limit = LARGEST.get(dtype, np.inf)
    for place in np.flatnonzero(~(largest <= limit) | ~np.isfinite(largest)).tolist():
        if np.isfinite(largest[place]):
            error = InputError("overflow", f"a feature exceeds the range of {dtype}; use --dtype float32")
        else:
            error = InputError("non_finite", "the network gave NaN or infinity")
        found.setdefault(place, error)
    values = values.copy()
    values[list(found)] = np.nan
    return encode(values, dtype), found


@dataclass(slots=True)
class _Batch:
    images_BHWC: NDArray[np.uint8]
    problems: list[InputError | None]
    futures: list[Future[None]]

    def wait(self) -> None:
        for future in self.futures:
            future.result()


def _load_batches(
    inputs: Sequence[FileInput], preprocess: PreprocessSpec, *, batch_size: int, num_workers: int | None
) -> Generator[_Batch, None, None]:
    pool = ThreadPoolExecutor(num_workers or os.cpu_count(), thread_name_prefix="decode")
    remaining = iter(inputs)
    ahead: deque[_Batch] = deque()
    try:
        while True:
            while len(ahead) < _BATCHES_AHEAD and (items := list(islice(remaining, batch_size))):
                ahead.append(_start_batch(pool, items, preprocess, batch_size))
            if not ahead:
                return
            batch = ahead.popleft()
            batch.wait()
            yield batch
    finally:
        # Also on Ctrl-C: what has not begun is dropped, what has begun ends by itself within one image.
        pool.shutdown(wait=True, cancel_futures=True)


def _start_batch(
    pool: ThreadPoolExecutor, items: list[FileInput], preprocess: PreprocessSpec, batch_size: int
) -> _Batch:
    images = np.zeros((batch_size, preprocess.crop, preprocess.crop, 3), np.uint8)
    batch = _Batch(images, [None] * len(items), [])
    batch.futures = [pool.submit(_load_into, batch, place, item, preprocess) for place, item in enumerate(items)]
    return batch


def _load_into(batch: _Batch, place: int, item: FileInput, preprocess: PreprocessSpec) -> None:
    try:
        batch.images_BHWC[place] = load_image(item.read(preprocess.max_bytes), preprocess)
    except InputError as error:
        batch.problems[place] = error
    except MemoryError:
        batch.problems[place] = InputError("no_memory", "there was not enough memory to decode it; use fewer --workers")
