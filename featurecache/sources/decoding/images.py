"""From the bytes of an image file to the uint8 pixels that a network sees, by rules stated in store/FORMAT.md.

Decoding is Pillow's. Ours are the rules for what files leave open: orientation, transparency, palettes, 16 bits,
animation, size limits, and an allow-list of formats.

Other decoders were measured and bring too little for another dependency: Pillow decodes a photograph of the ants and
bees set in 1.63 ms, OpenCV in 1.52 and simplejpeg in 1.49, all by libjpeg-turbo. What does bring a lot is to decode
large photographs no finer than is needed: one of 4000x3000 pixels takes 158 ms with resizing at full size, and 39 ms at
a quarter, after which pixels differ by 0.25 of 255 on average and 3 at most (`scripts/benchmark.py decoding`).
"""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps, JpegImagePlugin, UnidentifiedImageError, features

from featurecache.errors import InputError, install_command
from featurecache.ignored import HEIC_BRANDS, HEIC_SUFFIXES
from featurecache.resizing import draft_side, resize_and_crop
from featurecache.sources.decoding import deep, libtiff
from featurecache.sources.decoding.arrays import MAGIC, image_of_bytes
from featurecache.specs import PreprocessSpec

# H height, W width, C channels (RGB)

# The plugins register themselves on import; Pillow loads some of them late.
for _name in ("Png", "WebP", "Bmp", "Gif", "Tiff", "Jpeg2K", "Avif"):
    import_module(f"PIL.{_name}ImagePlugin")
# Older builds of Pillow have no AVIF, and some none of JPEG 2000.
_LATER = {"jpg_2000": "JPEG2000", "avif": "AVIF"}


def _formats() -> tuple[str, ...]:
    """Return the formats that can be read here; HEIC where pillow-heif is installed."""
    more = [name for feature, name in _LATER.items() if features.check(feature)]
    if find_spec("pillow_heif") is not None:
        # One that cannot be loaded here costs no image of another format.
        with suppress(Exception):
            import_module("pillow_heif").register_heif_opener()
            more.append("HEIF")
    return ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", *more)


FORMATS = _formats()
SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "AVIF": (".avif",),
    "HEIF": tuple(HEIC_SUFFIXES),
}
"""Of the names of files in a folder; what a file holds is recognised by its first bytes."""

# Levels within which an image is of one colour to the eye.
_ONE_COLOUR = 3

_OF_FORMATS = (EOFError, struct.error, zlib.error, SyntaxError)
_DECODING_ERRORS = (*_OF_FORMATS, OSError, ValueError, IndexError, KeyError, TypeError, AttributeError)


_lock, _entered = threading.Lock(), ExitStack()
_num_users = 0


@contextmanager
def pillow_defaults() -> Iterator[None]:
    """Set the process-wide flags of Pillow that other libraries change, and put them back afterwards.

    Enter it around all threads that decode: the flags are global. Who enters first sets them, who leaves last puts
    them back, so that two users in one process don't undo each other.
    """
    global _num_users
    with _lock:
        if not _num_users:
            _entered.enter_context(_flags())
        _num_users += 1
    try:
        yield
    finally:
        with _lock:
            _num_users -= 1
            if not _num_users:
                _entered.close()


@contextmanager
def _flags() -> Iterator[None]:
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    with warnings.catch_warnings(), libtiff.lines_kept():
        # Broken EXIF and the like: the row's status says what matters.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = None, False
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = before


def load_image(data: bytes, spec: PreprocessSpec) -> NDArray[np.uint8]:
    """Decode, orient, resize and crop one image.

    Parameters
    ----------
    data : bytes
        Content of the file.
    spec : PreprocessSpec
        All but ``channel_order``, ``mean`` and ``std`` are applied here; those are applied on the device.

    Returns
    -------
    ndarray of uint8, shape (height and width of the crop, 3)

    Raises
    ------
    InputError
        With the status ``empty``, ``too_large``, ``not_an_image`` or ``undecodable``.
    """
    return np.asarray(resize_and_crop(decode(data, spec).image, spec), np.uint8)


class Decoded(NamedTuple):
    """Upright RGB, and what is doubtful about it: see `featurecache.store.image_warnings`."""

    image: Image.Image
    remark: Literal["", "deep", "transparent", "decoder"] = ""
    """An image of more than 8 bits, or a transparent one, that is nearly of one colour though its file is not; or one
    that the decoder made although it reported errors in the file."""


def decode(data: bytes, spec: PreprocessSpec) -> Decoded:
    """Decode an image to upright RGB, a large JPEG perhaps at a fraction of its size; raises as `load_image` does."""
    if not data:
        raise InputError("empty", "the file has no bytes")
    if len(data) > spec.max_bytes:
        raise InputError("too_large", f"the file has {len(data)} bytes, the limit is {spec.max_bytes}")
    if data.startswith(MAGIC):
        return to_rgb(image_of_bytes(data, spec.max_pixels), spec)
    libtiff.take_lines()  # those of another file
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        is_heic = data[4:8] == b"ftyp" and data[8:12] in HEIC_BRANDS and "HEIF" not in FORMATS
        advice = f"; HEIC is read with: {install_command('heif')}" if is_heic else ""
        raise InputError("not_an_image", f"no {', '.join(FORMATS)} image in {len(data)} bytes{advice}") from None
    except _DECODING_ERRORS as error:
        raise InputError("undecodable", _reason(error)) from None
    # Before it is decoded: a few kilobytes can hold gigabytes of pixels.
    width, height = image.size
    if width * height > spec.max_pixels:
        raise InputError("too_large", f"{width}x{height} pixels, the limit is {spec.max_pixels} pixels")
    try:
        with image:
            if (side := draft_side(spec)) is not None and isinstance(image, JpegImagePlugin.JpegImageFile):
                # The least of 1/1, 1/2, 1/4 and 1/8 that leaves both sides at least as long.
                image.draft(None, (side, side))
            is_deep = deep.has_deep_colours(image)
            upright = _upright(image, spec)
            decoded = _deep_to_rgb(upright, data, spec) if is_deep else to_rgb(upright, spec)
            return decoded._replace(remark="decoder") if libtiff.take_lines() else decoded
    except _DECODING_ERRORS as error:
        raise InputError("undecodable", _reason(error)) from None


def to_rgb(image: Image.Image, spec: PreprocessSpec) -> Decoded:
    """Convert any mode to RGB: more than 8 bits by the range of the preprocess, transparency over the background."""
    if image.mode in deep.GREY_MODES:
        values = np.asarray(image)
        shown = deep.to_eight_bits(values, spec.range)
        flat: Literal["", "deep"] = "deep" if deep.is_flattened(values, shown, spec.range) else ""
        return Decoded(Image.fromarray(shown).convert("RGB"), flat)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        return _composited(image.convert("RGBA"), spec)
    return Decoded(image if image.mode == "RGB" else image.convert("RGB"))


def _composited(layer: Image.Image, spec: PreprocessSpec) -> Decoded:
    canvas = Image.new("RGBA", layer.size, (*spec.background, 255))
    rgb = Image.alpha_composite(canvas, layer).convert("RGB")
    _, most_opaque = layer.getchannel("A").getextrema()
    hidden = most_opaque == 0 or _span(rgb) <= _ONE_COLOUR < _span(layer)
    return Decoded(rgb, "transparent" if hidden else "")


def _span(image: Image.Image) -> int:
    """Return the greatest difference between two pixels in one band."""
    extrema: Any = image.getextrema()
    return int(max(high - low for low, high in extrema))


def _deep_to_rgb(image: Image.Image, data: bytes, spec: PreprocessSpec) -> Decoded:
    """Convert colours of 16 bits, of which ``image`` has the upper bytes, to RGB."""
    plain = to_rgb(image, spec)
    if plain.remark or (spec.range == "full" and not deep.seems_flat(image.convert("RGB"))):
        return plain
    lower, grey = deep.read_lower_bytes(data, FORMATS)
    with lower:
        values = deep.deep_colours(image, _upright(lower, spec), grey=grey)
    shown = np.broadcast_to(deep.to_eight_bits(values, spec.range), (*values.shape[:2], 3))
    rgb = Image.fromarray(np.ascontiguousarray(shown))
    if image.mode != "RGB":
        rgb.putalpha(image.getchannel("A"))
    return Decoded(to_rgb(rgb, spec).image, "deep" if deep.is_flattened(values, shown, spec.range) else "")


def _upright(image: Image.Image, spec: PreprocessSpec) -> Image.Image:
    image.seek(0)
    image.load()
    if spec.orientation != "stored":
        with suppress(*_DECODING_ERRORS):  # an unreadable EXIF block says nothing about orientation
            # Pillow would copy what it does not turn.
            if image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9):
                return ImageOps.exif_transpose(image)
    return image


def _reason(error: BaseException) -> str:
    lines = libtiff.take_lines()
    text = " ".join(f"{error} {f'({lines})' if lines else ''}".split())
    return (text or type(error).__name__)[:200]
