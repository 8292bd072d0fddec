"""A small text encoder with random weights and a tokenizer of a few words, as a folder of a hub's page holds them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from conftest import need

ANIMALS = ("cat", "dog", "bird", "horse")
PLACES = ("house", "street", "river", "garden")
WORDS = (*ANIMALS, *PLACES, "the", "a", "is", "in", "red", "old", "and", "##s")
MAX_TOKENS = 12


def write_encoder(folder: Path, *, seed: int = 0, words: tuple[str, ...] = WORDS, **settings: Any) -> Path:
    """Write a random BERT with a word-piece tokenizer."""
    need("transformers")
    need("tokenizers")
    from featurecache.backbones.torchvision_compat import import_torchvision

    import_torchvision()
    import torch
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    sizes |= {"vocab_size": len(words) + 4, "max_position_embeddings": MAX_TOKENS}
    config = BertConfig(**{**sizes, **settings})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        # The usual spread of initial weights is so small that everything a random network says is much alike.
        config.initializer_range = 0.5
        BertModel(config).save_pretrained(folder)
    write_tokenizer(folder, words)
    return folder


def write_tokenizer(folder: Path, words: tuple[str, ...] = WORDS) -> None:
    """Write ``tokenizer.json``, with settings of cutting and padding that are not to be believed."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocabulary = {word: place for place, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *words))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding(length=7)
    tokenizer.enable_truncation(5)
    tokenizer.save(str(folder / "tokenizer.json"))


def by_hand(encoder: Path, text: str, *, max_tokens: int = MAX_TOKENS) -> np.ndarray:
    """One text through the network, not padded at all -> last states (T, D)."""
    import torch
    from tokenizers import Tokenizer
    from transformers import BertModel

    tokenizer = Tokenizer.from_file(str(encoder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    network = BertModel.from_pretrained(encoder).eval()
    with torch.no_grad():
        return network(input_ids=torch.tensor([tokenizer.encode(text).ids])).last_hidden_state[0].numpy()


def shards(cache: Path) -> dict[str, bytes]:
    """Everything that is stored of features, by name."""
    folder = cache / "features"
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.*")) if p.is_file()}


def some_texts(count: int) -> list[str]:
    """Texts of different lengths, half of them about animals."""
    return [
        " ".join([("the", "a", "red")[i % 3]] * (i % 4) + [(ANIMALS if i % 2 else PLACES)[i // 2 % 4], "s" * (i % 3)])
        + " old" * (i % 5)
        + " and" * (i // 40)
        for i in range(count)
    ]


def write_table(path: Path, texts: list[Any], **columns: list[str]) -> Path:
    """Write a table with the column ``text``, and others; a text may be bytes."""
    sign = b"\t" if path.suffix == ".tsv" else b","
    named: dict[str, list[Any]] = {"text": texts, **columns}
    lines = [list(named), *zip(*named.values(), strict=True)]
    path.write_bytes(b"".join(sign.join(map(_field, line)) + b"\r\n" for line in lines))
    return path


def _field(value: str | bytes) -> bytes:
    data = value if isinstance(value, bytes) else value.encode()
    return b'"' + data.replace(b'"', b'""') + b'"'


def write_pooling(folder: Path, mode: str) -> None:
    """Say how a sentence encoder pools."""
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{mode}": True}))
