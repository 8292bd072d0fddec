"""PyTorch, the reference runtime: on a CPU one small batch per core, on a GPU one large batch after the other.

Measured on two cores (images/s; `scripts/benchmark.py forward` prints them for any machine): one batch of 32 on both
cores at once gives 30 with EfficientNet-Lite0 and 53 with ViT-Ti/16; batches of 4 on one core each, side by side, give
72 and 55. Small batches keep their activations in the caches, and cores that need not wait lose no time where
decoding threads want them too. So a CPU works on as many batches as it has cores, each on a replica of the network that
shares all weights.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, partial
from itertools import count
from queue import SimpleQueue
from time import perf_counter

import numpy as np
import torch
from torch import Tensor, nn

from featurecache.backbones.backbone import Backbone, copy_sharing_tensors
from featurecache.backbones.casting import cast_once, has_own_methods
from featurecache.backbones.dry_run import example_inputs
from featurecache.backbones.input_kinds import input_kind_of
from featurecache.backbones.packed_images import headers_of, is_packed, packs
from featurecache.backbones.tapped import Features, Normalized
from featurecache.backbones.taps import Tap, TappedBackbone
from featurecache.devices import float32_as, has_tf32, host_array
from featurecache.errors import BackboneError, RequestError
from featurecache.machine import num_cores
from featurecache.specs import ALL_GPUS

_log = logging.getLogger(__name__)

CPU_BATCH_SIZE = 4
_GPU_BATCHES_AHEAD = 2
_GPU_BATCH_SIZES, _WORTH_DOUBLING, _TRIAL_BATCHES = (32, 64, 128, 256, 512), 1.05, 6
_TRIAL_SECONDS = 0.5
_TOO_FEW_TO_CAST = 8
# In messages of plain RuntimeErrors: torch's allocator for the CPU and cuBLAS have no class of their own for it.
_SIGNS_OF_LACK_OF_MEMORY = ("out of memory", "can't allocate memory", "ALLOC_FAILED")

PRECISIONS = {"float32": None, "tf32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Arithmetic of the forward pass, and what autocast is told."""


class TorchRuntime:
    """Runs a backbone in PyTorch.

    Parameters
    ----------
    backbone, taps
        What to compute.
    device : str
        ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
    batch_size : int, optional
        Inputs in a batch; by default 4 on a CPU, and on a GPU the number that a short trial finds.
    num_batches : int, optional
        How many there will be, if there are few: then each gets several cores.
    lengths : tuple of int
        See `Runtime.lengths`.
    norms_folded : bool
        What was done to the backbone, for the record.
    """

    name = "torch"

    def __init__(
        self,
        backbone: Backbone,
        taps: Sequence[Tap],
        *,
        device: str = "cpu",
        batch_size: int | None = None,
        num_batches: int | None = None,
        lengths: tuple[int, ...] = (),
        norms_folded: bool = False,
    ) -> None:
        self.lengths, self.norms_folded = lengths, norms_folded
        self._device = checked_device(device)
        self.device = str(self._device)
        self.trial: Mapping[str, float] = {}
        # A CPU has no use for it: its cores resize, whichever thread does it.
        self.resizes = self._device.type != "cpu" and packs(backbone.preprocess)
        self._names, self._kind = [tap.name for tap in taps], input_kind_of(backbone.preprocess)
        self.precision = backbone.identity.precision
        self._autocast = PRECISIONS[self.precision]
        if self.precision == "tf32" and not has_tf32(self.device):
            raise RequestError(
                f"precision tf32 is for CUDA GPUs of compute capability 8.0 or more (A100 and later), and device "
                f"{self.device!r} is none; use --precision float32"
            )
        # The permuted uint8 images are channels-last already; weights in the same layout save the conversions.
        self._module = Normalized(TappedBackbone(backbone, taps), backbone.preprocess).to(self._device)
        self._module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # Comparing takes as long as a batch or so.
        if self._autocast is not None and (num_batches is None or num_batches > _TOO_FEW_TO_CAST):
            self._module = cast_once(self._module, self._device.type, self._autocast, example_inputs(backbone))
        self._most_at_once: int | None = None
        self._num_batches = num_batches
        self._streams: _Streams | None = None
        if batch_size is None and self._device.type != "cpu":
            batch_size = self._try_batch_sizes(self._kind.shape(backbone.preprocess))
        self._batch_size = batch_size or CPU_BATCH_SIZE

    @property
    def batch_size(self) -> int:
        """Inputs in a forward pass: in each batch, or as many of them as have shown to fit the memory."""
        return min(self._batch_size, self._most_at_once or self._batch_size)

    def map(self, batches: Iterable[np.ndarray]) -> Generator[Features, None, None]:
        """See `Runtime.map`."""
        yield from self._map_on_cores(batches) if self._device.type == "cpu" else self._map_on_device(batches)

    def compare_again(self) -> None:
        """See `Runtime.compare_again`; this one is the reference, or compared by another."""

    def close(self) -> None:
        """See `Runtime.close`."""
        if self._streams is not None:
            self._streams.pool.shutdown(wait=True, cancel_futures=True)
            self._streams = None

    def _try_batch_sizes(self, shape: tuple[int, ...]) -> int:
        """Return the size of a batch beyond which the device gets no quicker, or has no memory; 32 at least."""
        best, best_rate = _GPU_BATCH_SIZES[0], 0.0
        for size in _GPU_BATCH_SIZES:
            # As the loader's: from memory that is not pinned, copies would hold the trial up, and only the trial.
            batch = host_array((size, *shape), np.dtype(self._kind.dtype), self.device)
            batch.fill(0)
            rate = measured_rate(self._map_on_device, batch, least=_TRIAL_BATCHES, seconds=_TRIAL_SECONDS)
            fits, self._most_at_once = self._most_at_once is None, None
            # Twice the memory for less than 5 % of speed would be taken from other batches on their way.
            if not fits or rate < _WORTH_DOUBLING * best_rate:
                break
            best, best_rate = size, rate
        return best

    def _map_on_cores(self, batches: Iterable[np.ndarray]) -> Iterator[Features]:
        if self._streams is None:
            self._streams = _Streams(self._module, self._num_batches)
        streams, running = self._streams, deque[Future[Features]]()
        try:
            for batch in batches:
                self._kind.check(batch)
                running.append(streams.pool.submit(self._compute, streams.idle, batch))
                # Twice as many as there are streams, so that none starves while the oldest result is waited for.
                while running and (len(running) >= 2 * streams.count or running[0].done()):
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                if not future.cancel():
                    future.exception()

    def _compute(self, idle: SimpleQueue[nn.Module], batch: np.ndarray) -> Features:
        # A replica is lent to one batch at a time: hooks leave their results in the modules.
        replica = idle.get()
        try:
            with torch.inference_mode(), self._arithmetic():
                outputs = self._forward(replica, batch, torch.from_numpy)
            return self._named(outputs)
        finally:
            idle.put(replica)

    def _map_on_device(self, batches: Iterable[np.ndarray]) -> Iterator[Features]:
        running: deque[_OnDevice] = deque()
        copying = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        for batch in batches:
            if not (self.resizes and is_packed(batch)):
                self._kind.check(batch)
            running.append(self._launch(batch, copying))
            if len(running) > _GPU_BATCHES_AHEAD:
                yield self._named(running.popleft().fetch())
        while running:
            yield self._named(running.popleft().fetch())

    def _launch(self, batch: np.ndarray, copying: torch.cuda.Stream | None) -> _OnDevice:
        """Copy a batch while the one before is computed, and start its pass and the way back; nothing is waited for."""
        with torch.inference_mode(), self._arithmetic():
            if copying is None:
                return _OnDevice(self._forward(self._module, batch, self._copied), None)
            pinned: list[Tensor] = []
            outputs = self._forward(self._module, batch, partial(self._copied_ahead, stream=copying, pinned=pinned))
            outputs = [output.to("cpu", non_blocking=True) for output in outputs]
            done = torch.cuda.Event()
            done.record(torch.cuda.current_stream(self._device))
            return _OnDevice(outputs, done, pinned)

    def _copied(self, inputs: np.ndarray) -> Tensor:
        return torch.from_numpy(inputs).to(self._device)

    def _copied_ahead(self, inputs: np.ndarray, *, stream: torch.cuda.Stream, pinned: list[Tensor]) -> Tensor:
        """Copy to the device on a stream of its own, from memory that is added to ``pinned``."""
        # Only from pinned memory does a copy overlap with the computation. The loader's is pinned, and stays as it is.
        pinned.append(torch.from_numpy(inputs).pin_memory())
        with torch.cuda.stream(stream):
            copied = pinned[-1].to(self._device, non_blocking=True)
        torch.cuda.current_stream(self._device).wait_stream(stream)
        # Made on another stream: without this its memory could be given away while the pass still reads it.
        copied.record_stream(torch.cuda.current_stream(self._device))
        return copied

    def _forward(self, module: nn.Module, batch: np.ndarray, copied: Callable[[np.ndarray], Tensor]) -> list[Tensor]:
        """Copy and run a batch, in chunks once it has shown to be too large for the memory."""
        while True:
            size = min(self._most_at_once or len(batch), len(batch))
            try:
                # A copy is as likely to find the memory full as the pass after it.
                parts = [batch[start : start + size] for start in range(0, len(batch), size)]
                chunks = [module(copied(part), *([headers_of(part)] if is_packed(part) else [])) for part in parts]
                return [torch.cat(o) if len(o) > 1 else o[0] for o in zip(*chunks, strict=True)]
            except (RuntimeError, MemoryError) as error:
                is_lack_of_memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
                if not is_lack_of_memory and not any(sign in str(error) for sign in _SIGNS_OF_LACK_OF_MEMORY):
                    raise
                if size == 1:
                    raise BackboneError(
                        f"the memory of device {self.device!r} does not hold one forward pass of a single "
                        f"{self._kind.noun[:-1]}; use a smaller network or crop, or another device"
                    ) from error
            # Outside the handler, which keeps what the failed pass had allocated alive.
            self._most_at_once = min(self._most_at_once or size, size // 2)
            if self._device.type == "cuda":
                torch.cuda.empty_cache()

    def _arithmetic(self) -> AbstractContextManager[object]:
        if self._autocast is not None:
            return torch.autocast(self._device.type, dtype=self._autocast)
        return float32_as("tf32" if self.precision == "tf32" else "ieee", self.device)

    def _named(self, outputs: Sequence[Tensor]) -> Features:
        arrays = [output.float().contiguous().numpy() for output in outputs]
        return dict(zip(self._names, arrays, strict=True))


def measured_rate(
    run: Callable[[Iterable[np.ndarray]], Iterator[Features]], batch: np.ndarray, *, least: int, seconds: float
) -> float:
    """Return the inputs per second that ``run`` makes of copies of a batch, once what is slow at first is over.

    Parameters
    ----------
    run
        As `Runtime.map`.
    batch
        (B, ...).
    least
        So many batches at least, first to warm up and then to measure.
    seconds
        To measure for.
    """
    for _ in run([batch] * least):
        pass
    started = perf_counter()

    def for_a_moment() -> Iterator[np.ndarray]:
        for number in count():
            if number >= least and perf_counter() - started > seconds:
                return
            yield batch

    num_batches = sum(1 for _ in run(for_a_moment()))
    return num_batches * len(batch) / (perf_counter() - started)


@dataclass(frozen=True)
class _OnDevice:
    """A batch that a device is at."""

    outputs: Sequence[Tensor]
    done: torch.cuda.Event | None
    pinned: Sequence[Tensor] = ()
    """The inputs, held until they have been copied."""

    def fetch(self) -> list[Tensor]:
        """Wait for its features and return them, in the memory of the CPU."""
        if self.done is not None:
            self.done.synchronize()
        return [output.cpu() for output in self.outputs]


class _Streams:
    """Threads, each with its share of the cores, and replicas of a module for them to run."""

    def __init__(self, module: Normalized, num_batches: int | None) -> None:
        cores = num_cores()
        replicas = _replicate(module, min(cores, num_batches or cores))
        self.count = len(replicas)
        self.idle: SimpleQueue[nn.Module] = SimpleQueue()
        for replica in replicas:
            self.idle.put(replica)
        self.pool = ThreadPoolExecutor(self.count, thread_name_prefix="forward")
        # Without a limit each of the threads would start as many of its own as there are cores.
        self._take_cores(max(cores // self.count, 1))

    def _take_cores(self, share: int) -> None:
        """Limit each thread to its cores. Torch keeps the number by thread, and the last one set for new threads."""
        before, all_there = torch.get_num_threads(), threading.Barrier(self.count, timeout=60)

        def limit() -> None:
            all_there.wait()
            torch.set_num_threads(share)

        for future in [self.pool.submit(limit) for _ in range(self.count)]:
            future.result()
        torch.set_num_threads(before)


def _replicate(module: Normalized, count: int) -> list[nn.Module]:
    """Return copies of a module's tree that share its tensors: forward passes leave traces in modules, not in weights.

    A module that cannot be copied stays alone; so does one with hooks or methods of its own, which may be closures over
    the original.
    """
    if has_own_methods(module):
        return [module]
    try:
        return [module, *(copy_sharing_tensors(module) for _ in range(count - 1))]
    # Whatever somebody's own module objects with, one replica is enough to compute.
    except Exception:
        return [module]


def checked_device(name: str) -> torch.device:
    """Return a device that is there; of ``auto``, the GPU if there is one."""
    if name == "auto":
        return torch.device(_best_device())
    if name == ALL_GPUS:
        raise RequestError(
            f"device {name!r} is for engines of several workers; add --engine processes, or name one GPU"
        )
    try:
        device = torch.device(name)
    except RuntimeError:
        raise RequestError(f"unknown device {name!r}; known: auto, cpu, cuda, cuda:0, mps") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RequestError(f"device {name!r} asked for, but torch sees no CUDA GPU here (torch {torch.__version__})")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RequestError(f"device {name!r} asked for, but there are {torch.cuda.device_count()} CUDA GPUs here")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise RequestError(f"device {name!r} asked for, but torch sees no Apple GPU here")
    if device.type not in ("cpu", "cuda", "mps"):
        raise RequestError(f"device {name!r} is not supported; use cpu, cuda or mps")
    return device


@cache
def _best_device() -> str:
    """Return the GPU that is there, said aloud the first time; else the CPU."""
    if torch.cuda.is_available():
        _log.warning("computing on the GPU %s; --device cpu computes on the CPU", torch.cuda.get_device_name(0))
        return "cuda"
    if torch.backends.mps.is_available():
        _log.warning("computing on Apple's GPU; --device cpu computes on the CPU")
        return "mps"
    return "cpu"
