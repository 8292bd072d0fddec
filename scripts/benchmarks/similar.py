"""Neighbours of one input among many cached features: exact, and by an index of faiss. Run by `benchmark.py`."""

from __future__ import annotations

import argparse
import importlib
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

_SHARD, _WIDTH, _CLUSTERS, _QUERIES = 65_536, 512, 2000, 100


def add_similar_options(parser: argparse.ArgumentParser) -> None:
    """Add how many rows, and whether an index is measured too."""
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--index", action="store_true", help="IVF-PQ of faiss (faiss-cpu), re-ranked exactly")


def bench_similar(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of one core for the ten nearest of made-up features in clusters, checksums of their shards with them."""
    from featurecache.deployment.similar import nearest_rows
    from featurecache.heads.preparation import unit_rows
    from featurecache.store.features import Features
    from featurecache.store.folders import ShardFolder
    from featurecache.store.row_runs import runs_of_rows

    rng = np.random.default_rng(0)
    centres = rng.standard_normal((_CLUSTERS, _WIDTH), np.float32)
    rows = np.arange(args.rows)
    with tempfile.TemporaryDirectory() as scratch:
        folder = ShardFolder(Path(scratch) / "features")
        for start in range(0, args.rows, _SHARD):
            some = rows[start : start + _SHARD]
            noise = rng.standard_normal((len(some), _WIDTH), np.float32)
            values = (centres[rng.integers(0, _CLUSTERS, len(some))] + 0.5 * noise).astype(np.float16)
            body = {"rows": runs_of_rows(some), "bad": []}
            folder.publish(f"{start:012d}", {"features": ("float16", values)}, body, kind="features")
        picked = Features("t:avg", "float16", folder).read(rng.integers(0, args.rows, _QUERIES)).astype(np.float32)
        X = unit_rows(picked + 0.2 * rng.standard_normal(picked.shape, np.float32))
        features, seconds = Features("t:avg", "float16", folder), {}
        for name in ("exact, one input, first pass", "exact, one input, again"):
            seconds[name] = _cpu(lambda: nearest_rows(X[:1], rows, features.read, 10))[0]
        found: dict[str, Any] = {"rows": args.rows, "features": _WIDTH, "seconds of one core": seconds}
        if args.index:
            exact = nearest_rows(X, rows, features.read, 10)[0]
            found |= _measure_index(Features("t:avg", "float16", folder), rows, X, exact, seconds, Path(scratch))
    return found


def _measure_index(
    features: Any, rows: np.ndarray, X: np.ndarray, exact: np.ndarray, seconds: dict[str, float], scratch: Path
) -> dict[str, Any]:
    from featurecache.heads.preparation import unit_rows

    faiss: Any = importlib.import_module("faiss")
    num_lists = 1 << round(np.log2(max(len(rows), 4) ** 0.5))
    # Of rows of length one the nearest is the one of the greatest cosine.
    index = faiss.index_factory(_WIDTH, f"IVF{num_lists},PQ64")
    faiss.omp_set_num_threads(1)
    index.cp.niter = 5  # most of the training is of the codes
    train = np.sort(np.random.default_rng(1).permutation(rows)[: 40 * num_lists])

    def units(some: np.ndarray) -> np.ndarray:
        return unit_rows(features.read(some).astype(np.float32))

    seconds["index, trained"] = _cpu(lambda: index.train(units(train)))[0]
    blocks = [rows[start : start + _SHARD] for start in range(0, len(rows), _SHARD)]
    seconds["index, filled"] = _cpu(lambda: [index.add(units(some)) for some in blocks])[0]
    faiss.write_index(index, str(scratch / "index"))
    seconds["index, read"], index = _cpu(lambda: faiss.read_index(str(scratch / "index")))
    index.nprobe = 32

    def nearest(x: np.ndarray) -> np.ndarray:
        able = np.sort(index.search(x[None], 500)[1][0])
        able = able[able >= 0]
        return able[np.argsort(-(units(able) @ x))[:10]]

    features.let_go()  # blocks of shards are checked again, as in a new process
    seconds["index, one input and 500 re-ranked"] = _cpu(lambda: nearest(X[0]))[0]
    recall = np.mean([len(np.intersect1d(nearest(x), known)) / 10 for x, known in zip(X, exact, strict=True)])
    return {"index, MB": (scratch / "index").stat().st_size / 1e6, "index, recall at 10": float(recall)}


def _cpu(call: Any) -> tuple[float, Any]:
    """Return the seconds of all cores that a call takes, and what it returns: other programs do not count."""
    started = time.process_time()
    result = call()
    return time.process_time() - started, result
