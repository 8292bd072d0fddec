"""A modality: what turns the bytes of one input into one array of fixed shape, and what is known of the way.

Everything above knows inputs as bytes and batches as arrays. Another modality is a preprocess in ``specs.py``, a class
here, and an entrance to the network in ``backbones/entrances.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from featurecache.hashing import digest_bytes
from featurecache.sources.images import decode, load_image, pillow_defaults
from featurecache.sources.probe_images import PROBE_IMAGES
from featurecache.sources.texts import PADDING, PROBE_TEXTS, Tokenizer, text_of
from featurecache.specs import AnyPreprocess, PreprocessSpec, TextPreprocessSpec

# H height, W width, C channels, T tokens


class Loaded(NamedTuple):
    """One input as the network takes it, and whether only its beginning is in there."""

    array: NDArray[Any]
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Stages:
    """Digests of what an input was at each stage before the network."""

    decoded: str
    prepared: str


class Modality(Protocol):
    """One kind of input under one preprocess.

    Attributes
    ----------
    stage_names : tuple of str
        What the two stages before the network are called.
    probes : sequence of bytes
        Inputs that the program carries, to see whether a machine still makes the features that it should.
    """

    stage_names: tuple[str, str]
    probes: Sequence[bytes]

    @property
    def max_bytes(self) -> int:
        """Larger inputs are not read."""
        ...

    def empty(self, count: int) -> NDArray[Any]:
        """Return a batch of ``count`` inputs in which nothing is."""
        ...

    def load(self, data: bytes) -> Loaded:
        """Turn an input's bytes into an array; raise `InputError` where that cannot be."""
        ...

    def stages(self, data: bytes) -> Stages:
        """Digest an input at each stage."""
        ...

    def undisturbed(self) -> AbstractContextManager[None]:
        """Keep off what other libraries in this process set for all; entered around all threads that load."""
        ...


class ImageModality:
    """Image files as uint8 (H, W, C)."""

    stage_names = ("decoded pixels", "preprocessed pixels")
    probes: Sequence[bytes] = PROBE_IMAGES

    def __init__(self, spec: PreprocessSpec) -> None:
        self._spec = spec
        self.max_bytes = spec.max_bytes

    def empty(self, count: int) -> NDArray[np.uint8]:
        """Black images."""
        return np.zeros((count, self._spec.crop, self._spec.crop, 3), np.uint8)

    def load(self, data: bytes) -> Loaded:
        """Decode, orient, resize and crop."""
        return Loaded(load_image(data, self._spec))

    def stages(self, data: bytes) -> Stages:
        """Digest an image before and after resizing and cropping."""
        image = decode(data, self._spec)
        return Stages(_digest(image.tobytes()), _digest(load_image(data, self._spec).tobytes()))

    def undisturbed(self) -> AbstractContextManager[None]:
        """Set Pillow's flags."""
        return pillow_defaults()


class TextModality:
    """Texts as int32 (T,) token ids."""

    stage_names = ("decoded text", "token ids")
    probes: Sequence[bytes] = PROBE_TEXTS

    def __init__(self, spec: TextPreprocessSpec, tokenizer: str) -> None:
        self._spec, self._tokenizer = spec, Tokenizer(tokenizer, spec)
        self.max_bytes = spec.max_bytes

    def empty(self, count: int) -> NDArray[np.int32]:
        """Nothing but padding."""
        return np.full((count, self._spec.max_tokens), PADDING, np.int32)

    def load(self, data: bytes) -> Loaded:
        """Decode and tokenize."""
        return Loaded(*self._tokenizer.tokens_of(data))

    def stages(self, data: bytes) -> Stages:
        """Digest a text before and after the tokenizer."""
        return Stages(_digest(text_of(data, self._spec).encode()), _digest(self.load(data).array.tobytes()))

    def undisturbed(self) -> AbstractContextManager[None]:
        """Nothing is global here."""
        return nullcontext()


def modality_of(preprocess: AnyPreprocess, tokenizer: str | None = None) -> Modality:
    """Return the modality of a preprocess.

    Parameters
    ----------
    preprocess
        Its type decides.
    tokenizer
        For texts, the definition of the tokenizer that belongs to the weights.
    """
    return _MODALITIES[type(preprocess)](preprocess, tokenizer)


_MODALITIES: dict[type[Any], Callable[[Any, Any], Modality]] = {
    PreprocessSpec: lambda spec, _: ImageModality(spec),
    TextPreprocessSpec: TextModality,
}


def _digest(data: bytes) -> str:
    return digest_bytes(data)[:16]
