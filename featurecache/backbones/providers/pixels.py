"""What there is without transfer: the pixels of a small picture, and the histogram of its colours.

They are backbones like all others, so that a pretrained network is compared with them on the same samples, by the same
heads and folds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from featurecache.backbones.provider import Provided, WeightlessProvider
from featurecache.errors import UnknownNameError
from featurecache.specs import PreprocessSpec

if TYPE_CHECKING:
    from torch import nn

_SIDES = (8, 16, 32, 64)
_COLOUR_SIDE = 64
_JOINT_BINS, _CHANNEL_BINS = 4, 16
# Keeps the whole picture, in numbers from 0 to 1.
_WHOLE_PICTURE = PreprocessSpec(resize_mode="squash", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class PixelsProvider(WeightlessProvider):
    """Provides ``pixels:N``: the numbers of the picture at N x N, any shape made square."""

    names = tuple(f"pixels:{side}" for side in _SIDES)
    kind = "pixels"

    def build(self, name: str, *, pretrained: bool, weights: Path | None, keep_classifier: bool) -> Provided:
        """Build a network that flattens its input.

        Parameters
        ----------
        name, pretrained, weights, keep_classifier
            See `Provider.build`. There are no weights.
        """
        if not name.isdecimal() or not 1 <= int(name) <= 224:
            raise UnknownNameError("backbone", f"pixels:{name}", self.list_names(), advice="give a side from 1 to 224")
        self.check_pretrained(f"pixels:{name}", pretrained=pretrained)
        from torch import nn

        module = nn.Sequential(nn.Flatten())
        preprocess = _WHOLE_PICTURE.override(resize=int(name), crop=int(name))
        return Provided(module=module, preprocess=preprocess, weights_source="none, the pixels themselves")


class ColoursProvider(WeightlessProvider):
    """Provides ``colours``: a histogram of the colours of the picture, without their places."""

    names = ("colours",)
    kind = "colours"
    settings: ClassVar[Mapping[str, object]] = {"joint": _JOINT_BINS, "channel": _CHANNEL_BINS}

    def build(self, name: str, *, pretrained: bool, weights: Path | None, keep_classifier: bool) -> Provided:
        """Build a network that counts.

        Parameters
        ----------
        name, pretrained, weights, keep_classifier
            See `Provider.build`. There are no weights.
        """
        self.check_pretrained(name, pretrained=pretrained)
        preprocess = _WHOLE_PICTURE.override(resize=_COLOUR_SIDE, crop=_COLOUR_SIDE)
        return Provided(module=_histogram(), preprocess=preprocess, weights_source="none, a histogram of colours")


def _histogram() -> nn.Module:
    import torch
    from torch import nn
    from torch.nn.functional import one_hot

    class Histogram(nn.Module):
        """Shares of pixels in each of 4 x 4 x 4 boxes of colour, and in 16 bins of each channel."""

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            joint = (pixels * _JOINT_BINS).long().clamp(0, _JOINT_BINS - 1).flatten(2)
            box = (joint[:, 0] * _JOINT_BINS + joint[:, 1]) * _JOINT_BINS + joint[:, 2]
            shares = [one_hot(box, _JOINT_BINS**3).float().mean(1)]
            channel = (pixels * _CHANNEL_BINS).long().clamp(0, _CHANNEL_BINS - 1).flatten(2)
            shares += [one_hot(channel[:, k], _CHANNEL_BINS).float().mean(1) for k in range(3)]
            return torch.cat(shares, dim=1)

    return Histogram()
