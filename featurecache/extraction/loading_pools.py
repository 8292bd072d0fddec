"""Who loads, and into which memory: threads of this process, or what stands in for them.

Nothing here imports torch: processes that load have no use for it, and it takes each of them seconds and 200 MB.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from time import perf_counter, thread_time
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from featurecache.devices import host_array
from featurecache.errors import InputError
from featurecache.extraction.meter import Meter, Spent
from featurecache.machine import num_cores
from featurecache.sources.inputs import Input

if TYPE_CHECKING:
    from featurecache.extraction.modality import InputDigests, Modality

# How far loading is ahead of the runtime: the greater of the two.
_BATCHES_AHEAD, _INPUTS_AHEAD = 4, 128


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


ToLoad = Sequence[tuple[Item, Input]]


class LoadingPool(Protocol):
    """Loads inputs side by side.

    Attributes
    ----------
    num_workers : int
        Inputs that it works on at a time.
    """

    num_workers: int

    def take(self) -> NDArray[Any]:
        """Return memory for a batch, in which an earlier one may still be."""

    def give_back(self, batch: NDArray[Any]) -> None:
        """Let the memory of a batch serve another one: nothing reads it any more."""

    def submit(self, to_load: ToLoad) -> Future[None]:
        """Have the slots of some inputs filled."""

    def close(self) -> None:
        """Drop what has not begun, wait for what has, and let go of the memory."""


class LoadingThreads:
    """Threads, and memory that is used again: fresh zeros, and copies into pinned memory, took a sixth of loading.

    Parameters
    ----------
    modality : Modality
    batch_size : int
    num_workers : int or None
        Threads; None is one per core.
    meter : Meter
        Told what they do.
    device : str
        Where batches go.
    """

    def __init__(
        self, modality: Modality, batch_size: int, num_workers: int | None, meter: Meter, *, device: str = "cpu"
    ) -> None:
        self.num_workers = num_workers or num_cores()
        self._modality, self._batch_size, self._meter, self._device = modality, batch_size, meter, device
        self._blank = modality.empty(1)[0]
        self._free: list[NDArray[Any]] = []
        self._executor = ThreadPoolExecutor(self.num_workers, thread_name_prefix="decode")

    def take(self) -> NDArray[Any]:
        """See `LoadingPool.take`."""
        if self._free:
            return self._free.pop()
        return host_array((self._batch_size, *self._blank.shape), self._blank.dtype, self._device)

    def give_back(self, batch: NDArray[Any]) -> None:
        """See `LoadingPool.give_back`."""
        self._free.append(batch)

    def submit(self, to_load: ToLoad) -> Future[None]:
        """See `LoadingPool.submit`."""
        return self._executor.submit(self._load, to_load)

    def close(self) -> None:
        """See `LoadingPool.close`."""
        # Also on Ctrl-C: what has begun ends by itself within a few inputs.
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._free.clear()

    def _load(self, to_load: ToLoad) -> None:
        self._meter.add_loading(load_all(to_load, self._modality, self._blank))


def batches_ahead(batch_size: int) -> int:
    """Return how many batches loading is ahead of the runtime."""
    return max(_BATCHES_AHEAD, -(-_INPUTS_AHEAD // batch_size))


def load_all(to_load: ToLoad, modality: Modality, blank: NDArray[Any]) -> Spent:
    """Fill the slots of some inputs.

    Parameters
    ----------
    to_load : sequence of (Item, Input)
        The items are told what comes of it.
    modality : Modality
    blank : ndarray
        What stands where an input is bad.
    """
    started, on_core, reading = perf_counter(), thread_time(), 0.0
    for item, source in to_load:
        reading += _load_into(item, source, modality, blank)
    return Spent(reading, perf_counter() - started - reading, thread_time() - on_core)


def _load_into(item: Item, source: Input, modality: Modality, blank: NDArray[Any]) -> float:
    """Fill the slots of an input, and return the seconds that reading took."""
    started = was_read = perf_counter()
    try:
        data = source.read(modality.max_bytes)
        was_read = perf_counter()
        arrays, item.cut, item.digests, item.remark = modality.load(data, digested=item.digested)
        for slot, array in zip(item.slots, arrays, strict=True):
            # Decoded images fill their slots to different parts.
            slot[: len(array)] = array
    except InputError as error:
        item.problem = error
    except MemoryError:  # with fewer threads the same input may fit, so the row is left for the next run
        item.problem = InputError("no_memory", "there was not enough memory to decode it; use fewer --jobs")
    if item.problem is not None:
        # Of the batch that had this memory before nothing must be left: features follow from the shard alone.
        for slot in item.slots:
            slot[...] = blank
    return was_read - started
