"""Exported programs: they compute what their networks computed, at every layer, and no file can do anything else."""

from __future__ import annotations

import copy
import io
import json
import pickle
import random
import warnings
import zipfile
from collections.abc import Callable
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import need
from tiny_backbones import TinyNet
from torch import Tensor, nn

from featurecache.backbones.cutting import cut, valid_cuts
from featurecache.backbones.inspection import list_nodes
from featurecache.backbones.probing import first_tensor, probe
from featurecache.backbones.programs.modules import ProgramModule
from featurecache.backbones.registry import load_backbone, request_digest
from featurecache.backbones.runtimes import open_runtime
from featurecache.backbones.suggestions import suggested_nodes
from featurecache.backbones.taps import TappedBackbone, resolve_taps
from featurecache.errors import BackboneError, WeightsError
from featurecache.specs import BackboneRequest

ANY_NUMBER = {0: torch.export.Dim("batch")}
SIZES = {"torchvision:mobilenet_v3_small": 64, "torchvision:resnet18": 64, "timm:vit_tiny_patch16_224": 224}


class Reusing(nn.Module):
    """One activation runs twice, one block sees another's parameter, and two outputs leave a block."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.conv, self.act, self.pair = nn.Conv2d(3, 8, 3, 2, 1), nn.GELU(), Pair()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv(x))
        high, low = self.pair(x)
        tokens = self.act(high - low).flatten(2).transpose(1, 2) + torch.arange(8, device=x.device) / 8
        return self.fc(self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1))


class Pair(nn.Module):
    """Puts out two tensors, the one that is computed last as the first."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        low = nn.functional.avg_pool2d(x, 2)
        return low.exp(), low


def written(network: nn.Module, path: Path, side: int = 32, *, sizes: Any = ANY_NUMBER, channels: int = 3) -> Path:
    """Export a network, as it is, and save it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images = torch.zeros(2, channels, side, side)
        torch.export.save(torch.export.export(network, (images,), dynamic_shapes=(sizes,)), path)
    return path


def load(path: Path, *, keep_classifier: bool = True, **options: Any) -> Any:
    return load_backbone(BackboneRequest(name=f"file:{path}", **options), keep_classifier=keep_classifier)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return written(TinyNet().eval(), tmp_path / "tiny.pt2")


@pytest.fixture(params=[*SIZES, "tiny", "reusing"])
def exported(request: pytest.FixtureRequest, tmp_path: Path, random_backbone: Callable) -> tuple[nn.Module, Path, int]:
    """A network in eval mode, a program of it, and the side of its images."""
    path = tmp_path / "network.pt2"
    if (small := {"tiny": TinyNet, "reusing": Reusing}.get(request.param)) is not None:
        network = small().eval()
        return network, written(network, path), 32
    need(request.param.partition(":")[0])
    side = SIZES[request.param]
    network = random_backbone(request.param, crop=side, keep_classifier=True).module
    return network, written(network, path, side), side


def outputs_of(network: nn.Module, images_BCHW: Tensor) -> dict[str, list[Tensor]]:
    """Return what every layer puts out at each of its calls, by path."""
    found: dict[str, list[Tensor]] = {}

    def keep(path: str, output: object) -> None:
        if isinstance(tensor := first_tensor(output), Tensor):
            found.setdefault(path, []).append(tensor.clone())

    handles = [
        module.register_forward_hook(lambda _module, _inputs, output, path=path: keep(path, output))
        for path, module in network.named_modules()
    ]
    with torch.inference_mode():
        network(images_BCHW.clone())
    for handle in handles:
        handle.remove()
    return found


def test_a_program_computes_what_its_network_did_at_every_layer(exported: tuple[nn.Module, Path, int]) -> None:
    network, path, side = exported
    backbone = load(path)
    for count in (1, 3):
        images_BCHW = torch.randn(count, 3, side, side)
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = torch.export.load(path).module()(images_BCHW)
            torch.testing.assert_close(backbone.module(images_BCHW), expected, rtol=1e-5, atol=1e-5)
        here, there = outputs_of(network, images_BCHW), outputs_of(backbone.module, images_BCHW)
        if isinstance(network, Reusing):
            here.pop("pair")  # see below
        assert set(there) <= set(here)
        silent = {"Identity", "NonDynamicallyQuantizableLinear", "LayerScale"}  # whose call is no operator
        names = {name: type(module).__name__ for name, module in network.named_modules()}
        assert {names[name] for name in set(here) - set(there)} <= silent
        for name, found in there.items():
            assert len(found) == len(here[name])
            for mine, theirs in zip(found, here[name], strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


def test_several_taps_come_in_one_pass_that_ends_at_the_deepest(exported: tuple[nn.Module, Path, int]) -> None:
    network, path, side = exported
    backbone = load(path, keep_classifier=False)
    known = [node.name for node in list_nodes(backbone) if node.tap and node.num_calls == 1]
    nodes = [node for node in known if node not in ("input", "pre_logits", backbone.classifier)][:6]
    taps = resolve_taps(backbone, [f"{node}:none" for node in nodes])
    tapped, images_BCHW, ran = TappedBackbone(backbone, taps), torch.randn(2, 3, side, side), []
    output_layer = backbone.module.get_submodule(str(backbone.classifier))
    output_layer.register_forward_hook(lambda *_: ran.append(True))
    here = outputs_of(network, images_BCHW)
    with torch.inference_mode():
        for _ in range(2):  # a pass that ends early leaves nothing behind
            for name, values in tapped(images_BCHW.clone()).items():
                torch.testing.assert_close(values, here[name.removesuffix(":none")][-1], rtol=1e-4, atol=1e-5)
    assert not ran


def test_a_layer_that_runs_twice_counts_at_its_last_and_one_with_two_outputs_is_no_tap(tmp_path: Path) -> None:
    network = Reusing().eval()
    backbone = load(written(network, tmp_path / "p.pt2"))
    images_BCHW = torch.randn(2, 3, 32, 32)
    (tap,) = resolve_taps(backbone, ["act:none"])
    assert tap.num_calls == 2
    with torch.inference_mode():
        values = TappedBackbone(backbone, [tap])(images_BCHW)["act:none"]
    torch.testing.assert_close(values, outputs_of(network, images_BCHW)["act"][1])
    with pytest.raises(
        BackboneError, match=r"tap 'pair' does not give one row per image \(two images gave no tensor\)"
    ):
        resolve_taps(backbone, ["pair"])


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if "vit" in name else []) for name in SIZES]
)
def test_suggested_taps_and_cuts_are_those_of_the_network(name: str, tmp_path: Path, random_backbone: Callable) -> None:
    need(name.partition(":")[0])
    side = SIZES[name]
    original = random_backbone(name, crop=side)
    whole = random_backbone(name, crop=side, keep_classifier=True).module
    backbone = load(written(whole, tmp_path / "p.pt2", side), keep_classifier=False)
    assert backbone.classifier == original.classifier
    assert backbone.num_parameters == original.num_parameters
    groups = [suggested_nodes(each, probe(each)) for each in (original, backbone)]
    assert groups[0] == groups[1]
    assert groups[0]["blocks"]
    cuts = [[(c.tap, c.shape, c.num_trainable) for c in valid_cuts(each)] for each in (original, backbone)]
    assert cuts[0] == cuts[1] != []
    classes = [{node.name: node.class_name for node in list_nodes(each)} for each in (original, backbone)]
    called = {path for path, m in backbone.module.named_modules() if path and isinstance(m, ProgramModule)}
    assert {path: classes[1][path] for path in called} == {path: classes[0][path] for path in called}
    # A copy of the rest learns, under the names of the network.
    found = cut(backbone, cuts[1][-1][0])
    assert set(found.trainable) <= set(dict(whole.named_parameters()))
    loss = found.tail(torch.randn(2, *found.tap.shape)).square().sum()
    gradients = torch.autograd.grad(loss, [found.tail.get_parameter(name) for name in found.trainable])
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_runtimes_agree_with_torch_export(runtime: str, exported: tuple[nn.Module, Path, int]) -> None:
    need(runtime)
    network, path, side = exported
    backbone = load(path, keep_classifier=False)
    taps = resolve_taps(backbone, ["default"])
    batch = np.random.default_rng(0).integers(0, 256, (4, side, side, 3), np.uint8)
    running = open_runtime(backbone, taps, runtime=runtime, batch_size=4)
    (features,) = running.map([batch])
    assert running.name == runtime
    running.close()
    mean, std = (
        torch.tensor(values).reshape(3, 1, 1) for values in (backbone.preprocess.mean, backbone.preprocess.std)
    )
    images_BCHW = (torch.from_numpy(batch).permute(0, 3, 1, 2) / 255 - mean) / std
    seen: list[Tensor] = []
    output_layer = network.get_submodule(str(backbone.classifier))
    handle = output_layer.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].clone()))
    with torch.inference_mode():
        network(images_BCHW)
    handle.remove()
    expected = seen[0].numpy()
    np.testing.assert_allclose(features["pre_logits:none"], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


class Small(nn.Module):
    """A network that differs by what is between its layers."""

    def __init__(self, activation: Callable[[Tensor], Tensor] = torch.relu, stride: int = 2) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.fc, self.activation = nn.Conv2d(3, 4, 3, stride), nn.Linear(4, 3), activation

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.activation(self.conv(x)).mean((2, 3)))


def test_the_fingerprint_knows_what_a_program_does_and_not_where_it_lies(tmp_path: Path) -> None:
    first = load(written(Small().eval(), tmp_path / "p.pt2"))
    (tmp_path / "elsewhere").mkdir()
    again = load(written(Small().eval(), tmp_path / "elsewhere" / "p.pt2"))
    assert again.identity == first.identity
    assert first.identity.backbone == "file:p.pt2"
    assert first.weights_source.startswith("program p.pt2 (sha256 ")
    for number, other in enumerate((Small(torch.nn.functional.gelu), Small(stride=1), Small(lambda x: x * 2))):
        found = load(written(other.eval(), tmp_path / f"{number}.pt2"))
        assert found.identity.weights == first.identity.weights
        assert found.identity.architecture != first.identity.architecture
    shifted = Small()
    with torch.no_grad():
        shifted.fc.bias.add_(1)
    found = load(written(shifted.eval(), tmp_path / "q.pt2"))
    assert found.identity.architecture == first.identity.architecture
    assert found.identity.weights != first.identity.weights


def test_a_request_is_known_by_the_content_of_the_program_and_of_the_weights(program: Path, tmp_path: Path) -> None:
    torch.save(TinyNet(seed=1).state_dict(), tmp_path / "w.pth")
    requests = [BackboneRequest(name=f"file:{program}", weights=file) for file in (None, tmp_path / "w.pth")]
    before = [request_digest(request) for request in requests]
    assert None not in before
    assert [request_digest(request) for request in requests] == before
    written(TinyNet(width=16, seed=2).eval(), program)
    after = [request_digest(request) for request in requests]
    assert len({*before, *after}) == 4
    assert request_digest(BackboneRequest(name=f"file:{tmp_path / 'missing.pt2'}")) is None


def test_weights_from_a_file_take_the_place_of_those_in_the_program(program: Path, tmp_path: Path) -> None:
    other = TinyNet(seed=1).eval()
    torch.save(other.state_dict(), tmp_path / "w.pth")
    backbone = load(program, weights=tmp_path / "w.pth")
    images_BCHW = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(backbone.module(images_BCHW), other(images_BCHW))
    torch.save(TinyNet(width=8).state_dict(), tmp_path / "narrow.pth")
    with pytest.raises(WeightsError, match="does not fit file:.* of another shape"):
        load(program, weights=tmp_path / "narrow.pth")
    with pytest.raises(BackboneError, match="cannot be initialised at random: a program does not say how"):
        load(program, init="random")


def test_images_have_the_size_that_a_program_was_exported_for(program: Path, tmp_path: Path) -> None:
    backbone = load(program)
    assert (backbone.preprocess.resize, backbone.preprocess.crop) == (37, 32)
    assert "a program has no preprocess" in backbone.notes[0]
    assert "it takes images of 32 pixels a side" in backbone.notes[0]
    assert "fc taken for the output layer" in backbone.notes
    with pytest.raises(
        BackboneError, match=r"rejects images of 64x64 pixels: it was exported for images of 32 pixels a side"
    ):
        resolve_taps(load(program, preprocess=(("crop", 64), ("resize", 64))), ["default"])
    side = torch.export.Dim("side", min=16)
    free = written(TinyNet().eval(), tmp_path / "any.pt2", sizes={**ANY_NUMBER, 2: side, 3: side})
    assert load(free).preprocess.crop == 224
    assert "it takes images of any size" in load(free).notes[0]
    backbone, images_BCHW = load(free, preprocess=(("crop", 64), ("resize", 64))), torch.randn(2, 3, 64, 64)
    assert resolve_taps(backbone, ["stem:none"])[0].shape == (8, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(backbone.module(images_BCHW), TinyNet().eval()(images_BCHW))


class Ending(nn.Module):
    """Something after, or beside, the last linear layer."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.fc, self.kind = nn.Linear(3, 3), kind

    def forward(self, x: Tensor) -> Any:
        pooled = x.mean((2, 3))
        if self.kind == "softmax":
            return self.fc(pooled).softmax(1)
        if self.kind == "tied":
            return self.fc(pooled @ self.fc.weight)
        if self.kind == "functional":
            return nn.functional.linear(pooled, self.fc.weight)
        return {"logits": self.fc(pooled), "pooled": pooled}


@pytest.mark.parametrize("kind", ["softmax", "tied", "several"])
def test_the_output_layer_is_found_behind_other_operations_and_stays_where_it_is_needed(
    kind: str, tmp_path: Path
) -> None:
    network = Ending(kind).eval()
    backbone = load(written(network, tmp_path / "p.pt2"), keep_classifier=False)
    assert (backbone.classifier is None) == (kind == "tied")
    images_BCHW = torch.randn(2, 3, 32, 32)
    taps = resolve_taps(backbone, ["default"])
    with torch.inference_mode():
        pooled_BC = images_BCHW.mean((2, 3))
        (features_BC,) = TappedBackbone(backbone, taps)(images_BCHW).values()
        expected_BC = pooled_BC @ network.fc.weight if kind == "tied" else pooled_BC
    torch.testing.assert_close(features_BC, expected_BC)


def test_features_that_no_layer_gives_or_takes_are_no_default_tap(tmp_path: Path) -> None:
    backbone = load(written(Ending("functional").eval(), tmp_path / "p.pt2"), keep_classifier=False)
    with pytest.raises(BackboneError, match="no default tap: what goes into its output layer has no name"):
        resolve_taps(backbone, ["default"])


def test_a_decomposed_program_and_other_numbers_are_read(tmp_path: Path) -> None:
    class Numbers(Small):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("shared", torch.arange(8).reshape(2, 4)[1], persistent=False)
            self.register_buffer("mask", torch.tensor([True, False, True, True]))
            self.register_buffer("lower", torch.ones(4, dtype=torch.float16))
            self.tied = nn.Parameter(self.fc.weight.detach())
            self.register_buffer("empty", torch.zeros(0, 4))
            self.register_buffer("one", torch.tensor(2.5))

        def forward(self, x: Tensor) -> Tensor:
            pooled = torch.relu(self.conv(x)).mean((2, 3)) + self.shared * self.mask + self.lower.float()
            return self.fc(torch.cat([pooled, self.empty]) * self.one + torch.tensor([1.0, 2.0, 3.0, 4.0]))

    network = Numbers().eval()
    images_BCHW = torch.randn(3, 3, 32, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(network, (images_BCHW,), dynamic_shapes=(ANY_NUMBER,))
        torch.export.save(exported, tmp_path / "whole.pt2")
        torch.export.save(exported.run_decompositions(), tmp_path / "parts.pt2")
    for name in ("whole", "parts"):
        backbone = load(tmp_path / f"{name}.pt2")
        assert backbone.classifier == "fc"
        with torch.inference_mode():
            torch.testing.assert_close(backbone.module(images_BCHW), network(images_BCHW))


def test_tensors_are_made_where_the_images_are(tmp_path: Path) -> None:
    backbone = load(written(Reusing().eval(), tmp_path / "p.pt2"))
    # The device without memory stands for a GPU: a tensor that was made elsewhere cannot be added to one there.
    assert backbone.module.to("meta")(torch.zeros(2, 3, 32, 32, device="meta")).shape == (2, 5)


def test_a_program_of_another_device_is_read_here(tmp_path: Path) -> None:
    network = Reusing().eval()
    path = written(network, tmp_path / "p.pt2")
    here, there = b'"type": "cpu", "index": null', b'"type": "cuda", "index": 3'
    records = records_of(path)
    moved = {name: records[name].replace(here, there) for name in (MODEL, WEIGHTS)}
    assert all(moved[name] != records[name] for name in moved)
    write_records(path, {**records, **moved})
    images_BCHW = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(load(path).module(images_BCHW), network(images_BCHW))


def test_a_saved_program_with_a_head_in_it_is_no_backbone(tmp_path: Path) -> None:
    class Bytes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.float().mean((1, 2))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
        torch.export.save(torch.export.export(Bytes(), (images,), dynamic_shapes=(ANY_NUMBER,)), tmp_path / "p.pt2")
    with pytest.raises(
        BackboneError, match=r"its input is torch.uint8 \(any, 32, 32, 3\); export a network that takes"
    ):
        load(tmp_path / "p.pt2")


class Counting(Small):
    """Writes into a buffer in each forward pass."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(4))
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        view = self.seen[:2] if self.how == "view" else self.seen
        view.add_(1)
        return super().forward(x)


class Two(Small):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x + y)


class Silent(Small):
    def forward(self, x: Tensor) -> int:
        return x.shape[0] * 2


class Quiet(Small):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = x * 2
        return super().forward(x)


class Drawing(Small):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.rand_like(x))


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (Small(), {"sizes": None}, r"takes batches of 2 images only; export it for any number: torch.export.export\("),
        (Small(), {"sizes": ANY_NUMBER, "oblong": True}, "takes images of 32x48 pixels, not squares"),
        (nn.Conv2d(4, 2, 3), {"channels": 4}, r"its input is torch.float32 \(any, 4, 32, 32\); export a network"),
        (TinyNet().train(), {}, r"exported in training mode \(aten.batch_norm.default\).*; call .eval\(\)"),
        (nn.Sequential(nn.Dropout(), nn.Conv2d(3, 2, 3)).train(), {}, r"exported in training mode \(aten.dropout"),
        (Counting("whole").eval(), {}, "writes (to its own buffers|into its own parameters or buffers)"),
        (Counting("view").eval(), {}, "writes (to its own buffers|into its own parameters or buffers)"),
        (Two().eval(), {"inputs": 2}, "takes 2 inputs; export a network that takes one batch of images"),
        (Silent().eval(), {}, "puts out no tensor"),
        (Quiet().eval(), {}, "calls torch.ops.higher_order.wrap_with_set_grad_enabled, which is not known here"),
        (Drawing().eval(), {}, "calls torch.ops.aten.rand_like.default, which is not known here"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_programs_that_are_no_backbone(network: nn.Module, options: dict, message: str, tmp_path: Path) -> None:
    images = [torch.zeros(2, options.get("channels", 3), 32, 48 if "oblong" in options else 32)]
    images *= options.get("inputs", 1)
    sizes = options.get("sizes", ANY_NUMBER)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = None if sizes is None else tuple([sizes] * len(images))
        exported = torch.export.export(network, tuple(images), dynamic_shapes=shapes)
        torch.export.save(exported, tmp_path / "p.pt2")
    refused(tmp_path / "p.pt2", message)


def refused(path: Path, message: str) -> None:
    with pytest.raises(BackboneError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(f"file:{path} ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


# From here on, files that torch.export.save would not have written.


class Mischief:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w")


def pickled(marker: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save((Mischief(marker),), buffer)
    return buffer.getvalue()


def records_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as file:
        return {name.partition("/")[2]: file.read(name) for name in file.namelist()}


def write_records(path: Path, records: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, content in records.items():
            file.writestr(f"tiny/{name}", content)
    return path


MODEL, WEIGHTS, CONSTANTS = (
    "models/model.json",
    "data/weights/model_weights_config.json",
    "data/constants/model_constants_config.json",
)


def changed(path: Path, name: str, change: Callable[[Any], object]) -> Path:
    """Change a JSON record of a program in place."""
    records = records_of(path)
    content = json.loads(records[name])
    change(content)
    return write_records(path, {**records, name: json.dumps(content).encode()})


def torch_says(path: Path) -> None:
    """Let torch load and unpack a program as it does, whatever comes of it."""
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.setattr("logging.Logger.warning", lambda *_args, **_options: None)
        try:
            torch.export.load(path).module()(torch.zeros(2, 3, 32, 32))
        except Exception:
            return


def first_node(model: dict) -> dict:
    return model["graph_module"]["graph"]["nodes"][0]


def set_expression(model: dict, code: str) -> None:
    for meta in model["graph_module"]["graph"]["tensor_values"].values():
        for size in meta["sizes"]:
            if "as_expr" in size:
                size["as_expr"]["expr_str"] = code


def rename_everywhere(path: Path, old: str, new: str) -> Path:
    """Give a value of the graph another name, wherever it occurs."""
    records = records_of(path)
    text = records[MODEL].decode().replace(json.dumps(old), json.dumps(new))
    return write_records(path, {**records, MODEL: text.encode()})


def use_pickle(config: dict) -> None:
    config["config"]["fc.bias"]["use_pickle"] = True
    config["config"]["fc.bias"]["path_name"] = "weight_99"


def with_pickled_weights(path: Path, marker: Path) -> Path:
    changed(path, WEIGHTS, use_pickle)
    return write_records(path, {**records_of(path), "data/weights/weight_99": pickled(marker)})


def with_pickled_inputs(path: Path, marker: Path) -> Path:
    return write_records(path, {**records_of(path), "data/sample_inputs/model.pt": pickled(marker)})


def with_an_object(path: Path, marker: Path) -> Path:
    meta = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    changed(path, CONSTANTS, lambda config: config["config"].update(thing=meta))
    content = pickle.dumps(Mischief(marker))
    return write_records(path, {**records_of(path), "data/constants/opaque_obj_0": content})


def with_an_expression(path: Path, marker: Path) -> Path:
    code = f"__import__('pathlib').Path({str(marker)!r}).touch() or Symbol('s77', positive=True, integer=True)"
    return changed(path, MODEL, lambda model: set_expression(model, code))


def with_guards(path: Path, marker: Path) -> Path:
    code = f"__import__('pathlib').Path({str(marker)!r}).touch() or True"
    return changed(path, MODEL, lambda model: model.update(guards_code=[code]))


def with_code_for_a_name(path: Path, marker: Path) -> Path:
    return rename_everywhere(path, "x", f"x=open({str(marker)!r}, 'w')")


def with_a_strange_tree(path: Path, marker: Path) -> Path:
    def change(model: dict) -> None:
        tree = {"type": "posix.system", "context": f"touch {marker}", "children_spec": []}
        model["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = json.dumps([1, tree])

    return changed(path, MODEL, change)


MISCHIEF = {
    with_pickled_weights: "tensor fc.bias of it is pickled or no plain tensor, and those are not read here",
    with_an_object: "tensor thing of it is pickled or no plain tensor",
    with_pickled_inputs: None,
    with_an_expression: None,
    with_guards: None,
    with_code_for_a_name: None,
    with_a_strange_tree: None,
}
"""Files that are refused, and those in which the mischief is somewhere that nobody looks at."""


@pytest.mark.parametrize("make", MISCHIEF, ids=lambda make: make.__name__)
def test_nothing_in_a_file_is_run(make: Callable, program: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path, message = make(program, marker), MISCHIEF[make]
    if message is None:
        images_BCHW = torch.randn(2, 3, 32, 32)
        with torch.inference_mode():
            torch.testing.assert_close(load(path).module(images_BCHW), TinyNet().eval()(images_BCHW))
        cut(load(path, keep_classifier=False), "stem:none")
    else:
        refused(path, message)
    assert not marker.exists()


@pytest.mark.parametrize(
    "make", [make for make in MISCHIEF if make is not with_a_strange_tree], ids=lambda make: make.__name__
)
def test_torch_itself_would_have_run_it(make: Callable, program: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    torch_says(make(program, marker))
    if not marker.exists():
        pytest.skip(f"torch {torch.__version__} is not moved by it")


def edit(name: str) -> Callable[[Callable[[Any], object]], Callable[[Path], Path]]:
    """Turn a change of a JSON record into a change of a program."""
    return lambda change: lambda path: changed(path, name, change)


def in_model(change: Callable[[Any], object]) -> Callable[[Path], Path]:
    return edit(MODEL)(change)


def target(name: str) -> Callable[[Path], Path]:
    return in_model(lambda model: first_node(model).update(target=name))


def argument(value: object) -> Callable[[Path], Path]:
    return in_model(lambda model: first_node(model)["inputs"][2].update(arg=value))


def meta(**changes: object) -> Callable[[Path], Path]:
    return edit(WEIGHTS)(lambda config: config["config"]["fc.weight"]["tensor_meta"].update(changes))


def sizes(*numbers: int) -> list[dict[str, int]]:
    return [{"as_int": number} for number in numbers]


def stack(text: str) -> Callable[[Path], Path]:
    return in_model(lambda model: first_node(model)["metadata"].update(nn_module_stack=text))


def parameter(name: str) -> Callable[[Path], Path]:
    """Give the last bias another path."""

    def change(path: Path) -> Path:
        changed(path, WEIGHTS, lambda config: config["config"].update({name: config["config"].pop("fc.bias")}))
        return rename_everywhere(path, "fc.bias", name)

    return change


def record(name: str, content: bytes) -> Callable[[Path], Path]:
    return lambda path: write_records(path, {**records_of(path), name: content})


def without(start: str) -> Callable[[Path], Path]:
    return lambda path: write_records(path, {n: c for n, c in records_of(path).items() if not n.startswith(start)})


def as_bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        path.write_bytes(change(path.read_bytes()))
        return path

    return make


def compressed(path: Path) -> Path:
    records = records_of(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in {**records, "extra/bomb": bytes(1 << 24)}.items():
            file.writestr(f"tiny/{name}", content)
    return path


def promising(path: Path) -> Path:
    """Let the directory of the archive promise a terabyte."""
    with zipfile.ZipFile(path, "a") as file:
        info = next(info for info in file.infolist() if info.filename.endswith("weight_0"))
        info.file_size = info.compress_size = 1 << 40
        file.comment = b"written anew"
    return path


def overlapping(path: Path) -> Path:
    """Let many names share the bytes of one record."""
    with zipfile.ZipFile(path, "a") as file:
        info = next(info for info in file.infolist() if info.filename.endswith("model.json"))
        for number in range(64):
            twin = zipfile.ZipInfo(f"tiny/models/model{number}.json")
            twin.file_size, twin.compress_size, twin.CRC = info.file_size, info.compress_size, info.CRC
            twin.header_offset = info.header_offset
            file.filelist.append(twin)
        file.comment = b"written anew"
    return path


def elsewhere(path: Path) -> Path:
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("../../escaped", b"")
    return path


def removed(path: Path) -> Path:
    path.unlink()
    return path


def a_folder(path: Path) -> Path:
    path.unlink()
    path.mkdir()
    return path


def torchscript(path: Path) -> Path:
    return write_records(path, {"data.pkl": b"", "code/x.py": b"", "version": b"3"})


def of_old_torch(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name in ("version", "serialized_exported_program.json", "serialized_state_dict.pt"):
            file.writestr(name, b"8.2")
    return path


def deeper(depth: int) -> bytes:
    return b'{"schema_version":' + b"[" * depth + b"]" * depth + b"}"


OTHER = ("as_graph", "as_custom_obj", "as_operator", "as_complex", "as_strings", "as_string_to_argument")

DAMAGE = {
    "missing": (removed, "does not exist; check the path"),
    "folder": (a_folder, "it is a folder, not a file; check the path"),
    "empty": (as_bytes(lambda data: b""), "cut off, or no program that torch.export.save wrote"),
    "text": (as_bytes(lambda data: b"PK hello"), "cut off, or no program that torch.export.save wrote"),
    "truncated": (as_bytes(lambda data: data[: len(data) // 2]), "cut off, or no program"),
    "torn": (as_bytes(lambda data: data[1000:]), "cut off or damaged"),
    "flipped": (as_bytes(lambda data: data.replace(b'"graph_module"', b'"graph-module"')), "damaged .*CRC-32"),
    "bomb": (compressed, "its records are compressed, which torch.export.save never does"),
    "promising": (promising, "its records say that they are larger than the file"),
    "overlapping": (overlapping, "its records say that they are larger than the file"),
    "elsewhere": (elsewhere, "its records are not in one folder"),
    "script": (torchscript, "no program that torch.export.save wrote; weights or TorchScript are not read here"),
    "old": (of_old_torch, "format of torch 2.7 and older; .* save it again with torch 2.10 or newer"),
    "pickled weights": (
        record("data/weights/model.pt", b""),
        "weights are pickled, as torch 2.8 did; .* save it again",
    ),
    "archive version": (record("archive_version", b"1"), "archive version 1, and version 0 is known here"),
    "archive format": (record("archive_format", b"pt3"), "no program that torch.export.save wrote"),
    "byte order": (record("byteorder", b"big"), "saved on a big-endian machine"),
    "compiled": (without("models/"), "no exported program, only compiled parts"),
    "two": (record("models/other.json", b"{}"), "holds 2 programs; save one alone"),
    "no weights": (without("data/weights/model"), "damaged: data/weights/model_weights_config.json is missing"),
    "no record": (without("data/weights/weight_3"), "damaged: data/weights/weight_3 is missing"),
    "schema": (
        in_model(lambda model: model.update(schema_version={"major": 9, "minor": 0})),
        r"schema version 9.0, and version 8 is known here; save it again .*, or upgrade featurecache",
    ),
    "opset": (in_model(lambda model: model["opset_version"].update(aten=11)), "of edition 11, and 10 is known here"),
    "no JSON": (record(MODEL, b"{"), "models/model.json in it has what is not known here: Input data was truncated"),
    "no UTF-8": (record(MODEL, b'{"a": "\xff"}'), "models/model.json in it has what is not known here"),
    "deep": (record(MODEL, deeper(100_000)), "models/model.json in it has what is not known here"),
    "new field": (
        in_model(lambda model: first_node(model).update(added_later=1)),
        r"unknown field `added_later` - at `\$.graph_module.graph.nodes\[\d+\]`",
    ),
    "other kind": (argument({"as_later": 1}), "unknown field `as_later`"),
    "two kinds": (argument({"as_int": 1, "as_none": True}), "damaged: a value is as_none and as_int"),
    "no kind": (argument({}), "damaged: a value is of no kind"),
    **{kind: (argument({kind: {}}), f"takes a value of the kind {kind}, which is not known here") for kind in OTHER},
    "type": (argument({"as_scalar_type": 77}), r"uses a type of numbers \(77\) that is not known here"),
    "layout": (argument({"as_layout": 1}), r"uses a layout \(1\) that is not known here"),
    "format": (argument({"as_memory_format": 9}), r"uses a memory format \(9\) that is not known here"),
    "huge": (argument({"as_int": 1 << 70}), "Integer value out of range|Expected `int`"),
    **{
        name: (target(name), rf"calls {name}, which is not known here as a part of networks")
        for name in (
            *("torch.hub.load", "torch.load", "torch.ops.aten.from_file.default", "torch.ops.aten.save.default"),
            *("torch.ops.aten.empty.memory_format", "torch.ops.aten.__class__.default", "torch.ops.load_library"),
            *("torch.ops.prim.Print.default", "torch.ops.higher_order.cond", "math.factorial", "posix.system"),
            *("_operator.methodcaller", "_operator.pow", "#extension:operator", "torch.ops.aten.conv2d"),
        )
    },
    "no overload": (
        target("torch.ops.aten.conv2d.other"),
        "calls torch.ops.aten.conv2d.other, which torch .* not have",
    ),
    "attribute": (target("torch.ops.aten.conv2d.__init__"), "conv2d.__init__, which torch .* does not have"),
    "out": (target("torch.ops.aten.relu.out"), "relu.out, which torch .* does not have"),
    "text operator": (target("torch.ops.aten.add.str"), "add.str, which torch .* does not have"),
    "name of an argument": (
        in_model(lambda model: first_node(model)["inputs"][0].update(name="output_file")),
        "conv2d.default (is called without input|with 'output_file')",
    ),
    "extra argument": (
        in_model(lambda model: first_node(model)["inputs"].append({"name": "path", "arg": {"as_string": "/etc"}})),
        "calls torch.ops.aten.conv2d.default with 'path', which it does not take here",
    ),
    "text arithmetic": (
        in_model(
            lambda model: first_node(model).update(
                target="_operator.mul", inputs=[{"name": "a", "arg": {"as_string": "x"}}]
            )
        ),
        "calls _operator.mul with a value of the kind as_string, and numbers are known here",
    ),
    "fails": (argument({"as_string": "no bias"}), r"fails on images of 32x32 pixels \(RuntimeError: "),
    "order": (
        in_model(lambda model: model["graph_module"]["graph"]["nodes"].reverse()),
        "damaged: .* takes .*, which is not there yet",
    ),
    "twice": (
        in_model(lambda model: model["graph_module"]["graph"]["nodes"].insert(0, first_node(model))),
        "damaged: conv2d occurs twice",
    ),
    "no calls": (
        in_model(lambda model: model["graph_module"]["graph"].update(nodes=[])),
        "its output .* is nothing that it computes",
    ),
    "object": (
        in_model(lambda model: model["graph_module"]["signature"]["input_specs"].append({"custom_obj": {"arg": "x"}})),
        r"holds objects of other kinds than tensors \(custom_obj\)",
    ),
    "constant": (
        in_model(
            lambda model: model["graph_module"]["signature"]["input_specs"].append({"constant_input": {"name": "y"}})
        ),
        "takes 2 inputs; export a network that takes one batch of images",
    ),
    "gradient": (
        in_model(
            lambda model: model["graph_module"]["signature"]["output_specs"].append({"gradient_to_parameter": {}})
        ),
        "has an output of the kind gradient_to_parameter",
    ),
    "form": (
        in_model(lambda model: model["graph_module"]["graph"]["tensor_values"].pop("x")),
        "damaged: its input has no form",
    ),
    "larger": (meta(sizes=sizes(1 << 30, 1 << 30)), r"tensor fc.weight of it is larger than its record \(640 bytes\)"),
    "expanded": (meta(strides=sizes(0, 0), sizes=sizes(1 << 20, 1 << 20)), "fc.weight of it is larger than its record"),
    "beyond": (meta(storage_offset={"as_int": 1}), "fc.weight of it is larger than its record"),
    "negative": (meta(strides=sizes(-1, 1)), "Expected `int` >= 0"),
    "ranks": (meta(strides=sizes(1)), "fc.weight of it is of a type or layout that is not known here"),
    "complex": (meta(dtype=10), "fc.weight of it is of a type or layout that is not known here"),
    "sparse": (meta(layout=1), "fc.weight of it is of a type or layout that is not known here"),
    "any size": (meta(sizes=[{"as_expr": {"expr_str": "1"}}] * 2), "tensor fc.weight of it has no fixed size"),
    "without values": (
        record("data/weights/weight_0", b""),
        "has no values: the program was exported .* without weights",
    ),
    "path": (
        edit(WEIGHTS)(lambda config: config["config"]["fc.bias"].update(path_name="weight_/../../../../etc/passwd")),
        "damaged: data/weights/weight_/../../../../etc/passwd is missing",
    ),
    "absolute": (
        edit(WEIGHTS)(lambda config: config["config"]["fc.bias"].update(path_name="/etc/passwd")),
        "fc.bias of it is pickled or no plain tensor",
    ),
    "no parameter": (
        edit(WEIGHTS)(lambda config: config["config"].pop("fc.bias")),
        "damaged: the tensor fc.bias is missing",
    ),
    "code for a layer": (
        stack('L__self__,,Net;a,stem")+open("marker","w")+getattr(self,"stem,torch.nn.Conv2d'),
        "a layer in it is named 'stem\"\\)\\+open.*letters, digits, _ and dots are known here",
    ),
    "code for a parameter": (
        parameter("fc.bias+x"),
        r"a tensor in it is named 'fc.bias\+x'; letters, digits, _ and dots are known here",
    ),
    "forward": (
        parameter("fc.forward"),
        "names a layer or tensor as no network can: attribute 'forward' already exists",
    ),
    "layer forward": (stack("L__self__,,Net;a,forward,torch.nn.Conv2d"), "names a layer or tensor as no network can"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_files_that_nobody_saved_are_refused_in_one_line(
    kind: str, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    make, message = DAMAGE[kind]
    refused(make(program), message)
    assert not list((tmp_path / "here").iterdir())


def test_stretches_of_a_file_that_are_cut_out_are_noticed(program: Path) -> None:
    whole = program.read_bytes()
    for start in range(0, len(whole), len(whole) // 23):
        program.write_bytes(whole[:start] + whole[start + 64 :])
        with pytest.raises(BackboneError):
            load(program)


def test_records_of_one_file_are_known_in_another_order(program: Path) -> None:
    records = records_of(program)
    before = load(program).identity
    write_records(program, dict(reversed(records.items())))
    assert load(program).identity == before


def test_what_is_left_out_of_a_program_can_be_anything(program: Path) -> None:
    before = load(program).identity
    records = records_of(program)
    more = {"extra/../../x": b"", "data/aotinductor/model/x.so": b"\x7fELF", "data/executorch/x.pte": b""}
    write_records(program, {**records, **more, "data/constants/custom_obj_0": b"\x80\x04."})
    assert load(program).identity == before


def places_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the place of every value in a JSON document."""
    items = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else [])
    return [place for key, item in items for place in [(*path, key), *places_in(item, (*path, key))]]


def test_whatever_is_changed_in_a_program_it_is_read_or_refused_in_one_line(program: Path) -> None:
    records, rng = records_of(program), random.Random(5)
    model = json.loads(records[MODEL])
    del model["graph_module"]["module_call_graph"]
    places, refusals = places_in(model), list[str]()
    for _ in range(400):
        content = copy.deepcopy(model)
        *path, last = rng.choice(places)
        parent = reduce(getitem, path, content)
        if rng.random() < 0.3:
            del parent[last]
        else:
            parent[last] = copy.deepcopy(reduce(getitem, rng.choice(places), model))
        write_records(program, {**records, MODEL: json.dumps(content).encode()})
        try:
            load(program)
        except BackboneError as error:
            refusals.append(str(error))
    assert 100 < len(refusals) < 400
    assert not [message for message in refusals if "\n" in message]
