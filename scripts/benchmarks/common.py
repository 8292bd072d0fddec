"""What the benchmarks share."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def timed(call: Callable[[], Any]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def request_of(args: argparse.Namespace) -> Any:
    """Return what names the network."""
    from featurecache.extraction.extract import make_request

    return make_request(args.backbone, weights=args.weights, init=args.init, precision=args.precision)


def load(args: argparse.Namespace) -> tuple[Any, Any]:
    """Return the network and its default tap."""
    from featurecache.backbones.registry import load_backbone
    from featurecache.backbones.taps import resolve_taps

    backbone = load_backbone(request_of(args))
    return backbone, resolve_taps(backbone, ["default"])


def find_files(folder: Path, limit: int) -> list[Path]:
    """Return images of every class in turn, so that a part has the classes of the whole."""
    from featurecache.sources.entries import Entries
    from featurecache.sources.folder import FolderSource

    files = [folder / name for name in Entries.of(FolderSource(folder)).names]
    step = max(len(files) // limit, 1)
    return files[::step][:limit]


def link_files(files: list[Path], folder: Path) -> list[Path]:
    """Put the chosen files into a folder of their own without copying them."""
    folder.mkdir(parents=True)
    links = [folder / f"{number:06d}{path.suffix}" for number, path in enumerate(files)]
    for link, path in zip(links, files, strict=True):
        link.symlink_to(path.resolve())
    return links


def make_photographs(files: list[Path], folder: Path) -> list[Path]:
    """Make JPEGs of 4000x3000 pixels, with the grain of a sensor, of other images; after 64, the same under new ids."""
    from PIL import Image

    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    grain = rng.integers(-9, 10, (3000, 4000, 3), np.int16)
    made = []
    for number, path in enumerate(files[:64]):
        pixels = np.asarray(Image.open(path).convert("RGB").resize((4000, 3000), Image.Resampling.BICUBIC), np.int16)
        noisy = np.clip(pixels + np.roll(grain, number * 37, axis=1), 0, 255).astype(np.uint8)
        made.append(folder / f"{number:06d}.jpg")
        Image.fromarray(noisy).save(made[-1], quality=88)
    for number in range(len(made), len(files)):  # bytes behind a JPEG's end are nothing to a decoder
        path = folder / f"{number:06d}.jpg"
        path.write_bytes(made[number % 64].read_bytes() + number.to_bytes(4, "little"))
        made.append(path)
    return made
