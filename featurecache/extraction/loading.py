"""Loading ahead: threads read and decode inputs into batches while the runtime works on earlier ones.

Images fill batches as they come. Texts are loaded some hundreds at a time, because which of them share a batch is known
once all of them have their tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from time import perf_counter, thread_time
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from featurecache.backbones.lengths import count_tokens, padded_length
from featurecache.errors import InputError
from featurecache.extraction.meter import Meter
from featurecache.extraction.modality import InputDigests, Modality
from featurecache.machine import num_cores
from featurecache.sources.inputs import Input
from featurecache.specs import num_views

# How far loading is ahead of the runtime: the greater of the two.
_BATCHES_AHEAD, _INPUTS_AHEAD = 4, 128
# Inputs that a thread loads without looking up; fewer where that would leave others without work.
_MOST_AT_A_TIME = 8
# For each thread, at least.
_HANDFULS_AHEAD = 16
# Texts that are sorted by their length together: the greater of the two. Each length has one batch with room left, so
# of many texts less is padding (a thirtieth of 512 short ones in batches of 4); of more, the features fill the memory.
_TEXTS_TOGETHER, _BATCHES_TOGETHER = 512, 8

Chunk = TypeVar("Chunk")


@dataclass(slots=True, eq=False)
class Item:
    """One input on its way into slots of batches."""

    slots: list[NDArray[Any]] = field(default_factory=list)
    """The piece of a batch for each view."""
    digested: bool = False
    problem: InputError | None = None
    cut: bool = False
    digests: InputDigests | None = None
    remark: str = ""


@dataclass(slots=True, eq=False)
class Batch(Generic[Chunk]):
    """Inputs of one chunk as the runtime takes them; behind ``num_used`` there is padding."""

    chunk: Chunk
    array: NDArray[Any]
    num_used: int = 0
    items: list[Item] = field(default_factory=list)
    """The inputs whose last view lies in this batch."""
    futures: list[Future[None]] = field(default_factory=list)
    is_last: bool = True
    """Of the batches that inputs which were loaded together are in."""
    order: NDArray[np.int64] | None = None
    """In the last one of texts: where, in the order of these batches, each text is."""


class Loader(Generic[Chunk]):
    """Lets threads fill batches ahead of their use."""

    def __init__(
        self, modality: Modality, batch_size: int, num_workers: int | None, num_digested: int, meter: Meter
    ) -> None:
        self._modality, self._batch_size, self._meter = modality, batch_size, meter
        self._num_digested = num_digested
        self._num_workers = num_workers or num_cores()
        self._num_views = num_views(modality.views)
        self._most_ahead = max(_BATCHES_AHEAD, -(-_INPUTS_AHEAD // batch_size))
        self._ahead: deque[Batch[Chunk]] = deque()
        ahead = self._most_ahead * batch_size
        self._handful = max(min(ahead // (_HANDFULS_AHEAD * self._num_workers), _MOST_AT_A_TIME), 1)
        self._to_load: list[tuple[Item, Input]] = []
        self._touched: dict[int, Batch[Chunk]] = {}

    def batches(self, chunks: Iterable[tuple[Chunk, Sequence[Input]]]) -> Generator[Batch[Chunk], None, None]:
        pool = ThreadPoolExecutor(self._num_workers, thread_name_prefix="decode")
        remaining = (
            (chunk, source, index < self._num_digested)
            for chunk, inputs in chunks
            for index, source in enumerate(inputs)
        )
        try:
            while True:
                while self._num_full() < self._most_ahead and (following := next(remaining, None)) is not None:
                    self._assign(*following)
                    if len(self._to_load) >= self._handful:
                        self._load(pool)
                self._load(pool)
                if not self._ahead:
                    return
                batch = self._ahead.popleft()
                for future in batch.futures:
                    future.result()
                yield batch
        finally:
            # Also on Ctrl-C: what has not begun is dropped, what has begun ends by itself within a few inputs.
            pool.shutdown(wait=True, cancel_futures=True)

    def _num_full(self) -> int:
        return len(self._ahead) - 1 + (self._ahead[-1].num_used == self._batch_size) if self._ahead else 0

    def _assign(self, chunk: Chunk, source: Input, digested: bool) -> None:
        """Give an input its slots."""
        item = Item(digested=digested)
        for _ in range(self._num_views):
            # No batch holds two chunks: a shard is complete with its last batch.
            last = self._ahead[-1] if self._ahead else None
            if last is None or last.num_used == self._batch_size or last.chunk is not chunk:
                last = Batch(chunk, self._modality.empty(self._batch_size))
                self._ahead.append(last)
            self._touched[id(last)] = last
            item.slots.append(last.array[last.num_used])
            last.num_used += 1
        self._ahead[-1].items.append(item)
        self._to_load.append((item, source))

    def _load(self, pool: ThreadPoolExecutor) -> None:
        """Have a thread fill the slots that were given."""
        if self._to_load:
            future = pool.submit(_load_all, self._to_load, self._modality, self._meter)
            for batch in self._touched.values():
                batch.futures.append(future)
            self._to_load, self._touched = [], {}


@dataclass(slots=True, eq=False)
class _Group(Generic[Chunk]):
    """Texts that are sorted together."""

    chunk: Chunk
    array: NDArray[Any]
    items: list[Item]
    futures: list[Future[None]]
    ends_chunk: bool


class LengthLoader(Generic[Chunk]):
    """Lets threads load texts ahead of their use, some hundreds at a time, and puts those of one length into batches.

    Groups are cut by the number of texts alone, and sorting keeps the order of equals: the place of a text follows from
    its chunk, not from threads.
    """

    def __init__(
        self,
        modality: Modality,
        batch_size: int,
        lengths: Sequence[int],
        num_workers: int | None,
        num_digested: int,
        meter: Meter,
    ) -> None:
        self._modality, self._batch_size, self._lengths, self._meter = modality, batch_size, lengths, meter
        self._num_digested, self._num_workers = num_digested, num_workers or num_cores()
        self._most_ahead = max(_BATCHES_AHEAD, -(-_INPUTS_AHEAD // batch_size))
        self._num_together = texts_together(batch_size)

    def batches(self, chunks: Iterable[tuple[Chunk, Sequence[Input]]]) -> Generator[Batch[Chunk], None, None]:
        pool = ThreadPoolExecutor(self._num_workers, thread_name_prefix="decode")
        groups, loading, ready = self._groups(chunks, pool), deque[_Group[Chunk]](), deque[Batch[Chunk]]()
        ends_chunk = False
        try:
            while True:
                # Another chunk is a lease that other workers could have: not before this one is nearly done.
                if not loading and (not ends_chunk or len(ready) <= self._most_ahead):
                    loading.extend(islice(groups, 1))
                    ends_chunk = any(group.ends_chunk for group in loading)
                if not ready:
                    if not loading:
                        return
                    ready.extend(self._sorted(loading.popleft()))
                else:
                    yield ready.popleft()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _groups(
        self, chunks: Iterable[tuple[Chunk, Sequence[Input]]], pool: ThreadPoolExecutor
    ) -> Iterator[_Group[Chunk]]:
        """Cut chunks into groups, and have threads load those that are asked for."""
        for chunk, inputs in chunks:
            remaining = iter(inputs)
            for start in range(0, len(inputs), self._num_together):
                some = list(islice(remaining, self._num_together))
                array = self._modality.empty(len(some))
                items = [
                    Item(slots=[slot], digested=start + index < self._num_digested) for index, slot in enumerate(array)
                ]
                to_load = list(zip(items, some, strict=True))
                futures = [
                    pool.submit(_load_all, to_load[first : first + _MOST_AT_A_TIME], self._modality, self._meter)
                    for first in range(0, len(some), _MOST_AT_A_TIME)
                ]
                yield _Group(chunk, array, items, futures, ends_chunk=start + len(some) == len(inputs))

    def _sorted(self, group: _Group[Chunk]) -> list[Batch[Chunk]]:
        """Wait until a group is loaded, and put its texts into batches."""
        for future in group.futures:
            future.result()
        cut = cut_into_batches(group.array, self._batch_size, self._lengths, self._modality.empty)
        batches = [
            Batch(group.chunk, array, len(indices), [group.items[index] for index in indices.tolist()], is_last=False)
            for array, indices in cut
        ]
        batches[-1].is_last = True
        batches[-1].order = np.argsort(np.concatenate([indices for _, indices in cut]))
        return batches


def texts_together(batch_size: int) -> int:
    """Return how many texts are sorted together: batches of more lengths than one are cut of these alone."""
    return max(_TEXTS_TOGETHER, _BATCHES_TOGETHER * batch_size)


def cut_into_batches(
    arrays: NDArray[Any], batch_size: int, lengths: Sequence[int], empty: Callable[[int], NDArray[Any]]
) -> list[tuple[NDArray[Any], NDArray[np.int64]]]:
    """Return batches of one size, each with the indices of the inputs in it; texts are sorted by their padded length.

    Parameters
    ----------
    arrays : ndarray, shape (n, ...)
        Loaded inputs.
    batch_size : int
        Inputs of a batch; what is left of it is as ``empty`` makes it.
    lengths : sequence of int
        See `Runtime.lengths`.
    empty : callable
        See `Modality.empty`.
    """
    order, padded = np.arange(len(arrays)), np.zeros(len(arrays), np.int64)
    if lengths:
        padded = np.array([padded_length(num_tokens, lengths) for num_tokens in count_tokens(arrays).tolist()])
        order = np.argsort(padded, kind="stable")
    batches = []
    for indices in np.split(order, np.flatnonzero(np.diff(padded[order])) + 1):
        for start in range(0, len(indices), batch_size):
            some = indices[start : start + batch_size]
            batch = empty(batch_size)
            batch[: len(some)] = arrays[some]
            if lengths:
                batch = np.ascontiguousarray(batch[:, : padded[some[0]]])
            batches.append((batch, some))
    return batches


def _load_all(items: list[tuple[Item, Input]], modality: Modality, meter: Meter) -> None:
    started, on_core, reading = perf_counter(), thread_time(), 0.0
    for item, source in items:
        reading += _load_into(item, source, modality)
    spent = perf_counter() - started
    meter.add_loading(read=reading, decode=spent - reading, cpu_seconds=thread_time() - on_core)


def _load_into(item: Item, source: Input, modality: Modality) -> float:
    """Fill the slots of an input, and return the seconds that reading took."""
    started = was_read = perf_counter()
    try:
        data = source.read(modality.max_bytes)
        was_read = perf_counter()
        arrays, item.cut, item.digests, item.remark = modality.load(data, digested=item.digested)
        for slot, array in zip(item.slots, arrays, strict=True):
            slot[...] = array
    except InputError as error:
        item.problem = error
    except MemoryError:  # with fewer threads the same input may fit, so the row is left for the next run
        item.problem = InputError("no_memory", "there was not enough memory to decode it; use fewer --jobs")
    return was_read - started
