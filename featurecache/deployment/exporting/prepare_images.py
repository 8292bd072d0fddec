"""Make of an image file what an exported network takes, with nothing but numpy and Pillow.

The text of this file travels with every export of a network of images, under ``prepare_images``.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


def prepare(file, how):  # type: ignore[no-untyped-def]
    """Return uint8 (height, width, 3).

    Parameters
    ----------
    file : path, or bytes of a file
    how : dict
        The ``preprocess`` that came with the network.
    """
    # Not by its name: Pillow maps such files into memory, and gives other pixels for TIFF files of 16 bits.
    data = file if isinstance(file, bytes) else Path(file).read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        if how["jpeg_draft"] and image.format == "JPEG":  # large ones are decoded no finer than needed
            image.draft(None, (how["jpeg_draft"], how["jpeg_draft"]))
        deep = any(";16" in str(tile[3]) for tile in image.tile) and image.mode in ("RGB", "RGBA", "LA")
        if deep and how["range"] != "full":
            raise ValueError("colours of 16 bits are read by featurecache alone, unless the range is full")
        image.seek(0)
        image.load()
        upright = ImageOps.exif_transpose(image) if how["orientation"] == "exif" else image
        return np.asarray(_sized(_trimmed(_to_rgb(upright, how), how), how))


def _to_rgb(image, how):  # type: ignore[no-untyped-def]
    if image.mode in ("I", "I;16", "I;16B", "I;16L", "I;16N", "F"):
        return Image.fromarray(_eight_bits(np.asarray(image), how["range"])).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        canvas = Image.new("RGBA", layer.size, (*how["background"], 255))
        return Image.alpha_composite(canvas, layer).convert("RGB")
    return image.convert("RGB")


def _eight_bits(values, pixel_range):  # type: ignore[no-untyped-def]
    if pixel_range == "full":
        return np.uint8(np.clip(values, 0, 255) if values.dtype.kind == "f" else np.clip(values, 0, 65535) >> 8)
    low, high = (values.min(), values.max()) if pixel_range == "image" else pixel_range
    scale = 255 / (float(high) - float(low)) if high > low else 0.0
    return np.uint8(np.rint(np.clip((values.astype(float) - float(low)) * scale, 0, 255)))


def _trimmed(image, how):  # type: ignore[no-untyped-def]
    if not how["trim_margin"]:
        return image
    grey = image.convert("L", (0.2989, 0.587, 0.114, -0.5))
    low, high = grey.getextrema()
    if low == high:
        return image
    return image.crop(grey.point([255 * (255 * (v - low) < 200 * (high - low)) for v in range(256)]).getbbox())


def _sized(image, how):  # type: ignore[no-untyped-def]
    if side := how["first_resize"]:
        shorter, half = min(image.size), how["resize_rounding"] == "nearest"
        size = [max((2 * length * side + half * shorter) // (2 * shorter), 1) for length in image.size]
        image = _filtered(image, size, {**how, "interpolation": how["first_interpolation"]})
    if not how["crop_first"]:
        return _cropped(_resized(image, how), how)
    crop, shorter = _sides(how["crop"]), min(image.size)
    area = [max(shorter * length // side, 1) for length, side in zip(crop, _sides(how["resize"]), strict=True)]
    return _filtered(_cropped(image, {**how, "crop": area}), crop[::-1], how)


def _filtered(image, size, how):  # type: ignore[no-untyped-def]
    filter = Image.Resampling[how["interpolation"].upper()]
    if how["antialias"]:
        return image.resize(size, filter)
    (left, right), (top, bottom) = (_extent(*pair, how) for pair in zip(image.size, size, strict=True))
    return image.transform(size, Image.Transform.EXTENT, (left, top, right, bottom), filter)


def _extent(before, after, how):  # type: ignore[no-untyped-def]
    if how["alignment"] == "edges":
        return 0, before
    step = (before - 1) / (after - 1) if after > 1 else 1
    return 0.5 - step / 2, (before - 0.5 if after > 1 else 0.5) + step / 2


def _resized(image, how):  # type: ignore[no-untyped-def]
    (height, width), size = _sides(how["resize"]), image.size
    half = how["resize_rounding"] == "nearest"
    if how["resize_mode"] != "squash":
        # One side is what was asked for, and the other follows.
        if (size[0] * height >= size[1] * width) == (how["resize_mode"] == "longest"):
            height = max((2 * size[1] * width + half * size[0]) // (2 * size[0]), 1)
        else:
            width = max((2 * size[0] * height + half * size[1]) // (2 * size[1]), 1)
    return _filtered(image, (width, height), how)


def _cropped(image, how):  # type: ignore[no-untyped-def]
    height, width = _sides(how["crop"])
    area = (max(image.width, width), max(image.height, height))
    if area != image.size:
        canvas, corner = Image.new("RGB", area, tuple(how["fill_color"])), how["padding"] == "corner"
        canvas.paste(image, (0, 0) if corner else ((area[0] - image.width) // 2, (area[1] - image.height) // 2))
        image = canvas
    before = [(side - crop) / 2 for side, crop in zip(image.size, (width, height), strict=True)]
    left, top = (int(offset) if how["crop_rounding"] == "down" else round(offset) for offset in before)
    return image.crop((left, top, left + width, top + height))


def _sides(size):  # type: ignore[no-untyped-def]
    return (size, size) if isinstance(size, int) else size
