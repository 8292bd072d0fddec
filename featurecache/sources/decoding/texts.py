"""From the bytes of a text to the token ids that a network sees, by rules stated in store/FORMAT.md."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurecache.errors import InputError, RequestError, first_line
from featurecache.hashing import digest_bytes
from featurecache.plugins import import_extra
from featurecache.specs import TextPreprocessSpec

# T tokens

PADDING = -1
"""Stands where a text has no more tokens: no id is negative, so padding cannot be taken for a token."""

REFERENCE_TEXTS = (
    "The quick brown fox jumps over the lazy dog, and 1,024 others watch: \u00a320 that it won't do it again!".encode(),
    "Na\u00efve caf\u00e9 \u2013 \u5b57 \u0663 e\u0301\u00e9 \U0001f98a\tZ\u00fcrich\n\nUPPER two  spaces".encode(),
)
"""Known texts with what tokenizers disagree about: case, accents, composed or not, numbers, scripts, white space."""


class Tokenizer:
    """The tokenizer that belongs to some weights, bound to a length.

    Parameters
    ----------
    definition : str
        ``tokenizer.json`` as the tokenizers library writes it.
    spec : TextPreprocessSpec
        Its length, and the digest that the definition must have.
    """

    def __init__(self, definition: str, spec: TextPreprocessSpec) -> None:
        # Of another tokenizer the same ids would mean other words, and nothing would fail.
        if digest_bytes(definition.encode()) != spec.tokenizer:
            raise RequestError("this tokenizer is not the one that the preprocess names; load the backbone again")
        self._tokenizer = parse_tokenizer(definition)
        if spec.max_tokens <= (special := self._tokenizer.num_special_tokens_to_add(is_pair=False)):
            raise RequestError(
                f"{spec.max_tokens} tokens are no more than the {special} that the tokenizer adds; raise --max-tokens"
            )
        self._tokenizer.enable_truncation(spec.max_tokens)
        self._spec = spec

    def tokens_of(self, data: bytes) -> tuple[NDArray[np.int32], bool]:
        """Return token ids ``(max_tokens,)`` int32, padded with `PADDING`, and whether the text was cut.

        Raises
        ------
        InputError
            With the status ``empty``, ``too_large`` or ``undecodable``.
        """
        text = text_of(data, self._spec)
        try:
            encoding = self._tokenizer.encode(text)
        # The library raises plain exceptions, e.g. for a word that a vocabulary without a word for such words lacks.
        except Exception as error:
            raise InputError("undecodable", f"the tokenizer cannot read it ({first_line(error)})") from None
        if not encoding.ids or all(encoding.special_tokens_mask):
            raise InputError("empty", f"the tokenizer finds no token in {len(data)} bytes")
        tokens = np.full(self._spec.max_tokens, PADDING, np.int32)
        tokens[: len(encoding.ids)] = encoding.ids
        return tokens, bool(encoding.overflowing)


def text_of(data: bytes, spec: TextPreprocessSpec) -> str:
    """Read the bytes of a text."""
    if not data:
        raise InputError("empty", "the text has no bytes")
    if len(data) > spec.max_bytes:
        raise InputError("too_large", f"the text has {len(data)} bytes, the limit is {spec.max_bytes}")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError("undecodable", f"byte {error.start} is no UTF-8") from None


def parse_tokenizer(definition: str) -> Any:
    """Build a tokenizer that neither cuts nor pads."""
    tokenizer = import_extra("tokenizers", "text").Tokenizer.from_str(definition)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
