"""How a decoded image gets the size that a network sees, by rules stated in store/FORMAT.md."""

from __future__ import annotations

from PIL import Image

from featurecache.errors import InputError
from featurecache.specs import PreprocessSpec

SCALED_MARGIN = 2
"""How many times ``resize`` the shorter side of a scaled JPEG must still have, so that resizing filters as before."""

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
    """Resize, and crop the centre or pad.

    Without padding equal to torchvision's ``Resize`` and ``CenterCrop``. Resizing only the part that stays would be
    quicker, but Pillow then filters the two directions in another order, which changes pixels at hard edges.
    """
    width, height = image.size
    size = _resized_size(image.size, spec)
    if size[0] * size[1] > spec.max_pixels:  # a line of pixels, drawn out to a giant
        raise InputError(
            "too_large", f"{width}x{height} pixels become {size[0]}x{size[1]}, the limit is {spec.max_pixels} pixels"
        )
    image = resized(image, size, spec)
    crop_height, crop_width = spec.crop_shape
    if spec.padding != "none" and (crop_width > size[0] or crop_height > size[1]):
        image = _padded(image, (max(crop_width, size[0]), max(crop_height, size[1])), spec)
    left, top = (_offset(*pair, spec) for pair in ((image.width, crop_width), (image.height, crop_height)))
    return image.crop((left, top, left + crop_width, top + crop_height))


def _offset(side: int, crop: int, spec: PreprocessSpec) -> int:
    return (side - crop) // 2 if spec.crop_rounding == "down" else round((side - crop) / 2)


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
    canvas = Image.new("RGB", size, spec.fill_color)
    corner = spec.padding == "corner"
    canvas.paste(image, (0, 0) if corner else ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
    return canvas


def resized(image: Image.Image, size: tuple[int, int], spec: PreprocessSpec) -> Image.Image:
    """Resize to a width and a height, with the interpolation and the antialias of a preprocess."""
    resampling = _RESAMPLING[spec.interpolation]
    if spec.antialias:
        return image.resize(size, resampling)
    return image.transform(size, Image.Transform.EXTENT, (0, 0, *image.size), resampling)
