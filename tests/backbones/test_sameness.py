"""Proof of sameness: every suggested tap is what a plain forward hook sees, pooled by hand, in both runtimes.

For each architecture the layout and the number of prefix tokens are written here, not taken from the code under test.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from operator import itemgetter

import numpy as np
import pytest
import torch
from conftest import need

from featurecache.backbones.backbone import Backbone
from featurecache.backbones.dry_run import dry_run, example_inputs
from featurecache.backbones.registry import load_backbone
from featurecache.backbones.runtimes import open_runtime
from featurecache.backbones.suggestions import suggested_nodes
from featurecache.backbones.taps import TappedBackbone, resolve_taps
from featurecache.specs import BackboneRequest

TOLERANCE = 1e-5  # of the largest value
BATCH = 2
MAPS, TOKENS = {r".*": "BCHW"}, {r".*": "BTD"}
TINY_VIT = {r"stages\.[123]\.blocks\.": "BHWC", r".*": "BCHW"}
# name, crop, layout of the nodes that match a pattern, prefix tokens, class token?, number of stages, number of blocks
ARCHITECTURES = [
    ("torchvision:resnet18", 64, MAPS, 0, False, 4, 8),
    ("torchvision:mobilenet_v2", 64, MAPS, 0, False, 5, 17),  # depthwise
    ("torchvision:mobilenet_v3_small", 64, MAPS, 0, False, 4, 11),  # squeeze-excite
    ("torchvision:shufflenet_v2_x0_5", 64, MAPS, 0, False, 3, 16),
    ("torchvision:squeezenet1_1", 64, MAPS, 0, False, 3, 8),  # a convolution for its output layer
    ("timm:efficientnet_lite0", 64, MAPS, 0, False, 5, 16),
    ("timm:convnext_atto", 64, MAPS, 0, False, 4, 12),  # depthwise, layer norm
    ("timm:regnety_002", 64, MAPS, 0, False, 4, 13),  # squeeze-excite
    ("timm:tiny_vit_5m_224", None, TINY_VIT, 0, False, 4, 12),  # windowed attention, channels last inside
    ("timm:levit_128s", None, TOKENS, 0, False, 3, 9),  # attention over ever fewer places, two heads
    ("timm:vit_tiny_patch16_224", None, TOKENS, 1, True, 4, 12),
    ("timm:deit_tiny_distilled_patch16_224", None, TOKENS, 2, True, 4, 12),  # class and distillation tokens
    ("timm:test_vit2", None, TOKENS, 1, False, 4, 8),  # a register, no class token
]
CONVERTED = {"torchvision:mobilenet_v3_small", "torchvision:squeezenet1_1", "timm:test_vit2"}


def load(name: str, crop: int | None, *, keep_classifier: bool = False):
    if name.startswith("timm:"):
        need("timm")
    changes = (("crop", crop), ("resize", crop)) if crop else ()
    request = BackboneRequest(name=name, preprocess=changes, init="random", seed=1)
    backbone = load_backbone(request, keep_classifier=keep_classifier)
    generator = torch.Generator().manual_seed(2)
    for path, buffer in backbone.module.named_buffers():
        if path.endswith("running_var"):
            buffer.uniform_(0.5, 1.5, generator=generator)  # batch norm that does something
    return backbone


def pooled_by_hand(output: torch.Tensor, layout: str, num_prefix: int, has_class_token: bool) -> torch.Tensor:
    if output.ndim == 2:
        return output
    if layout == "BTD":
        return output[:, 0] if has_class_token else output[:, num_prefix:].mean(1)
    return output.mean((2, 3) if layout == "BCHW" else (1, 2))


def seen_by_hooks(backbone, nodes: list[str], images_BCHW: torch.Tensor) -> dict[str, torch.Tensor]:
    seen: dict[str, torch.Tensor] = {}
    handles = [
        backbone.module.get_submodule(node).register_forward_hook(
            lambda _module, _inputs, output, node=node: seen.update({node: output.clone()})
        )
        for node in dict.fromkeys(nodes)
    ]
    with torch.inference_mode():
        backbone.module(images_BCHW)
    for handle in handles:
        handle.remove()
    return seen


def classifier_input(name: str, crop: int | None, images_BCHW: torch.Tensor) -> torch.Tensor:
    """Return what the untouched network hands to its output layer."""
    full, seen = load(name, crop, keep_classifier=True), []
    full.module.get_submodule(full.classifier).register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        full.module(images_BCHW)
    return seen[0]


def assert_same(features: np.ndarray, expected: torch.Tensor, tap: str) -> None:
    error = np.abs(features - expected.numpy()).max() / expected.abs().max().item()
    assert error <= TOLERANCE, f"{tap}: {error:.1e}"


@dataclass
class Truth:
    """What was found by hand for one architecture."""

    backbone: Backbone
    images_BHWC: np.ndarray
    expected: dict[str, torch.Tensor]
    """Features by tap name."""
    num_taps: dict[str, int]
    """By suggestion."""


@cache
def truth_of(case_name: str) -> Truth:
    name, crop, layouts, num_prefix, has_class_token, *_ = next(c for c in ARCHITECTURES if c[0] == case_name)
    backbone = load(name, crop)
    size, spec = backbone.preprocess.crop, backbone.preprocess
    images_BHWC = np.random.default_rng(0).integers(0, 256, (BATCH, size, size, 3), np.uint8)
    images = (images_BHWC.astype(np.float64) / 255 - spec.mean) / spec.std
    images_BCHW = torch.from_numpy(images.transpose(0, 3, 1, 2)).float()
    groups = suggested_nodes(backbone, dry_run(backbone))
    hooked = seen_by_hooks(backbone, groups["stages"] + groups["blocks"], images_BCHW)
    expected = {}
    for node, output in hooked.items():
        layout = next(layout for pattern, layout in layouts.items() if re.match(pattern, node))
        pooling = {"BTD": "cls" if has_class_token else "mean"}.get(layout, "avg")
        expected[f"{node}:{pooling}"] = pooled_by_hand(output, layout, num_prefix, has_class_token)
    head = classifier_input(name, crop, images_BCHW)
    expected["pre_logits:avg" if head.ndim == 4 else "pre_logits:none"] = pooled_by_hand(head, "BCHW", 0, False)
    return Truth(backbone, images_BHWC, expected, {group: len(nodes) for group, nodes in groups.items()})


def check_runtime(case: tuple, runtime: str) -> None:
    truth = truth_of(case[0])
    taps = resolve_taps(truth.backbone, ["default", "stages", "blocks"])
    opened = open_runtime(truth.backbone, taps, runtime=runtime, batch_size=BATCH)
    (features,) = opened.map([truth.images_BHWC])
    assert (opened.name, set(features)) == (runtime, set(truth.expected))
    for tap, values in features.items():
        assert_same(values, truth.expected[tap], f"{runtime} {tap}")
    opened.close()


@pytest.mark.parametrize("case", ARCHITECTURES, ids=itemgetter(0))
def test_every_suggested_tap_is_what_a_plain_hook_sees(case):
    assert tuple(truth_of(case[0]).num_taps.values()) == case[5:]
    check_runtime(case, "torch")


@pytest.mark.parametrize("name", ["timm:crossvit_tiny_240", "timm:efficientvim_m1_dist"])
def test_branches_with_an_output_layer_each_are_joined(name):
    full, backbone, seen = load(name, None, keep_classifier=True), load(name, None), []
    parent = full.output_layers[0].rpartition(".")[0]
    for branch in full.module.get_submodule(parent):
        branch.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    images_BCHW = example_inputs(full)
    with torch.inference_mode():
        full.module(images_BCHW)
        (features,) = TappedBackbone(backbone, resolve_taps(backbone, ["default"]))(images_BCHW).values()
    assert len(seen) > 1
    assert_same(features.numpy(), torch.cat(seen, dim=1), "joined")


def test_pool_by_attention_gives_the_token_that_asks():
    name, crop = "timm:resnet50_clip", 64  # not among the architectures: its softmax enlarges what runtimes round
    backbone = load(name, crop)
    images_BCHW = example_inputs(backbone)
    taps = resolve_taps(backbone, ["default", "stages"])
    assert [tap.name for tap in taps] == ["pre_logits:cls", *(f"stages.{stage}:avg" for stage in range(4))]
    with torch.inference_mode():
        features = TappedBackbone(backbone, taps)(images_BCHW)
    # One token is the mean of all places, the others are 2x2 places.
    expected = classifier_input(name, crop, images_BCHW)
    assert expected.shape == (BATCH, 5, 2048)
    assert_same(features["pre_logits:cls"].numpy(), expected[:, 0], "asking token")


@pytest.mark.parametrize(
    "case",
    # Converting takes seconds for each: a few of different kinds always, all of them with -m slow.
    [pytest.param(c, marks=() if c[0] in CONVERTED else pytest.mark.slow) for c in ARCHITECTURES],
    ids=lambda case: case[0],
)
def test_openvino_sees_the_same(case):
    need("openvino")
    check_runtime(case, "openvino")


def test_vit_tiny_names_all_labelled_images(material):
    need("timm")
    from timm.data import ImageNetInfo

    from featurecache.sources.decoding.images import load_image

    folder = material / "weights" / "vit_tiny_patch16_224"
    request = BackboneRequest(name="timm:vit_tiny_patch16_224", weights=folder / "vit_tiny_patch16_224.safetensors")
    backbone, full = load_backbone(request), load_backbone(request, keep_classifier=True)
    files = sorted(folder.glob("labelled_images/*"))
    assert len(files) == 17
    images_BHWC = np.stack([load_image(file.read_bytes(), backbone.preprocess) for file in files])
    opened = open_runtime(backbone, resolve_taps(backbone, ["default"]), runtime="torch")
    (features,) = opened.map([images_BHWC])
    logits = full.module.head(torch.from_numpy(features["pre_logits:none"]))
    names = [ImageNetInfo().index_to_label_name(int(index)) for index in logits.argmax(1)]
    assert names == [file.name.partition("_")[0] for file in files]
