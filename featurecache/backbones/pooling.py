"""How a node's output becomes the features of a tap.

Three layouts are known: maps (B, C, H, W), the same with the channels last (B, H, W, C), and tokens (B, T, D). Maps and
patch tokens both have *positions*; class, distillation and register tokens come before the patches and have none.

Axes: B batch, C channels, H height, W width, T tokens, D features.
"""

from __future__ import annotations

import math
import re
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

Layout = Literal["BCHW", "BHWC", "BTD", "text", "other"]
"""``text`` is (B, T, D) as well, but all of its tokens are positions, and some of them are padding."""

POOLINGS = ("avg", "avgmax", "cls", "cls+mean", "flatten", "gem", "grid2", "max", "mean", "none")
"""Names to show; any ``gridN`` is a pooling too."""

GEM_P, GEM_EPS = 3.0, 1e-6

_GRID = re.compile(r"grid([1-9]\d?)$")
_AXES: dict[Layout, tuple[int, ...]] = {"BCHW": (2, 3), "BHWC": (1, 2), "BTD": (1,), "text": (1,)}
_TAKES: dict[str, tuple[Layout, ...]] = {
    "avg": ("BCHW", "BHWC"),
    "mean": ("BTD", "text"),
    "cls": ("BTD", "text"),
    "cls+mean": ("BTD", "text"),
    "max": ("BCHW", "BHWC", "BTD", "text"),
    "avgmax": ("BCHW", "BHWC", "BTD", "text"),
    "gem": ("BCHW", "BHWC", "BTD", "text"),
    "grid": ("BCHW", "BHWC", "BTD"),
}


def grid_side(pooling: str) -> int | None:
    """Return the N of ``gridN``, ``None`` for every other name."""
    found = _GRID.match(pooling)
    return int(found[1]) if found else None


def is_pooling(name: str) -> bool:
    """Tell whether a pooling has this name."""
    return name in POOLINGS or grid_side(name) is not None


def takes(pooling: str) -> tuple[Layout, ...] | None:
    """Return the layouts that a pooling makes sense for; ``None``: every one."""
    return _TAKES.get("grid" if grid_side(pooling) else pooling)


def pooled_shape(pooling: str, layout: Layout, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of one sample's features.

    Parameters
    ----------
    pooling, layout
        What is done with what.
    shape
        Of one sample's output.
    """
    if takes(pooling) is None:
        return (math.prod(shape),) if pooling == "flatten" else shape
    num_channels = shape[0] if layout == "BCHW" else shape[-1]
    if side := grid_side(pooling):
        return (num_channels, side, side)
    return (2 * num_channels,) if pooling in ("avgmax", "cls+mean") else (num_channels,)


def pool(
    output: Tensor, *, pooling: str, layout: Layout, num_prefix_tokens: int, mask_BT: Tensor | None = None
) -> Tensor:
    """Pool a batch of outputs. Of texts, padding counts nowhere, and is zero where tokens are kept.

    ============  =====================================================================================
    ``avg``       mean over the positions of a map
    ``mean``      mean over the patch tokens
    ``max``       largest value over the positions
    ``avgmax``    mean over the positions, then the largest values: (B, 2 C)
    ``gem``       generalised mean over the positions, ``mean(max(x, 1e-6) ** p) ** (1 / p)`` with p = 3
                  (Radenovic, Tolias and Chum 2018). p = 1 would be ``avg``, a large p ``max``. Values below
                  the clamp count as zero, so it suits features that are not negative (after a ReLU)
    ``cls``       the class token
    ``cls+mean``  the class token, then the mean over the patch tokens: (B, 2 D)
    ``gridN``     N x N means over the positions, channels first: (B, C, N, N). Where N does not divide the
                  side, neighbouring cells overlap by a row or column
    ``flatten``   everything as one row
    ``none``      everything as it is
    ============  =====================================================================================

    Parameters
    ----------
    output
        (B, ...) float.
    pooling, layout
        What to do with what.
    num_prefix_tokens
        Tokens in front of the patch tokens.
    mask_BT
        Of texts, which tokens are there.

    Returns
    -------
    features
        (B, ...), never sharing memory with ``output``: the next layer may write into that.
    """
    if layout == "text":
        assert mask_BT is not None
        return _pool_text(output, pooling, mask_BT[..., None])
    if pooling in ("none", "flatten"):
        return (output if pooling == "none" else output.flatten(1)).clone()
    if side := grid_side(pooling):
        return adaptive_avg_pool2d(_as_maps(output, layout, num_prefix_tokens), side)
    positions, axes = output[:, num_prefix_tokens:] if layout == "BTD" else output, _AXES[layout]
    if pooling == "gem":
        return positions.clamp(min=GEM_EPS).pow(GEM_P).mean(dim=axes).pow(1 / GEM_P)
    pooled = [output[:, 0].clone()] if pooling in ("cls", "cls+mean") else []
    if pooling in ("avg", "mean", "avgmax", "cls+mean"):
        pooled.append(positions.mean(dim=axes))
    if pooling in ("max", "avgmax"):
        pooled.append(torch.amax(positions, dim=axes))
    return pooled[0] if len(pooled) == 1 else torch.cat(pooled, dim=1)


def _as_maps(output: Tensor, layout: Layout, num_prefix_tokens: int) -> Tensor:
    if layout == "BCHW":
        return output
    if layout == "BHWC":
        return output.permute(0, 3, 1, 2)
    # Rows of patches first: tokens are numbered along the width, as a convolution lays them out.
    patches_BDT = output[:, num_prefix_tokens:].transpose(1, 2)
    return patches_BDT.unflatten(2, (math.isqrt(patches_BDT.shape[2]),) * 2)


def _pool_text(tokens_BTD: Tensor, pooling: str, mask_BT1: Tensor) -> Tensor:
    # Not multiplied by zero: what stands at padding may be NaN.
    present_BTD = torch.where(mask_BT1, tokens_BTD, 0)
    # At least 1: the mask has the first token of each text, of padding as well.
    counts_B1 = mask_BT1.sum(dim=1)
    if pooling in ("none", "flatten"):
        return present_BTD if pooling == "none" else present_BTD.flatten(1)
    if pooling == "cls":
        return present_BTD[:, 0].clone()
    mean_BD = present_BTD.sum(dim=1) / counts_B1
    if pooling == "mean":
        return mean_BD
    if pooling == "cls+mean":
        return torch.cat([tokens_BTD[:, 0], mean_BD], dim=1)
    if pooling == "gem":
        powers_BTD = torch.where(mask_BT1, tokens_BTD.clamp(min=GEM_EPS).pow(GEM_P), 0)
        return (powers_BTD.sum(dim=1) / counts_B1).pow(1 / GEM_P)
    # Padding is never the largest, also where all else is negative; each text has its first token.
    largest_BD = torch.amax(torch.where(mask_BT1, tokens_BTD, -torch.inf), dim=1)
    return largest_BD if pooling == "max" else torch.cat([mean_BD, largest_BD], dim=1)
