"""Speed, as ratios from one run: machines differ and are noisy, ratios of interleaved runs are not.

    python scripts/benchmark.py extraction data/textile --backbone efficientnet_lite0
    python scripts/benchmark.py forward --backbone timm:vit_tiny_patch16_224 --init random
    python scripts/benchmark.py decoding data/textile
    python scripts/benchmark.py growth data/textile
    python scripts/benchmark.py rerun
    python scripts/benchmark.py sustained
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
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import benchmark_extraction
import benchmark_life
import benchmark_taps
import numpy as np
from benchmark_common import spread, timed


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


Bench = Callable[[argparse.Namespace], dict[str, Any]]
Options = Callable[[argparse.ArgumentParser], None]


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


def add_backbone(parser: argparse.ArgumentParser) -> None:
    """Add which network."""
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--init", choices=["pretrained", "random"], default="pretrained")


def add_source(parser: argparse.ArgumentParser) -> None:
    """Add which images, and how many."""
    parser.add_argument("source", type=Path)
    parser.add_argument("--images", type=int, default=300)


def main() -> None:
    """Run one benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_subparsers(dest="what", required=True)
    benches: dict[str, tuple[Bench, Options]] = {
        "extraction": (benchmark_extraction.bench_extraction, benchmark_extraction.add_options),
        "forward": (benchmark_extraction.bench_forward, add_backbone),
        "decoding": (benchmark_extraction.bench_decoding, add_source),
        "rerun": (benchmark_life.bench_rerun, benchmark_life.add_rerun_options),
        "growth": (benchmark_life.bench_growth, benchmark_life.add_growth_options),
        "sustained": (benchmark_life.bench_sustained, benchmark_life.add_sustained_options),
        "reading": (bench_reading, lambda parser: None),
        "taps": (benchmark_taps.bench_taps, benchmark_taps.add_options),
    }
    for name, (bench, add_options) in benches.items():
        sub = which.add_parser(name, help=bench.__doc__)
        sub.add_argument("--repeats", type=int, default=3)
        sub.add_argument("--json", type=Path, metavar="FILE")
        add_options(sub)
    args = parser.parse_args()
    result = benches[args.what][0](args)
    print_result(result)
    if args.json:
        args.json.write_text(json.dumps({"what": args.what, **result, **describe_machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
