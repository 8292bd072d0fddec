"""The reference runtime: many batches at once on replicas, devices with little memory, fewer digits."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from featurecache.backbones import torch_runtime
from featurecache.backbones.folding import fold_batch_norms
from featurecache.backbones.registry import load_backbone
from featurecache.backbones.runtimes import ComparedRuntime, _folded, disagreement, open_runtime
from featurecache.backbones.taps import resolve_taps
from featurecache.backbones.torch_runtime import CPU_BATCH_SIZE, TorchRuntime, _replicate
from featurecache.code_notice import LOGGER
from featurecache.errors import BackboneError, RequestError
from featurecache.extraction import drift
from featurecache.specs import BackboneRequest

NETWORKS = "python:tests.backbones.networks:"


def opened(name: str = "small", **options: Any) -> TorchRuntime:
    precision = options.pop("precision", "float32")
    with torch.random.fork_rng():
        torch.manual_seed(0)  # the factories draw their weights
        backbone = load_backbone(BackboneRequest(name=NETWORKS + name, precision=precision))
    return TorchRuntime(backbone, resolve_taps(backbone, ["default"]), **options)


def some_batches(count: int, size: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (size, 32, 32, 3), dtype=np.uint8) for _ in range(count)]


def equal(results: list[Any], expected: list[Any]) -> bool:
    return all(disagreement(a, b) is None for a, b in zip(results, expected, strict=True))


def test_batches_side_by_side_never_share_a_module_and_come_in_order() -> None:
    """A network that keeps what it is working on in itself would mix batches up, were it not for the replicas."""
    runtime, batches = opened("forgetful"), some_batches(24)
    expected = [features for batch in batches for features in opened("forgetful").map([batch])]
    assert equal(list(runtime.map(batches)), expected)
    runtime.close()


def test_replicas_share_every_tensor() -> None:
    module = opened()._module
    for replica in _replicate(module, 3):
        pairs = zip(module.state_dict().values(), replica.state_dict().values(), strict=True)
        assert all(mine.data_ptr() == theirs.data_ptr() for mine, theirs in pairs)


def test_a_network_that_cannot_be_copied_still_computes() -> None:
    runtime, batches = opened("uncopyable"), some_batches(3)
    assert len(_replicate(runtime._module, 2)) == 1
    assert equal(list(runtime.map(batches)), list(opened("uncopyable").map(batches)))


def test_the_number_of_threads_of_others_is_left_alone() -> None:
    before, found = torch.get_num_threads(), []
    runtime = opened()
    list(runtime.map(some_batches(4)))
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert torch.get_num_threads() == before == found[0]
    runtime.close()


def test_few_batches_get_several_cores_each() -> None:
    runtime = opened(num_batches=1)
    list(runtime.map(some_batches(1)))
    assert runtime._streams is not None
    assert runtime._streams.count == 1


def limited(most: int, error: Exception) -> TorchRuntime:
    """A runtime whose network fails with more than so many images."""
    runtime = opened("limited")
    network: Any = runtime._module.tapped.network
    network.most, network.error = most, error
    return runtime


NO_MEMORY = (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory"))


@pytest.mark.parametrize("error", NO_MEMORY)
@pytest.mark.parametrize("path", ["_map_on_cores", "_map_on_device"])
def test_a_batch_that_does_not_fit_the_memory_is_halved_until_it_does(path: str, error: Exception) -> None:
    """Also the way to a GPU and back; the CPU stands in for it."""
    runtime, batches = limited(2, error), some_batches(5, size=7)
    assert equal(list(getattr(runtime, path)(batches)), list(opened("limited").map(batches)))
    assert runtime._most_at_once == 1


@pytest.mark.parametrize("where", ["copy", "pass"])
def test_the_record_tells_the_size_of_the_batches_that_fitted(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is the copy to a GPU that finds the memory full; the CPU stands in for it."""
    backbone = load_backbone(BackboneRequest(name=NETWORKS + "limited"))
    taps = resolve_taps(backbone, ["default"])
    batches = some_batches(3, size=8)
    expected = list(TorchRuntime(backbone, taps).map(batches))
    runtime = open_runtime(backbone, taps, runtime="torch", batch_size=8)
    assert isinstance(runtime, ComparedRuntime)
    real = TorchRuntime._copied

    def copied(runtime: TorchRuntime, inputs: np.ndarray) -> torch.Tensor:
        if where == "copy" and len(inputs) > 2:
            raise NO_MEMORY[0]
        return real(runtime, inputs)

    monkeypatch.setattr(TorchRuntime, "_copied", copied)
    for torch_runtime_ in (runtime._active, runtime._reference):
        monkeypatch.setattr(torch_runtime_, "map", torch_runtime_._map_on_device)  # type: ignore[attr-defined]
        if where == "pass":
            network = torch_runtime_._module.tapped.network  # type: ignore[attr-defined]
            network.most, network.error = 2, NO_MEMORY[0]
    assert drift.provenance_of(runtime).batch_size == 8
    assert equal(list(runtime.map(batches)), expected)
    assert drift.provenance_of(runtime).batch_size == 2
    assert runtime.norms_folded  # lack of memory is no reason to give the folded network up


@pytest.mark.parametrize("path", ["_map_on_cores", "_map_on_device"])
def test_a_single_image_that_does_not_fit_is_an_error_that_says_so(path: str) -> None:
    with pytest.raises(BackboneError, match=r"device 'cpu' does not hold one forward pass of a single image; use a sm"):
        list(getattr(limited(0, NO_MEMORY[0]), path)(some_batches(2)))


def test_other_errors_are_not_taken_for_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="something else"):
        list(limited(1, RuntimeError("something else")).map(some_batches(2)))


def test_a_network_with_hooks_of_its_own_is_not_replicated() -> None:
    module = opened()._module
    module.tapped.network.register_forward_hook(lambda *_: None)
    assert _replicate(module, 3) == [module]


@pytest.mark.parametrize(("name", "folds"), [("small", True), ("reads_norm", False), ("used_twice", False)])
def test_norms_are_folded_where_the_network_bears_it(name: str, folds: bool, caplog: pytest.LogCaptureFixture) -> None:
    backbone = load_backbone(BackboneRequest(name=NETWORKS + name))
    state = {key: value.clone() for key, value in backbone.module.state_dict().items()}
    taps, batches = resolve_taps(backbone, ["default"]), some_batches(3)
    chosen = open_runtime(backbone, taps, runtime="torch")
    assert isinstance(chosen, ComparedRuntime) is folds
    chosen.compare_again()
    assert equal(list(chosen.map(batches)), list(TorchRuntime(backbone, taps).map(batches)))
    assert {record.name for record in caplog.records} <= {LOGGER}
    assert all(torch.equal(value, state[key]) for key, value in backbone.module.state_dict().items())
    folded, count = fold_batch_norms(backbone, {"body.0"})
    assert count == (name == "used_twice")  # the others' only convolution is tapped, and keeps its output
    assert folded.identity == backbone.identity


def test_folding_is_compared_as_the_features_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's convolutions round to ten bits by default, which would hide that norms can be folded; here emulated."""
    real = nn.functional.conv2d

    def convolve(images: torch.Tensor, weight: torch.Tensor, *others: Any) -> torch.Tensor:
        if torch.backends.cudnn.conv.fp32_precision != "ieee":
            images, weight = ((t.view(torch.int32) & ~0x1FFF).view(torch.float32) for t in (images, weight))
        return real(images, weight, *others)

    backbone = load_backbone(BackboneRequest(name=NETWORKS + "deep"))
    taps = resolve_taps(backbone, ["default"])
    monkeypatch.setattr(nn.functional, "conv2d", convolve)
    assert _folded(backbone, taps, "cpu") is None  # TF32 alone: beyond the tolerance
    assert _folded(backbone, taps, "cuda") is not None


def test_a_runtime_tells_whether_norms_are_folded() -> None:
    backbone = load_backbone(BackboneRequest(name=NETWORKS + "small"))
    taps = resolve_taps(backbone, ["default"])
    assert open_runtime(backbone, taps, runtime="torch").norms_folded
    assert not open_runtime(backbone, taps, runtime="torch", norms_folded=False).norms_folded
    assert open_runtime(backbone, taps, runtime="torch", num_inputs=1, norms_folded=True).norms_folded
    spoilt = open_runtime(backbone, taps, runtime="torch")
    assert isinstance(spoilt, ComparedRuntime)
    with torch.no_grad():
        spoilt._active._module.tapped.network.body[0].bias += 1  # type: ignore[attr-defined]
    list(spoilt.map(some_batches(2)))
    assert not spoilt.norms_folded


@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 3e-2), ("float16", 5e-3)])
def test_fewer_digits_are_another_fingerprint_and_nearly_the_same_numbers(precision: Any, tolerance: float) -> None:
    names = [BackboneRequest(name=NETWORKS + "small", precision=p) for p in ("float32", precision)]
    fingerprints = [load_backbone(request).identity.fingerprint for request in names]
    assert fingerprints[0] != fingerprints[1]
    (exact,), (rounded,) = (list(opened(precision=p).map(some_batches(1))) for p in ("float32", precision))
    for tap, values in exact.items():
        assert rounded[tap].dtype == np.float32
        error = np.abs(rounded[tap] - values).max() / np.abs(values).max()
        assert 0 < error < tolerance


class Casts(TorchDispatchMode):
    """Counts how often a weight of some shape is cast."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._to_copy.default and tuple(args[0].shape) == self.shape
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("name", "casts"), [("deep", 0), ("standardised", 1)])
def test_weights_are_cast_once_where_that_changes_no_bit(name: str, casts: int) -> None:
    """Autocast casts the weights of a frozen network in every pass; a layer may use its own in other ways, too."""
    backbone = load_backbone(BackboneRequest(name=NETWORKS + name, precision="bfloat16"))
    taps, (batch,) = resolve_taps(backbone, ["default", "body.0:none"]), some_batches(1)
    plain, once = TorchRuntime(backbone, taps, num_batches=1), TorchRuntime(backbone, taps)
    for tap, values in next(plain.map([batch])).items():
        assert np.array_equal(next(once.map([batch]))[tap], values)
    layers = [runtime._module.tapped.network.body[0] for runtime in (plain, once)]
    assert [layer.weight.dtype for layer in layers] == [torch.float32, torch.float32 if casts else torch.bfloat16]
    # Without gradients, not in inference mode, which hides casts from the counter.
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), Casts(tuple(layers[0].weight.shape)) as counter:
        for _ in range(3):
            once._module(torch.from_numpy(batch))
    assert counter.count == 3 * casts
    assert all(p.dtype == torch.float32 for p in backbone.module.parameters())


def test_openvino_computes_in_float32_only() -> None:
    pytest.importorskip("openvino")
    backbone = load_backbone(BackboneRequest(name=NETWORKS + "small", precision="bfloat16"))
    taps = resolve_taps(backbone, ["default"])
    with pytest.raises(RequestError, match="openvino computes in float32, not in bfloat16"):
        open_runtime(backbone, taps, runtime="openvino")
    assert open_runtime(backbone, taps).name == "torch"


def test_precision_and_batch_size_of_a_runtime() -> None:
    assert (opened().precision, opened().batch_size) == ("float32", CPU_BATCH_SIZE)
    assert (opened(precision="bfloat16").precision, opened(batch_size=3).batch_size) == ("bfloat16", 3)
    with pytest.raises(RequestError, match="unknown precision 'float8'; known: float32, tf32, bfloat16, float16"):
        BackboneRequest(name="a", precision="float8")  # type: ignore[arg-type]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_tf32_is_refused_where_nothing_computes_in_it(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_runtime, "checked_device", torch.device)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(RequestError, match=f"tf32 is for CUDA GPUs .* device '{device}' is none; use --precision floa"):
        opened(precision="tf32", device=device)


def test_tf32_is_a_fingerprint_and_an_arithmetic_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_runtime, "has_tf32", lambda device: True)
    runtimes = {precision: opened(precision=precision) for precision in ("float32", "tf32")}
    found = {}
    for precision, runtime in runtimes.items():
        runtime.device = "cuda"  # for the switches alone
        with runtime._arithmetic():
            found[precision] = torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    assert found == {"float32": ("ieee", "ieee"), "tf32": ("tf32", "tf32")}
    requests = [BackboneRequest(name=NETWORKS + "small", precision=p) for p in ("float32", "tf32")]
    fingerprints = [load_backbone(request).identity.fingerprint for request in requests]
    assert fingerprints[0] != fingerprints[1]


@pytest.mark.parametrize(
    ("rates", "expected"), [({32: 10, 64: 19, 128: 19.5}, 64), ({32: 10}, 32), (dict.fromkeys((32, 64), 10), 32)]
)
def test_batches_grow_as_long_as_that_pays(
    rates: dict[int, float], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = opened()
    monkeypatch.setattr(torch_runtime, "measured_rate", lambda run, batch, **limits: rates.get(len(batch), 0.0))
    assert runtime._try_batch_sizes((32, 32, 3)) == expected


def test_batches_do_not_grow_beyond_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the way to a GPU and back; the CPU stands in for it."""
    runtime, rate = limited(100, NO_MEMORY[0]), torch_runtime.measured_rate
    monkeypatch.setattr(
        torch_runtime, "measured_rate", lambda run, batch, **limits: rate(run, batch, **limits) * 0 + len(batch) ** 2
    )
    assert runtime._try_batch_sizes((32, 32, 3)) == 64
    assert runtime._most_at_once is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
def test_a_gpu_agrees_with_the_cpu() -> None:
    batches = some_batches(9, size=16)
    expected = list(opened().map(batches))
    assert equal(list(opened(device="cuda").map(batches)), expected)


@pytest.mark.parametrize("program", ["untouched", "older switches", "newer switch", "both kinds"])
def test_exact_float32_holds_whatever_a_program_has_set_and_puts_it_back(program: str) -> None:
    code = """
import sys, torch
from featurecache.devices import exact_float32
program = sys.argv[1]
if program in ("older switches", "both kinds"):
    torch.backends.cuda.matmul.allow_tf32 = True
if program in ("newer switch", "both kinds"):
    torch.backends.fp32_precision = "tf32"
switches = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)
def state():
    return [switch.fp32_precision for switch in switches] + [torch.backends.cudnn.deterministic]
before = state()
with exact_float32("cpu"):
    assert state() == before, state()
with exact_float32("cuda:1"):
    assert state() == ["ieee", "ieee", "ieee", True], state()
assert state() == before, (before, state())
"""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code, program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
