"""Reading the layout of a node's output from its shape, and from what the network does elsewhere.

Images are square, so the two equal axes of a map are height and width, and patch tokens make a square number. Of texts,
an output is either tokens, as many as the text has with its padding, or something else.
"""

from __future__ import annotations

import math

from torch import nn

from featurecache.backbones.backbone import Backbone
from featurecache.backbones.dry_run import PRE_LOGITS, DryRun
from featurecache.backbones.input_kinds import input_kind_of, is_text
from featurecache.backbones.pooling import Layout

_CHANNELS_FIRST_LAYERS = (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_SEQUENCE_LAYERS = (nn.Conv1d, nn.BatchNorm1d, nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d)
# How many class and distillation tokens a network may have that its provider knows nothing about.
_MOST_UNKNOWN_PREFIX_TOKENS = 2


def layout_of(backbone: Backbone, seen: DryRun, node: str) -> Layout | None:
    """Tell the layout of a node that gives one row per image; ``None`` where channels cannot be told from positions.

    Parameters
    ----------
    backbone, seen
        The network, and a dry run of it.
    node
        Name of the node.
    """
    shape = seen.per_sample(node)
    if is_text(backbone.preprocess):
        (num_tokens,) = input_kind_of(backbone.preprocess).shape(backbone.preprocess)  # padding included
        return "text" if shape is not None and len(shape) == 2 and shape[0] == num_tokens else "other"
    if shape is None or len(shape) not in (2, 3):
        return "other"
    modules = seen.modules
    if len(shape) == 2:
        # What convolutions over a sequence make has its channels first; one position is no sequence of tokens.
        is_sequence = isinstance(modules.get(node) if node != PRE_LOGITS else None, _SEQUENCE_LAYERS)
        return "other" if is_sequence or shape[1] == 1 else "BTD"
    last = _channels_last(shape, modules.get(node) if node != PRE_LOGITS else None)
    if last is None and len(set(shape)) == 1:
        # As many channels as rows: the network's other maps tell.
        maps = {other: whole[1:] for other, whole in seen.shapes.items() if len(whole) == 4}
        readings = {_channels_last(maps[other], modules.get(other)) for other in maps if other != PRE_LOGITS} - {None}
        last = readings.pop() if len(readings) == 1 else None
    return None if last is None else "BHWC" if last else "BCHW"


def prefix_tokens_at(backbone: Backbone, num_tokens: int) -> int | None:
    """Count the class and register tokens at a node: before they are joined, the patch tokens are alone.

    ``None`` if no reading fits: then patches cannot be told from the others.
    """
    num_prefix = backbone.num_prefix_tokens
    if is_text(backbone.preprocess):
        return 0
    # Before class and register tokens are joined, as after a patch embedding, the patches are alone.
    if is_square(num_tokens):
        return 0
    if num_prefix == 0:
        # 197 tokens are 14 x 14 patches and one more, of which nothing is known: not averaged in silence.
        suspicious = any(is_square(num_tokens - extra) for extra in range(1, _MOST_UNKNOWN_PREFIX_TOKENS + 1))
        return None if suspicious else 0
    return num_prefix if num_tokens > num_prefix and is_square(num_tokens - num_prefix) else None


def is_square(number: int) -> bool:
    """Tell whether so many patches fill a square."""
    return number > 0 and math.isqrt(number) ** 2 == number


def _channels_last(shape: tuple[int, ...], module: nn.Module | None) -> bool | None:
    first, middle, last = shape
    # Square maps: the two equal axes are height and width, wherever they stand.
    if (middle == last) != (first == middle):
        return first == middle
    return False if first == middle == last and isinstance(module, _CHANNELS_FIRST_LAYERS) else None
