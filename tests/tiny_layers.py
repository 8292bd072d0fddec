"""Layers of 'somebody's own code' for tests: named as ``python:tiny_layers:...``."""

from __future__ import annotations

import numpy as np
from torch import nn


def own(shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """Somebody's own layers."""
    return nn.Sequential(
        nn.Conv2d(shape[0], 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_outputs)
    )


def wrong(shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), num_outputs + 1))


def failing(shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    raise RuntimeError("no such luck")


def nothing(shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    return nn.Flatten()


def number(shape: tuple[int, ...], num_outputs: int) -> int:
    return 7
