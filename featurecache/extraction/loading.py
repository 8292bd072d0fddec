"""Loading ahead: threads read and decode inputs into batches while the runtime works on earlier ones.

Images fill batches as they come. Texts are loaded some hundreds at a time, because which of them share a batch is known
once all of them have their tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from featurecache.backbones.lengths import count_tokens, padded_length
from featurecache.extraction.loading_pools import Item, LoadingPool, batches_ahead
from featurecache.extraction.modality import Modality
from featurecache.sources.inputs import Input
from featurecache.specs import num_views

# Inputs that a thread loads without looking up; fewer where that would leave others without work.
_MOST_AT_A_TIME = 8
# For each thread, at least.
_HANDFULS_AHEAD = 16
# Texts that are sorted by their length together: the greater of the two. Each length has one batch with room left, so
# of many texts less is padding (a thirtieth of 512 short ones in batches of 4); of more, the features fill the memory.
_TEXTS_TOGETHER, _BATCHES_TOGETHER = 512, 8

Chunk = TypeVar("Chunk")


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
    """Has a pool fill batches ahead of their use.

    Parameters
    ----------
    modality : Modality
    batch_size : int
    num_digested : int
        The first so many inputs of a chunk are digested.
    pool : LoadingPool
        Its batches are of this size.
    """

    def __init__(self, modality: Modality, batch_size: int, num_digested: int, pool: LoadingPool) -> None:
        self._batch_size, self._num_digested, self._pool = batch_size, num_digested, pool
        self._blank = modality.empty(1)[0]
        self._num_views = num_views(modality.views)
        self._most_ahead = batches_ahead(batch_size)
        self._ahead: deque[Batch[Chunk]] = deque()
        ahead = self._most_ahead * batch_size
        self._handful = max(min(ahead // (_HANDFULS_AHEAD * pool.num_workers), _MOST_AT_A_TIME), 1)
        self._to_load: list[tuple[Item, Input]] = []
        self._touched: dict[int, Batch[Chunk]] = {}

    def batches(self, chunks: Iterable[tuple[Chunk, Sequence[Input]]]) -> Generator[Batch[Chunk], None, None]:
        """Yield full batches, and at the end of each chunk one that may be padded."""
        remaining = (
            (chunk, source, index < self._num_digested)
            for chunk, inputs in chunks
            for index, source in enumerate(inputs)
        )
        while True:
            while self._num_full() < self._most_ahead and (following := next(remaining, None)) is not None:
                self._assign(*following)
                if len(self._to_load) >= self._handful:
                    self._load()
            self._load()
            if not self._ahead:
                return
            batch = self._ahead.popleft()
            for future in batch.futures:
                future.result()
            batch.array[batch.num_used :] = self._blank
            yield batch

    def give_back(self, batch: Batch[Chunk]) -> None:
        """Take the memory of a batch whose features are there."""
        self._pool.give_back(batch.array)

    def _num_full(self) -> int:
        return len(self._ahead) - 1 + (self._ahead[-1].num_used == self._batch_size) if self._ahead else 0

    def _assign(self, chunk: Chunk, source: Input, digested: bool) -> None:
        """Give an input its slots."""
        item = Item(digested=digested)
        for _ in range(self._num_views):
            # No batch holds two chunks: a shard is complete with its last batch.
            last = self._ahead[-1] if self._ahead else None
            if last is None or last.num_used == self._batch_size or last.chunk is not chunk:
                last = Batch(chunk, self._pool.take())
                self._ahead.append(last)
            self._touched[id(last)] = last
            item.slots.append(last.array[last.num_used])
            last.num_used += 1
        self._ahead[-1].items.append(item)
        self._to_load.append((item, source))

    def _load(self) -> None:
        """Have the slots filled that were given."""
        if self._to_load:
            future = self._pool.submit(self._to_load)
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
    """Has a pool load texts ahead of their use, some hundreds at a time, and puts those of one length into batches.

    Groups are cut by the number of texts alone, and sorting keeps the order of equals: the place of a text follows from
    its chunk, not from threads.

    Parameters
    ----------
    modality, batch_size, num_digested, pool
        As of a `Loader`.
    lengths : sequence of int
        See `Runtime.lengths`.
    """

    def __init__(
        self, modality: Modality, batch_size: int, lengths: Sequence[int], num_digested: int, pool: LoadingPool
    ) -> None:
        self._modality, self._batch_size, self._lengths = modality, batch_size, lengths
        self._num_digested, self._pool = num_digested, pool
        self._most_ahead = batches_ahead(batch_size)
        self._num_together = texts_together(batch_size)

    def batches(self, chunks: Iterable[tuple[Chunk, Sequence[Input]]]) -> Generator[Batch[Chunk], None, None]:
        """Yield batches of one length each."""
        groups, loading, ready = self._groups(chunks), deque[_Group[Chunk]](), deque[Batch[Chunk]]()
        ends_chunk = False
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

    def give_back(self, batch: Batch[Chunk]) -> None:
        """Do nothing: batches of texts are small, and of several shapes."""

    def _groups(self, chunks: Iterable[tuple[Chunk, Sequence[Input]]]) -> Iterator[_Group[Chunk]]:
        """Cut chunks into groups, and have those loaded that are asked for."""
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
                    self._pool.submit(to_load[first : first + _MOST_AT_A_TIME])
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
