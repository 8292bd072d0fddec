"""The rest of a transformer without what nobody looks at computes and learns the same."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from conftest import need

from featurecache.backbones.cutting import cut, valid_cuts
from featurecache.backbones.inspection import flops_of
from featurecache.backbones.narrowing import FirstTokenBlock, made_up_activations, narrowed
from featurecache.backbones.registry import load_backbone
from featurecache.specs import BackboneRequest


def backbone(name: str):
    need("timm")
    return load_backbone(BackboneRequest(name=name, init="random"))


def blocks(module: torch.nn.Module) -> list[torch.nn.Module]:
    return [each for each in module.modules() if isinstance(each, FirstTokenBlock)]


@pytest.mark.parametrize(
    ("name", "tap"),
    [
        ("timm:test_vit", "blocks.2"),
        ("timm:test_vit", "input"),
        ("timm:vit_tiny_patch16_224", "blocks.9"),
        ("timm:deit3_small_patch16_224", "blocks.10"),
    ],
)
def test_values_and_gradients_are_those_of_the_whole_block(name: str, tap: str) -> None:
    found = cut(backbone(name), tap)
    narrow = narrowed(found.tail, found.tap.shape)
    assert len(blocks(narrow)) == 1
    assert not blocks(found.tail)
    assert narrow.state_dict().keys() == found.tail.state_dict().keys()
    activations = torch.randn(5, *found.tap.shape, generator=torch.Generator().manual_seed(1))
    weights = torch.linspace(-1, 1, math.prod(found.tail(activations).shape[1:]))
    values, gradients = [], []
    for tail in (narrow, found.tail):
        x = activations.clone().requires_grad_()
        out = tail.train()(x)
        (out * weights).sum().backward()  # not squares: after a norm their sum never changes
        values.append(out)
        gradients.append({"x": x.grad, **{name: p.grad for name, p in tail.named_parameters() if p.requires_grad}})
    torch.testing.assert_close(*values, rtol=1e-5, atol=1e-5)
    assert gradients[0].keys() == gradients[1].keys()
    for key, expected in gradients[1].items():
        scale = float(expected.abs().max())
        torch.testing.assert_close(gradients[0][key], expected, rtol=0, atol=1e-4 * scale + 1e-7)


@pytest.mark.parametrize(
    ("name", "tap"),
    [("timm:test_vit4", "blocks.1"), ("timm:test_resnet", "layer3"), ("timm:test_convnext", "stages.1")],
)
def test_what_is_looked_at_as_a_whole_stays(name: str, tap: str) -> None:
    """A mean over tokens needs them all; a convolutional network has none."""
    found = cut(backbone(name), tap)
    assert narrowed(found.tail, found.tap.shape) is found.tail


def test_a_block_that_draws_at_random_stays() -> None:
    """Another number of draws would be another training."""
    found = cut(backbone("timm:test_vit"), "blocks.2")
    tail = copy.deepcopy(found.tail)
    (drop,) = [layer for name, layer in tail.named_modules() if name.endswith("attn.proj_drop")][-1:]
    drop.p = 0.1
    assert narrowed(tail, found.tap.shape) is tail


def test_a_block_that_computes_otherwise_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another release of timm may have other code under the same name: the numbers decide."""
    found = cut(backbone("timm:test_vit"), "blocks.2")
    block = type([m for m in found.tail.modules() if type(m).__name__ == "Block"][-1])
    forward = block.forward
    monkeypatch.setattr(block, "forward", lambda self, x: forward(self, x) + x.flip(2))
    assert narrowed(found.tail, found.tap.shape) is found.tail
    monkeypatch.undo()
    assert narrowed(found.tail, found.tap.shape) is not found.tail


def test_the_predicted_speed_up_counts_what_is_computed() -> None:
    network = backbone("timm:vit_tiny_patch16_224")
    found = cut(network, "blocks.9")
    predicted = next(each for each in valid_cuts(network) if each.tap == "blocks.9:none")
    narrow = flops_of(narrowed(found.tail, found.tap.shape), made_up_activations(found.tap.shape))
    assert predicted.flops_after == narrow
    assert narrow < 0.7 * flops_of(found.tail, made_up_activations(found.tap.shape))
    assert predicted.speedup == pytest.approx((predicted.flops_before + 3 * narrow) / (3 * narrow))
