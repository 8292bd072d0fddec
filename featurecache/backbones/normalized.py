"""Decoded images in, features out: what every runtime executes.

Axes: B batch, H height, W width, C channels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from featurecache.backbones.taps import TappedBackbone
from featurecache.specs import PreprocessSpec

Features = dict[str, np.ndarray]
"""Tap name -> float32 (B, ...)."""


class Normalized(nn.Module):
    """Decoded images in, features out: normalisation happens on the device.

    Parameters
    ----------
    tapped
        The backbone.
    preprocess
        Mean and standard deviation.
    """

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, tapped: TappedBackbone, preprocess: PreprocessSpec) -> None:
        super().__init__()
        self.tapped = tapped
        self.register_buffer("mean_C11", torch.tensor(preprocess.mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std_C11", torch.tensor(preprocess.std).reshape(3, 1, 1), persistent=False)

    def forward(self, images_BHWC: Tensor) -> tuple[Tensor, ...]:
        """Return the features in the order of the taps; a tuple, because tracing knows no other order."""
        images_BCHW = (images_BHWC.permute(0, 3, 1, 2).float() / 255 - self.mean_C11) / self.std_C11
        features = self.tapped(images_BCHW)
        return tuple(features[tap.name] for tap in self.tapped.taps)
