"""Small layers to train instead of the rest of a network: ``--head layers:NAME``.

Axes: B batch, C channels, H height, W width, T tokens.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from featurecache.errors import HeadError, UnknownNameError

PREFIX = "layers:"
_NAMES = ("linear", "conv", "transformer", "mlp")
LIBRARY = tuple(PREFIX + name for name in _NAMES)
"""Names of the layers, as heads."""
_WIDTH, _HEADS = 256, 4
Shape = tuple[int, ...]


def make_body(name: str, shape: Shape) -> tuple[nn.Module, int]:
    """Return new layers, and how many features they end in.

    Parameters
    ----------
    name : str
        ``linear``, ``conv``, ``transformer`` or ``mlp``.
    shape : tuple of int
        Of one sample's activations: (D,), (T, D), (C, H, W), or (H, W, C) as some transformers have it.

    Raises
    ------
    UnknownNameError
        No such layers.
    HeadError
        They make no sense for the shape.
    """
    size = math.prod(shape)
    match name:
        case "linear":  # nothing: the output layer sees every activation
            return nn.Flatten(), size
        case "conv":
            return _conv(shape)
        case "transformer":
            return _transformer(shape)
        case "mlp":  # one hidden layer on every activation
            layers = [nn.Flatten(), nn.LayerNorm(size), nn.Linear(size, _WIDTH), nn.GELU(), nn.Dropout(0.1)]
            return nn.Sequential(*layers), _WIDTH
    raise UnknownNameError("layers", name, _NAMES, advice=f"write {PREFIX}conv, for example")


class Tokens(nn.Module):
    """Positions of an image as tokens: (B, C, H, W) to (B, T, C)."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B, T, C)."""
        return x_BCHW.flatten(2).transpose(1, 2)


class MeanOfTokens(nn.Module):
    """(B, T, C) to (B, C)."""

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Return (B, C)."""
        return x_BTC.mean(1)


def _conv(shape: Shape) -> tuple[nn.Module, int]:
    """One convolution of 3x3, and the mean over all positions."""
    if len(shape) != 3:
        raise HeadError(f"layers:conv is for activations (channels, height, width), not {shape}; try layers:mlp")
    # Group norm: it has no statistics, which batches of 32 would estimate badly.
    layers = [nn.Conv2d(shape[0], _WIDTH, 3, padding=1, bias=False), nn.GroupNorm(8, _WIDTH), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), _WIDTH


def _transformer(shape: Shape) -> tuple[nn.Module, int]:
    """One block of a transformer, its norm first, and the mean over all tokens."""
    if len(shape) not in (2, 3):
        raise HeadError(f"layers:transformer is for tokens or positions of an image, not for {shape}; try layers:mlp")
    width = shape[0] if len(shape) == 3 else shape[1]
    # The number of heads has to divide the width.
    heads = next(count for count in (_HEADS, 2, 1) if width % count == 0)
    block = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.1, batch_first=True, norm_first=True)
    first = [Tokens()] if len(shape) == 3 else []
    return nn.Sequential(*first, block, nn.LayerNorm(width), MeanOfTokens()), width
