"""A small network for the contract of engines: named ``python:featurecache.testing.networks:small``, untrained."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Small(nn.Module):
    """Two convolutions and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)
        self.fc = nn.Linear(16, 4)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits (B, 4)."""
        return self.fc(self.body(self.stem(images_BCHW).relu()).relu().mean((2, 3)))  # type: ignore[no-any-return]


def small() -> nn.Module:
    """Return the network; its weights are the same in every process."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Small()


small.preprocess = {"resize": 32, "crop": 32}  # type: ignore[attr-defined]
small.classifier = "fc"  # type: ignore[attr-defined]
