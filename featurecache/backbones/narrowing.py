"""The rest of a transformer without what nobody looks at.

Where a network goes on with its class token alone, its last block needs the other tokens as keys and values only: their
queries, projections and perceptrons are computed for nothing, forward and backward. That is five sixths of the block's
products of matrices. The numbers that are left are the same, but for the order in which sums are rounded.
"""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

_TOLERANCE = 1e-4
"""Of the largest number; what narrowing a block changes that ought not to be is of the size of the numbers."""


class FirstTokenBlock(nn.Module):
    """A block of timm's vision transformers that puts out its first token only, (B, 1, C).

    Its layers are those of the block, under the same names.

    Parameters
    ----------
    block
        ``timm.models.vision_transformer.Block``.
    """

    norm1: nn.Module
    attn: nn.Module
    ls1: nn.Module
    drop_path1: nn.Module
    norm2: nn.Module
    mlp: nn.Module
    ls2: nn.Module
    drop_path2: nn.Module

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        for name, layer in block.named_children():
            self.add_module(name, layer)
        self.train(block.training)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Ask with the first token, and answer with all."""
        first_B1C = x_BTC[:, :1]
        attended = self.ls1(_attend(self.attn, self.norm1(x_BTC)))
        first_B1C = first_B1C + self.drop_path1(attended)
        changed: Tensor = first_B1C + self.drop_path2(self.ls2(self.mlp(self.norm2(first_B1C))))
        return changed


def _attend(attention: Any, x_BTC: Tensor) -> Tensor:
    """Return what ``timm.layers.Attention`` makes of the first token, (B, 1, C)."""
    width, heads, qkv = attention.attn_dim, attention.num_heads, attention.qkv
    bias_q, bias_kv = (None, None) if qkv.bias is None else (qkv.bias[:width], qkv.bias[width:])
    q = functional.linear(x_BTC[:, :1], qkv.weight[:width], bias_q)
    k, v = functional.linear(x_BTC, qkv.weight[width:], bias_kv).chunk(2, dim=2)
    q, k, v = (each.unflatten(2, (heads, attention.head_dim)).transpose(1, 2) for each in (q, k, v))
    q, k = attention.q_norm(q), attention.k_norm(k)
    out = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    projected: Tensor = attention.proj_drop(attention.proj(attention.norm(out)))
    return projected


def narrowed(tail: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """Return the rest of a network with a narrower last block, or as it is where that cannot be.

    Parameters
    ----------
    tail
        From `featurecache.backbones.cutting.cut`; stays as it is.
    shape
        Of the activations of one sample.
    """
    if not isinstance(tail, fx.GraphModule) or (path := _last_block(tail)) is None:
        return tail
    narrow = copy.deepcopy(tail)
    parent, _, name = path.rpartition(".")
    setattr(narrow.get_submodule(parent), name, FirstTokenBlock(narrow.get_submodule(path)))
    activations = made_up_activations(shape)
    try:
        with torch.inference_mode():
            found, expected = narrow(activations), tail(activations)
    # Another release of timm may compute it otherwise.
    except Exception:
        return tail
    same = found.shape == expected.shape and (found - expected).abs().max() <= _TOLERANCE * expected.abs().max()
    return narrow if same else tail


def made_up_activations(shape: tuple[int, ...]) -> Tensor:
    """Make activations of two samples up, the same ones each time."""
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))


def _last_block(tail: fx.GraphModule) -> str | None:
    """Return the path of a block of whose output, through layers that see tokens singly, only the first is used."""
    for node in tail.graph.nodes:
        if node.op != "call_module":
            continue
        path = _end_of(tail, str(node.target))
        if not _is_plain(tail.get_submodule(path)):
            continue
        after = node
        while len(after.users) == 1:
            after = next(iter(after.users))
            if _takes_the_first(after):
                return path
            layer = tail.get_submodule(after.target) if after.op == "call_module" else None
            if not isinstance(layer, nn.LayerNorm | nn.Identity):
                break
    return None


def _end_of(tail: nn.Module, path: str) -> str:
    """Return the path of the layer whose output a chain of layers puts out."""
    while isinstance(layer := tail.get_submodule(path), nn.Sequential) and len(layer):
        path = f"{path}.{list(layer._modules)[-1]}"
    return path


def _takes_the_first(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target is operator.getitem and node.args[1] == (slice(None), 0)


def _is_plain(block: nn.Module) -> bool:
    """Tell whether a block is of the kind that is known here, and draws nothing at random."""
    attention = getattr(block, "attn", None)
    kinds = [f"{type(each).__module__}.{type(each).__name__}" for each in (block, attention)]
    draws = [each for each in block.modules() if type(each).__name__ == "DropPath" or getattr(each, "p", None)]
    known = ["timm.models.vision_transformer.Block", "timm.layers.attention.Attention"]
    return kinds == known and not draws and getattr(attention, "gate", None) is None
