"""Images of more than 8 bits for a channel: which of their values become the 256 levels that a network sees.

Pillow reads grey ones with all their bits, and of colours of 16 bits only the upper byte; the lower byte is read here
by telling its decoder that the bytes lie the other way round.

What is nearly flat was measured on ramps with noise, masks, label images, scans and photographs of 8 to 16 bits stored
in 16: 12 bits and fewer show at most 16 levels, and photographs of 13 bits and more, foggy ones too, more than that.
"""

from __future__ import annotations

import io
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featurecache.errors import InputError
from featurecache.specs import PixelRange

# H height, W width, C channels

GREY_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")

# Of 256: the span that holds all but a hundredth of the pixels, and the standard deviation.
_FEW_LEVELS, _LITTLE_SPREAD = 16, 8.0
_TAILS = 0.005
# Pixels whose values are counted; of larger images, every second, third, ... pixel.
_MOST_COUNTED = 1 << 20
_SWAPPED = {"16B": "16L", "16L": "16B", "16N": "16B" if sys.byteorder == "little" else "16L"}


def to_eight_bits(values: NDArray[Any], pixel_range: PixelRange) -> NDArray[np.uint8]:
    """Map grey values or colours to 0..255.

    Parameters
    ----------
    values : ndarray, shape (H, W) or (H, W, C)
    pixel_range : str or (float, float)
        ``full``: the upper 8 of 16 bits; floating-point values as they are, cut to 0..255. ``image``: from the least to
        the greatest value of this image, of all channels together. Two numbers: from the first to the second.

    Raises
    ------
    InputError
        Floating-point values that are no numbers.
    """
    if values.dtype.kind == "f" and (wrong := int(values.size - np.isfinite(values).sum())):
        raise InputError("undecodable", f"{wrong} of {values.size} pixels are NaN or infinite; fill them in")
    if pixel_range == "full":
        upper = np.clip(values, 0, 255) if values.dtype.kind == "f" else np.clip(values, 0, 0xFFFF) >> 8
        return np.asarray(upper, np.uint8)
    low, high = (values.min(), values.max()) if pixel_range == "image" else pixel_range
    width = float(high) - float(low)
    if width == 0:
        return np.zeros(values.shape, np.uint8)
    scaled = (values.astype(np.float64) - float(low)) * (255 / width)
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


def is_flattened(values: NDArray[Any], shown: NDArray[np.uint8], pixel_range: PixelRange) -> bool:
    """Return whether an image with more in it became nearly one colour; or of ``full``, mostly black or white.

    Parameters
    ----------
    values : ndarray, shape (H, W) or (H, W, C)
        All bits.
    shown : ndarray of uint8
        What `to_eight_bits` made of them.
    pixel_range : str or (float, float)
        By which it did.
    """
    if seems_flat(Image.fromarray(shown)):
        return _num_distinct(values) > _num_distinct(shown)
    if pixel_range != "full":  # somebody chose what to cut off
        return False
    cut = (values < 0) | (values > (255 if values.dtype.kind == "f" else 0xFFFF))
    return bool(cut.mean() > 0.5)


def seems_flat(image: Image.Image) -> bool:
    """Tell whether an 8-bit image shows next to nothing, whatever its file holds."""
    levels = np.arange(256)
    for counts in np.array(image.histogram(), np.int64).reshape(-1, 256):  # of each band
        total, below = int(counts.sum()), np.cumsum(counts)
        # A few specks make no picture: a hundredth of the pixels may have any value.
        first, last = np.searchsorted(below, [total * _TAILS, total * (1 - _TAILS)], side="right")
        mean = (counts * levels).sum() / total
        if last - first >= _FEW_LEVELS or (counts * (levels - mean) ** 2).sum() / total >= _LITTLE_SPREAD**2:
            return False
    return True


def has_deep_colours(image: Image.Image) -> bool:
    """Tell whether an image that is not loaded yet has colours of 16 bits, of which Pillow reads the upper byte."""
    return image.mode in ("RGB", "RGBA", "LA") and any(";16" in _raw_mode(tile) for tile in getattr(image, "tile", ()))


def deep_colours(image: Image.Image, lower: Image.Image, *, grey: bool) -> NDArray[np.uint16]:
    """Return the colours (H, W, C) of all bits, without alpha.

    Parameters
    ----------
    image, lower : PIL.Image.Image
        Of the upper and of the lower bytes.
    grey : bool
        A PNG of grey and alpha, as `read_lower_bytes` reports it.
    """
    lower_HWC = np.asarray(lower, np.uint16)
    if grey:  # a PNG of grey and alpha, read by `read_lower_bytes` as it lies in the file
        return np.bitwise_or(lower_HWC[..., :1] << np.uint16(8), lower_HWC[..., 1:2])
    return np.bitwise_or(np.asarray(image, np.uint16)[..., :3] << np.uint16(8), lower_HWC[..., :3])


def read_lower_bytes(data: bytes, formats: tuple[str, ...]) -> tuple[Image.Image, bool]:
    """Open an image of deep colours such that loading it gives the lower bytes; tell whether it is grey with alpha."""
    image: Any = Image.open(io.BytesIO(data), formats=formats)
    if grey := any(_raw_mode(tile) == "LA;16B" for tile in image.tile):
        image._mode = "RGBA"
    swapped = []
    for tile in image.tile:
        raw = _raw_mode(tile)
        other = "RGBA" if grey else raw[:-3] + _SWAPPED.get(raw[-3:], raw[-3:])
        args = other if isinstance(tile.args, str) else (other, *tile.args[1:])
        swapped.append(tile._replace(args=args))
    image.tile = swapped
    return image, grey


def _raw_mode(tile: Any) -> str:
    args = tile.args if isinstance(tile.args, str) else next(iter(tile.args or ("",)))
    return args if isinstance(args, str) else ""


def _num_distinct(values: NDArray[Any]) -> int:
    if values.min() == values.max():
        return 1
    flat = values.reshape(-1)
    return max(len(np.unique(flat[:: -(-len(flat) // _MOST_COUNTED)])), 2)
