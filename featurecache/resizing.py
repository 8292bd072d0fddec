"""How a decoded image gets the size that a network sees, by rules stated in store/FORMAT.md."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from featurecache.errors import InputError
from featurecache.specs import PreprocessSpec

if TYPE_CHECKING:
    from torch import Tensor

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
    size = resized_size(image.size, spec, checked=True)
    image = resized(image, size, spec)
    crop_height, crop_width = spec.crop_shape
    if spec.padding != "none" and (crop_width > size[0] or crop_height > size[1]):
        image = _padded(image, (max(crop_width, size[0]), max(crop_height, size[1])), spec)
    return image.crop(crop_box(image.size, spec))


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
    _check_resized(image.size, size, spec)
    return resized(image, size, replace(spec, interpolation=spec.first_interpolation))


def _cropped_before(image: Image.Image, spec: PreprocessSpec) -> Image.Image:
    """Crop what would be left if the image were resized first."""
    shorter = min(image.size)
    pairs = zip(spec.crop_shape, spec.resize_shape, strict=True)
    height, width = (max(shorter * crop // side, 1) for crop, side in pairs)
    return image.crop(_centre_of(image.size, width, height, spec))


def crop_box(size: tuple[int, int], spec: PreprocessSpec) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of the crop in the centre of an image.

    Parameters
    ----------
    size : (int, int)
        Its width and height, after resizing.
    spec : PreprocessSpec
    """
    height, width = spec.crop_shape
    return _centre_of(size, width, height, spec)


def _centre_of(size: tuple[int, int], width: int, height: int, spec: PreprocessSpec) -> tuple[int, int, int, int]:
    """Return the box of the centre; half a pixel at its left and top is rounded as the preprocess says."""
    left, top = size[0] - width, size[1] - height
    if spec.crop_rounding == "down":
        left, top = left // 2, top // 2
    else:
        # Python rounds a half to even, as torchvision's CenterCrop does with the same function.
        left, top = round(left / 2), round(top / 2)
    return left, top, left + width, top + height


def _check_resized(before: tuple[int, int], size: tuple[int, int], spec: PreprocessSpec) -> None:
    width, height = size
    if width * height > spec.max_pixels:  # a line of pixels, drawn out to a giant
        raise InputError(
            "too_large",
            f"{before[0]}x{before[1]} pixels become {width}x{height}, the limit is {spec.max_pixels} pixels",
        )


def resized_size(size: tuple[int, int], spec: PreprocessSpec, *, checked: bool = False) -> tuple[int, int]:
    """Return the width and height to which an image is resized, before it is cropped.

    Parameters
    ----------
    size : (int, int)
        Its width and height.
    spec : PreprocessSpec
    checked : bool
        Raise `InputError` where that is too large.
    """
    height, width = spec.resize_shape
    if spec.resize_mode != "squash":
        # One side is what was asked for, and the other follows; in whole numbers, because a float may fall short of it.
        if (size[0] * height >= size[1] * width) == (spec.resize_mode == "longest"):
            height = _scaled(size[1], width, size[0], spec)
        else:
            width = _scaled(size[0], height, size[1], spec)
    if checked:
        _check_resized(size, (width, height), spec)
    return width, height


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
    if spec.resize_on == "device":
        import torch  # late: images that Pillow resizes need none of it

        (pixels_HWC,) = resized_by_torch(torch.from_numpy(np.array(image))[None], size, spec)
        return Image.fromarray(pixels_HWC.numpy())
    resampling = _RESAMPLING[spec.interpolation]
    if spec.antialias:
        return image.resize(size, resampling)
    spans = [_extent(*pair, spec) for pair in zip(image.size, size, strict=True)]
    (left, right), (top, bottom) = spans
    return image.transform(size, Image.Transform.EXTENT, (left, top, right, bottom), resampling)


def resized_by_torch(images_BHWC: Tensor, size: tuple[int, int], spec: PreprocessSpec) -> Tensor:
    """Resize uint8 images of one size on their device, in float32, and round.

    Parameters
    ----------
    images_BHWC : Tensor of uint8
    size : (int, int)
        Width and height.
    spec : PreprocessSpec
        Its interpolation counts; what is made smaller is filtered.
    """
    from torch.nn.functional import interpolate

    images_BCHW = images_BHWC.permute(0, 3, 1, 2).float()
    found_BCHW = interpolate(images_BCHW, size[::-1], mode=spec.interpolation, antialias=True)
    # Bicubic filters overshoot at edges.
    return found_BCHW.round().clamp(0, 255).byte().permute(0, 2, 3, 1)


def _extent(before: int, after: int, spec: PreprocessSpec) -> tuple[float, float]:
    """Return from where to where the pixels of a resized side lie on the side that it is made of."""
    if spec.alignment == "edges":
        return 0, before
    if after == 1:  # the first pixel is the one corner that is left
        return 0, 1
    step = (before - 1) / (after - 1)
    return 0.5 - step / 2, before - 0.5 + step / 2
