"""Inputs to features: threads read and decode ahead while the runtime works on earlier batches.

Threads, not processes: Pillow releases the interpreter lock while it decodes and resizes, and nothing has to be
copied between processes. Batches have one fixed shape (the last is padded with zeros, bad inputs are zeros), because a
batch of another shape changes the last bits of the features.

What an input is, files of images or rows of texts, only its modality knows. Where it makes views, each input takes
several places in a row, and the places of one input may lie in more than one batch. An input is read and decoded once
for all of its views.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featurecache.errors import InputError
from featurecache.extraction.modality import Modality
from featurecache.sources.inputs import Input
from featurecache.specs import ViewSpec, num_views, shape_of_row
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
    """Features of some inputs in their order; ``problems[i]`` is ``None`` where input i is good.

    With views, the features of one input are ``(n_views, ...)``.
    """

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
    """Yield the features of all inputs in their order, a batch or so at a time, with bounded memory."""
    waiting: deque[_Batch] = deque()

    def arrays() -> Generator[NDArray[Any], None, None]:
        with closing(_Loader(modality, batch_size, num_workers).batches(inputs)) as batches:
            for batch in batches:
                waiting.append(batch)
                yield batch.array

    pending = _Pending(modality.views)
    with closing(arrays()) as feed:
        for features in runtime.map(feed):
            batch = waiting.popleft()
            pending.add({tap: values[: batch.num_used] for tap, values in features.items()})
            if items := batch.complete:
                problems, cut = [item.problem for item in items], [item.cut for item in items]
                yield Outcome(pending.take(len(items)), problems, cut)


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


class _Pending:
    """Features of places that have come, until all views of an input are there."""

    def __init__(self, views: ViewSpec | None) -> None:
        self._views = views
        self._parts: dict[str, list[NDArray[np.float32]]] = {}

    def add(self, features: Mapping[str, NDArray[np.float32]]) -> None:
        for tap, values in features.items():
            self._parts.setdefault(tap, []).append(values)

    def take(self, count: int) -> dict[str, NDArray[np.float32]]:
        """Return the features of the next inputs."""
        taken = {}
        num_places = count * num_views(self._views)
        for tap, parts in self._parts.items():
            values = np.concatenate(parts) if len(parts) > 1 else parts[0]
            self._parts[tap] = [values[num_places:]] if num_places < len(values) else []
            taken[tap] = values[:num_places].reshape(count, *shape_of_row(values.shape[1:], self._views))
        return taken


@dataclass(slots=True, eq=False)
class _Item:
    """One input on its way into places of batches."""

    places: list[NDArray[Any]] = field(default_factory=list)
    """The part of a batch for each view."""
    problem: InputError | None = None
    cut: bool = False


@dataclass(slots=True, eq=False)
class _Batch:
    array: NDArray[Any]
    num_used: int = 0
    complete: list[_Item] = field(default_factory=list)
    """The inputs whose last view lies in this batch."""
    futures: list[Future[None]] = field(default_factory=list)

    def wait(self) -> None:
        for future in self.futures:
            future.result()


class _Loader:
    """Lets threads fill batches ahead of their use."""

    def __init__(self, modality: Modality, batch_size: int, num_workers: int | None) -> None:
        self._modality, self._batch_size, self._num_workers = modality, batch_size, num_workers
        self._num_views = num_views(modality.views)
        self._ahead: deque[_Batch] = deque()

    def batches(self, inputs: Iterable[Input]) -> Generator[_Batch, None, None]:
        pool = ThreadPoolExecutor(self._num_workers or os.cpu_count(), thread_name_prefix="decode")
        remaining = iter(inputs)
        try:
            while True:
                while self._num_full() < _BATCHES_AHEAD and (source := next(remaining, None)) is not None:
                    self._start(pool, source)
                if not self._ahead:
                    return
                batch = self._ahead.popleft()
                batch.wait()
                yield batch
        finally:
            # Also on Ctrl-C: what has not begun is dropped, what has begun ends by itself within one input.
            pool.shutdown(wait=True, cancel_futures=True)

    def _num_full(self) -> int:
        return sum(batch.num_used == self._batch_size for batch in self._ahead)

    def _start(self, pool: ThreadPoolExecutor, source: Input) -> None:
        """Give an input its places, and have a thread fill them."""
        item = _Item()
        touched: list[_Batch] = []
        for _ in range(self._num_views):
            if not self._ahead or self._ahead[-1].num_used == self._batch_size:
                self._ahead.append(_Batch(self._modality.empty(self._batch_size)))
            batch = self._ahead[-1]
            if not touched or touched[-1] is not batch:
                touched.append(batch)
            item.places.append(batch.array[batch.num_used])
            batch.num_used += 1
        future = pool.submit(_load_into, item, source, self._modality)
        for batch in touched:
            batch.futures.append(future)
        touched[-1].complete.append(item)


def _load_into(item: _Item, source: Input, modality: Modality) -> None:
    try:
        arrays, item.cut = modality.load(source.read(modality.max_bytes))
        for place, array in zip(item.places, arrays, strict=True):
            place[...] = array
    except InputError as error:
        item.problem = error
    except MemoryError:
        item.problem = InputError("no_memory", "there was not enough memory to decode it; use fewer --workers")
