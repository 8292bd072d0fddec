"""What there is without transfer for texts: which words and runs of letters occur in them, hashed into buckets."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from featurecache.backbones.provider import Provided, WeightlessProvider
from featurecache.hashing import canonical_json, digest_bytes
from featurecache.specs import TextPreprocessSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

NAME = "words"
_MOST_BYTES = 2048
_BUCKETS = 4096
"""For words, and as many for runs of 2 to 5 bytes."""
_RUNS = (2, 3, 4, 5)
_FACTOR, _MODULUS = 1_000_003, (1 << 31) - 1


class WordsProvider(WeightlessProvider):
    """Provides ``words``: one plus the logarithm of how often each word, and each run of 2 to 5 bytes, occurs.

    A bag of words as in most baselines, with hashed features in place of a vocabulary (Weinberger et al., "Feature
    hashing for large scale multitask learning", ICML 2009), so that a text has the same features in every cache.
    Capital letters are made small; heads standardise features, which weighs rare words as inverse document frequencies
    do.
    """

    packages = ("tokenizers",)
    names = (NAME,)
    kind = NAME
    settings: ClassVar[Mapping[str, object]] = {"buckets": _BUCKETS, "runs": list(_RUNS)}

    def build(self, name: str, *, pretrained: bool, weights: Path | None, keep_classifier: bool) -> Provided:
        """Build a network that counts.

        Parameters
        ----------
        name, pretrained, weights, keep_classifier
            See `Provider.build`. There are no weights.
        """
        self.check_pretrained(name, pretrained=pretrained)
        tokenizer = _bytes_as_tokens()
        preprocess = TextPreprocessSpec(tokenizer=digest_bytes(tokenizer.encode()), max_tokens=_MOST_BYTES)
        return Provided(
            module=_counts(), preprocess=preprocess, tokenizer=tokenizer, weights_source="none, the words themselves"
        )


@cache
def _bytes_as_tokens() -> str:
    """Return the definition of a tokenizer that makes capital letters small, and a token of every byte."""
    # The alphabet of the tokenizers library: printable bytes stand for themselves, others for what follows 255.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    model: dict[str, Any] = {
        "type": "BPE",
        **dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")),
        **dict.fromkeys(("fuse_unk", "byte_fallback", "ignore_merges"), False),
        "vocab": {letters[byte]: byte for byte in range(256)},
        "merges": [],
    }
    before = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    rest: dict[str, Any] = dict.fromkeys(("truncation", "padding", "post_processor", "decoder"))
    rest["added_tokens"] = []
    return canonical_json(
        {"version": "1.0", "normalizer": {"type": "Lowercase"}, "pre_tokenizer": before, "model": model, **rest}
    )


def _counts() -> nn.Module:
    import torch
    from torch import nn

    class WordCounts(nn.Module):
        """From bytes (B, T) to two vectors of length one, of words and of runs, side by side."""

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            present = attention_mask.bool()
            # Letters, digits and whatever is not ASCII make words; all else ends them.
            letter = ((input_ids >= 97) & (input_ids <= 122)) | ((input_ids >= 48) & (input_ids <= 57))
            in_word = (letter | (input_ids >= 128)) & present
            halves = [self._words(input_ids, in_word), self._runs(input_ids, present)]
            logs = [torch.log1p(half) for half in halves]
            return torch.cat([half / half.norm(dim=1, keepdim=True).clamp(min=1e-12) for half in logs], dim=1)

        def _words(self, input_ids: torch.Tensor, in_word: torch.Tensor) -> torch.Tensor:
            counts = torch.zeros(len(input_ids), _BUCKETS, device=input_ids.device)
            number = torch.zeros_like(input_ids[:, 0])
            for index in range(input_ids.shape[1]):
                inside = in_word[:, index]
                ends = ~inside & (number > 0)
                counts.scatter_add_(1, _bucket(number)[:, None], ends.float()[:, None])
                number = torch.where(inside, (number * _FACTOR + input_ids[:, index] + 1) % _MODULUS, 0)
            return counts.scatter_add_(1, _bucket(number)[:, None], (number > 0).float()[:, None])

        def _runs(self, input_ids: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
            counts = torch.zeros(len(input_ids), _BUCKETS, device=input_ids.device)
            number, whole = torch.zeros_like(input_ids), torch.ones_like(present)
            for length in range(1, max(_RUNS) + 1):
                if length > input_ids.shape[1]:
                    break
                end = input_ids.shape[1] - length + 1
                number = (number[:, :end] * _FACTOR + input_ids[:, length - 1 :] + 1) % _MODULUS
                whole = whole[:, :end] & present[:, length - 1 :]
                if length in _RUNS:
                    counts.scatter_add_(1, _bucket(number + length), whole.float())
            return counts

    return WordCounts()


def _bucket(number: torch.Tensor) -> torch.Tensor:
    return (number * 2_654_435_761 % _MODULUS) % _BUCKETS
