"""Small deterministic networks of 'somebody's own code' for tests: named as ``python:tiny_backbones:...``."""

from __future__ import annotations

import torch
from torch import nn

PREPROCESS = {"resize": 32, "crop": 32, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


class TinyNet(nn.Module):
    """Two convolutions with batch norm and dropout, and a classifier."""

    def __init__(self, seed: int = 0, width: int = 16) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
            self.body = nn.Sequential(nn.Conv2d(8, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
            self.dropout = nn.Dropout(0.5)
            self.fc = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.dropout(self.body(self.stem(x)).mean((2, 3))))


def tiny() -> nn.Module:
    """The usual one."""
    return TinyNet()


def other_seed() -> nn.Module:
    """The same architecture with other weights."""
    return TinyNet(seed=1)


def overflowing() -> nn.Module:
    """Features beyond the range of float16."""
    network = TinyNet()
    with torch.no_grad():
        network.body[1].weight.mul_(1e6)
        network.body[1].bias.add_(1e6)
    return network


class LookingNet(TinyNet):
    """Decides by the numbers in its input, which no exported program can."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x if x.mean() < 1e6 else -x)


class TwoFacedNet(TinyNet):
    """Computes something else while it is exported."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.abs() if torch.compiler.is_exporting() else x)


def looking() -> nn.Module:
    """See `LookingNet`."""
    return LookingNet()


def two_faced() -> nn.Module:
    """See `TwoFacedNet`."""
    return TwoFacedNet()


class TokenNet(nn.Module):
    """Sixteen tokens of eight numbers, mixed by one block."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.patches = nn.Conv2d(3, 8, 4, 4)
            self.block = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU())
            self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.block(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


def tokens() -> nn.Module:
    """A network whose layers keep tokens."""
    return TokenNet()


def not_a_module() -> object:
    """A factory that returns something else."""
    return {"not": "a module"}


def tiny_features() -> nn.Module:
    """Features of 1e-9, all different, that float16 makes zeros."""
    return _scaled(1e-9, 0.0)


def far_features() -> nn.Module:
    """Features of 1000 that differ by 0.01, which float16 makes equal."""
    return _scaled(1e-2, 1e3)


def dead_features() -> nn.Module:
    """Four of 16 features are the same for every image."""
    network = TinyNet()
    with torch.no_grad():
        network.body[1].weight[:4] = 0
        network.body[1].bias[:4] = torch.tensor([0.0, 1.0, 2.0, 3.0])
    return network


def _scaled(scale: float, shift: float) -> nn.Module:
    network = TinyNet()
    with torch.no_grad():
        network.body[1].weight.mul_(scale)
        network.body[1].bias.mul_(scale).add_(shift)
    return network


for factory in (tiny_features, far_features, dead_features, tiny, other_seed, overflowing, looking, two_faced):
    factory.preprocess = PREPROCESS
    factory.classifier = "fc"
