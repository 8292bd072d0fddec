"""Inputs to features: threads read and decode ahead while the runtime works on earlier batches.

Threads, not processes: Pillow releases the interpreter lock while it decodes and resizes, and nothing has to be
copied between processes. Measured on two cores, two threads decode 1.96 times as many photographs of 400x500 pixels as
one, and what Python itself does for an image takes 0.1 ms (`scripts/benchmark.py decoding`). Decoding and a forward
pass on the CPU need no shares of the cores given out: decoders stop when they are far enough ahead, and the forward
pass takes what they leave.

The chunks of a run (shards) follow each other in one stream: while the last batches of one are computed and written,
the next one's inputs are decoded already. Batches have one fixed shape and belong to one chunk (its last one is padded
with zeros, bad inputs are zeros), because a batch of another shape changes the last bits of the features.

What an input is, files of images or rows of texts, only its modality knows. Where it makes views, each input fills
several slots in a row, and the slots of one input may lie in more than one batch. An input is read and decoded once
for all of its views.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from time import perf_counter, thread_time
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from featurecache.backbones.runtimes import Runtime
from featurecache.errors import InputError
from featurecache.extraction.meter import Meter
from featurecache.extraction.modality import InputDigests, Modality
from featurecache.machine import num_cores
from featurecache.sources.inputs import Input
from featurecache.specs import ViewSpec, num_views, shape_of_row
from featurecache.store.dtypes import LARGEST, encode

# How far loading is ahead of the runtime: the greater of the two.
_BATCHES_AHEAD, _INPUTS_AHEAD = 4, 128
# Inputs that a thread loads without looking up; fewer where that would leave others without work.
_MOST_AT_A_TIME = 8
# For each thread, at least.
_HANDFULS_AHEAD = 16

Chunk = TypeVar("Chunk")


@dataclass(frozen=True, slots=True)
class Outcome:
    """Features of some inputs in their order; ``problems[i]`` is ``None`` where input i is good.

    With views, the features of one input are ``(n_views, ...)``.
    """

    features: dict[str, NDArray[np.float32]]
    problems: list[InputError | None]
    cut: list[bool] = field(default_factory=list)
    """Inputs that are longer than the network takes."""
    digests: list[InputDigests | None] = field(default_factory=list)
    """Of inputs that were digested on their way."""
    remarks: list[str] = field(default_factory=list)
    """As `Loaded.remark`."""


def joined(outcomes: Sequence[Outcome]) -> Outcome:
    """Put outcomes of inputs that follow each other together."""
    if len(outcomes) == 1:
        return outcomes[0]
    return Outcome(
        {tap: np.concatenate([o.features[tap] for o in outcomes]) for tap in outcomes[0].features},
        [problem for o in outcomes for problem in o.problems],
        [cut for o in outcomes for cut in o.cut],
        [digests for o in outcomes for digests in o.digests],
        [remark for o in outcomes for remark in o.remarks],
    )


def run_pipeline(
    inputs: Sequence[Input],
    runtime: Runtime,
    modality: Modality,
    *,
    num_workers: int | None = None,
) -> Iterator[Outcome]:
    """Yield the features of all inputs in their order, a batch or so at a time, with bounded memory.

    Parameters
    ----------
    inputs : sequence of Input
    runtime, modality
        What computes, and what loads.
    num_workers : int, optional
        Threads that load; one per core by default.
    """
    for _, outcome in run_chunks([(None, inputs)], runtime, modality, num_workers=num_workers):
        yield outcome


def run_chunks(
    chunks: Iterable[tuple[Chunk, Sequence[Input]]],
    runtime: Runtime,
    modality: Modality,
    *,
    num_workers: int | None = None,
    num_digested: int = 0,
    meter: Meter | None = None,
) -> Generator[tuple[Chunk, Outcome], None, None]:
    """Yield the features of the inputs of several chunks, in one stream.

    Parameters
    ----------
    chunks
        Any objects, each with at least one input. The next one is asked for when loading gets there, which is before
        the outcomes of earlier ones have all come.
    runtime, modality, num_workers
        What computes, and what loads, in ``num_workers`` threads; one per core by default.
    num_digested
        The first so many inputs of each chunk are digested at each stage before the network.
    meter
        Told where the time goes.
    """
    waiting: deque[_Batch[Chunk]] = deque()
    meter = meter or Meter(cores=num_cores())

    def arrays() -> Generator[NDArray[Any], None, None]:
        loader: _Loader[Chunk] = _Loader(modality, runtime.batch_size, num_workers, num_digested, meter)
        with closing(loader.batches(chunks)) as batches:
            while True:
                started = perf_counter()
                batch = next(batches, None)
                meter.waited["decode"] += perf_counter() - started
                if batch is None:
                    return
                waiting.append(batch)
                yield batch.array

    pending: dict[str, list[NDArray[np.float32]]] = {}
    with closing(arrays()) as feed, closing(runtime.map(feed)) as results:
        while True:
            started, waited = perf_counter(), meter.waited["decode"]
            features = next(results, None)
            # The runtime takes its batches from `feed` in here; waiting for those is counted there.
            meter.waited["forward"] += perf_counter() - started - (meter.waited["decode"] - waited)
            if features is None:
                return
            batch = waiting.popleft()
            for tap, values in features.items():  # without the padding of a chunk's last batch
                pending.setdefault(tap, []).append(values[: batch.num_used])
            if items := batch.complete:
                yield (
                    batch.chunk,
                    Outcome(
                        _take_features(pending, len(items), modality.views),
                        [item.problem for item in items],
                        [item.cut for item in items],
                        [item.digests for item in items],
                        [item.remark for item in items],
                    ),
                )


def to_stored(
    values: NDArray[np.float32], problems: list[InputError | None], dtype: str
) -> tuple[NDArray[Any], dict[int, InputError]]:
    """Convert features to a stored type; rows that have none, or none that fit the type, become NaN.

    Parameters
    ----------
    values : ndarray of float32, shape (n, ...)
        Left as they are.
    problems : list of InputError or None
        Why a row has no features.
    dtype : str
        The stored type.

    Returns
    -------
    stored : ndarray, shape of ``values``
        Bytes of the stored type.
    problems : dict of int to InputError
        Every row that is NaN, and why.
    """
    found = {index: problem for index, problem in enumerate(problems) if problem is not None}
    flat = values.reshape(len(values), int(np.prod(values.shape[1:])))  # -1 says nothing where there are no rows
    largest = np.maximum(flat.max(axis=1, initial=0), -flat.min(axis=1, initial=0))  # NaN wins
    limit = LARGEST.get(dtype, np.inf)
    for index in np.flatnonzero(~(largest <= limit) | ~np.isfinite(largest)).tolist():
        if np.isfinite(largest[index]):
            error = InputError("overflow", f"a feature exceeds the range of {dtype}; use --dtype float32")
        else:
            error = InputError("non_finite", "the network gave NaN or infinity")
        found.setdefault(index, error)  # an input that could not be read keeps its own reason
    if found:
        values = values.copy()
        values[list(found)] = np.nan
    if dtype == "float16":  # equal to numpy's, bit for bit, and ten times as fast
        return torch.from_numpy(values).half().numpy(), found
    return encode(values, dtype), found


def _take_features(
    pending: dict[str, list[NDArray[np.float32]]], count: int, views: ViewSpec | None
) -> dict[str, NDArray[np.float32]]:
    """Take the features of the next ``count`` inputs; those of inputs that still lack views stay pending."""
    taken = {}
    num_slots = count * num_views(views)
    for tap, pieces in pending.items():
        values = np.concatenate(pieces) if len(pieces) > 1 else pieces[0]
        pending[tap] = [values[num_slots:]] if num_slots < len(values) else []
        taken[tap] = values[:num_slots].reshape(count, *shape_of_row(values.shape[1:], views))
    return taken


@dataclass(slots=True, eq=False)
class _Item:
    """One input on its way into slots of batches."""

    slots: list[NDArray[Any]] = field(default_factory=list)
    """The piece of a batch for each view."""
    digested: bool = False
    problem: InputError | None = None
    cut: bool = False
    digests: InputDigests | None = None
    remark: str = ""


@dataclass(slots=True, eq=False)
class _Batch(Generic[Chunk]):
    chunk: Chunk
    array: NDArray[Any]
    num_used: int = 0
    complete: list[_Item] = field(default_factory=list)
    """The inputs whose last view lies in this batch."""
    futures: list[Future[None]] = field(default_factory=list)


class _Loader(Generic[Chunk]):
    """Lets threads fill batches ahead of their use."""

    def __init__(
        self, modality: Modality, batch_size: int, num_workers: int | None, num_digested: int, meter: Meter
    ) -> None:
        self._modality, self._batch_size, self._meter = modality, batch_size, meter
        self._num_digested = num_digested
        self._num_workers = num_workers or num_cores()
        self._num_views = num_views(modality.views)
        self._most_ahead = max(_BATCHES_AHEAD, -(-_INPUTS_AHEAD // batch_size))
        self._ahead: deque[_Batch[Chunk]] = deque()
        ahead = self._most_ahead * batch_size
        self._handful = max(min(ahead // (_HANDFULS_AHEAD * self._num_workers), _MOST_AT_A_TIME), 1)
        self._to_load: list[tuple[_Item, Input]] = []
        self._touched: dict[int, _Batch[Chunk]] = {}

    def batches(self, chunks: Iterable[tuple[Chunk, Sequence[Input]]]) -> Generator[_Batch[Chunk], None, None]:
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
        item = _Item(digested=digested)
        for _ in range(self._num_views):
            # No batch holds two chunks: a shard is complete with its last batch.
            last = self._ahead[-1] if self._ahead else None
            if last is None or last.num_used == self._batch_size or last.chunk is not chunk:
                last = _Batch(chunk, self._modality.empty(self._batch_size))
                self._ahead.append(last)
            self._touched[id(last)] = last
            item.slots.append(last.array[last.num_used])
            last.num_used += 1
        self._ahead[-1].complete.append(item)
        self._to_load.append((item, source))

    def _load(self, pool: ThreadPoolExecutor) -> None:
        """Have a thread fill the slots that were given."""
        if self._to_load:
            future = pool.submit(_load_all, self._to_load, self._modality, self._meter)
            for batch in self._touched.values():
                batch.futures.append(future)
            self._to_load, self._touched = [], {}


def _load_all(items: list[tuple[_Item, Input]], modality: Modality, meter: Meter) -> None:
    started, on_core, reading = perf_counter(), thread_time(), 0.0
    for item, source in items:
        reading += _load_into(item, source, modality)
    spent = perf_counter() - started
    meter.add_loading(read=reading, decode=spent - reading, cpu_seconds=thread_time() - on_core)


def _load_into(item: _Item, source: Input, modality: Modality) -> float:
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
