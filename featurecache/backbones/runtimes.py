"""What executes a backbone: ``torch``, the reference, or ``openvino`` on CPUs, compared with it before use."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import chain
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from featurecache.backbones.backbone import Backbone
from featurecache.backbones.entrances import entrance_of
from featurecache.backbones.normalized import Features, Normalized
from featurecache.backbones.taps import Tap, TappedBackbone
from featurecache.errors import MissingExtraError, RequestError, RuntimeMismatchError, first_line

_log = logging.getLogger(__name__)
TOLERANCE = 1e-3


class Runtime(Protocol):
    """Runs batches through a backbone."""

    @property
    def name(self) -> str:
        """``torch`` or ``openvino``: what computes the features from here on."""
        ...

    @property
    def device(self) -> str:
        """Where it computes."""
        ...

    def map(self, batches: Iterable[np.ndarray]) -> Iterator[Features]:
        """Turn batches of one shape, uint8 (B, H, W, 3) or int32 (B, T), into {tap name: float32 (B, ...)}.

        Order is kept and few batches are ahead of their results. A batch must not be written to before its result
        has come.
        """
        ...

    def close(self) -> None:
        """Let go of what the runtime holds."""
        ...


def open_runtime(
    backbone: Backbone,
    taps: Sequence[Tap],
    *,
    runtime: str = "auto",
    device: str = "cpu",
    batch_size: int = 32,
    remembered: str | None = None,
) -> Runtime:
    """Prepare a backbone for execution.

    Parameters
    ----------
    backbone, taps
        What to compute.
    runtime
        ``torch``, ``openvino`` or ``auto``: on a CPU the remembered one, else OpenVINO if installed, else torch.
    device
        ``cpu``, ``cuda``, ``cuda:1``, ``mps``. A device that is not there is an error.
    batch_size
        The one batch size that OpenVINO compiles for.
    remembered
        The runtime that made the earlier features of a cache.
    """
    reference = TorchRuntime(backbone, taps, device=device)
    if runtime == "auto":
        wanted = _choose(device, remembered)
    elif runtime in ("torch", "openvino"):
        wanted = runtime
    else:
        raise RequestError(f"unknown runtime {runtime!r}; known: auto, torch, openvino")
    if wanted == "torch":
        return reference
    if reference.device != "cpu":
        raise RequestError(f"runtime openvino computes on the CPU, not on {device!r}; use runtime torch")
    return _open_openvino(backbone, taps, reference, batch_size=batch_size, required=runtime == "openvino")


class TorchRuntime:
    """The reference."""

    name = "torch"

    def __init__(self, backbone: Backbone, taps: Sequence[Tap], *, device: str = "cpu") -> None:
        self._device = checked_device(device)
        self.device = str(self._device)
        self._names, self._entrance = [tap.name for tap in taps], entrance_of(backbone.preprocess)
        # The permuted uint8 images are channels-last already; weights in the same layout save the conversions.
        self._module = Normalized(TappedBackbone(backbone, taps), backbone.preprocess).to(self._device)
        self._module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # A GPU works while the next batch is fetched; on a CPU waiting ahead only costs memory.
        self._ahead = 0 if self._device.type == "cpu" else 1

    def map(self, batches: Iterable[np.ndarray]) -> Iterator[Features]:
        """See `Runtime.map`."""
        running: deque[tuple[Tensor, ...]] = deque()
        for batch in batches:
            running.append(self._launch(batch))
            if len(running) > self._ahead:
                yield self._fetch(running.popleft())
        while running:
            yield self._fetch(running.popleft())

    def close(self) -> None:
        """See `Runtime.close`."""

    def _launch(self, batch: np.ndarray) -> tuple[Tensor, ...]:
        self._entrance.check(batch)
        inputs = torch.from_numpy(batch)
        if self._device.type == "cuda":
            inputs = inputs.pin_memory().to(self._device, non_blocking=True)
        with torch.inference_mode(), _exact_float32():
            return self._module(inputs.to(self._device))

    def _fetch(self, outputs: tuple[Tensor, ...]) -> Features:
        arrays = [output.cpu().contiguous().numpy() for output in outputs]
        return dict(zip(self._names, arrays, strict=True))


@contextmanager
def _exact_float32() -> Iterator[None]:
    """Keep GPUs from rounding to ten bits (TF32) what the fingerprint calls float32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False, deterministic=True):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


class ComparedRuntime:
    """A faster runtime that proves itself on the first batch, or hands over to the reference.

    Parameters
    ----------
    fast, reference
        The two runtimes.
    required
        Disagreement is an error, not a reason to use the reference.
    """

    def __init__(self, fast: Runtime, reference: Runtime, *, required: bool) -> None:
        self._active, self._reference, self._required = fast, reference, required
        self._compared = False

    @property
    def name(self) -> str:
        """The runtime in use; it can change from the fast one to ``torch`` with the first batch only."""
        return self._active.name

    @property
    def device(self) -> str:
        """Where it computes."""
        return self._active.device

    def map(self, batches: Iterable[np.ndarray]) -> Iterator[Features]:
        """See `Runtime.map`."""
        remaining = iter(batches)
        if not self._compared:
            first = next(remaining, None)
            if first is None:
                return
            self._compare(first)
            remaining = chain([first], remaining)
        yield from self._active.map(remaining)

    def close(self) -> None:
        """See `Runtime.close`."""
        self._active.close()
        self._reference.close()

    def _compare(self, batch: np.ndarray) -> None:
        (expected,) = self._reference.map([batch])
        if problem := self._problem(batch, expected):
            message = f"runtime {self._active.name} does not agree with torch: {problem}"
            if self._required:
                raise RuntimeMismatchError(f"{message}; use runtime torch")
            _log.warning("%s; continuing with torch", message)
            self._active.close()
            self._active = self._reference
        self._compared = True

    def _problem(self, batch: np.ndarray, expected: Features) -> str | None:
        try:
            (features,) = self._active.map([batch])
        except RuntimeError as error:
            return f"it fails on the first batch ({first_line(error)})"
        return disagreement(features, expected)


def disagreement(features: Features, expected: Features) -> str | None:
    """Say at which tap features differ from the reference by more than the tolerance, if they do."""
    for tap, reference in expected.items():
        found = features[tap]
        if not np.isfinite(found).all():
            return f"tap {tap} has values that are not finite"
        scale = max(float(np.abs(reference).max()), float(np.finfo(np.float32).tiny))
        error = float(np.abs(found - reference).max()) / scale
        if not error <= TOLERANCE:
            return f"tap {tap} differs by {error:.1e} of its largest value (tolerance {TOLERANCE:.0e})"
    return None


def checked_device(name: str) -> torch.device:
    """Return a device that is there."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise RequestError(f"unknown device {name!r}; known: cpu, cuda, cuda:0, mps") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RequestError(f"device {name!r} asked for, but torch sees no CUDA GPU here (torch {torch.__version__})")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RequestError(f"device {name!r} asked for, but there are {torch.cuda.device_count()} CUDA GPUs here")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise RequestError(f"device {name!r} asked for, but torch sees no Apple GPU here")
    if device.type not in ("cpu", "cuda", "mps"):
        raise RequestError(f"device {name!r} is not supported; use cpu, cuda or mps")
    return device


def _choose(device: str, remembered: str | None) -> str:
    if checked_device(device).type != "cpu":
        return "torch"
    if remembered == "openvino" and find_spec("openvino") is None:
        _log.warning("this cache was made with openvino, which is not installed here; continuing with torch")
        return "torch"
    return remembered or ("openvino" if find_spec("openvino") else "torch")


def _open_openvino(
    backbone: Backbone, taps: Sequence[Tap], reference: TorchRuntime, *, batch_size: int, required: bool
) -> Runtime:
    if find_spec("openvino") is None:
        raise MissingExtraError("openvino", "cpu")
    from featurecache.backbones.openvino_runtime import OpenVinoRuntime

    traced = Normalized(TappedBackbone(backbone, taps, stop_early=False), backbone.preprocess)
    try:
        fast = OpenVinoRuntime(traced, _example_of(backbone, batch_size))
    # Converters fail in many ways, and for `auto` none of them is a reason not to compute.
    except Exception as error:
        message = f"openvino cannot convert {backbone.name} ({type(error).__name__}: {first_line(error)})"
        if required:
            raise RuntimeMismatchError(f"{message}; use runtime torch") from error
        _log.warning("%s; continuing with torch", message)
        return reference
    return ComparedRuntime(fast, reference, required=required)


def _example_of(backbone: Backbone, batch_size: int) -> np.ndarray:
    """Return a batch to trace with. Of texts it has padding, so that no branch is taken that full texts allow."""
    entrance = entrance_of(backbone.preprocess)
    example = np.zeros((batch_size, *entrance.shape(backbone.preprocess)), entrance.dtype)
    if entrance.mask(torch.from_numpy(example)) is not None:
        example[:, example.shape[1] // 2 :] = -1
    return example
