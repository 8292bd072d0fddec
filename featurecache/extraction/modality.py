"""A modality: what turns the bytes of one input into arrays of one fixed shape, and what is known of the way.

Everything above knows inputs as bytes and batches as arrays. Another modality is a preprocess in ``specs.py``, a class
here, and its way into a network in ``backbones/input_kinds.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featurecache.backbones.packed_images import empty_slots, packed, packs
from featurecache.hashing import digest_bytes
from featurecache.resizing import resize_and_crop, trimmed
from featurecache.sources.decoding.images import decode, pillow_defaults
from featurecache.sources.decoding.reference_images import REFERENCE_IMAGES
from featurecache.sources.decoding.texts import PADDING, REFERENCE_TEXTS, Tokenizer, text_of
from featurecache.specs import AnyPreprocess, PreprocessSpec, TextPreprocessSpec, ViewSpec, check_takes_views

# V views, H height, W width, C channels, T tokens


@dataclass(frozen=True, slots=True)
class InputDigests:
    """Digests of what an input was at each stage before the network."""

    decoded: str
    prepared: str


class Loaded(NamedTuple):
    """One input as the network takes it."""

    arrays: NDArray[Any]
    """Once for each view."""
    cut: bool = False
    """It is longer than the network takes."""
    digests: InputDigests | None = None
    """If they were asked for."""
    remark: str = ""
    """As `featurecache.sources.decoding.images.Decoded.remark`."""


class Modality(Protocol):
    """One kind of input under one preprocess.

    Attributes
    ----------
    views : ViewSpec or None
        The views of each input that it makes; ``None``: one, the plain input.
    stage_names : tuple of str
        What the two stages before the network are called.
    reference_inputs : sequence of bytes
        Inputs that the program carries, to see whether a machine still makes the features that it should.
    """

    views: ViewSpec | None
    stage_names: tuple[str, str]
    reference_inputs: Sequence[bytes]

    @property
    def max_bytes(self) -> int:
        """Larger inputs are not read."""

    def empty(self, count: int) -> NDArray[Any]:
        """Return a batch of ``count`` inputs in which nothing is."""

    def load(self, data: bytes, *, digested: bool = False) -> Loaded:
        """Turn an input's bytes into an array for each view; raise `InputError` where that cannot be."""

    def undisturbed(self) -> AbstractContextManager[None]:
        """Keep off what other libraries in this process set for all; entered around all threads that load."""


class ImageModality:
    """Image files as uint8 (V, H, W, C)."""

    stage_names = ("decoded pixels", "preprocessed pixels")
    reference_inputs: Sequence[bytes] = REFERENCE_IMAGES
    # Pillow's flags hold for the whole process: set once around all threads, they are not changed under one of them.
    undisturbed = staticmethod(pillow_defaults)

    def __init__(self, spec: PreprocessSpec, views: ViewSpec | None) -> None:
        self.spec, self.views = spec, views
        # A view may show a small part of the image, enlarged.
        self._decoding = spec if views is None else spec.override(jpeg_decoding="full")
        self.max_bytes = spec.max_bytes

    def empty(self, count: int) -> NDArray[np.uint8]:
        """Black images."""
        return np.zeros((count, *self.spec.crop_shape, 3), np.uint8)

    def load(self, data: bytes, *, digested: bool = False) -> Loaded:
        """Decode, once, and orient; then resize and crop, or make the views."""
        image, remark = decode(data, self._decoding)
        arrays = self._arrays_of(image, data)
        digests = None
        if digested:  # while the decoded image is at hand: it would have to be decoded again for it
            digests = InputDigests(digest_bytes(image.tobytes())[:16], digest_bytes(arrays.tobytes())[:16])
        return Loaded(arrays, digests=digests, remark=remark)

    def load_view(self, data: bytes, number: int) -> NDArray[np.uint8]:
        """Make one image (H, W, C): the plain one, or a view by its number, which may be beyond those of `load`."""
        image = decode(data, self._decoding).image
        if self.views is None:
            return self._arrays_of(image, data)[0]
        from featurecache.extraction.augmentation import make_view

        return make_view(image, digest_bytes(data), number, self.spec, self.views)

    def _arrays_of(self, image: Image.Image, data: bytes) -> NDArray[np.uint8]:
        if self.views is None:
            return np.asarray(resize_and_crop(image, self.spec), np.uint8)[None]
        # Late: it takes torch, which processes that load plain images do without.
        from featurecache.extraction.augmentation import make_view

        sample, numbers = digest_bytes(data), range(self.views.count)
        return np.stack([make_view(image, sample, number, self.spec, self.views) for number in numbers])


class PackedImages(ImageModality):
    """Image files, decoded, for a device that resizes them: uint8 (1, N)."""

    def empty(self, count: int) -> NDArray[np.uint8]:
        """Black images."""
        return empty_slots(self.spec, count)

    def load(self, data: bytes, *, digested: bool = False) -> Loaded:
        """Decode, once, and orient."""
        image, remark = decode(data, self._decoding)
        image = trimmed(image, self.spec)
        slot_N = packed(image, self.spec)
        # As if it were resized here: where it is, is no part of what it becomes.
        digests = super().load(data, digested=True).digests if digested else None
        return Loaded(slot_N[None], digests=digests, remark=remark)


class TextModality:
    """Texts as int32 (1, T) token ids."""

    views: ViewSpec | None = None
    stage_names = ("decoded text", "token ids")
    reference_inputs: Sequence[bytes] = REFERENCE_TEXTS
    undisturbed = staticmethod(nullcontext)  # nothing is global here

    def __init__(self, spec: TextPreprocessSpec, tokenizer: str) -> None:
        self._spec, self._tokenizer = spec, Tokenizer(tokenizer, spec)
        self.max_bytes = spec.max_bytes

    def empty(self, count: int) -> NDArray[np.int32]:
        """Nothing but padding."""
        return np.full((count, self._spec.max_tokens), PADDING, np.int32)

    def load(self, data: bytes, *, digested: bool = False) -> Loaded:
        """Decode and tokenize."""
        tokens_T, cut = self._tokenizer.tokens_of(data)
        digests = None
        if digested:
            decoded = text_of(data, self._spec).encode()
            digests = InputDigests(digest_bytes(decoded)[:16], digest_bytes(tokens_T.tobytes())[:16])
        return Loaded(tokens_T[None], cut, digests)


def without_resizing(modality: Modality) -> Modality:
    """Return what loads the same inputs for a device that resizes them; views are always made here."""
    if isinstance(modality, ImageModality) and modality.views is None and packs(modality.spec):
        return PackedImages(modality.spec, None)
    return modality


def modality_of(preprocess: AnyPreprocess, tokenizer: str | None = None, views: ViewSpec | None = None) -> Modality:
    """Return the modality of a preprocess.

    Parameters
    ----------
    preprocess
        Its type decides.
    tokenizer
        For texts, the definition of the tokenizer that belongs to the weights.
    views
        For images, the views of each that are made instead of the plain image.
    """
    if views is not None:
        check_takes_views(preprocess.modality, "this preprocess")
    if isinstance(preprocess, PreprocessSpec):
        return ImageModality(preprocess, views)
    assert tokenizer is not None
    return TextModality(preprocess, tokenizer)
