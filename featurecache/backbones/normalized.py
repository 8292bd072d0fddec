"""Loaded inputs in, features out: what every runtime executes."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from featurecache.backbones.input_kinds import input_kind_of
from featurecache.backbones.taps import TappedBackbone
from featurecache.specs import AnyPreprocess

Features = dict[str, np.ndarray]
"""Tap name -> float32 (B, ...)."""


class Normalized(nn.Module):
    """Loaded inputs in, features out: the last step of the preprocess happens on the device.

    Parameters
    ----------
    tapped
        The backbone.
    preprocess
        Of images, mean and standard deviation.
    """

    def __init__(self, tapped: TappedBackbone, preprocess: AnyPreprocess) -> None:
        super().__init__()
        self.tapped = tapped
        self.prepare = input_kind_of(preprocess).prepare(preprocess)

    def forward(self, batch: Tensor) -> tuple[Tensor, ...]:
        """Return the features in the order of the taps; a tuple, because tracing knows no other order."""
        features = self.tapped(self.prepare(batch))
        return tuple(features[tap.name] for tap in self.tapped.taps)
