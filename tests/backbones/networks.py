"""Factories for ``python:`` backbones."""

from __future__ import annotations

import torch
from torch import nn


class Small(nn.Module):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.act = nn.ReLU()
        self.head = nn.Linear(8, num_classes)

    def forward(self, images_BCHW):
        maps_BCHW = self.act(self.act(self.body(images_BCHW)) - 0.5)
        return self.head(maps_BCHW.mean((2, 3)))


class Headless(nn.Module):
    """Its last linear layer is not its output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, images_BCHW):
        return self.inner(images_BCHW.mean((2, 3))) * 2


class ChannelsLast(nn.Module):
    def forward(self, images_BCHW):
        return images_BCHW[:, :, ::4, ::4].permute(0, 2, 3, 1)


class Wild(nn.Module):
    """Right on zeros and ones, wrong when traced."""

    def forward(self, images_BCHW):
        features_BD = images_BCHW.mean((2, 3))
        return features_BD * float("nan") if torch.jit.is_tracing() else features_BD


class Untraceable(nn.Module):
    def forward(self, images_BCHW):
        if torch.jit.is_tracing():
            raise TypeError("no tracing here")
        return images_BCHW.mean((2, 3))


def _quick(factory):
    factory.preprocess = {"resize": 32, "crop": 32}
    return factory


@_quick
def small():
    torch.manual_seed(0)
    return Small()


@_quick
def small_three_classes():
    torch.manual_seed(0)
    return Small(3)


@_quick
def headless():
    return Headless()


@_quick
def channels_last():
    return ChannelsLast()


@_quick
def wild():
    return Wild()


@_quick
def untraceable():
    return Untraceable()


@_quick
def picky():
    return nn.Sequential(nn.Flatten(), nn.Linear(7, 7), nn.Linear(7, 2))


picky.classifier = "2"


def not_a_network():
    return {"weights": 1}
