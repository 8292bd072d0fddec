"""Inputs to features: threads read and decode ahead while the runtime works on earlier batches.

Threads, not processes: Pillow releases the interpreter lock while it decodes and resizes, and nothing has to be
copied between processes. Batches have one fixed shape (the last is padded with zeros, bad inputs are zeros), because a
batch of another shape changes the last bits of the features.

What an input is, files of images or rows of texts, only its modality knows.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featurecache.errors import InputError
from featurecache.sources.inputs import FileInput as FileInput
from featurecache.sources.inputs import Input
from featurecache.sources.modality import Modality
from featurecache.store.dtypes import LARGEST, encode

_BATCHES_AHEAD = 4

TRANSIENT = frozenset({"missing", "changed", "unreadable", "no_memory"})
"""Statuses that say nothing about the bytes: the row is left for the next run instead of being kept as bad."""


class Runtime(Protocol):
    """What this module needs of a runtime."""

    @property
    def name(self) -> str:
        """Which runtime it is."""
        ...

    def map(self, batches: Iterable[NDArray[Any]]) -> Iterator[dict[str, NDArray[np.float32]]]:
        """Yield ``{tap: features}`` for each batch, in order."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """Features of some inputs in their order; ``problems[i]`` is ``None`` where input i is good."""

    features: dict[str, NDArray[np.float32]]
    problems: list[InputError | None]
    cut: list[bool] = field(default_factory=list)
    """Inputs of which only the beginning was seen."""


def run_pipeline(
    inputs: Sequence[Input],
    runtime: Runtime,
    modality: Modality,
    *,
    batch_size: int,
    num_workers: int | None = None,
) -> Iterator[Outcome]:
    """Yield the features of all inputs, one batch at a time, in their order, with bounded memory."""
    loading: deque[_Batch] = deque()

    def arrays() -> Generator[NDArray[Any], None, None]:
        with closing(_load_batches(inputs, modality, batch_size=batch_size, num_workers=num_workers)) as batches:
            for batch in batches:
                loading.append(batch)
                yield batch.array

    with closing(arrays()) as feed:
        for features in runtime.map(feed):
            batch = loading.popleft()
            count = len(batch.problems)
            yield Outcome({tap: values[:count] for tap, values in features.items()}, batch.problems, batch.cut)


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
    array: NDArray[Any]
    problems: list[InputError | None]
    cut: list[bool]
    futures: list[Future[None]]

    def wait(self) -> None:
        for future in self.futures:
            future.result()


def _load_batches(
    inputs: Sequence[Input], modality: Modality, *, batch_size: int, num_workers: int | None
) -> Generator[_Batch, None, None]:
    pool = ThreadPoolExecutor(num_workers or os.cpu_count(), thread_name_prefix="decode")
    remaining = iter(inputs)
    ahead: deque[_Batch] = deque()
    try:
        while True:
            while len(ahead) < _BATCHES_AHEAD and (items := list(islice(remaining, batch_size))):
                ahead.append(_start_batch(pool, items, modality, batch_size))
            if not ahead:
                return
            batch = ahead.popleft()
            batch.wait()
            yield batch
    finally:
        # Also on Ctrl-C: what has not begun is dropped, what has begun ends by itself within one input.
        pool.shutdown(wait=True, cancel_futures=True)


def _start_batch(pool: ThreadPoolExecutor, items: list[Input], modality: Modality, batch_size: int) -> _Batch:
    batch = _Batch(modality.empty(batch_size), [None] * len(items), [False] * len(items), [])
    batch.futures = [pool.submit(_load_into, batch, place, item, modality) for place, item in enumerate(items)]
    return batch


def _load_into(batch: _Batch, place: int, item: Input, modality: Modality) -> None:
    try:
        batch.array[place], batch.cut[place] = modality.load(item.read(modality.max_bytes))
    except InputError as error:
        batch.problems[place] = error
    except MemoryError:
        batch.problems[place] = InputError("no_memory", "there was not enough memory to decode it; use fewer --workers")
