"""What each part of the machine can do alone: read and decode, run the network, write."""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import find_files, load, make_photographs, spread, timed


def measure_ceilings(args: argparse.Namespace, files: list[Path]) -> dict[str, float]:
    """Images per second of each part of the machine alone, and of all together."""
    from featurecache.machine import num_cores

    (backbone, taps), cores = load(args), num_cores()
    part = files[:: max(len(files) // (40 if args.photographs else 300), 1)]
    decoding = decode_seconds(part, backbone)
    forward, wall = forward_seconds(backbone, taps, args)
    ceilings = {"decode": cores / decoding, "disk": 1 / disk_seconds(part, taps)}
    if args.device == "cpu":
        fastest = min(forward.values())
        ceilings |= {f"forward, {name}": cores / seconds for name, seconds in forward.items()}
        return ceilings | {"bound": cores / (decoding + fastest)}
    ceilings |= {f"forward, {name}": 1 / seconds for name, seconds in wall.items()}
    return ceilings | {"bound": min(ceilings["decode"], ceilings["disk"], *(1 / s for s in wall.values()))}


def decode_seconds(files: list[Path], backbone: Any) -> float:
    """CPU seconds to read and decode an image, on one thread with nothing beside it."""
    from featurecache.extraction.modality import modality_of
    from featurecache.sources.decoding.images import pillow_defaults

    modality = modality_of(backbone.preprocess)
    with pillow_defaults():
        modality.load(files[0].read_bytes())
        started = time.thread_time()
        for path in files:
            modality.load(path.read_bytes())
        return (time.thread_time() - started) / len(files)


def forward_seconds(backbone: Any, taps: Any, args: argparse.Namespace) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of an image, of all cores and of the clock, for each runtime that agrees with the reference."""
    from featurecache.backbones.runtimes import open_runtime
    from featurecache.errors import RuntimeMismatchError

    cpu, wall = {}, {}
    rng, crop = np.random.default_rng(0), backbone.preprocess.crop
    for name in ["torch", "openvino"] if args.device == "cpu" and args.precision == "float32" else ["torch"]:
        runtime = open_runtime(backbone, taps, runtime=name, device=args.device, batch_size=args.batch_size)
        batches = [rng.integers(0, 256, (runtime.batch_size, crop, crop, 3), np.uint8) for _ in range(4)]
        try:
            for _ in runtime.map(batches):
                pass
        except RuntimeMismatchError:
            continue
        started, on_cores = time.perf_counter(), time.process_time()
        count = sum(1 for _ in runtime.map(for_seconds(batches, 4.0)))
        cpu[name] = (time.process_time() - on_cores) / (count * runtime.batch_size)
        wall[name] = (time.perf_counter() - started) / (count * runtime.batch_size)
        runtime.close()
    return cpu, wall


def for_seconds(batches: list[np.ndarray], seconds: float) -> Iterator[np.ndarray]:
    """Yield batches for a while."""
    started, number = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        yield batches[number % len(batches)]
        number += 1


def disk_seconds(files: list[Path], taps: Any) -> float:
    """Seconds to read an image's bytes and to write and fsync its features, one after the other."""
    started = time.perf_counter()
    for path in files:
        path.read_bytes()
    reading = (time.perf_counter() - started) / len(files)
    row = np.zeros(sum(math.prod(tap.shape) for tap in taps), np.float32).tobytes()
    with tempfile.TemporaryFile() as file:
        started = time.perf_counter()
        for _ in range(4096):
            file.write(row)
        file.flush()
        os.fsync(file.fileno())
        return reading + (time.perf_counter() - started) / 4096


def bench_forward(args: argparse.Namespace) -> dict[str, Any]:
    """The forward pass alone: one large batch on all cores, small ones side by side, OpenVINO."""
    import torch

    from featurecache.backbones.registry import load_backbone
    from featurecache.backbones.runtimes import open_runtime
    from featurecache.backbones.tapped import Normalized
    from featurecache.backbones.taps import TappedBackbone, resolve_taps
    from featurecache.extraction.extract import make_request

    backbone = load_backbone(make_request(args.backbone, weights=args.weights, init=args.init))
    taps, crop = resolve_taps(backbone, ["default"]), backbone.preprocess.crop
    images = np.random.default_rng(0).integers(0, 256, (64, crop, crop, 3), np.uint8)
    eager = Normalized(TappedBackbone(backbone, taps), backbone.preprocess)
    eager.to(memory_format=torch.channels_last)

    def one_batch(size: int) -> None:
        with torch.inference_mode():
            for start in range(0, len(images), size):
                eager(torch.from_numpy(images[start : start + size]))

    runs: dict[str, Callable[[], Any]] = {
        f"torch, one batch of {size}": lambda size=size: one_batch(size) for size in (8, 32)
    }
    for name in ("torch", "openvino"):
        for size in (2, 4, 8, 32):
            runtime = open_runtime(backbone, taps, runtime=name, batch_size=size)
            parts = [images[start : start + size] for start in range(0, len(images), size)]
            runs[f"{name}, batches of {size} side by side"] = lambda r=runtime, p=parts: list(r.map(p))
    measured: dict[str, list[float]] = {name: [] for name in runs}
    for call in runs.values():
        call()
    for _ in range(args.repeats):
        for name, call in runs.items():
            measured[name].append(len(images) / timed(call))
    return {"backbone": args.backbone, "images_per_second": {name: spread(v) for name, v in measured.items()}}


def bench_decoding(args: argparse.Namespace) -> dict[str, Any]:
    """Read and decode: one thread, all cores, and large photographs in full and scaled."""
    from concurrent.futures import ThreadPoolExecutor

    from featurecache.machine import num_cores
    from featurecache.sources.decoding.images import load_image, pillow_defaults
    from featurecache.specs import PreprocessSpec

    spec = PreprocessSpec(interpolation="bicubic")
    full = spec.override(jpeg_decoding="full")
    files = find_files(args.source, args.images)
    with tempfile.TemporaryDirectory() as scratch, pillow_defaults(), ThreadPoolExecutor(num_cores()) as pool:
        large = make_photographs(files[:8], Path(scratch) / "large")
        datas = [path.read_bytes() for path in large]
        runs: dict[str, tuple[int, Callable[[], Any]]] = {
            "one thread": (len(files), lambda: [load_image(path.read_bytes(), spec) for path in files]),
            "all cores": (len(files), lambda: list(pool.map(lambda path: load_image(path.read_bytes(), spec), files))),
            "4000x3000 pixels, full, one thread": (len(datas), lambda: [load_image(data, full) for data in datas]),
            "4000x3000 pixels, scaled, one thread": (len(datas), lambda: [load_image(data, spec) for data in datas]),
        }
        measured: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(args.repeats):
            for name, (count, call) in runs.items():
                measured[name].append(count / timed(call))
        pairs = [(load_image(data, spec).astype(int), load_image(data, full).astype(int)) for data in datas]
        differences = [np.abs(a - b) for a, b in pairs]
        resizing = {}
        for interpolation in ("bilinear", "bicubic"):
            pillow = spec.override(interpolation=interpolation)
            on_device = pillow.override(resize_on="device")
            datas = [path.read_bytes() for path in files]
            pairs = [(load_image(data, on_device).astype(int), load_image(data, pillow)) for data in datas]
            resizing[interpolation] = [np.abs(a - b) for a, b in pairs]
    return {
        "images_per_second": {name: spread(values) for name, values in measured.items()},
        "all cores / one thread": spread(
            [a / b for a, b in zip(measured["all cores"], measured["one thread"], strict=True)]
        ),
        "scaled - full, mean of 255": float(np.mean([d.mean() for d in differences])),
        "scaled - full, most of 255": int(max(d.max() for d in differences)),
        **{f"resized by torch - by Pillow, {k}, mean of 255": float(np.mean(d)) for k, d in resizing.items()},
        **{f"resized by torch - by Pillow, {k}, most of 255": int(np.max(d)) for k, d in resizing.items()},
    }
