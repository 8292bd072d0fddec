"""A small network for the contract of engines: named ``python:featurecache.testing.networks:small``, untrained."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn


def small() -> nn.Module:
    """Return two convolutions and a classifier; the weights are the same in every process."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = {
            "stem": nn.Conv2d(3, 8, 3, 2, 1),
            "stem_relu": nn.ReLU(),
            "body": nn.Conv2d(8, 16, 3, 2, 1),
            "body_relu": nn.ReLU(),
            "pool": nn.AdaptiveAvgPool2d(1),
            "flatten": nn.Flatten(),
            "fc": nn.Linear(16, 4),
        }
        return nn.Sequential(OrderedDict(layers))


small.preprocess = {"resize": 32, "crop": 32}  # type: ignore[attr-defined]
small.classifier = "fc"  # type: ignore[attr-defined]
