"""What executes a backbone: ``torch``, the reference, or ``openvino`` on CPUs, compared with it before use.

Neither is always the faster: on two cores OpenVINO made 165 images/s of EfficientNet-Lite0 where PyTorch made 50, and
with other networks PyTorch was as quick. So ``auto`` lets both run for a moment.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from featurecache.backbones.backbone import Backbone
from featurecache.backbones.compiled_networks import path_of
from featurecache.backbones.dry_run import example_inputs
from featurecache.backbones.folding import fold_batch_norms
from featurecache.backbones.input_kinds import input_kind_of
from featurecache.backbones.lengths import full_length, lengths_for
from featurecache.backbones.tapped import Features, Normalized
from featurecache.backbones.taps import Tap, TappedBackbone
from featurecache.backbones.torch_runtime import CPU_BATCH_SIZE, TorchRuntime, checked_device, measured_rate
from featurecache.devices import exact_float32
from featurecache.errors import MissingExtraError, RequestError, RuntimeMismatchError, first_line
from featurecache.machine import num_cores

if TYPE_CHECKING:
    from featurecache.backbones.openvino_runtime import OpenVinoRuntime

_log = logging.getLogger(__name__)
TOLERANCE = 1e-3
"""Largest difference, relative to the largest feature, from the reference."""

_FEW_FOR_A_GPU = 128
# Batches.
_TOO_FEW_TO_PREPARE = 9
# Texts. To see whether padding is hidden takes as long as two of the greatest length.
_TOO_FEW_TO_SORT = 8
# Of each runtime on a CPU. Where one is the faster by so little that this does not tell, either will do.
_TRIAL_SECONDS = 0.15


class Runtime(Protocol):
    """Runs batches through a backbone."""

    name: str
    """``torch`` or ``openvino``: what computes the features from here on."""
    device: str
    """Where it computes."""
    precision: str
    """Arithmetic of the forward pass."""
    lengths: tuple[int, ...]
    """Tokens to which texts may be padded, ascending, the preprocess's greatest last; of images none."""
    norms_folded: bool
    """Batch norms are part of the convolutions before them."""
    resizes: bool
    """It takes packed images too, (B, N), and resizes them on its device: see ``backbones/packed_images.py``."""
    trial: Mapping[str, float]
    """Inputs per second of each runtime that was tried before this one was chosen; empty if none was."""

    @property
    def batch_size(self) -> int:
        """Inputs in each batch that it takes; fewer once a batch has not fitted the memory."""

    def map(self, batches: Iterable[np.ndarray]) -> Generator[Features, None, None]:
        """Turn batches of one shape, uint8 (B, H, W, 3) or int32 (B, T), into {tap name: float32 (B, ...)}.

        Of texts, T is one of the lengths. Order is kept and few batches are ahead of their results. A batch must not be
        written to before its result has come.
        """

    def compare_again(self) -> None:
        """Compare the next batch of each shape with the reference once more, where there is anything to compare."""

    def close(self) -> None:
        """Let go of what the runtime holds."""


def open_runtime(
    backbone: Backbone,
    taps: Sequence[Tap],
    *,
    runtime: str = "auto",
    device: str = "cpu",
    batch_size: int | None = None,
    remembered: str | None = None,
    num_inputs: int | None = None,
    lengths: Sequence[int] | None = None,
    norms_folded: bool | None = None,
) -> Runtime:
    """Prepare a backbone for execution.

    Parameters
    ----------
    backbone, taps
        What to compute.
    runtime
        ``torch``, ``openvino`` or ``auto``: the remembered one, else on a CPU the faster of the two in a short trial.
    device
        ``cpu``, ``cuda``, ``cuda:1``, ``mps``; ``auto``: the GPU that is there, else the CPU. A device that is not
        there is an error.
    batch_size
        Inputs in each batch. By default few on a CPU, and on a GPU as many as make it fast and fit its memory.
    remembered
        The runtime that made the earlier features of a cache.
    num_inputs
        How many inputs there are, if that is known and nothing will come later: for few of them, preparing a faster
        runtime, or folding batch norms, takes longer than it saves.
    lengths
        Of texts, the padded lengths that made the earlier features of a cache.
    norms_folded
        Whether torch is to fold batch norms, as it did for the earlier features of a cache; by default where that
        saves time. A network that does not bear it is left as it is.
    """
    device = _device_for(runtime, device)
    on_cpu = checked_device(device).type == "cpu"
    if batch_size is None and not on_cpu and num_inputs is not None and num_inputs <= _FEW_FOR_A_GPU:
        batch_size = max(num_inputs, 1)  # a trial of sizes would take longer
    size = batch_size or CPU_BATCH_SIZE
    num_batches = None if num_inputs is None else max(-(-num_inputs // size), 1)
    few_texts = lengths is None and num_inputs is not None and num_inputs <= _TOO_FEW_TO_SORT
    usable = lengths_for(backbone, taps, recorded=full_length(backbone) if few_texts else lengths)
    in_torch = partial(TorchRuntime, taps=taps, device=device, num_batches=num_batches, lengths=usable)
    reference = in_torch(backbone, batch_size=batch_size)
    chosen = _choose(backbone, reference.device, remembered) if runtime == "auto" else runtime
    # Converting and compiling takes seconds, as much as a few batches.
    if chosen == "try" and (num_batches or _TOO_FEW_TO_PREPARE) < _TOO_FEW_TO_PREPARE:
        chosen = "torch"
    quick = reference
    torch_runtime: Runtime = reference
    # Folding norms and comparing what comes of it takes as long as twenty inputs, and saves a fifth of each. What was
    # made with them folded goes on so.
    if norms_folded is None:
        norms_folded = remembered is not None or (num_batches or _TOO_FEW_TO_PREPARE) >= _TOO_FEW_TO_PREPARE
    if norms_folded and (folded := _folded(backbone, taps, reference.device)) is not None:
        quick = in_torch(folded, batch_size=reference.batch_size, norms_folded=True)
        torch_runtime = ComparedRuntime(quick, reference, what="torch with folded batch norms")
    if chosen == "torch":
        return torch_runtime
    # Of the batch size of the reference: OpenVINO compiles for one.
    converted = _prepare_openvino(backbone, taps, reference, required=runtime == "openvino")
    if converted is None:
        return torch_runtime
    # Of texts, at a length in the middle: what they will be is not known yet.
    example = _example_of(backbone, reference.batch_size, usable[len(usable) // 2] if usable else None)
    rates = {runtime.name: _rate(runtime, example) for runtime in (quick, converted)} if chosen == "try" else {}
    if rates and rates["openvino"] <= rates["torch"]:
        converted.close()
        torch_runtime.trial = rates
        return torch_runtime
    torch_runtime.close()
    return ComparedRuntime(converted, reference, required=runtime == "openvino", what="openvino", trial=rates)


def _device_for(runtime: str, device: str) -> str:
    """Return the device that is meant, or refuse the two together."""
    if runtime not in ("auto", "torch", "openvino"):
        raise RequestError(f"unknown runtime {runtime!r}; known: auto, torch, openvino")
    # Who asks for openvino by name has chosen the CPU, whatever GPU there is.
    if device == "auto" and runtime == "openvino":
        return "cpu"
    if checked_device(device).type != "cpu" and runtime == "openvino":
        raise RequestError(f"runtime openvino computes on the CPU, not on {device!r}; use runtime torch")
    return device


class ComparedRuntime:
    """A faster runtime whose first batches are compared with the reference, which takes over where they differ.

    One batch of each shape is: of images there is one shape, of texts one for each length.

    Parameters
    ----------
    fast, reference
        The two runtimes.
    what
        Names the fast one to people.
    required
        Disagreement is an error, not a reason to use the reference.
    trial
        What came out when both were tried.
    """

    def __init__(
        self,
        fast: Runtime,
        reference: Runtime,
        *,
        what: str,
        required: bool = False,
        trial: Mapping[str, float] | None = None,
    ) -> None:
        self._reference, self._what, self._required = reference, what, required
        self.trial = trial or {}
        self._compared: set[tuple[int, ...]] = set()
        self._use(fast)

    def _use(self, runtime: Runtime) -> None:
        """Take what people see of a runtime from this one."""
        self._active, self.name, self.device = runtime, runtime.name, runtime.device
        self.precision, self.norms_folded, self.lengths = runtime.precision, runtime.norms_folded, runtime.lengths
        self.resizes = runtime.resizes

    @property
    def batch_size(self) -> int:
        """Inputs in each batch; fewer once a batch has not fitted the memory."""
        return self._active.batch_size

    def map(self, batches: Iterable[np.ndarray]) -> Generator[Features, None, None]:
        """See `Runtime.map`."""
        remaining = iter(batches)
        following = next(remaining, None)

        def known() -> Iterator[np.ndarray]:
            """Yield batches up to the first that has to be compared; that one is kept."""
            nonlocal following
            while following is not None and not self._is_new(following):
                yield following
                following = next(remaining, None)

        while following is not None:
            if self._is_new(following):
                yield self._compare(following)
                following = next(remaining, None)
            else:
                yield from self._active.map(known())

    def _is_new(self, batch: np.ndarray) -> bool:
        return self._active is not self._reference and batch.shape not in self._compared

    def _compare(self, batch: np.ndarray) -> Features:
        """Compute a batch by both, and go on with the reference where the fast one fails or differs."""
        features, problem = _both(self._active, self._reference, batch)
        self._compared.add(batch.shape)
        if problem is None:
            return features
        message = f"runtime {self._what} does not agree with torch: {problem}"
        if self._required:
            raise RuntimeMismatchError(f"{message}; use runtime torch")
        _log.warning("%s; continuing with plain torch", message)
        self._active.close()
        self._use(self._reference)
        return features

    def compare_again(self) -> None:
        """See `Runtime.compare_again`."""
        self._compared.clear()

    def close(self) -> None:
        """See `Runtime.close`."""
        self._active.close()
        self._reference.close()


def disagreement(features: Features, expected: Features) -> str | None:
    """Say at which tap features differ from the reference by more than the tolerance, if they do."""
    for tap, reference in expected.items():
        found = features[tap]
        if not np.isfinite(found).all():
            return f"tap {tap} has values that are not finite"
        # A feature map of zeros has no scale of its own; the least normal number keeps the division defined.
        scale = max(float(np.abs(reference).max()), float(np.finfo(np.float32).tiny))
        error = float(np.abs(found - reference).max()) / scale
        # Written so that a NaN counts as a difference.
        if not error <= TOLERANCE:
            return f"tap {tap} differs by {error:.1e} of its largest value (tolerance {TOLERANCE:.0e})"
    return None


def _folded(backbone: Backbone, taps: Sequence[Tap], device: str) -> Backbone | None:
    """Return the backbone with its batch norms folded, where there are any and its taps bear it.

    Not in half precision: folded weights span a wider range, and rounding them moves features by percents.
    """
    if backbone.identity.precision != "float32":
        return None
    try:
        folded, num_folded = fold_batch_norms(backbone, {tap.node for tap in taps})
        if not num_folded:
            return None
        inputs = example_inputs(backbone)
        # As the runtime computes: in TF32, which convolutions have by default, EfficientNet-Lite0 differs by 4.5e-3.
        with torch.inference_mode(), exact_float32(device):
            found, expected = (
                {name: values.cpu().numpy() for name, values in TappedBackbone(candidate, taps)(inputs).items()}
                for candidate in (folded, backbone)
            )
        problem = disagreement(found, expected)
    # Networks look into their own layers in many ways; those that cannot do without a norm are left as they are.
    except Exception as error:
        problem = first_line(error)
    if problem is None:
        return folded
    _log.info("%s: batch norms are not folded (%s)", backbone.name, problem)
    return None


def _choose(backbone: Backbone, device: str, remembered: str | None) -> str:
    """Return the runtime that ``auto`` means, or ``try``."""
    if device != "cpu":
        return "torch"
    if remembered == "openvino" and find_spec("openvino") is None:
        _log.warning("this cache was made with openvino, which is not installed here; continuing with torch")
        return "torch"
    # What counts words does so in a loop over tokens, and converting that takes ten minutes.
    is_loop = backbone.preprocess.modality == "text" and not backbone.num_parameters
    return remembered or ("try" if find_spec("openvino") and not is_loop else "torch")


def _prepare_openvino(
    backbone: Backbone, taps: Sequence[Tap], reference: TorchRuntime, *, required: bool
) -> OpenVinoRuntime | None:
    """Convert and compile; ``None``, with a warning, where that cannot be and need not.

    The size of batches, and the lengths of texts, are those of the reference.
    """
    if find_spec("openvino") is None:
        raise MissingExtraError("openvino", "cpu")
    from featurecache.backbones.openvino_runtime import OpenVinoRuntime, processor

    if backbone.identity.precision != "float32":
        if required:
            raise RequestError(f"runtime openvino computes in float32, not in {backbone.identity.precision}; use torch")
        return None
    traced = Normalized(TappedBackbone(backbone, taps), backbone.preprocess)
    example, lengths = _example_of(backbone, reference.batch_size), reference.lengths
    try:
        path = path_of(backbone, taps, example, lengths, processor=processor())
        converted = OpenVinoRuntime(traced, example, lengths, path=path)
        if len(lengths) < 2 or _both(converted, reference, _example_of(backbone, len(example), lengths[0]))[1] is None:
            return converted
        # A loop over tokens is traced with as many steps as the example has: so many tokens, or plain torch, which is
        # then faster with few.
        converted.close()
        return OpenVinoRuntime(traced, example, lengths[-1:]) if required else None
    # Converters fail in many ways, and for `auto` none of them is a reason not to compute.
    except Exception as error:
        message = f"openvino cannot convert {backbone.name} ({type(error).__name__}: {first_line(error)})"
        if required:
            raise RuntimeMismatchError(f"{message}; use runtime torch") from error
        _log.warning("%s; continuing with torch", message)
        return None


def _rate(runtime: Runtime, example: np.ndarray) -> float:
    try:
        return measured_rate(runtime.map, example, least=2 * num_cores(), seconds=_TRIAL_SECONDS)
    except RuntimeError:  # the comparison on the first batch will say which
        return 0.0


def _both(fast: Runtime, reference: Runtime, batch: np.ndarray) -> tuple[Features, str | None]:
    """Return the features of a batch by the fast runtime; where it fails or differs those by the reference, and why."""
    (expected,) = reference.map([batch])
    try:
        (found,) = fast.map([batch])
        problem = disagreement(found, expected)
    except RuntimeError as error:
        return expected, f"it fails on the first batch ({first_line(error)})"
    return (found, None) if problem is None else (expected, problem)


def _example_of(backbone: Backbone, batch_size: int, length: int | None = None) -> np.ndarray:
    """Return a batch to trace with. Of texts it has padding, so that no branch is taken that full texts allow."""
    kind = input_kind_of(backbone.preprocess)
    shape = kind.shape(backbone.preprocess) if length is None else (length,)
    example = np.zeros((batch_size, *shape), kind.dtype)
    if kind.mask is not None:
        example[:, example.shape[1] // 2 :] = -1
    return example
