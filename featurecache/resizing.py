"""How a decoded image gets the size that a network sees, by rules stated in store/FORMAT.md."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from PIL import Image

from featurecache.errors import InputError
from featurecache.specs import PreprocessSpec

SCALED_MARGIN = 2
"""How many times ``resize`` the shorter side of a scaled JPEG must still have, so that resizing filters as before."""

_GREY = (0.2989, 0.587, 0.114, -0.5)
"""Weights of red, green and blue; the last number makes Pillow cut fractions off, as torchvision does."""
_LIGHT = 200
"""Grey values from here on are margin, once the darkest is 0 and the lightest 255."""

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def draft_side(spec: PreprocessSpec) -> int | None:
    """Return the least side of a JPEG that is decoded at a part of its size; ``None``: all are decoded in full.

    Decoding at a part filters, so resizing must filter too.
    """
    scaled = spec.jpeg_decoding == "scaled" and spec.antialias and spec.interpolation != "nearest"
    return SCALED_MARGIN * max(spec.resize_shape) if scaled else None


def resize_and_crop(image: Image.Image, spec: PreprocessSpec) -> Image.Image:
    """Trim, resize, and crop the centre or pad.

    Without padding equal to torchvision's ``Resize`` and ``CenterCrop``. Resizing only the part that stays would be
    quicker, but Pillow then filters the two directions in another order, which changes pixels at hard edges.
    """
    image = _first_resized(trimmed(image, spec), spec)
    if spec.crop_first:
        return resized(_cropped_before(image, spec), spec.crop_shape[::-1], spec)
    size = _resized_size(image.size, spec)
    _check_resized(image, size, spec)
    image = resized(image, size, spec)
    crop_height, crop_width = spec.crop_shape
    if spec.padding != "none" and (crop_width > size[0] or crop_height > size[1]):
        image = _padded(image, (max(crop_width, size[0]), max(crop_height, size[1])), spec)
    return _centre_of(image, crop_width, crop_height, spec)


def trimmed(image: Image.Image, spec: PreprocessSpec) -> Image.Image:
    """Cut off the light margin, if the preprocess says so."""
    if not spec.trim_margin:
        return image
    grey = image.convert("L", _GREY)
    extrema: Any = grey.getextrema()
    low, high = extrema
    if low == high:
        return image
    # Of the range from the darkest to the lightest pixel, the lightest fifth or so is margin.
    inked = grey.point([255 * (255 * (value - low) < _LIGHT * (high - low)) for value in range(256)])
    return image.crop(inked.getbbox())


def _first_resized(image: Image.Image, spec: PreprocessSpec) -> Image.Image:
    if not spec.first_resize:
        return image
    width, height = image.size
    shorter, side = min(width, height), spec.first_resize
    size = (_scaled(width, side, shorter, spec), _scaled(height, side, shorter, spec))
    _check_resized(image, size, spec)
    return resized(image, size, replace(spec, interpolation=spec.first_interpolation))


def _cropped_before(image: Image.Image, spec: PreprocessSpec) -> Image.Image:
    """Crop what would be left if the image were resized first."""
    shorter = min(image.size)
    pairs = zip(spec.crop_shape, spec.resize_shape, strict=True)
    height, width = (max(shorter * crop // side, 1) for crop, side in pairs)
    return _centre_of(image, width, height, spec)


def _centre_of(image: Image.Image, width: int, height: int, spec: PreprocessSpec) -> Image.Image:
    """Cut out the centre; half a pixel at its left and top is rounded as the preprocess says."""
    left, top = image.width - width, image.height - height
    if spec.crop_rounding == "down":
        left, top = left // 2, top // 2
    else:
        # Python rounds a half to even, as torchvision's CenterCrop does with the same function.
        left, top = round(left / 2), round(top / 2)
    return image.crop((left, top, left + width, top + height))


def _check_resized(image: Image.Image, size: tuple[int, int], spec: PreprocessSpec) -> None:
    width, height = size
    if width * height > spec.max_pixels:  # a line of pixels, drawn out to a giant
        raise InputError(
            "too_large",
            f"{image.width}x{image.height} pixels become {width}x{height}, the limit is {spec.max_pixels} pixels",
        )


def _resized_size(size: tuple[int, int], spec: PreprocessSpec) -> tuple[int, int]:
    """Return width and height."""
    height, width = spec.resize_shape
    if spec.resize_mode == "squash":
        return width, height
    # One side is what was asked for, and the other follows; in whole numbers, because a float may fall short of one.
    wide = size[0] * height >= size[1] * width
    if wide == (spec.resize_mode == "longest"):
        return width, _scaled(size[1], width, size[0], spec)
    return _scaled(size[0], height, size[1], spec), height


def _scaled(side: int, numerator: int, denominator: int, spec: PreprocessSpec) -> int:
    half = denominator if spec.resize_rounding == "nearest" else 0
    return max((2 * side * numerator + half) // (2 * denominator), 1)


def _padded(image: Image.Image, size: tuple[int, int], spec: PreprocessSpec) -> Image.Image:
    # Padding has the colour that the weights were trained with.
    canvas = Image.new("RGB", size, spec.fill_color)
    corner = spec.padding == "corner"
    canvas.paste(image, (0, 0) if corner else ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
    return canvas


def resized(image: Image.Image, size: tuple[int, int], spec: PreprocessSpec) -> Image.Image:
    """Resize an image.

    Parameters
    ----------
    image : Image
    size : (int, int)
        Width and height.
    spec : PreprocessSpec
        Its interpolation, antialias and alignment count.
    """
    resampling = _RESAMPLING[spec.interpolation]
    if spec.antialias:
        return image.resize(size, resampling)
    spans = [_extent(*pair, spec) for pair in zip(image.size, size, strict=True)]
    (left, right), (top, bottom) = spans
    return image.transform(size, Image.Transform.EXTENT, (left, top, right, bottom), resampling)


def _extent(before: int, after: int, spec: PreprocessSpec) -> tuple[float, float]:
    """Return from where to where the pixels of a resized side lie on the side that it is made of."""
    if spec.alignment == "edges":
        return 0, before
    if after == 1:  # the first pixel is the one corner that is left
        return 0, 1
    step = (before - 1) / (after - 1)
    return 0.5 - step / 2, before - 0.5 + step / 2
