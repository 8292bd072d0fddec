"""Seeded views of an image: what torchvision's random transforms draw, from a generator of each view's own.

A view depends on the settings, the sample's bytes and the view's number, and on nothing else: not on the batch, the
thread, the order, or what other code draws. The rules are in store/FORMAT.md.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.overrides import TorchFunctionMode

from featurecache.backbones.torchvision_compat import import_torchvision
from featurecache.hashing import digest_json
from featurecache.resizing import resized, trimmed
from featurecache.specs import PreprocessSpec, ViewSpec

# V views, H height, W width, C channels (RGB)

_DRAWING = frozenset({"uniform_", "normal_", "random_", "bernoulli_", "bernoulli", "multinomial"}) | frozenset(
    {"rand", "randn", "randint", "randperm"}
)
_importing = threading.Lock()


class DrawFrom(TorchFunctionMode):
    """While entered, what this thread draws in torch comes from one generator, and the global one is left alone.

    torchvision's transforms take no generator. Seeding the global one instead would need a lock around every thread
    that draws, also those that are not ours.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self._generator = generator

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Add the generator to a call that draws."""
        kwargs = kwargs or {}
        if func.__name__ in _DRAWING:
            kwargs = {**kwargs, "generator": self._generator}
        return func(*args, **kwargs)


def seed_of_view(views: ViewSpec, sample: str, number: int) -> int:
    """Return the seed of one view. The number of views does not count, so that more views keep the first ones.

    Parameters
    ----------
    views : ViewSpec
    sample : str
        Its id (hex).
    number : int
        Of the view, from 0.
    """
    digest = digest_json("view", views.rules, {"seed": views.seed, "sample": sample, "view": number})
    return int(digest[:16], 16)  # 64 bits, as many as a generator of torch takes


def make_view(
    image: Image.Image, sample: str, number: int, preprocess: PreprocessSpec, views: ViewSpec
) -> NDArray[np.uint8]:
    """Make one view (H, W, C) uint8 of an image.

    Parameters
    ----------
    image : PIL.Image.Image
        Upright RGB.
    sample : str
        Id (hex) of the sample.
    number : int
        Of the view, from 0.
    preprocess : PreprocessSpec
        Its crop, interpolation and trimming.
    views : ViewSpec
    """
    image = trimmed(image, preprocess)
    crop, recolour = _transforms(views, preprocess.crop_shape)
    generator = torch.Generator().manual_seed(seed_of_view(views, sample, number))
    with DrawFrom(generator):
        # The order of the draws is part of the rules: first the crop, then flip and colours.
        box = crop.make_params([image])
        left, top = box["left"], box["top"]
        cropped = image.crop((left, top, left + box["width"], top + box["height"]))
        return np.asarray(recolour(resized(cropped, preprocess.crop_shape[::-1], preprocess)), np.uint8)


@lru_cache(maxsize=8)
def _transforms(views: ViewSpec, crop: tuple[int, int]) -> tuple[Any, Any]:
    """Return what draws the crop, and what flips it and shifts its colours."""
    with _importing:  # two decoding threads must not import and repair at once
        import_torchvision()  # first, because of installations on which the plain import fails
        v2 = import_module("torchvision.transforms.v2")
    jitter = v2.ColorJitter(views.brightness, views.contrast, views.saturation, views.hue)
    resized_crop = v2.RandomResizedCrop(crop, scale=views.scale, ratio=views.ratio)
    return resized_crop, v2.Compose([v2.RandomHorizontalFlip(views.flip), jitter])
