"""A tail trained on cached activations is the network trained with everything before it frozen."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from conftest import need
from torch import nn

from featurecache.backbones.backbone import Backbone
from featurecache.backbones.cutting import cut
from featurecache.backbones.registry import load_backbone
from featurecache.finetuning.factories import layer_factory
from featurecache.heads.gradient.finetuned import FineTunedClassifier
from featurecache.specs import BackboneRequest

EPOCHS, BATCH, RATE, ROWS = 3, 8, 3e-3, 16


def backbone_of(name: str) -> Backbone:
    need("timm")
    small = () if "vit" in name else (("resize", 64), ("crop", 64))  # transformers are of one size
    return load_backbone(BackboneRequest(name=name, preprocess=small, init="random"))


def recomputed_losses(backbone: Backbone, tap: str, images: torch.Tensor, y: torch.Tensor, seed: int) -> list[float]:
    """Train the whole network the slow way: images through all layers at each step, those before the cut frozen."""
    trained = set(cut(backbone, tap).trainable)
    network = backbone.module.eval()
    for name, p in network.named_parameters():
        p.requires_grad_(name in trained)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        output = nn.Linear(network(images[:2]).shape[1], int(y.max()) + 1)
    parts = [
        (p, RATE if module is output else RATE / 10)
        for module in (network, output)
        for p in module.parameters()
        if p.requires_grad
    ]
    groups = [{"params": [p], "lr": rate, "weight_decay": 0.05 if p.ndim > 1 else 0.0} for p, rate in parts]
    optimizer = torch.optim.AdamW(groups)
    steps, losses = math.ceil(len(y) / BATCH), []
    total, warm = EPOCHS * steps, int(0.1 * EPOCHS * steps)
    for epoch in range(EPOCHS):
        order = np.random.default_rng([seed, epoch]).permutation(len(y))
        for places in np.array_split(order, steps):
            step = len(losses)
            part = (
                (step + 1) / (warm + 1) if step < warm else (1 + math.cos(math.pi * (step - warm) / (total - warm))) / 2
            )
            loss = nn.functional.cross_entropy(output(network(images[places])), y[places])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_([p for p, _ in parts], 1.0)
            for group, (_, rate) in zip(optimizer.param_groups, parts, strict=True):
                group["lr"] = rate * part
            optimizer.step()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("name", "tap"),
    [
        ("timm:test_resnet", "layer3:none"),
        ("timm:test_efficientnet", "blocks.1:none"),
        ("timm:test_vit", "blocks.2:none"),
        ("timm:test_convnext", "stages.1:none"),
        ("timm:test_resnet", "input:none"),
    ],
)
def test_losses_are_those_of_a_network_whose_frozen_part_is_recomputed(name: str, tap: str) -> None:
    backbone = backbone_of(name)
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(ROWS) % 3
    side = backbone.preprocess.crop
    images = torch.randn(ROWS, 3, side, side, generator=generator) + y.view(-1, 1, 1, 1) / 2
    caught: list[torch.Tensor] = []
    if tap == "input:none":
        caught.append(images)
    else:
        layer = backbone.module.get_submodule(tap.removesuffix(":none"))
        handle = layer.register_forward_hook(lambda _module, _inputs, out: caught.append(out.clone()))
        with torch.inference_mode():
            backbone.module(images)
        handle.remove()
    activations = caught[0].numpy()

    head = FineTunedClassifier(
        layer_factory("tail", tap, activations.shape[1:], backbone),
        shape=activations.shape[1:],
        learning_rate=RATE,
        epochs=EPOCHS,
        batch_size=BATCH,
        random_state=5,
    ).fit(activations.reshape(ROWS, -1), y.numpy())

    expected = recomputed_losses(backbone, tap, images, y, seed=5)
    assert len(head.losses_) == len(expected) == 6
    np.testing.assert_allclose(head.losses_, expected, rtol=0, atol=1e-4)
    assert expected[-1] < expected[0]


def test_a_network_that_ends_in_a_map_is_pooled_before_the_new_output_layer() -> None:
    """SqueezeNet's output layer is a convolution: flattened, its input would be 86,528 features instead of 512."""
    need("torchvision")
    backbone = load_backbone(BackboneRequest(name="torchvision:squeezenet1_1", init="random"))
    layers = layer_factory("tail", "features.10:none", (384, 13, 13), backbone)(3)
    assert layers.output is not None
    assert layers.output.in_features == 512
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    caught: dict[str, torch.Tensor] = {}
    for node in ("features.10", "classifier.0"):
        layer = backbone.module.get_submodule(node)
        layer.register_forward_hook(lambda _module, _inputs, out, node=node: caught.update({node: out}))
    with torch.inference_mode():
        backbone.module(images)
        torch.testing.assert_close(layers.eval().features(caught["features.10"]), caught["classifier.0"].mean((2, 3)))


def test_parameters_of_a_tail_are_named_in_the_order_in_which_they_are_used() -> None:
    """A graph registers `norm` before `blocks.3`; learning rates that fall towards the first layer must not."""
    names = cut(backbone_of("timm:test_vit"), "blocks.2").trainable
    assert list(dict.fromkeys(name.rpartition(".")[0].partition(".attn")[0][:8] for name in names)) == [
        "blocks.3", "blocks.4", "blocks.5", "norm",
    ]  # fmt: skip


@pytest.mark.parametrize("tap", ["blocks.9:none", pytest.param("input:none", marks=pytest.mark.slow)])
def test_a_distilled_network_ends_in_the_mean_of_both_tokens_as_it_does_itself(tap: str) -> None:
    """With its own output layer on both tokens, the tail gives the network's own answers before any step."""
    need("timm")
    backbone = load_backbone(BackboneRequest(name="timm:deit_tiny_distilled_patch16_224", init="random"))
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    seen = {"input": images}
    backbone.module.blocks[9].register_forward_hook(
        lambda _module, _inputs, out: seen.update({"blocks.9": out.clone()})
    )
    layers = layer_factory("tail", tap, (), backbone)(5).eval()
    with torch.inference_mode():
        ended = backbone.module(images)
        activations = seen[tap.removesuffix(":none")]
        torch.testing.assert_close(layers.features(activations), ended)
        first = layer_factory("tail", tap, (), backbone, joined=False)(5).eval().features(activations)
        assert (first - ended).abs().max() > 1e-2, "the class token alone is something else"
        whole = copy.deepcopy(backbone.module)
        whole.head = whole.head_dist = layers.output
        torch.testing.assert_close(layers(activations), whole(images))
