"""A tap is what a plain forward hook sees, pooled."""

from __future__ import annotations

import pytest
import torch

from featurecache.backbones.inspection import list_nodes
from featurecache.backbones.registry import load_backbone
from featurecache.backbones.taps import TappedBackbone, resolve_taps
from featurecache.errors import BackboneError, UnknownNameError
from featurecache.specs import BackboneRequest

NETWORKS = "python:tests.backbones.networks:"


def hooked(backbone, node, images_BCHW):
    """Return what a hand-made hook sees at a node in a full forward pass."""
    seen = []
    module = backbone.module.get_submodule(node)
    handle = module.register_forward_hook(lambda _module, _inputs, output: seen.append(output.detach().clone()))
    with torch.inference_mode():
        backbone.module(images_BCHW)
    handle.remove()
    return seen[-1]


@pytest.mark.parametrize(
    ("name", "crop", "node", "pooling", "pool"),
    [
        ("torchvision:resnet18", 64, "layer3", "avg", lambda x: x.mean((2, 3))),
        ("torchvision:resnet18", 64, "bn1", "none", lambda x: x),
        ("torchvision:resnet18", 64, "layer4", "max", lambda x: x.amax((2, 3))),
        ("torchvision:squeezenet1_1", 96, "features.12", "avg", lambda x: x.mean((2, 3))),
        ("torchvision:mobilenet_v3_small", 64, "features.8", "flatten", lambda x: x.flatten(1)),
        ("timm:test_vit", None, "blocks.5", "cls", lambda x: x[:, 0]),
        ("timm:test_vit", None, "blocks.5", "mean", lambda x: x[:, 1:].mean(1)),
        ("timm:vit_tiny_patch16_224", None, "patch_embed", "mean", lambda x: x.mean(1)),
        ("timm:swin_tiny_patch4_window7_224", None, "layers.1", "avg", lambda x: x.mean((1, 2))),
        ("timm:swin_tiny_patch4_window7_224", None, "patch_embed.proj", "avg", lambda x: x.mean((2, 3))),
        ("torchvision:efficientnet_b0", 64, "features.5", "avg", lambda x: x.mean((2, 3))),
    ],
)
def test_a_tap_equals_a_plain_hook(name, crop, node, pooling, pool, random_backbone):
    backbone = random_backbone(name, crop=crop)
    size = backbone.preprocess.crop
    images_BCHW = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    (tap,) = resolve_taps(backbone, [f"{node}:{pooling}"])
    with torch.inference_mode():
        features = TappedBackbone(backbone, [tap])(images_BCHW)[tap.name]
    torch.testing.assert_close(features, pool(hooked(backbone, node, images_BCHW)), atol=1e-6, rtol=1e-6)
    assert features.shape == (2, *tap.shape)


@pytest.fixture
def small():
    return load_backbone(BackboneRequest(name=NETWORKS + "small"))


def test_pre_logits_is_the_input_of_the_output_layer(random_backbone):
    full = random_backbone("torchvision:resnet18", crop=64, keep_classifier=True)
    headless = random_backbone("torchvision:resnet18", crop=64)
    images_BCHW = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        logits = full.module(images_BCHW)
        (features,) = TappedBackbone(headless, resolve_taps(headless, ["default"]))(images_BCHW).values()
        torch.testing.assert_close(full.module.fc(features), logits)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("torchvision:resnet18", "pre_logits:none"),
        ("torchvision:squeezenet1_1", "pre_logits:avg"),
        ("timm:vit_tiny_patch16_224", "pre_logits:none"),
    ],
)
def test_default_tap(name, expected, random_backbone):
    assert [tap.name for tap in resolve_taps(random_backbone(name), ["default"])] == [expected]


def test_a_name_without_pooling_gets_one_by_shape(random_backbone, small):
    vit = random_backbone("timm:vit_tiny_patch16_224")
    assert [tap.pooling for tap in resolve_taps(vit, ["norm", "patch_embed"])] == ["cls", "mean"]
    assert [tap.pooling for tap in resolve_taps(small, ["body", "head"])] == ["avg", "none"]


def test_taps_are_unique_and_keep_their_order(small):
    names = ["body:max", "pre_logits", "body:avg", "default", "body"]
    assert [tap.name for tap in resolve_taps(small, names)] == ["body:max", "pre_logits:none", "body:avg"]


def test_one_pass_stops_at_the_deepest_tap_and_leaves_no_hooks(small):
    class Boom(torch.nn.Module):
        def forward(self, inputs):
            raise AssertionError("ran past the deepest tap")

    taps = resolve_taps(small, ["body:avg", "body:max"])
    tapped = TappedBackbone(small, taps)
    small.module.act = Boom()
    features = tapped(torch.zeros(1, 3, 32, 32))
    assert list(features) == ["body:avg", "body:max"]
    small.module.body[0] = Boom()
    with pytest.raises(AssertionError):
        tapped(torch.zeros(1, 3, 32, 32))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in small.module.modules())


def test_the_last_call_of_a_shared_module_counts(small):
    images_BCHW = torch.randn(2, 3, 32, 32)
    (tap,) = resolve_taps(small, ["act:none"])
    assert tap.num_calls == 2
    with torch.inference_mode():
        features = TappedBackbone(small, [tap])(images_BCHW)["act:none"]
    torch.testing.assert_close(features, hooked(small, "act", images_BCHW))


def test_an_in_place_layer_does_not_reach_back(small):
    images_BCHW = torch.randn(2, 3, 32, 32)
    taps = resolve_taps(small, ["body.1:none", "head"])
    with torch.inference_mode():
        assert TappedBackbone(small, taps)(images_BCHW)["body.1:none"].min() < 0


def test_train_mode_cannot_be_entered(small):
    tapped = TappedBackbone(small, resolve_taps(small, ["default"]))
    tapped.train()
    assert not any(module.training for module in tapped.modules())
    small.module.train()
    before = small.module.body[1].running_mean.clone()
    tapped(torch.randn(4, 3, 32, 32))
    assert torch.equal(small.module.body[1].running_mean, before)


def test_channels_last_is_decided_by_shape():
    backbone = load_backbone(BackboneRequest(name=NETWORKS + "channels_last"))
    (tap,) = resolve_taps(backbone, ["default"])
    assert (tap.name, tap.shape, tap.layout) == ("pre_logits:avg", (3,), "BHWC")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("bdy", UnknownNameError, "unknown tap 'bdy'; did you mean 'body'"),
        ("body:median", UnknownNameError, "unknown pooling 'median'"),
        ("body:cls", BackboneError, "cls pools tokens"),
        ("head:avg", BackboneError, "avg pools maps"),
        ("body:grid9", BackboneError, "body has only 8x8 positions"),
        ("body:cls+mean", BackboneError, "poolings that fit: avg, avgmax, flatten, gem, grid2, max, none"),
        ("head:gem", BackboneError, "poolings that fit: flatten, none"),
        ("block", UnknownNameError, "unknown tap 'block'; did you mean 'blocks'"),
        ("", UnknownNameError, "unknown tap ''"),
    ],
)
def test_taps_that_make_no_sense(name, error, message, small):
    with pytest.raises(error, match=message):
        resolve_taps(small, [name])


def test_cls_needs_a_class_token(random_backbone):
    vit = random_backbone("timm:vit_tiny_patch16_224")
    with pytest.raises(BackboneError, match="has no class token"):
        resolve_taps(vit, ["patch_embed:cls"])
    with pytest.raises(BackboneError, match="does not tell channels from positions"):
        resolve_taps(vit, ["blocks.0.attn.q_norm:avg"])


def test_a_network_that_rejects_its_input():
    backbone = load_backbone(BackboneRequest(name=NETWORKS + "picky"))
    with pytest.raises(
        BackboneError, match=r"rejects images of 32x32 pixels: .*; --crop and --resize set another size"
    ) as caught:
        resolve_taps(backbone, ["default"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("batch_mixer", "gives an image other features when other images are in its batch .*: it mixes the images"),
        (
            "chaotic",
            "the same in double precision, so it enlarges the roundings .* draw others with --weights-seed",
        ),
        ("needs_company", "takes two images but not one"),
        ("drunk", "gives other features each time it sees an image"),
    ],
)
def test_features_that_depend_on_more_than_the_image(name, message):
    backbone = load_backbone(BackboneRequest(name=NETWORKS + name))
    with pytest.raises(BackboneError, match=message) as caught:
        resolve_taps(backbone, ["default"])
    assert "\n" not in str(caught.value)


def test_an_honest_tap_before_a_dishonest_layer_is_fine():
    backbone = load_backbone(BackboneRequest(name=NETWORKS + "batch_mixer"))
    assert resolve_taps(backbone, ["conv:avg"])
    with pytest.raises(BackboneError, match="tap 'norm:avg'"):
        resolve_taps(backbone, ["conv:avg", "norm:avg"])


def test_a_network_left_in_train_mode_is_put_into_eval_mode(small):
    left = load_backbone(BackboneRequest(name=NETWORKS + "left_training"))
    assert not any(module.training for module in left.module.modules())
    images_BCHW = torch.randn(2, 3, 32, 32)
    both = [TappedBackbone(b, resolve_taps(b, ["default"]))(images_BCHW)["pre_logits:none"] for b in (left, small)]
    assert torch.equal(*both)


def test_windows_are_no_rows_per_image():
    backbone = load_backbone(BackboneRequest(name=NETWORKS + "windows"))
    with pytest.raises(BackboneError, match=r"does not give one row per image \(two images gave \(8, 3, 32, 8\)\)"):
        resolve_taps(backbone, ["parts"])


def test_control_flow_that_depends_on_the_images():
    backbone = load_backbone(BackboneRequest(name=NETWORKS + "only_twice"))
    taps = resolve_taps(backbone, ["step:avg", "exit:avg"])
    assert [tap.num_calls for tap in taps] == [3, 1]
    tapped = TappedBackbone(backbone, taps)
    assert len(tapped(torch.ones(1, 3, 32, 32))) == 2
    with pytest.raises(BackboneError, match="ran 1 times in this forward pass instead of 3"):
        tapped(torch.zeros(1, 3, 32, 32))


def test_several_poolings_of_a_node_in_one_pass(random_backbone):
    backbone = random_backbone("timm:vit_tiny_patch16_224")
    names = [f"blocks.3:{pooling}" for pooling in ("cls", "mean", "cls+mean", "max", "gem", "grid2", "none")]
    calls = []
    backbone.module.blocks[3].register_forward_hook(lambda *_: calls.append(1))
    backbone.module.blocks[4].register_forward_hook(lambda *_: calls.append("too far"))
    taps = resolve_taps(backbone, names)
    calls.clear()
    with torch.inference_mode():
        features = TappedBackbone(backbone, taps)(torch.randn(2, 3, 224, 224))
    assert list(features) == names
    assert calls == [1]
    tokens_BTD = features["blocks.3:none"]
    assert torch.equal(features["blocks.3:cls+mean"][:, :192], tokens_BTD[:, 0])
    torch.testing.assert_close(features["blocks.3:grid2"].mean((2, 3)), tokens_BTD[:, 1:].mean(1))


def test_registers_are_no_class_token(random_backbone):
    backbone = random_backbone("timm:test_vit2")
    assert (backbone.num_prefix_tokens, backbone.has_class_token) == (1, False)
    (tap,) = resolve_taps(backbone, ["blocks.0"])
    assert (tap.pooling, tap.num_prefix_tokens) == ("mean", 1)
    with pytest.raises(BackboneError, match=r"blocks.0 has no class token; poolings that fit: .*mean"):
        resolve_taps(backbone, ["blocks.0:cls"])


def test_before_and_after_the_final_norm(random_backbone):
    backbone = random_backbone("timm:vit_tiny_patch16_224")
    taps = resolve_taps(backbone, ["blocks.11:cls", "norm:cls"])
    with torch.inference_mode():
        before, after = TappedBackbone(backbone, taps)(torch.randn(2, 3, 224, 224)).values()
        torch.testing.assert_close(backbone.module.norm(before), after)
    assert not torch.allclose(before, after)


def test_nodes_are_listed_with_shapes(small):
    nodes = {node.name: node for node in list_nodes(small)}
    assert list(nodes) == ["input", "body", "body.0", "body.1", "body.2", "act", "head", "pre_logits"]
    assert nodes["body"].output_shape == (8, 8, 8)
    assert (nodes["input"].output_shape, nodes["input"].num_parameters, nodes["input"].flops) == ((3, 32, 32), 0, 0)
    assert nodes["body.0"].num_parameters == 3 * 8 * 9 + 8
    assert nodes["pre_logits"].output_shape == (8,)
