"""What taps cost: ratios of interleaved passes, all blocks at once and half the depth. Run by `benchmark.py taps`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

from benchmarks.common import spread


def bench_taps(args: argparse.Namespace) -> dict[str, Any]:
    """One pass with every block's tap, and one that ends at half depth, against the pass with the last tap alone."""
    import torch

    from featurecache.backbones.registry import load_backbone
    from featurecache.backbones.taps import TappedBackbone, resolve_taps
    from featurecache.specs import BackboneRequest

    torch.set_num_threads(args.threads)
    request = BackboneRequest(name=args.backbone, weights=args.weights, init="pretrained" if args.weights else "random")
    backbone = load_backbone(request)
    blocks, default = resolve_taps(backbone, ["blocks"]), resolve_taps(backbone, ["default"])
    crop = backbone.preprocess.crop
    images_BCHW = torch.randn(args.batch_size, 3, crop, crop)
    passes: dict[str, Callable[[], Any]] = {
        "last tap alone": TappedBackbone(backbone, default),
        "every block and the last tap": TappedBackbone(backbone, (*blocks, *default)),
        "block at half depth": TappedBackbone(backbone, (blocks[len(blocks) // 2 - 1],)),
        "network without taps": backbone.module,
    }
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    with torch.inference_mode():
        for call in passes.values():
            call(images_BCHW)
        for _ in range(args.repeats):
            for name, call in passes.items():
                started = time.perf_counter()
                call(images_BCHW)
                seconds[name].append(time.perf_counter() - started)
    return {
        "backbone": args.backbone,
        "taps in one pass": len(blocks) + len(default),
        "images per pass": args.batch_size,
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "every block / last tap": _ratio(seconds, "every block and the last tap"),
        "half depth / last tap": _ratio(seconds, "block at half depth"),
        "last tap / network without taps": spread(
            [a / b for a, b in zip(seconds["last tap alone"], seconds["network without taps"], strict=True)]
        ),
    }


def _ratio(seconds: dict[str, list[float]], name: str) -> dict[str, float]:
    return spread([a / b for a, b in zip(seconds[name], seconds["last tap alone"], strict=True)])


def add_options(parser: argparse.ArgumentParser) -> None:
    """Describe what to run."""
    from pathlib import Path

    parser.add_argument("--backbone", default="timm:vit_tiny_patch16_224")
    parser.add_argument("--weights", type=Path, help="random weights without it: they cost the same")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
