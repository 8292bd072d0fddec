"""Inputs to features: threads read and decode ahead while the runtime works on earlier batches.

Threads, but for GPUs that outrun them (``loading_processes.py``): Pillow releases the interpreter lock while it decodes
and resizes, and nothing has to be copied between processes. Measured on two cores, two threads decode 1.96 times as
many photographs of 400x500 pixels as one, and what Python itself does for an image takes 0.1 ms (`scripts/benchmark.py
decoding`). Decoding and a forward pass on the CPU need no shares of the cores given out: decoders stop when they are
far enough ahead, and the forward pass takes what they leave.

The chunks of a run (shards) follow each other in one stream: while the last batches of one are computed and written,
the next one's inputs are decoded already. Batches have one fixed shape and belong to one chunk (its last one is padded
with zeros, bad inputs are zeros), because a batch of another shape changes the last bits of the features. Of texts
there is one shape for each padded length (see ``backbones/lengths.py``).

What an input is, files of images or rows of texts, only its modality knows. Where it makes views, each input fills
several slots in a row, and the slots of one input may lie in more than one batch. An input is read and decoded once
for all of its views.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from featurecache.backbones.lengths import count_tokens
from featurecache.backbones.runtimes import Runtime
from featurecache.errors import InputError
from featurecache.extraction.loading import Batch, LengthLoader, Loader
from featurecache.extraction.loading_pools import Item, LoadingPool, LoadingThreads
from featurecache.extraction.meter import Meter
from featurecache.extraction.modality import InputDigests, Modality, without_resizing
from featurecache.machine import num_cores
from featurecache.progress import Progress
from featurecache.sources.inputs import Input
from featurecache.specs import ViewSpec, num_views, shape_of_row
from featurecache.store.dtypes import LARGEST, encode

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
    progress: Progress | None = None,
    pool: LoadingPool | None = None,
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
    progress
        Told of inputs that are computed: of texts, long before the outcomes of the first, which may be the longest.
    pool
        Loads instead of threads that are started for it, and stays open.
    """
    with ExitStack() as stack:
        meter = meter or Meter(cores=num_cores())
        if runtime.resizes:
            modality = without_resizing(modality)
        if pool is None:
            threads = LoadingThreads(modality, runtime.batch_size, num_workers, meter, device=runtime.device)
            pool = stack.enter_context(closing(threads))
        loader: Loader[Chunk] | LengthLoader[Chunk]
        # Where texts have one length, there is nothing to sort, and nothing to wait for.
        if len(runtime.lengths) > 1:
            loader = LengthLoader(modality, runtime.batch_size, runtime.lengths, num_digested, pool)
        else:
            loader = Loader(modality, runtime.batch_size, num_digested, pool)
        yield from _run(loader, chunks, runtime, modality, meter, progress)


def _run(
    loader: Loader[Chunk] | LengthLoader[Chunk],
    chunks: Iterable[tuple[Chunk, Sequence[Input]]],
    runtime: Runtime,
    modality: Modality,
    meter: Meter,
    progress: Progress | None,
) -> Generator[tuple[Chunk, Outcome], None, None]:
    """Have batches computed, and put their features together by input."""
    waiting: deque[Batch[Chunk]] = deque()

    def arrays() -> Generator[NDArray[Any], None, None]:
        with closing(loader.batches(chunks)) as batches:
            while True:
                started = perf_counter()
                batch = next(batches, None)
                meter.waited["decode"] += perf_counter() - started
                if batch is None:
                    return
                waiting.append(batch)
                if runtime.lengths:
                    num_tokens = int(count_tokens(batch.array).sum())
                    meter.add_tokens(num_tokens, batch.array.size, one_length=len(runtime.lengths) == 1)
                yield batch.array

    pending: dict[str, list[NDArray[np.float32]]] = {}
    items: list[Item] = []
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
            loader.give_back(batch)
            items += batch.items
            if progress is not None and batch.items:
                progress.advance(len(batch.items), bad=sum(item.problem is not None for item in batch.items))
            if items and batch.is_last:
                taken = _take_features(pending, len(items), modality.views)
                if batch.order is not None:
                    taken = {tap: values[batch.order] for tap, values in taken.items()}
                    items = [items[index] for index in batch.order.tolist()]
                yield (
                    batch.chunk,
                    Outcome(
                        taken,
                        [item.problem for item in items],
                        [item.cut for item in items],
                        [item.digests for item in items],
                        [item.remark for item in items],
                    ),
                )
                items = []


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
