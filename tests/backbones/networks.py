"""Factories for ``python:`` backbones."""

from __future__ import annotations

import time

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


class Forgetful(Small):
    """Keeps what it works on in itself, and looks at it again later."""

    def forward(self, images_BCHW):
        self.images_BCHW = images_BCHW
        time.sleep(0.002)
        return super().forward(self.images_BCHW)


class Uncopyable(Small):
    def __deepcopy__(self, memo):
        raise TypeError("no copies")


class Limited(Small):
    """Fails with more images than it is told."""

    most, error = 1_000, RuntimeError("none")

    def forward(self, images_BCHW):
        if len(images_BCHW) > self.most:
            raise self.error
        return super().forward(images_BCHW)


class ReadsNorm(Small):
    """Looks into its norm, which is gone once folded."""

    def forward(self, images_BCHW):
        return super().forward(images_BCHW) + self.body[1].weight.sum()


class Deep(nn.Module):
    """Each norm takes away a mean that is far above what varies, and with it the leading digits."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [(nn.Conv2d(8 if i else 3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for i in range(12)]
        self.body = nn.Sequential(*(layer for block in blocks for layer in block))
        for conv, norm, _ in blocks:
            nn.init.uniform_(conv.weight, 0.95, 1.0)
            norm.momentum = 1.0
        self.head = nn.Linear(8, 2)
        with torch.no_grad():
            self(torch.randn(16, 3, 32, 32))  # sets the statistics

    def forward(self, images_BCHW):
        return self.head(self.body(images_BCHW).mean((2, 3)))


class Standardised(nn.Conv2d):
    """Uses its weight itself before it convolves."""

    def forward(self, images_BCHW):
        weight = self.weight.float() - self.weight.float().mean((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(images_BCHW, weight, self.bias, self.stride)


class UsedTwice(nn.Module):
    """What its convolution gives goes into a norm and past it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8)
        self.norm.running_mean += 1
        self.head = nn.Linear(8, 2)

    def forward(self, images_BCHW):
        maps_BCHW = self.conv(images_BCHW)
        return self.head((maps_BCHW + self.norm(maps_BCHW)).mean((2, 3)))


class Headless(nn.Module):
    """Its last linear layer is a hidden one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, images_BCHW):
        return nn.functional.gelu(self.inner(images_BCHW.mean((2, 3))))


class ChannelsLast(nn.Module):
    def forward(self, images_BCHW):
        return images_BCHW[:, :, ::4, ::4].permute(0, 2, 3, 1)


class Weighted(nn.Module):
    """Has weights: a network without any is not converted."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))


class Wild(Weighted):
    """Right on zeros and ones, wrong when traced."""

    def forward(self, images_BCHW):
        features_BD = images_BCHW.mean((2, 3)) * self.scale
        return features_BD * float("nan") if torch.jit.is_tracing() else features_BD


class Untraceable(Weighted):
    def forward(self, images_BCHW):
        if torch.jit.is_tracing():
            raise TypeError("no tracing here")
        return images_BCHW.mean((2, 3)) * self.scale


class Loops(Weighted):
    """So often that its trace is long."""

    def forward(self, images_BCHW):
        features_BD = images_BCHW.mean((2, 3))
        for _ in range(300):
            features_BD = features_BD + self.scale
        return features_BD


class BatchMixer(nn.Module):
    """Statistics over the batch even in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=4)
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, images_BCHW):
        return self.norm(self.conv(images_BCHW)).relu().mean((2, 3))


class Chaotic(nn.Module):
    """Enlarges the rounding of its input's type, which is another one for each size of batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=4)

    def forward(self, images_BCHW):
        pooled_BC = self.conv(images_BCHW).mean((2, 3))
        return pooled_BC + 1e6 * len(pooled_BC) * torch.finfo(pooled_BC.dtype).eps


class NeedsCompany(nn.Module):
    def forward(self, images_BCHW):
        first_BD, second_BD = images_BCHW.mean((2, 3)).chunk(2)
        return torch.cat([first_BD - second_BD, second_BD - first_BD])


class Drunk(nn.Module):
    """Dropout that eval mode does not stop."""

    def forward(self, images_BCHW):
        return nn.functional.dropout(images_BCHW[:, :, ::4, ::4].flatten(1), 0.5)


class OnlyTwice(nn.Module):
    """What it runs depends on the images."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Conv2d(3, 3, 1)
        self.exit = nn.Identity()

    def forward(self, images_BCHW):
        for _ in range(1 if images_BCHW.abs().max() == 0 else 3):
            images_BCHW = self.step(images_BCHW)
        return self.exit(images_BCHW)


class Windows(nn.Module):
    """Cuts every image in four parts, each a row of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.Identity()

    def forward(self, images_BCHW):
        rows = self.parts(images_BCHW.unflatten(3, (4, -1)).permute(0, 3, 1, 2, 4).flatten(0, 1))
        return rows.mean((2, 3)).unflatten(0, (-1, 4)).flatten(1)


def _quick(factory):
    factory.preprocess = {"resize": 32, "crop": 32}
    return factory


@_quick
def small():
    torch.manual_seed(0)
    return Small()


@_quick
def deep():
    torch.manual_seed(0)
    return Deep()


@_quick
def standardised():
    torch.manual_seed(0)
    network = Small()
    network.body[0] = Standardised(3, 8, 3, stride=4)
    return network


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
def loops():
    return Loops()


@_quick
def untraceable():
    return Untraceable()


@_quick
def left_training():
    torch.manual_seed(0)
    return Small().train()


@_quick
def batch_mixer():
    return BatchMixer()


@_quick
def needs_company():
    return NeedsCompany()


@_quick
def drunk():
    return Drunk()


@_quick
def only_twice():
    return OnlyTwice()


@_quick
def windows():
    return Windows()


@_quick
def switchable(pretrained=True):
    network = Small()
    network.pretrained = pretrained
    return network


class OwnParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, images_BCHW):
        return images_BCHW.mean((2, 3)) * self.scale


@_quick
def own_parameter():
    return OwnParameter()


@_quick
def picky():
    return nn.Sequential(nn.Flatten(), nn.Linear(7, 7), nn.Linear(7, 2))


picky.classifier = "2"


@_quick
def chaotic():
    return Chaotic()


def not_a_network():
    return {"weights": 1}


@_quick
def forgetful():
    return Forgetful()


@_quick
def uncopyable():
    return Uncopyable()


@_quick
def limited():
    return Limited()


@_quick
def reads_norm():
    return ReadsNorm()


reads_norm.classifier = None  # the norm is looked into after the last layer


@_quick
def used_twice():
    return UsedTwice()


class Tied(nn.Module):
    """Two blocks around another, with the same weights but each its own bias."""

    def __init__(self, *, norm: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=4)
        self.weight_44 = nn.Parameter(torch.randn(4, 4))
        self.first, self.middle, self.last = (nn.Conv2d(4, 4, 1) for _ in range(3))
        self.norm = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.head = nn.Linear(4, 2)

    def forward(self, images_BCHW):
        maps_BCHW = self.norm(self.stem(images_BCHW))
        for block in (self.first, self.middle, self.last):
            maps_BCHW = block(torch.einsum("bchw,cd->bdhw", maps_BCHW, self.weight_44)).relu()
        return self.head(self.norm(maps_BCHW).mean((2, 3)))


class Sized(nn.Module):
    """Sizes of its input, and pairs, pass from layer to layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4)
        self.pair, self.body = WithSize(), nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4 * 7 * 7, 2)

    def forward(self, images_BCHW):
        num_images, _, height, _ = images_BCHW.shape
        places_W = torch.full((height // 4,), 0.5) * 2
        maps_BCHW, (rows, columns) = self.pair(self.norm(self.stem(images_BCHW)))
        maps_BCHW = self.body(
            maps_BCHW.reshape(num_images * 2, -1, rows, columns).reshape(num_images, -1, rows, columns)
        )
        return self.head((maps_BCHW + places_W)[:, :, : height // 4 - 1, :7].reshape(num_images, -1))


class WithSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, maps_BCHW):
        return self.conv(maps_BCHW), maps_BCHW.shape[2:]


class Moody(Small):
    """Its own code, not a layer's, does something else in training."""

    def forward(self, images_BCHW):
        maps_BCHW = self.act(self.body(images_BCHW))
        return self.head(nn.functional.dropout(maps_BCHW, 0.5, self.training).mean((2, 3)))


class Hasty(Small):
    """Writes into what it has, and never looks at what that gives."""

    def forward(self, images_BCHW):
        maps_BCHW = self.body[1](self.body[0](images_BCHW))
        self.body[2](maps_BCHW)
        return self.head(maps_BCHW.mean((2, 3)))


@_quick
def tied():
    return Tied(norm=False)


@_quick
def tied_norm():
    return Tied(norm=True)


@_quick
def sized():
    return Sized()


@_quick
def moody():
    return Moody()


@_quick
def hasty():
    return Hasty()
