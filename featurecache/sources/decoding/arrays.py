"""Pictures that are arrays already, as bytes: the layout of NumPy's ``.npy``, version 1, so that they have an id.

The id of such a sample is the SHA-256 of these bytes, which say its dtype, shape and pixels in C order. Nothing here
can hold an object, and nothing is unpickled.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from featurecache.errors import InputError, RequestError

MAGIC = b"\x93NUMPY"
_DTYPES = ("uint8", "uint16", "int32", "float32")


def array_bytes(image: Any) -> bytes:
    """Return a picture in memory as bytes that `image_of_bytes` reads.

    Parameters
    ----------
    image : ndarray, PIL image or torch tensor
        Grey (height, width), or with a last axis of 1, 3 or 4 channels, the fourth being opacity; of tensors the
        channels come first. PIL images are turned as their EXIF block says. uint8, or
        grey of uint16, int32 or float32; booleans are black and white.

    Raises
    ------
    RequestError
        Another shape or dtype.
    """
    array = _pixels(image)
    if array.dtype == bool:
        array = array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    array = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
    is_grey, is_colour = array.ndim == 2, array.ndim == 3 and array.shape[-1] in (3, 4)
    if not (is_grey or is_colour) or not array.size:
        raise RequestError(
            f"a picture of shape {array.shape} is neither grey (height, width) nor colour (height, width, 3 or 4); "
            "turn its axes so that channels come last"
        )
    if array.dtype.name not in (_DTYPES if is_grey else ("uint8",)):
        kind = "grey" if is_grey else "colour"
        raise RequestError(
            f"a {kind} picture of {array.dtype.name} says nothing of its range; give uint8 from 0 to 255, before any "
            "normalisation"
        )
    file = io.BytesIO()
    # Little-endian whatever the machine, so that the same pixels have the same id everywhere.
    values = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
    np.lib.format.write_array(file, values, version=(1, 0), allow_pickle=False)
    return file.getvalue()


def _pixels(image: Any) -> NDArray[Any]:
    if isinstance(image, Image.Image):
        image = ImageOps.exif_transpose(image)
        # A palette or two colours are no pixels yet; what has opacity keeps it.
        plain = image.mode in ("L", "RGB", "RGBA", "I;16", "I", "F")
        has_opacity = image.mode in ("LA", "PA", "La", "RGBa") or "transparency" in image.info
        return np.asarray(image if plain else image.convert("RGBA" if has_opacity else "RGB"))
    is_tensor = hasattr(image, "detach") and hasattr(image, "cpu")
    array = np.asarray(image.detach().cpu().numpy() if is_tensor else image)
    if is_tensor and array.ndim == 3 and array.shape[0] in (1, 3, 4):
        return np.moveaxis(array, 0, -1)
    return array


def image_of_bytes(data: bytes, max_pixels: int) -> Image.Image:
    """Return the picture that `array_bytes` wrote.

    Parameters
    ----------
    data : bytes
    max_pixels : int
        Of one that is larger nothing is read.

    Raises
    ------
    InputError
        It is none, or too large.
    """
    file = io.BytesIO(data)
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("another version")
        # NumPy reads the header as a Python literal: a long one is not safe to parse.
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file, max_header_size=4096)
    except ValueError:
        raise InputError("undecodable", "an array that cannot be read") from None
    is_known = dtype.name in _DTYPES and len(shape) in (2, 3) and not fortran
    if not is_known or (len(shape) == 3 and (shape[2] not in (3, 4) or dtype != np.uint8)):
        raise InputError("undecodable", f"an array of {dtype} {shape}, and no picture")
    if shape[0] * shape[1] > max_pixels:
        raise InputError("too_large", f"{shape[1]}x{shape[0]} pixels, the limit is {max_pixels} pixels")
    rest = memoryview(data)[file.tell() :]
    if not all(shape) or len(rest) != int(np.prod(shape)) * dtype.itemsize:
        raise InputError("undecodable", f"an array of {shape} with {len(rest)} bytes of pixels")
    array = np.frombuffer(rest, dtype).reshape(shape)
    return Image.fromarray(array.astype(dtype.newbyteorder("="), copy=False))
