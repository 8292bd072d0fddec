"""Decoded images of any size in batches of one shape, for a device that resizes them.

A slot is bytes: a header (height, width, and whether it has been resized already), then the pixels, then whatever an
earlier batch has left. So batches stay arrays of one shape, whichever way they come to the device. An image that does
not fit is resized where it is decoded, by the same rule.

Axes: B batch, H height, W width, C channels (RGB), N bytes of a slot.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featurecache.resizing import crop_box, resize_and_crop, resized_by_torch, resized_size
from featurecache.specs import AnyPreprocess, PreprocessSpec

if TYPE_CHECKING:
    from torch import Tensor

_HEADER = 16
# Pixels of an image, of those of a square with the side `resize`: photographs of 500x375 for a side of 256. More would
# cover more, and take more: of 512 images, a slot of this size takes 400 MB.
_MOST_PIXELS = 4


def packs(spec: AnyPreprocess) -> TypeGuard[PreprocessSpec]:
    """Tell whether a device can resize images by this preprocess: those that are resized once, and then cropped."""
    if not isinstance(spec, PreprocessSpec):
        return False
    is_plain = spec.padding == "none" and not spec.crop_first and not spec.first_resize
    return spec.resize_on == "device" and is_plain


def is_packed(batch: NDArray[np.generic]) -> bool:
    """Tell whether a batch is of packed images, (B, N)."""
    return batch.ndim == 2 and batch.dtype == np.uint8


def empty_slots(spec: PreprocessSpec, count: int) -> NDArray[np.uint8]:
    """Return black images (B, N)."""
    height, width = spec.resize_shape
    most = max(_MOST_PIXELS * height * width, spec.crop_shape[0] * spec.crop_shape[1])
    slots = np.zeros((count, _HEADER + 3 * most), np.uint8)
    # Without pixels there would be nothing to resize.
    for slot in slots:
        _put(slot, np.zeros((*spec.crop_shape, 3), np.uint8), is_resized=True)
    return slots


def packed(image: Image.Image, spec: PreprocessSpec) -> NDArray[np.uint8]:
    """Return a decoded image as what stands in its slot, (at most N); raises as `resize_and_crop` does."""
    height, width = spec.resize_shape
    resized_size(image.size, spec, checked=True)
    is_resized = image.width * image.height > _MOST_PIXELS * height * width
    pixels = np.asarray(resize_and_crop(image, spec) if is_resized else image, np.uint8)
    slot = np.empty(_HEADER + pixels.nbytes, np.uint8)
    _put(slot, pixels, is_resized=is_resized)
    return slot


def headers_of(batch: NDArray[np.uint8]) -> list[tuple[int, int, int]]:
    """Return height, width, and 1 where it is resized, of each image of a batch (B, N)."""
    return [(h, w, done) for h, w, done, _ in np.ascontiguousarray(batch[:, :_HEADER]).view(np.int32).tolist()]


def unpacked(batch_BN: Tensor, headers: list[tuple[int, int, int]], spec: PreprocessSpec) -> Tensor:
    """Resize and crop, those of one size together; return uint8 (B, H, W, C).

    Parameters
    ----------
    batch_BN : Tensor of uint8
        On the device that does it.
    headers : list
        See `headers_of`; known on the CPU, because to ask the device would be to wait for it.
    spec : PreprocessSpec
    """
    import torch  # late: processes that load have no use for it

    indices = defaultdict(list)
    for index, header in enumerate(headers):
        indices[header].append(index)
    found_HWC: list[Tensor] = [batch_BN] * len(headers)
    for (height, width, is_resized), some in indices.items():
        # By slices: a list of indices would have to come to the device first.
        pixels_BN = torch.stack([batch_BN[index, _HEADER : _HEADER + 3 * height * width] for index in some])
        pixels_BHWC = pixels_BN.reshape(-1, height, width, 3)
        if not is_resized:
            size = resized_size((width, height), spec)
            left, top, right, bottom = crop_box(size, spec)
            pixels_BHWC = resized_by_torch(pixels_BHWC, size, spec)[:, top:bottom, left:right]
        for index, pixels_HWC in zip(some, pixels_BHWC.unbind(), strict=True):
            found_HWC[index] = pixels_HWC
    return torch.stack(found_HWC)


def _put(slot: NDArray[np.uint8], pixels: NDArray[np.uint8], *, is_resized: bool) -> None:
    slot[:_HEADER].view(np.int32)[:] = (*pixels.shape[:2], is_resized, 0)
    slot[_HEADER : _HEADER + pixels.nbytes] = pixels.reshape(-1)
