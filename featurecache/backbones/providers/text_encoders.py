"""What a folder of a text encoder holds besides its network: tokenizer, length, and how its tokens are pooled.

Folders are laid out as on a hub's page: ``config.json``, ``model.safetensors``, ``tokenizer.json``, and for sentence
encoders ``sentence_bert_config.json`` and ``1_Pooling/config.json``. Nothing in them is code, or is run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurecache.errors import BackboneError
from featurecache.hashing import canonical_json, digest_bytes
from featurecache.plugins import import_extra
from featurecache.specs import TextPreprocessSpec

MOST_TOKENS = 512
"""Longer texts are seldom worth the time; --max-tokens takes more of them."""

ReadJson = Callable[[str], Mapping[str, Any] | None]
"""Returns a JSON file of the model by its name, ``None`` where the model has none."""


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """What a backbone of texts needs besides its network, under the names that `Provided` has for it."""

    tokenizer: str
    preprocess: TextPreprocessSpec
    has_class_token: bool
    token_pooling: str | None
    notes: tuple[str, ...]


def is_text_encoder(config: Any) -> bool:
    """Tell by a transformers configuration whether a network reads tokens and nothing else."""
    of_images = ("vision_config", "image_size", "num_channels")
    takes_images = any(getattr(config, name, None) is not None for name in of_images)
    return getattr(config, "vocab_size", None) is not None and not takes_images


def read_text_settings(name: str, config: Any, read: ReadJson) -> TextSettings:
    """Read everything but the network.

    Parameters
    ----------
    name
        Of the backbone, for messages.
    config
        The network's configuration.
    read
        Reads the model's other files.
    """
    if (definition := read("tokenizer.json")) is None:
        raise BackboneError(
            f"{name} has no tokenizer.json; save it there with "
            "transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    # What a definition says of cutting and padding is left out: both are done here, and stand in the preprocess.
    tokenizer = canonical_json({**definition, "truncation": None, "padding": None})
    length, notes = _length(config, read)
    return TextSettings(
        tokenizer=tokenizer,
        preprocess=TextPreprocessSpec(tokenizer=digest_bytes(tokenizer.encode()), max_tokens=length),
        has_class_token=_begins_with_special_token(name, tokenizer),
        token_pooling=_pooling(read),
        notes=notes,
    )


def _length(config: Any, read: ReadJson) -> tuple[int, tuple[str, ...]]:
    own_limit = (read("sentence_bert_config.json") or {}).get("max_seq_length")
    limits = [own_limit, (read("tokenizer_config.json") or {}).get("model_max_length"), _positions(config)]
    # Tokenizers that know no limit say so with a number of thirty digits.
    known = [int(limit) for limit in limits if isinstance(limit, int | float) and 0 < limit < 1 << 24]
    length = min(known, default=MOST_TOKENS)
    if length <= MOST_TOKENS:
        return length, ()
    return MOST_TOKENS, (
        f"takes up to {length} tokens; texts are cut at {MOST_TOKENS} here, --max-tokens changes that",
    )


def _positions(config: Any) -> int | None:
    positions = getattr(config, "max_position_embeddings", None)
    # RoBERTa and similar networks count positions from behind the id of padding.
    offset = (config.pad_token_id or 0) + 1 if getattr(config, "model_type", "") in _OFFSET_POSITIONS else 0
    return None if positions is None else positions - offset


_OFFSET_POSITIONS = {"roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "mpnet", "longformer", "data2vec-text"}


def _pooling(read: ReadJson) -> str | None:
    """Return the pooling that a sentence encoder was trained with, if it is one that exists here."""
    # A file of sentence-transformers, which concatenates where several modes are on; no pooling here does that.
    settings = read("1_Pooling/config.json") or {}
    modes = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_max_tokens": "max"}
    found = [pooling for mode, pooling in modes.items() if settings.get(mode)]
    return found[0] if len(found) == 1 else None


def _begins_with_special_token(name: str, definition: str) -> bool:
    tokenizers = import_extra("tokenizers", "text")
    try:
        tokenizer = tokenizers.Tokenizer.from_str(definition)
    # The library raises plain exceptions for whatever it cannot read.
    except Exception as error:
        raise BackboneError(f"{name} has a tokenizer.json that cannot be read ({error}); bring another") from error
    encoding = tokenizer.encode("a")
    return bool(encoding.special_tokens_mask[:1] == [1])


def folder_reader(folder: Path) -> ReadJson:
    """Read JSON files of a folder."""

    def read(file: str) -> Mapping[str, Any] | None:
        path = folder / file
        if not path.is_file():
            return None
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise BackboneError(f"{path} is damaged ({error}); bring it again") from None

    return read
