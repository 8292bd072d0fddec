"""How a batch enters a network, by modality: what every other file here knows only as inputs.

A network of images is called with normalised float images. A network of texts is called, as transformers' are, with
``input_ids`` and ``attention_mask``; between the loader and that call, a text is its token ids with -1 for padding.

Axes: B batch, H height, W width, C channels, T tokens.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from featurecache.errors import RequestError
from featurecache.specs import AnyPreprocess, PreprocessSpec, TextPreprocessSpec


@dataclass(frozen=True)
class InputKind:
    """What is particular to one modality between a batch of the loader and the network."""

    one: str
    noun: str
    """What an input is called, and several of them."""
    shape: Callable[[Any], tuple[int, ...]]
    """Of one input as the loader makes it, by preprocess."""
    dtype: type[np.generic]
    axes: str
    prepare: Callable[[Any], nn.Module]
    """From a batch of the loader to what `call` takes, on the device."""
    mask: Callable[[Tensor], Tensor] | None
    """Of a batch, which tokens are there (B, T); ``None`` where every input fills its array."""
    example: Callable[[Any, str | None, int], Tensor]
    """By preprocess, tokenizer and number: inputs as `call` takes them, the same each time, to try a network with."""
    sized: Callable[[Any], str]
    """Names the inputs with their size, by preprocess."""
    advice: str
    """What to do about a network that rejects them."""

    def call(self, network: nn.Module, inputs: Tensor) -> Any:
        """Run a network on a batch as `prepare` makes it."""
        if self.mask is None:
            # Networks that normalise in place would write into what others still read.
            return network(inputs.clone())
        # Which id stands at padding is of no account: the mask hides it.
        return network(input_ids=inputs.clamp(min=0).long(), attention_mask=self.mask(inputs).long())

    def check(self, batch: np.ndarray) -> None:
        """Raise `RequestError` unless a batch is of the kind that the loader makes."""
        fits = batch.ndim == len(self.axes) and (self.axes[-1] != "3" or batch.shape[-1] == 3)
        if batch.dtype != self.dtype or not fits:
            axes = ", ".join(self.axes)
            raise RequestError(f"a batch is {self.dtype.__name__} ({axes}), got {batch.dtype} {batch.shape}")


class Normalise(nn.Module):
    """uint8 (B, H, W, C) to normalised float (B, C, H, W)."""

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, preprocess: PreprocessSpec) -> None:
        super().__init__()
        self._flipped = preprocess.channel_order == "bgr"
        # Not persistent: they belong to the preprocess, and a digest of weights must not see them.
        self.register_buffer("mean_C11", torch.tensor(preprocess.mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std_C11", torch.tensor(preprocess.std).reshape(3, 1, 1), persistent=False)

    def forward(self, images_BHWC: Tensor) -> Tensor:
        """Order the channels, subtract the mean and divide by the standard deviation."""
        # On the device, where it is a view or a copy of bytes; the loader would copy every image.
        if self._flipped:
            images_BHWC = images_BHWC.flip(-1)
        return (images_BHWC.permute(0, 3, 1, 2).float() / 255 - self.mean_C11) / self.std_C11


def input_kind_of(preprocess: AnyPreprocess) -> InputKind:
    """Return the kind of input that a preprocess makes; its type decides."""
    return _KINDS[type(preprocess)]


def is_text(preprocess: AnyPreprocess) -> bool:
    """Tell whether inputs are sequences of tokens that don't fill their arrays."""
    return input_kind_of(preprocess).mask is not None


def _token_mask(tokens_BT: Tensor) -> Tensor:
    """Every text has a first token; so has the padding at the end of a batch, lest its attention divide by zero."""
    mask_BT = tokens_BT >= 0
    return torch.cat([torch.ones_like(mask_BT[:, :1]), mask_BT[:, 1:]], dim=1)


def _example_images(preprocess: PreprocessSpec, _: str | None, count: int) -> Tensor:
    """Images with large and small structures like photographs, of about unit variance, as after normalisation.

    Not zeros: a network that mixes images, or draws at random, may do that to zeros without a trace.
    """
    shape, generator = preprocess.crop_shape, torch.Generator().manual_seed(0)
    # Structures of about 28 pixels (of 224), as objects have, and noise of one pixel.
    coarse_BCHW = torch.randn(count, 3, 8, 8, generator=generator)
    fine_BCHW = torch.randn(count, 3, *shape, generator=generator)
    return interpolate(coarse_BCHW, size=shape, mode="bilinear") + 0.2 * fine_BCHW


def _example_texts(preprocess: TextPreprocessSpec, definition: str | None, count: int) -> Tensor:
    """Texts of any tokens, the first as long as can be, each other one shorter than that."""
    length, generator = preprocess.max_tokens, torch.Generator().manual_seed(0)
    assert definition is not None
    tokenizer: Any = importlib.import_module("tokenizers").Tokenizer.from_str(definition)
    # Any tokens do: they show shapes, and whether texts of a batch mix.
    tokens_BT = torch.randint(tokenizer.get_vocab_size(), (count, length), generator=generator, dtype=torch.int32)
    for index in range(1, count):
        tokens_BT[index, max(1, length * 2 // (index + 2)) :] = -1
    return tokens_BT


_KINDS: dict[type[Any], InputKind] = {
    PreprocessSpec: InputKind(
        one="an image",
        noun="images",
        shape=lambda preprocess: (*preprocess.crop_shape, 3),
        dtype=np.uint8,
        axes="BHW3",
        prepare=Normalise,
        mask=None,
        example=_example_images,
        sized=lambda preprocess: "images of {}x{} pixels".format(*preprocess.crop_shape[::-1]),
        advice="--crop and --resize set another size",
    ),
    TextPreprocessSpec: InputKind(
        one="a text",
        noun="texts",
        shape=lambda preprocess: (preprocess.max_tokens,),
        dtype=np.int32,
        axes="BT",
        prepare=lambda preprocess: nn.Identity(),
        mask=_token_mask,
        example=_example_texts,
        sized=lambda preprocess: f"texts of {preprocess.max_tokens} tokens",
        advice="--max-tokens sets another length",
    ),
}
