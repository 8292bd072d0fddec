"""Texts per second, in batches by length and padded to the most tokens, against a loop over one text at a time.

The three take turns in one process on one core, so that the ratios hold on a machine whose speed changes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import spread, timed

_WORDS = (
    "free",
    "text",
    "send",
    "your",
    "mobile",
    "prize",
    "claim",
    "later",
    "home",
    "please",
    "sorry",
    "the",
    "of",
    "to",
)


def add_texts_options(parser: argparse.ArgumentParser) -> None:
    """Add which texts, and which network."""
    parser.add_argument("--texts", type=int, default=320)
    parser.add_argument("--table", type=Path, help="a CSV or TSV; by default, made-up messages of 3 to 35 words")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--backbone", default="all_minilm_l6_v2")


def bench_texts(args: argparse.Namespace) -> dict[str, Any]:
    """Compute short texts in batches by length, padded to the most tokens, and one at a time without padding."""
    import torch

    from featurecache.backbones.registry import load_backbone
    from featurecache.backbones.runtimes import open_runtime
    from featurecache.backbones.tapped import TappedBackbone
    from featurecache.backbones.taps import resolve_taps
    from featurecache.extraction.modality import modality_of
    from featurecache.extraction.pipeline import run_pipeline
    from featurecache.machine import at_most_cores
    from featurecache.sources.in_memory import InMemory
    from featurecache.sources.inputs import inputs_of
    from featurecache.specs import BackboneRequest

    torch.set_num_threads(1)
    backbone = load_backbone(BackboneRequest(name=args.backbone))
    (tap,) = resolve_taps(backbone, ["default"])
    modality = modality_of(backbone.preprocess, backbone.tokenizer)
    texts = _texts(args)
    inputs = list(inputs_of(InMemory({str(number): text for number, text in enumerate(texts)}, "text")))
    network = TappedBackbone(backbone, [tap])

    def one_at_a_time() -> np.ndarray:
        tokens = [modality.load(text).arrays for text in texts]
        with torch.inference_mode():
            return np.concatenate([network(torch.from_numpy(t[:, t[0] >= 0]))[tap.name].numpy() for t in tokens])

    with at_most_cores(1):
        by_length = open_runtime(backbone, [tap], runtime="torch")
        padded = open_runtime(backbone, [tap], runtime="torch", lengths=by_length.lengths[-1:])
        ways: dict[str, Callable[[], np.ndarray]] = {
            "by length": lambda: _features(run_pipeline(inputs, by_length, modality), tap.name),
            "padded to the most tokens": lambda: _features(run_pipeline(inputs, padded, modality), tap.name),
            "one at a time": one_at_a_time,
        }
        found: dict[str, np.ndarray] = {}
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(args.repeats):
            for name, way in ways.items():
                rates[name].append(len(texts) / timed(lambda name=name, way=way: found.update({name: way()})))
    medians = {name: spread(values)["median"] for name, values in rates.items()}
    reference = found["one at a time"]
    return {
        "texts": len(texts),
        "tokens of a text": float(np.mean([(modality.load(text).arrays >= 0).sum() for text in texts])),
        "most tokens": by_length.lengths[-1],
        **{f"{name}, texts/s": spread(values) for name, values in rates.items()},
        "by length / padded": medians["by length"] / medians["padded to the most tokens"],
        "by length / one at a time": medians["by length"] / medians["one at a time"],
        "largest difference from one at a time": float(
            max(np.abs(values - reference).max() for values in found.values()) / np.abs(reference).max()
        ),
    }


def _features(outcomes: Any, tap: str) -> np.ndarray:
    return np.concatenate([outcome.features[tap] for outcome in outcomes])


def _texts(args: argparse.Namespace) -> list[bytes]:
    if args.table is not None:
        from featurecache.sources.inputs import inputs_of
        from featurecache.sources.opening import open_source

        found = [entry.read() for entry in inputs_of(open_source(args.table, text_column=args.text_column))]
        return found[: args.texts]
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(_WORDS, rng.integers(3, 36))).encode() for _ in range(args.texts)]
