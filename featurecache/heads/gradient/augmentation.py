"""Augmentation of cached activations.

Brightness and noise follow Baer, Houlsby, Dehghani & Kumar, "Frozen Feature Augmentation for Few-Shot Image
Classification", CVPR 2024, in the variant that draws for each channel; mixup is Zhang, Cisse, Dauphin & Lopez-Paz,
"mixup: Beyond Empirical Risk Minimization", ICLR 2018.

Axes: B batch; channels are the second axis of (B, C, H, W), and the last of (B, T, C) and (B, C).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Augment = Callable[[Tensor], tuple[Tensor, tuple[Tensor, Tensor] | None]]
"""Activations to others; where rows are mixed, also the share (B,) that is left of each, and the index (B,) of the
other row."""

# A Beta(0.2, 0.2) leaves most rows nearly as they were.
_BRIGHTNESS, _NOISE, _MIXUP = 0.1, 0.1, 0.2


def brightness(x: Tensor) -> tuple[Tensor, None]:
    """Shift each channel of each row by up to a tenth of the row's range."""
    low, high = x.flatten(1).amin(1), x.flatten(1).amax(1)
    shape = [len(x)] + [1] * (x.ndim - 1)
    channels = [len(x), x.shape[1], 1, 1] if x.ndim == 4 else [len(x), *[1] * (x.ndim - 2), x.shape[-1]]
    shift = (2 * torch.rand(channels, device=x.device) - 1) * _BRIGHTNESS * (high - low).view(shape)
    return (x + shift).clamp(low.view(shape), high.view(shape)), None


def noise(x: Tensor) -> tuple[Tensor, None]:
    """Add normal noise of a tenth of the row's standard deviation."""
    scale = x.flatten(1).std(1).view([len(x)] + [1] * (x.ndim - 1))
    return x + _NOISE * scale * torch.randn_like(x), None


def mixup(x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Mix each row with another, in a share drawn from Beta(0.2, 0.2)."""
    alpha = torch.full((len(x),), _MIXUP)
    share = torch.distributions.Beta(alpha, alpha).sample().to(x.device)  # type: ignore[no-untyped-call]
    others = torch.randperm(len(x)).to(x.device)
    wide = share.view([len(x)] + [1] * (x.ndim - 1))
    return wide * x + (1 - wide) * x[others], (share, others)


AUGMENTATIONS: dict[str | None, Augment] = {"brightness": brightness, "noise": noise, "mixup": mixup}
