"""Parameters are grouped by the blocks that `--tap blocks` names, in the order in which they run."""

from __future__ import annotations

import pytest
from torch import nn

from featurecache.backbones.depth import depth_groups
from featurecache.backbones.dry_run import dry_run
from featurecache.backbones.registry import load_backbone
from featurecache.backbones.suggestions import suggested_nodes
from featurecache.heads.gradient.trainable import TrainableLayers, layer_factors
from featurecache.specs import BackboneRequest

# Name, crop, and how many groups there are: the blocks, what comes before them, and what comes after them.
FAMILIES = [
    ("torchvision:densenet121", 32, 60),
    ("torchvision:regnet_y_400mf", 32, 17),
    ("torchvision:mobilenet_v3_small", 32, 13),
    ("torchvision:squeezenet1_1", 64, 9),
    ("timm:test_vit", None, 8),
]
LARGER = [
    ("torchvision:efficientnet_b0", 32, 18),
    ("torchvision:mnasnet0_5", 32, 18),
    ("torchvision:shufflenet_v2_x0_5", 32, 18),
    ("torchvision:resnet18", 32, 9),
    ("torchvision:googlenet", 64, 10),
    ("torchvision:vit_b_16", None, 14),
    ("torchvision:swin_t", 64, 14),
    ("torchvision:convnext_tiny", 64, 20),
    ("torchvision:vgg11", 32, 9),
    ("torchvision:maxvit_t", 224, 13),
    ("torchvision:inception_v3", 128, 12),
    ("timm:levit_128s", None, 11),
    ("timm:deit_tiny_distilled_patch16_224", None, 14),
    ("timm:beit_base_patch16_224", None, 14),
    ("timm:mixer_s32_224", None, 10),
    ("timm:cait_xxs24_224", None, 28),
]


def drawn(name, crop=None):
    changes = (("crop", crop), ("resize", crop)) if crop else ()
    return load_backbone(BackboneRequest(name=name, init="random", preprocess=changes))


def groups_of(backbone):
    seen = dry_run(backbone)
    blocks = suggested_nodes(backbone, seen)["blocks"]
    names = [name for name, _ in backbone.module.named_parameters()]
    return seen, blocks, depth_groups(seen, blocks, names)


@pytest.mark.parametrize(
    ("name", "crop", "num_groups"),
    [*FAMILIES, *(pytest.param(*larger, marks=pytest.mark.slow) for larger in LARGER)],
)
def test_groups_are_the_blocks_and_grow_with_the_order_in_which_layers_run(name, crop, num_groups):
    backbone = drawn(name, crop)
    seen, blocks, groups = groups_of(backbone)
    assert set(groups.values()) == set(range(num_groups))
    assert num_groups <= len(blocks) + 2
    for block in blocks:
        assert len({group for each, group in groups.items() if each.startswith(f"{block}.")}) <= 1
    owners = {each.rpartition(".")[0]: group for each, group in groups.items()}
    ran = sorted((each for each in owners if each in seen.order), key=seen.order.__getitem__)
    leaves = [each for each in ran if not any(block.startswith(f"{each}.") for block in blocks)]
    depths = [owners[each] for each in leaves]
    assert len(depths) > num_groups / 2
    assert depths == sorted(depths)

    layers = TrainableLayers(backbone.module.requires_grad_(True), nn.Linear(2, 2), groups)
    factors = layer_factors(layers, 0.75)
    backbone.module.requires_grad_(False)
    of_group = {group: factors[f"body.{each}"] for each, group in groups.items()}
    expected = [0.75 ** (num_groups - 1 - group) for group in range(num_groups)]
    assert [of_group[group] for group in range(num_groups)] == pytest.approx(expected)


def test_class_tokens_and_positions_belong_to_the_stem():
    _, _, groups = groups_of(drawn("timm:test_vit"))
    stem = {name for name, group in groups.items() if group == 0}
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight"} <= stem
    assert groups["norm.weight"] == max(groups.values())
