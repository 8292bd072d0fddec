"""OpenVINO on a CPU, the extra ``cpu``: several requests in flight, results in the order of their batches."""

from __future__ import annotations

import io
import logging
import warnings
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featurecache.backbones import compiled_networks
from featurecache.backbones.tapped import Features, Normalized
from featurecache.backbones.telemetry import without_telemetry
from featurecache.errors import RequestError

# Importing it sends a first report already.
with without_telemetry():
    import openvino

# The first hint lets OpenVINO choose how many requests run side by side. Without the second, CPUs with bfloat16
# instructions would round to 8 bits.
_CONFIG = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": "f32"}
# Of a trace. Large networks have 13,000 (MaxViT-L); a loop over tokens has some for each of them, and conversion takes
# 4 ms an operation then.
_MOST_OPERATIONS = 30_000


class OpenVinoRuntime:
    """A compiled backbone for one batch shape, or of texts for several lengths.

    Parameters
    ----------
    module
        Loaded inputs to a tuple of features.
    example
        A batch: its shape and type are those of every batch, but for the length of texts.
    lengths
        See `Runtime.lengths`.
    path
        Where the compiled network is kept, or is to be; `compiled_networks.path_of` tells.
    """

    name = "openvino"
    device = "cpu"
    precision = "float32"
    norms_folded, resizes = False, False
    trial: Mapping[str, float] = {}

    def __init__(
        self, module: Normalized, example: np.ndarray, lengths: tuple[int, ...] = (), *, path: Path | None = None
    ) -> None:
        self._names = [tap.name for tap in module.tapped.taps]
        self._dtype, self.batch_size, self.lengths = example.dtype, len(example), lengths
        # One program for all lengths: one for each would hold the weights as often, and each took 0.8 s to compile.
        several = len(lengths) > 1
        self._shapes = [(len(example), length) for length in lengths] if several else [example.shape]
        self._compiled: Any = None
        if path is not None and (data := compiled_networks.read(path)) is not None:
            # A file that was cut off, say; whatever it is, it is compiled anew.
            with suppress(RuntimeError):
                self._compiled = openvino.Core().import_model(io.BytesIO(data), "CPU", _CONFIG)
        if self._compiled is None:
            shape = [len(example), -1] if several else list(example.shape)
            model = _convert_quickly(module, example, shape)
            if model is None:
                model = _convert(module, example, shape, num_examples=len(example))
            self._compiled = openvino.Core().compile_model(model, "CPU", _CONFIG)
            if path is not None:
                compiled_networks.keep(path, self._compiled.export_model().getvalue())
        # Twice what the streams need, so that none starves while the oldest result is waited for.
        num_requests = 2 * self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        self._idle: list[Any] = [self._compiled.create_infer_request() for _ in range(num_requests)]

    def map(self, batches: Iterable[np.ndarray]) -> Generator[Features, None, None]:
        """See `Runtime.map`."""
        # The batch stays here while its request runs: OpenVINO reads its memory in place.
        running: deque[tuple[Any, np.ndarray]] = deque()
        try:
            for batch in batches:
                running.append(self._launch(batch))
                while running and (not self._idle or running[0][0].wait_for(0)):
                    yield self._fetch(running)
            while running:
                yield self._fetch(running)
        finally:
            for request, _ in running:
                request.cancel()
                with suppress(RuntimeError):  # cancelled, as asked
                    request.wait()
                self._idle.append(request)

    def compare_again(self) -> None:
        """See `Runtime.compare_again`; another runtime compares this one."""

    def close(self) -> None:
        """See `Runtime.close`."""
        self._idle.clear()
        self._compiled = None

    def _launch(self, batch: np.ndarray) -> tuple[Any, np.ndarray]:
        if batch.shape not in self._shapes or batch.dtype != self._dtype:
            taken = " or ".join(map(str, self._shapes))
            raise RequestError(f"this runtime takes {self._dtype} {taken}, got {batch.dtype} {batch.shape}")
        batch = np.ascontiguousarray(batch)
        request = self._idle.pop()
        request.set_input_tensor(openvino.Tensor(batch, shared_memory=True))
        request.start_async()
        return request, batch

    def _fetch(self, running: deque[tuple[Any, np.ndarray]]) -> Features:
        request, _ = running[0]
        request.wait()
        running.popleft()
        arrays = [np.array(request.get_output_tensor(i).data, dtype=np.float32) for i in range(len(self._names))]
        self._idle.append(request)
        return dict(zip(self._names, arrays, strict=True))


def processor() -> str:
    """Return what a network is compiled for."""
    core = openvino.Core()
    able_to = sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    return f"{core.get_property('CPU', 'FULL_DEVICE_NAME')} {able_to}"


def _convert_quickly(module: Normalized, batch: np.ndarray, shape: list[int]) -> Any:
    """Convert by a trace of few inputs, as that runs the network a dozen times; ``None`` if it keeps their number."""
    try:
        model = _convert(module, batch, shape, num_examples=2)
    except RuntimeError:  # of shapes that do not go together; whatever it is, it comes again
        return None
    expected = [openvino.PartialShape([len(batch), *tap.shape]) for tap in module.tapped.taps]
    found = [output.get_partial_shape() for output in model.outputs]
    return model if all(shape.same_scheme(other) for shape, other in zip(found, expected, strict=True)) else None


def _convert(module: Normalized, batch: np.ndarray, shape: list[int], *, num_examples: int) -> Any:
    example = torch.from_numpy(np.concatenate([batch] * num_examples)[:num_examples])

    def forward(batch_BX: Tensor) -> tuple[Tensor, ...]:
        # Of a function, weights are constants of the trace. Of a module, each layer becomes a script module first, and
        # conversion took half as long again.
        outputs: tuple[Tensor, ...] = module(batch_BX)
        return outputs

    with warnings.catch_warnings(action="ignore"), torch.no_grad(), without_telemetry(), logging_kept():
        # Tracing warns about every branch on a shape; the comparison with the reference is the answer to that.
        # Traced here, because the converter would trace twice and compare, which takes longer than all the rest.
        traced = torch.jit.trace(forward, example, check_trace=False, strict=False)
        if (count := sum(1 for _ in traced.inlined_graph.nodes())) > _MOST_OPERATIONS:
            raise RuntimeError(
                f"its trace has {count:,} operations, and to convert more than {_MOST_OPERATIONS:,} takes minutes"
            )
        return openvino.convert_model(traced, example_input=example, input=[shape])


@contextmanager
def logging_kept() -> Iterator[None]:
    """Undo what a failed conversion leaves behind: a root logger that hides warnings, ours about the failure first.

    Tracing also asks a network for all of its attributes, and transformers logs a line for some.
    """
    root, talkative = logging.getLogger(), logging.getLogger("transformers")
    level, filters, handlers, transformers_level = root.level, root.filters[:], root.handlers[:], talkative.level
    talkative.setLevel(logging.ERROR)
    try:
        yield
    finally:
        talkative.setLevel(transformers_level)
        root.setLevel(level)
        root.filters[:], root.handlers[:] = filters, handlers
