"""Speed, as ratios from one run: machines differ and are noisy, ratios of interleaved runs are not.

    python scripts/benchmark.py extraction data/textile --backbone efficientnet_lite0
    python scripts/benchmark.py rerun data/textile
    python scripts/benchmark.py reading
    python scripts/benchmark.py taps --repeats 15

Each prints what we reach, the ceilings of this machine (decode alone, forward alone, disk alone) and the baselines.
``--json FILE`` keeps the numbers with versions and hardware.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import benchmark_taps
import numpy as np


def timed(call: Callable[[], Any]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def find_files(folder: Path, limit: int) -> list[Path]:
    """Return the first images of every class in turn, so that a part has the classes of the whole."""
    from featurecache.sources.folder import find_images

    files = find_images([folder])
    step = max(len(files) // limit, 1)
    return files[::step][:limit]


def plain_loop(files: list[Path], backbone: Any, taps: Any, target: Path) -> None:
    """What people write by hand: open, resize, stack 64, run eager, save one .npy."""
    import torch
    from PIL import Image

    from featurecache.backbones.taps import TappedBackbone

    spec, network, (tap,) = backbone.preprocess, TappedBackbone(backbone, taps), taps
    resample = getattr(Image.Resampling, spec.interpolation.upper())
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (spec.mean, spec.std))
    rows, batch = [], []
    for number, path in enumerate(files, 1):
        image = Image.open(path).convert("RGB")
        short = min(image.size)
        image = image.resize((spec.resize * image.width // short, spec.resize * image.height // short), resample)
        left, top = (image.width - spec.crop) // 2, (image.height - spec.crop) // 2
        image = image.crop((left, top, left + spec.crop, top + spec.crop))
        batch.append((torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).contiguous() / 255 - mean) / std)
        if len(batch) == 64 or number == len(files):
            with torch.no_grad():
                rows.append(network(torch.stack(batch))[tap.name].numpy())
            batch = []
    np.save(target, np.concatenate(rows))


def bench_extraction(args: argparse.Namespace) -> dict[str, Any]:
    """Disk to committed shards, against ceilings and the plain loop, on the same files."""
    from featurecache.backbones.registry import load_backbone
    from featurecache.backbones.runtimes import open_runtime
    from featurecache.backbones.taps import resolve_taps
    from featurecache.extraction.extract import make_request, run_extraction
    from featurecache.extraction.modality import modality_of
    from featurecache.extraction.pipeline import run_pipeline
    from featurecache.sources.images import pillow_defaults
    from featurecache.sources.inputs import FileInput
    from featurecache.specs import ExtractionSettings

    with tempfile.TemporaryDirectory() as scratch:
        files = link_files(find_files(args.source, args.images), Path(scratch) / "files")
        request = make_request(args.backbone, weights=args.weights)
        backbone = load_backbone(request)
        taps = resolve_taps(backbone, ["default"])
        settings = ExtractionSettings(runtime=args.runtime, batch_size=args.batch_size, dtype="float32")
        caches = (Path(scratch) / f"cache{i}" for i in range(1000))
        runtime = open_runtime(backbone, taps, runtime=args.runtime, batch_size=args.batch_size)
        batch = np.random.default_rng(0).integers(
            0, 256, (args.batch_size, *(backbone.preprocess.crop,) * 2, 3), np.uint8
        )
        list(runtime.map([batch] * 2))
        num_batches = -(-len(files) // args.batch_size)
        saved = Path(scratch) / "plain.npy"

        class NoNetwork:
            """Takes batches and gives empty features: what is left is reading and decoding."""

            def map(self, batches: Any) -> Any:
                for _ in batches:
                    yield {}

        def decode_alone() -> None:
            inputs = [FileInput(path) for path in files]
            with pillow_defaults():
                for _ in run_pipeline(
                    inputs, NoNetwork(), modality_of(backbone.preprocess), batch_size=args.batch_size
                ):
                    pass

        measured: dict[str, list[float]] = {}
        runs: dict[str, Callable[[], Any]] = {
            "featurecache": lambda: run_extraction(Path(scratch) / "files", next(caches), request, settings=settings),
            "plain loop": lambda: plain_loop(files, backbone, taps, saved),
            "decode alone": decode_alone,
            "forward alone": lambda: list(runtime.map(batch for _ in range(num_batches))),
        }
        for _ in range(args.repeats):
            for name, call in runs.items():
                measured.setdefault(name, []).append(len(files) / timed(call))
        difference = compare_features(next(Path(scratch).glob("cache0")), Path(scratch) / "files", files, saved)
    ratios = [a / b for a, b in zip(measured["featurecache"], measured["plain loop"], strict=True)]
    return {
        "images": len(files),
        "backbone": args.backbone,
        "runtime": runtime.name,
        "images_per_second": {name: spread(values) for name, values in measured.items()},
        "featurecache / plain loop": spread(ratios),
        "largest relative difference of features": difference,
    }


def link_files(files: list[Path], folder: Path) -> list[Path]:
    """Put the chosen files into a folder of their own without copying them."""
    folder.mkdir(parents=True)
    links = [folder / f"{number:06d}{path.suffix}" for number, path in enumerate(files)]
    for link, path in zip(links, files, strict=True):
        link.symlink_to(path.resolve())
    return links


def compare_features(cache: Path, source: Path, files: list[Path], saved: Path) -> float:
    """Largest difference between the cached features and the plain loop's, relative to the largest feature."""
    from featurecache.store.store import FeatureStore

    store = FeatureStore.open(cache)
    view = store.views.load(source)
    assert view is not None
    rows = np.array([view.row_of[path.name] for path in files])
    features, reference = store.features().read(rows).astype(np.float32), np.load(saved)
    reference = reference.reshape(features.shape)
    return float(np.abs(features - reference).max() / np.abs(reference).max())


def bench_rerun(args: argparse.Namespace) -> dict[str, Any]:
    """A second `extract` on an unchanged folder, as a process: everything included."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "featurecache", "extract", str(args.source), "--cache", f"{scratch}/c"]
        command += ["--backbone", args.backbone, "--quiet", *(["--weights", str(args.weights)] if args.weights else [])]
        first = timed(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))
        again = [
            timed(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)) for _ in range(args.repeats)
        ]
        walk = [timed(lambda: [path.stat() for path in args.source.rglob("*")]) for _ in range(args.repeats)]
    return {
        "first run, seconds": first,
        "second run, seconds": spread(again),
        "walk and stat alone, seconds": spread(walk),
    }


def bench_reading(args: argparse.Namespace) -> dict[str, Any]:
    """Cached features against a .npy memory map of the same numbers, and against h5py."""
    import h5py

    from featurecache.store.features import Features, runs_of_rows
    from featurecache.store.folders import ShardFolder

    rng = np.random.default_rng(0)
    shard_rows, num_shards, width = 65_536, 8, 512
    with tempfile.TemporaryDirectory() as scratch:
        folder, whole = ShardFolder(Path(scratch) / "features"), []
        for number in range(num_shards):
            values = rng.standard_normal((shard_rows, width), np.float32).astype(np.float16)
            rows = np.arange(number * shard_rows, (number + 1) * shard_rows)
            body = {"rows": runs_of_rows(rows), "bad": []}
            folder.publish(f"{rows[0]:012d}", {"features": ("float16", values)}, body, kind="features")
            whole.append(values)
        np.save(Path(scratch) / "all.npy", np.concatenate(whole))
        plain = np.load(Path(scratch) / "all.npy", mmap_mode="r")
        features = Features("t:avg", "float16", folder)
        file = h5py.File(next((Path(scratch) / "features/shards").glob("*.h5")))
        n = shard_rows * num_shards
        picks = [rng.integers(0, n, 4096) for _ in range(40)]
        in_file = [np.unique(p % shard_rows) for p in picks]
        blocks = [np.arange(start, start + 8192) for start in range(0, n, 8192)]
        runs: dict[str, tuple[int, Callable[[], Any]]] = {
            "first pass, blocks checked": (n, lambda: [features.read(b) for b in blocks]),
            "sequential": (n, lambda: [features.read(b) for b in blocks]),
            "sequential, .npy": (n, lambda: [plain[b[0] : b[-1] + 1].copy() for b in blocks]),
            "random": (40 * 4096, lambda: [features.read(p) for p in picks]),
            "random, .npy": (40 * 4096, lambda: [plain[p] for p in picks]),
            "random, h5py": (sum(map(len, in_file[:4])), lambda: [file["features"][p] for p in in_file[:4]]),
        }
        measured: dict[str, list[float]] = {}
        for _ in range(args.repeats):
            for name, (count, call) in runs.items():
                measured.setdefault(name, []).append(count / timed(call))
        file.close()
    return {
        "rows": n,
        "bytes per row": width * 2,
        "rows_per_second": {name: spread(values) for name, values in measured.items()},
        "sequential / .npy": spread(
            [a / b for a, b in zip(measured["sequential"], measured["sequential, .npy"], strict=True)]
        ),
        "random / .npy": spread([a / b for a, b in zip(measured["random"], measured["random, .npy"], strict=True)]),
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def describe_machine() -> dict[str, Any]:
    """Versions and hardware."""
    from featurecache.versions import installed_versions

    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "versions": installed_versions(),
    }


def print_result(result: dict[str, Any], indent: str = "") -> None:
    """Print numbers as aligned lines."""
    for name, value in result.items():
        if isinstance(value, dict) and "median" in value:
            print(f"{indent}{name:<44} {value['median']:>12.4g}   ({value['min']:.4g} to {value['max']:.4g})")
        elif isinstance(value, dict):
            print(f"{indent}{name}")
            print_result(value, indent + "  ")
        else:
            print(
                f"{indent}{name:<44} {value:>12.4g}"
                if isinstance(value, float)
                else f"{indent}{name:<44} {value!s:>12}"
            )


def main() -> None:
    """Run one benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_subparsers(dest="what", required=True)
    benches = {"extraction": bench_extraction, "rerun": bench_rerun, "reading": bench_reading}
    benches["taps"] = benchmark_taps.bench_taps
    for name, bench in benches.items():
        sub = which.add_parser(name, help=bench.__doc__)
        sub.add_argument("--repeats", type=int, default=3)
        sub.add_argument("--json", type=Path, metavar="FILE")
        if name == "taps":
            benchmark_taps.add_options(sub)
        elif name != "reading":
            sub.add_argument("source", type=Path)
            sub.add_argument("--backbone", default="efficientnet_lite0")
            sub.add_argument("--weights", type=Path)
        if name == "extraction":
            sub.add_argument("--images", type=int, default=640, help="how many files to use (default 640)")
            sub.add_argument("--runtime", default="auto")
            sub.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args()
    result = benches[args.what](args)
    print_result(result)
    if args.json:
        args.json.write_text(json.dumps({"what": args.what, **result, **describe_machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
