"""Exported programs: they compute what their networks computed, at every layer, and bad files are refused in a line."""

from __future__ import annotations

import logging
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import need
from tiny_backbones import TinyNet
from torch import Tensor, nn

from featurecache.backbones.cutting import cut, valid_cuts
from featurecache.backbones.dry_run import dry_run, first_tensor
from featurecache.backbones.inspection import list_nodes
from featurecache.backbones.registry import load_backbone, request_digest
from featurecache.backbones.runtimes import open_runtime
from featurecache.backbones.suggestions import suggested_nodes
from featurecache.backbones.taps import TappedBackbone, resolve_taps
from featurecache.code_notice import LOGGER, notice_code_of_others
from featurecache.errors import BackboneError, WeightsError
from featurecache.specs import BackboneRequest

ANY_NUMBER = {0: torch.export.Dim("batch")}
SIZES = {"timm:test_resnet": 32, "torchvision:mobilenet_v3_small": 64, "timm:vit_tiny_patch16_224": 224}
NAMES = [pytest.param(name, marks=[] if "test_" in name else pytest.mark.slow) for name in SIZES]


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


class Varying(nn.Module):
    """A block and a layer in it run several times, and do not do the same each time."""

    def __init__(self, seed: int = 5) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem, self.block, self.fc = nn.Conv2d(3, 8, 3, 2, 1), VaryingBlock(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.block(self.stem(x)), times=2)
        return self.fc(self.block(x).mean((2, 3)))


class VaryingBlock(nn.Module):
    """By an argument, and by the sizes that its own layer sees."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.scale = nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8), Scale()

    def forward(self, x: Tensor, times: int = 1) -> Tensor:
        for factor in range(times):
            x = self.scale(self.norm(self.conv(x)), factor + times)
        return x if times == 1 else x.sigmoid() * torch.tensor([0.75])  # a constant of this call alone


class Scale(nn.Module):
    def forward(self, x: Tensor, factor: int) -> Tensor:
        return x.relu() * factor


def written(network: nn.Module, path: Path, side: int = 32, *, sizes: Any = ANY_NUMBER, channels: int = 3) -> Path:
    """Export a network, as it is, and save it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images = torch.zeros(2, channels, side, side)
        torch.export.save(torch.export.export(network, (images,), dynamic_shapes=(sizes,)), path)
    return path


def load(path: Path, *, keep_classifier: bool = True, **options: Any) -> Any:
    return load_backbone(BackboneRequest(name=f"file:{path}", **options), keep_classifier=keep_classifier)


@pytest.fixture(scope="module")
def whole_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(TinyNet().eval(), tmp_path_factory.mktemp("program") / "tiny.pt2")


@pytest.fixture
def program(whole_program: Path, tmp_path: Path) -> Path:
    """A copy of a program, to be damaged."""
    return Path(shutil.copy(whole_program, tmp_path))


@pytest.fixture(scope="module", params=[*NAMES, "tiny", "reusing", "varying"])
def exported(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    random_backbone: Callable,
    whole_program: Path,
) -> tuple[nn.Module, Path, int]:
    """A network in eval mode, a program of it, and the side of its images."""
    path = tmp_path_factory.mktemp("exported") / "network.pt2"
    if request.param == "tiny":
        return TinyNet().eval(), whole_program, 32
    if (small := {"reusing": Reusing, "varying": Varying}.get(request.param)) is not None:
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
            torch.testing.assert_close(backbone.module(images_BCHW), network(images_BCHW), rtol=1e-5, atol=1e-5)
        here, there = outputs_of(network, images_BCHW), outputs_of(backbone.module, images_BCHW)
        if isinstance(network, Reusing):
            here.pop("pair")  # see below
            there.pop("pair", None)
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


@pytest.mark.parametrize("name", NAMES)
def test_suggested_taps_and_cuts_are_those_of_the_network(name: str, tmp_path: Path, random_backbone: Callable) -> None:
    need(name.partition(":")[0])
    side = SIZES[name]
    original = random_backbone(name, crop=side)
    whole = random_backbone(name, crop=side, keep_classifier=True).module
    backbone = load(written(whole, tmp_path / "p.pt2", side), keep_classifier=False)
    assert backbone.classifier == original.classifier
    assert backbone.num_parameters == original.num_parameters
    groups = [suggested_nodes(each, dry_run(each)) for each in (original, backbone)]
    assert groups[0] == groups[1]
    assert groups[0]["blocks"]
    cuts = [[(c.tap, c.shape, c.num_trainable) for c in valid_cuts(each)] for each in (original, backbone)]
    assert cuts[0] == cuts[1] != []
    classes = [{node.name: node.class_name for node in list_nodes(each)} for each in (original, backbone)]
    called = {path for path in dry_run(backbone).order if path in classes[0]}
    assert {path: classes[1][path] for path in called} == {path: classes[0][path] for path in called}
    # A copy of the rest learns, under the names of the network.
    found = cut(backbone, cuts[1][-1][0])
    assert set(found.trainable) <= set(dict(whole.named_parameters()))
    loss = found.tail(torch.randn(2, *found.tap.shape)).square().sum()
    gradients = torch.autograd.grad(loss, [found.tail.get_parameter(name) for name in found.trainable])
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("exported", ["tiny", "reusing"], indirect=True)
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


def test_a_program_is_known_by_what_it_computes_wherever_it_lies_and_whenever_it_was_exported(tmp_path: Path) -> None:
    first = load(written(Small().eval(), tmp_path / "p.pt2"))
    (tmp_path / "elsewhere").mkdir()
    copied = load(shutil.copy(tmp_path / "p.pt2", tmp_path / "elsewhere" / "p.pt2"))
    assert copied.identity == first.identity
    assert first.identity.backbone == "file:p.pt2"
    assert first.weights_source.startswith("program p.pt2 (sha256 ")
    written(Small().eval(), tmp_path / "elsewhere" / "again.pt2").rename(tmp_path / "elsewhere" / "p.pt2")
    again = load(tmp_path / "elsewhere" / "p.pt2")
    assert again.weights_source != first.weights_source  # a file holds its first name, and the lines it was traced from
    assert again.identity == first.identity
    for number, other in enumerate((Small(torch.nn.functional.gelu), Small(stride=1))):
        found = load(written(other.eval(), tmp_path / f"{number}.pt2"))
        assert found.identity.weights == first.identity.weights
        assert found.identity.architecture != first.identity.architecture


def test_programs_that_differ_only_in_which_layer_runs_are_told_apart(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self, used: str) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.fc1, self.fc2, self.used = nn.Linear(3, 3), nn.Linear(3, 3), used
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.fc2(self.fc1(x.mean((2, 3))))
            return self.get_submodule(self.used)(x) * self.scale

    first, second = (load(written(Two(used).eval(), tmp_path / f"{used}.pt2")) for used in ("fc1", "fc2"))
    assert first.identity.weights == second.identity.weights
    assert first.identity.architecture != second.identity.architecture


def test_a_layer_whose_calls_differ_is_one_layer_with_one_set_of_weights(tmp_path: Path) -> None:
    network, other = Varying().eval(), Varying(seed=6).eval()
    path = written(network, tmp_path / "p.pt2")
    torch.save(other.state_dict(), tmp_path / "w.pth")
    for backbone, expected in ((load(path), network), (load(path, weights=tmp_path / "w.pth"), other)):
        (tap,) = resolve_taps(backbone, ["block.scale:none"])
        assert tap.num_calls == 4
        images_BCHW = torch.randn(2, 3, 32, 32)
        with torch.inference_mode():
            for _ in range(2):
                (values,) = TappedBackbone(backbone, [tap])(images_BCHW).values()
                torch.testing.assert_close(values, outputs_of(expected, images_BCHW)["block.scale"][-1])
    with pytest.raises(BackboneError, match="cannot be cut at block: it runs 3 times"):
        cut(load(path, keep_classifier=False), "block")
    with pytest.raises(LookupError, match="block@1"):
        resolve_taps(load(path), ["block@1"])


def test_that_code_in_a_file_can_run_is_said_when_it_is_opened(program: Path, caplog: pytest.LogCaptureFixture) -> None:
    notice_code_of_others.cache_clear()
    caplog.set_level(logging.WARNING, LOGGER)  # a command before may have been a quiet one
    load(program)
    load(program)
    notice = f"file:{program} is opened by torch.export.load, which can run code that is in the file"
    assert caplog.messages.count(notice) == 1


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
        assert "shared" in dict(backbone.module.named_buffers())  # so that it moves with the network
        with torch.inference_mode():
            torch.testing.assert_close(backbone.module(images_BCHW), network(images_BCHW))


def test_a_view_takes_maps_whose_channels_come_last(tmp_path: Path) -> None:
    class Viewing(Small):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv(x).view(x.shape[0], 4, -1).mean(2))

    network = Viewing().eval()
    images_BCHW = torch.randn(3, 3, 32, 32)
    backbone = load(written(network, tmp_path / "p.pt2"))
    with torch.inference_mode():
        found = backbone.module(images_BCHW.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(found, network(images_BCHW))


def test_tensors_are_made_where_the_images_are(tmp_path: Path) -> None:
    backbone = load(written(Reusing().eval(), tmp_path / "p.pt2"))
    # The device without memory stands for a GPU: a tensor that was made elsewhere cannot be added to one there.
    assert backbone.module.to("meta")(torch.zeros(2, 3, 32, 32, device="meta")).shape == (2, 5)


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


class Two(Small):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x + y)


class Silent(Small):
    def forward(self, x: Tensor) -> int:
        return x.shape[0] * 2


class Drawing(Small):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.rand_like(x))


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (Small(), {"sizes": None}, r"takes batches of 2 images only; export it for any number: torch.export.export\("),
        (Small(), {"sizes": ANY_NUMBER, "oblong": True}, "takes images of 32x48 pixels, not squares"),
        (nn.Conv2d(4, 2, 3), {"channels": 4}, r"its input is torch.float32 \(any, 4, 32, 32\); export a network"),
        (TinyNet().train(), {}, "gives other features each time it sees an image"),
        (nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)).train(), {}, "other images are in its batch"),
        (Two().eval(), {"inputs": 2}, "takes 2 inputs; export a network that takes one batch of images"),
        (Silent().eval(), {}, "two images gave no tensor"),
        (Drawing().eval(), {}, "gives other features each time it sees an image"),
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
        resolve_taps(load(path), ["pre_logits"])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def as_bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(change(path.read_bytes()))


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def zipped(**records: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as file:
            for name, content in records.items():
                file.writestr(f"tiny/{name}", content)

    return make


UNREADABLE = "cannot be used: torch.export.load of torch .* fails"
DAMAGE = {
    "missing": (Path.unlink, "does not exist; check the path"),
    "folder": (as_folder, "it is a folder, not a file; check the path"),
    "empty": (as_bytes(lambda data: b""), UNREADABLE),
    "text": (as_bytes(lambda data: b"PK hello"), UNREADABLE),
    "truncated": (as_bytes(lambda data: data[: len(data) // 2]), UNREADABLE),
    "torn": (as_bytes(lambda data: data[1000:]), UNREADABLE),
    "flipped": (as_bytes(lambda data: data.replace(b'"graph_module"', b'"graph-module"')), UNREADABLE),
    "script": (zipped(**{"data.pkl": b"", "code/x.py": b"", "version": b"3"}), UNREADABLE),
    "weights": (lambda path: torch.save(TinyNet().state_dict(), path), UNREADABLE),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_files_that_nobody_exported_are_refused_in_one_line(
    kind: str, program: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make, message = DAMAGE[kind]
    make(program)
    refused(program, message)
    assert not [record.message for record in caplog.records if record.name.startswith("torch.export")]
