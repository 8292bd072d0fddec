"""What there is without transfer: the pixels of a small picture, and the histogram of its colours.

They are backbones like all others, so that a pretrained network is compared with them on the same samples, by the same
heads and folds.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from featurecache.backbones.provider import Provided, Provider
from featurecache.errors import BackboneError, UnknownNameError
from featurecache.hashing import digest_json
from featurecache.specs import PreprocessSpec

if TYPE_CHECKING:
    from torch import nn

_SIDES = (8, 16, 32, 64)
_COLOUR_SIDE = 64
_JOINT_BINS, _CHANNEL_BINS = 4, 16


def _plain(side: int) -> PreprocessSpec:
    """Return a preprocess that keeps the whole picture, in numbers from 0 to 1."""
    zeros, ones = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return PreprocessSpec(resize=side, crop=side, resize_mode="squash", mean=zeros, std=ones)


class PixelsProvider(Provider):
    """Provides ``pixels:N``: the numbers of the picture at N x N, any shape made square."""

    packages = ()

    def list_names(self) -> list[str]:
        """Return the usual sizes."""
        return [f"pixels:{side}" for side in _SIDES]

    def build(self, name: str, *, pretrained: bool, weights: Path | None, keep_classifier: bool) -> Provided:
        """Build a network that flattens its input.

        Parameters
        ----------
        name, pretrained, weights, keep_classifier
            See `Provider.build`. There are no weights.
        """
        if not name.isdecimal() or not 1 <= int(name) <= 224:
            raise UnknownNameError("backbone", f"pixels:{name}", self.list_names(), advice="give a side from 1 to 224")
        _check_pretrained(f"pixels:{name}", pretrained=pretrained)
        from torch import nn

        module = nn.Sequential(nn.Flatten())
        return Provided(module=module, preprocess=_plain(int(name)), weights_source="none, the pixels themselves")

    def own_weights_digest(self, name: str) -> str | None:
        """There are none, which is always the same."""
        return digest_json("pixels", 1, {})

    def reproducible(self, name: str) -> bool:
        """The name says everything."""
        return True


class ColoursProvider(Provider):
    """Provides ``colours``: a histogram of the colours of the picture, without their places."""

    packages = ()

    def list_names(self) -> list[str]:
        """Return the one name."""
        return ["colours"]

    def build(self, name: str, *, pretrained: bool, weights: Path | None, keep_classifier: bool) -> Provided:
        """Build a network that counts.

        Parameters
        ----------
        name, pretrained, weights, keep_classifier
            See `Provider.build`. There are no weights.
        """
        _check_pretrained(name, pretrained=pretrained)
        return Provided(
            module=_histogram(), preprocess=_plain(_COLOUR_SIDE), weights_source="none, a histogram of colours"
        )

    def own_weights_digest(self, name: str) -> str | None:
        """There are none, which is always the same."""
        return digest_json("colours", 1, {"joint": _JOINT_BINS, "channel": _CHANNEL_BINS})

    def reproducible(self, name: str) -> bool:
        """The name says everything."""
        return True


def _check_pretrained(name: str, *, pretrained: bool) -> None:
    """Refuse other weights: there are none."""
    if not pretrained:
        raise BackboneError(f"{name} has no weights; leave --init and --weights out")


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
