"""Tars or Parquet files that are read and computed in one pass, beside those that are scanned before, and a re-run.

Run by `benchmark.py`. The files are put out of the page cache before each step, as those are that no memory holds; the
network is tiny.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

_WAYS = ("scan, then extract", "one pass", "one pass once more")


def add_passes_options(parser: argparse.ArgumentParser) -> None:
    """Add how many there are."""
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--tars", type=int, default=20, help="files, of which each is a block (default 20)")
    parser.add_argument("--parquet", action="store_true", help="Parquet files instead of tars, 500 rows in a group")
    parser.add_argument("--scratch", type=Path, help="where tars and caches lie meanwhile; a disk, not memory")


def bench_passes(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds until the first features are there and until all are, and bytes that came from the disk."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        size = _write_files(Path(scratch), args.images, args.tars, "parquet" if args.parquet else "tar")
        found["megabytes of files"] = round(size / 1e6, 1)
        for way in _WAYS:
            code = "import sys; sys.path[:0] = sys.argv[4:]; from benchmarks import passes; passes.run(*sys.argv[1:4])"
            command = [sys.executable, "-c", code, way, scratch, str(size // args.tars), *sys.path[:3]]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[way] = json.loads(done.stdout)
    return found


def _write_files(folder: Path, num_images: int, num_files: int, kind: str) -> int:
    """Write noisy images into files, and return their bytes."""
    from PIL import Image

    rng, size = np.random.default_rng(0), 0
    for numbers in np.array_split(np.arange(num_images), num_files):
        images = dict[str, bytes]()
        for number in numbers:
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(file, "PNG")
            images[f"{number:07d}.png"] = file.getvalue()
        path = folder / f"p-{numbers[0]:07d}.{kind}"
        (_write_tar if kind == "tar" else _write_parquet)(path, images)
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)  # what is not on the disk yet stays in the page cache
        os.close(descriptor)
        size += path.stat().st_size
    return size


def _write_tar(path: Path, images: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in images.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def _write_parquet(path: Path, images: dict[str, bytes]) -> None:
    import pyarrow
    import pyarrow.parquet

    cells = [{"bytes": data, "path": name} for name, data in images.items()]
    pyarrow.parquet.write_table(pyarrow.table({"image": cells}), path, row_group_size=500)


def _forget(folder: Path) -> None:
    """Put the files out of the page cache."""
    for path in folder.glob("p-*"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def run(way: str, scratch: str, block_bytes: str) -> None:
    """Extract one way, and print what it took."""
    import featurecache as fc
    from featurecache.extraction import blocks
    from featurecache.extraction.extract import make_request, run_extraction
    from featurecache.progress import Silent

    class Listening(Silent):
        first: float | None = None

        def advance(self, count: int, *, bad: int = 0) -> None:
            self.first = self.first or time.perf_counter()

    blocks._BLOCK_BYTES = int(block_bytes)
    folder, listening = Path(scratch), Listening()
    request, source = (
        make_request("python:featurecache.testing.networks:small"),
        str(folder / f"p-*{next(folder.glob('p-*')).suffix}"),
    )
    cache, settings = (
        folder / f"{way.removesuffix(' once more')}.cache",
        fc.ExtractionSettings(runtime="torch", dtype="float16"),
    )
    import torch  # noqa: F401 - its start is not what is compared

    time.sleep(2)  # until the stamps are settled
    _forget(folder)
    before, started = _bytes_read(), time.perf_counter()
    if way == _WAYS[0]:
        fc.scan(source, cache)
        _forget(folder)
    report = run_extraction(source, cache, request, settings=settings, progress=listening)
    result = {
        "seconds until the first sample": round((listening.first or started) - started, 2),
        "seconds": round(time.perf_counter() - started, 2),
        "megabytes from the disk": round((_bytes_read() - before) / 1e6, 1),
        "samples": report.num_extracted,
        "peak memory, MB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
    }
    print(json.dumps(result))


def _bytes_read() -> int:
    """Return the bytes that this process had the disk read; of Linux."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("read_bytes")).split()[1])
