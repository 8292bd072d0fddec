"""Cached features read back, against a plain memory map. Run by `benchmark.py`."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import spread, timed


def bench_reading(args: argparse.Namespace) -> dict[str, Any]:
    """Cached features against a .npy memory map of the same numbers, and against h5py."""
    import h5py

    from featurecache.store.features import Features
    from featurecache.store.folders import ShardFolder
    from featurecache.store.row_runs import runs_of_rows

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
