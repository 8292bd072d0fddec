"""What a library itself makes of an image, compared with what is made of it here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from featurecache.backbones.provider import EarlierDefault
from featurecache.errors import BackboneError
from featurecache.resizing import resize_and_crop
from featurecache.specs import PreprocessSpec

# C channels, H height, W width

TOLERANCE = 0.02
"""Root mean square of the difference, over the spread of what the library makes."""
# Widths and heights, over the side of what comes out: wide and large, tall, small and about square.
_SIZES = ((1.55, 1.17), (0.61, 1.07), (0.53, 0.527))


class Mismatch(Exception):
    """The two differ; says how."""


def check_same(preprocess: PreprocessSpec, reference: Callable[[Image.Image], Any]) -> None:
    """Raise `Mismatch` unless a preprocess makes of several images what a library's own transform makes of them.

    Parameters
    ----------
    preprocess
        Without decoding: the images are RGB already.
    reference
        The library's transform: of an image, a float tensor (C, H, W).
    """
    for image in example_images(max(preprocess.resize_shape)):
        theirs_CHW = np.asarray(reference(image), np.float32)
        if theirs_CHW.shape != (3, *preprocess.crop_shape):
            height, width = preprocess.crop_shape
            raise Mismatch(f"it makes an array of shape {theirs_CHW.shape}, not (3, {height}, {width})")
        error = relative_error(prepared(image, preprocess), theirs_CHW)
        # Written so that a NaN counts as a difference.
        if not error <= TOLERANCE:
            raise Mismatch(f"inputs would differ by {error:.0%} of their spread")


def check_own_transform(preprocess: PreprocessSpec, reference: Callable[[Image.Image], Any], name: str) -> None:
    """Raise `BackboneError` unless a preprocess does what the transform that a library has for a backbone does.

    Parameters
    ----------
    preprocess, reference
        As for `check_same`.
    name
        Of the backbone, for the message.
    """
    try:
        check_same(preprocess, reference)
    except Mismatch as mismatch:
        raise BackboneError(
            f"{name} has a transform that is not known here: {mismatch}; upgrade featurecache"
        ) from None


def changed_rules(before: PreprocessSpec | None, now: PreprocessSpec, whose: str) -> tuple[EarlierDefault, ...]:
    """Return what earlier releases took for a preprocess, if it was another.

    Parameters
    ----------
    before, now
        The preprocess of earlier releases, if they had any, and the one of today.
    whose
        The rules of today.
    """
    if before is None or before == now:
        return ()
    was = asdict(before)
    changes = [f"{field} {value}" for field, value in asdict(now).items() if was[field] != value]
    rule = f"inputs are prepared as by {whose} now ({', '.join(changes)})"
    return (EarlierDefault(kind="preprocess", now=rule, preprocess=before),)


def prepared(image: Image.Image, preprocess: PreprocessSpec) -> NDArray[np.float32]:
    """Return an RGB image as the network sees it, (C, H, W)."""
    import torch  # providers are listed without it

    from featurecache.backbones.input_kinds import Normalise

    pixels_1HWC = torch.from_numpy(np.array(resize_and_crop(image, preprocess)))[None]
    with torch.no_grad():
        array: NDArray[np.float32] = Normalise(preprocess)(pixels_1HWC)[0].numpy()
    return array


def relative_error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the root mean square of a difference over the standard deviation of what is expected."""
    spread = max(float(expected.std()), 1e-12)
    return float(np.sqrt(np.mean((found - expected) ** 2, dtype=np.float64))) / spread


@lru_cache(maxsize=4)
def example_images(side: int) -> tuple[Image.Image, ...]:
    """Return images with large and small structures, edges and colours, of different shapes.

    Their sides are odd, because libraries round halves of pixels differently.
    """
    images = []
    for seed, (relative_width, relative_height) in enumerate(_SIZES):
        rng = np.random.default_rng(seed)
        width, height = (int(relative * side) // 2 * 2 + 1 for relative in (relative_width, relative_height))
        # Squares of 60 and of 6 pixels, smoothed: a wrong crop shows in the large ones, a wrong filter in the small.
        coarse, fine = (rng.integers(0, 256, (height // n + 2, width // n + 2, 3), np.uint8) for n in (60, 6))
        large, small = (
            Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC) for pixels in (coarse, fine)
        )
        image = Image.blend(large, small, 0.25)
        draw = ImageDraw.Draw(image)
        for _ in range(6):
            x, y = (int(rng.integers(0, length)) for length in (width, height))
            draw.ellipse((x, y, x + width // 5, y + height // 6), fill=tuple(rng.integers(0, 256, 3).tolist()))
        images.append(image)
    return tuple(images)
