"""Poolings against the arithmetic written out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featurecache.backbones.pooling import POOLINGS, is_pooling, pool, pooled_shape, takes

MAPS_BCHW = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
TOKENS_BTD = torch.randn(2, 2 + 16, 5, generator=torch.Generator().manual_seed(1))


def pooled(output, pooling, layout, num_prefix_tokens=0):
    return pool(output, pooling=pooling, layout=layout, num_prefix_tokens=num_prefix_tokens)


def by_hand(places_BNC, pooling):
    """Pool (B, places, C)."""
    if pooling == "gem":
        return (places_BNC.clamp(min=1e-6) ** 3).mean(1) ** (1 / 3)
    mean, largest = places_BNC.mean(1), places_BNC.max(1).values
    return {"avg": mean, "mean": mean, "max": largest, "avgmax": torch.cat([mean, largest], 1)}[pooling]


@pytest.mark.parametrize("pooling", ["avg", "max", "avgmax", "gem"])
def test_maps_in_both_layouts(pooling):
    expected = by_hand(MAPS_BCHW.flatten(2).transpose(1, 2), pooling)
    torch.testing.assert_close(pooled(MAPS_BCHW, pooling, "BCHW"), expected)
    torch.testing.assert_close(pooled(MAPS_BCHW.permute(0, 2, 3, 1), pooling, "BHWC"), expected)


@pytest.mark.parametrize("pooling", ["mean", "max", "avgmax", "gem"])
def test_tokens_without_their_prefix(pooling):
    expected = by_hand(TOKENS_BTD[:, 2:], pooling)
    torch.testing.assert_close(pooled(TOKENS_BTD, pooling, "BTD", 2), expected)


def test_class_token():
    assert torch.equal(pooled(TOKENS_BTD, "cls", "BTD", 2), TOKENS_BTD[:, 0])
    both = torch.cat([TOKENS_BTD[:, 0], TOKENS_BTD[:, 2:].mean(1)], 1)
    torch.testing.assert_close(pooled(TOKENS_BTD, "cls+mean", "BTD", 2), both)


def test_gem_is_the_published_formula():
    maps_BCHW = torch.tensor([[[[1.0, 2.0], [3.0, -7.0]]]])
    assert pooled(maps_BCHW, "gem", "BCHW").item() == pytest.approx(((1 + 8 + 27 + 1e-18) / 4) ** (1 / 3))
    assert pooled(-torch.ones(1, 1, 2, 2), "gem", "BCHW").item() == pytest.approx(1e-6)


def test_grids_keep_the_place():
    cells = MAPS_BCHW.reshape(2, 3, 2, 3, 2, 3).mean((3, 5))
    torch.testing.assert_close(pooled(MAPS_BCHW, "grid2", "BCHW"), cells)
    torch.testing.assert_close(pooled(MAPS_BCHW.permute(0, 2, 3, 1), "grid2", "BHWC"), cells)
    patches_BCHW = TOKENS_BTD[:, 2:].transpose(1, 2).reshape(2, 5, 4, 4)
    torch.testing.assert_close(
        pooled(TOKENS_BTD, "grid2", "BTD", 2), patches_BCHW.reshape(2, 5, 2, 2, 2, 2).mean((3, 5))
    )
    torch.testing.assert_close(pooled(TOKENS_BTD, "grid4", "BTD", 2), patches_BCHW)


@given(pooling=st.sampled_from([*POOLINGS, "grid3"]), layout=st.sampled_from(["BCHW", "BHWC", "BTD", "other"]))
def test_the_shape_is_what_was_promised_and_memory_is_not_shared(pooling, layout):
    if (takes(pooling) or (layout,)).count(layout) == 0:
        return
    output = torch.rand(2, 9, 4) if layout == "BTD" else torch.rand(2, 3, 3, 3)
    features = pooled(output, pooling, layout)
    assert features.shape[1:] == pooled_shape(pooling, layout, tuple(output.shape[1:]))
    before = features.clone()
    output.zero_()
    assert torch.equal(features, before)


def test_names():
    assert all(map(is_pooling, (*POOLINGS, "grid1", "grid7", "grid14")))
    assert not any(map(is_pooling, ("grid", "grid0", "grid100", "gridN", "avg+max", "")))
