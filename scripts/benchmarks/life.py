"""What a folder costs that was extracted before, and a run that goes on for long. Run by `benchmark.py`."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import spread, timed

BACKBONE = "python:benchmarks.synthetic:pooled"


def add_rerun_options(parser: argparse.ArgumentParser) -> None:
    """Add how large the folder is."""
    parser.add_argument("--files", type=int, default=60_000, help="small images that are made (default 60000)")


def bench_rerun(args: argparse.Namespace) -> dict[str, Any]:
    """Extract again what has not changed, in this process and as a command, against walking and stat-ing the folder."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, cache = Path(scratch) / "files", Path(scratch) / "cache"
        make_small_images(folder, args.files)
        first = timed(lambda: extract(folder, cache))
        command = [sys.executable, "-m", "featurecache", "extract", str(folder), "--cache", str(cache)]
        command += ["--backbone", BACKBONE, "--quiet"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

        def as_command() -> None:
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)

        walk, again, whole = [], [], []
        for _ in range(args.repeats):
            walk.append(timed(lambda: walk_and_stat(folder)))
            again.append(timed(lambda: extract(folder, cache)))
            whole.append(timed(as_command))
    return {
        "files": args.files,
        "first run, seconds": first,
        "walk and stat alone, seconds": spread(walk),
        "second run, seconds": spread(again),
        "second run as a command, seconds": spread(whole),
        "second run / walk and stat": spread([a / b for a, b in zip(again, walk, strict=True)]),
    }


def add_growth_options(parser: argparse.ArgumentParser) -> None:
    """Add which images, and which network."""
    parser.add_argument("source", type=Path)
    parser.add_argument("--backbone", default="efficientnet_lite0")


def bench_growth(args: argparse.Namespace) -> dict[str, Any]:
    """Extract all but one in a hundred images, then add those, then all again into another cache."""
    from featurecache.extraction.extract import make_request, run_extraction
    from featurecache.sources.entries import Entries
    from featurecache.sources.folder import FolderSource

    request = make_request(args.backbone)
    shares, added, full, startup = [], [], [], []
    with tempfile.TemporaryDirectory() as scratch:
        files = [args.source / name for name in Entries.of(FolderSource(args.source)).names]
        for repeat in range(args.repeats):
            folder, cache = Path(scratch) / f"files{repeat}", Path(scratch) / f"cache{repeat}"
            folder.mkdir()
            for number, path in enumerate(files):
                if number % 100:
                    shutil.copy(path, folder / f"{number:06d}{path.suffix}")
            whole = run_extraction(folder, cache, request)
            for number in range(0, len(files), 100):
                shutil.copy(files[number], folder / f"{number:06d}{files[number].suffix}")
            more = run_extraction(folder, cache, request)
            full.append(whole.seconds - whole.startup_seconds)
            added.append(more.seconds - more.startup_seconds)
            startup.append(more.startup_seconds)
            shares.append(added[-1] / full[-1])
    return {
        "files": len(files),
        "full run without start-up, seconds": spread(full),
        "one in a hundred added, without start-up, seconds": spread(added),
        "start-up, seconds": spread(startup),
        "added / full": spread(shares),
    }


def add_sustained_options(parser: argparse.ArgumentParser) -> None:
    """Add for how long."""
    parser.add_argument("--images", type=int, default=200_000, help="small images that are made (default 200000)")


def bench_sustained(args: argparse.Namespace) -> dict[str, Any]:
    """A long run of small images through a network that costs nothing: what writing takes, and whether memory grows."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "files"
        make_small_images(folder, args.images)
        memory, ended = [], threading.Event()

        def watch() -> None:
            while not ended.wait(0.2):
                memory.append((time.perf_counter(), own_memory()))

        thread = threading.Thread(target=watch)
        thread.start()
        report = extract(folder, Path(scratch) / "cache", batch_size=64)
        ended.set()
        thread.join()
    (usage,) = report.usage
    begun = memory[-1][0] - usage.seconds
    during = [mb for when, mb in memory if when >= begun]
    quarter = max(len(during) // 4, 1)
    return {
        "images": args.images,
        "whole run, images per second": args.images / report.seconds,
        "pipeline, images per second": usage.rate,
        "writing, seconds an image": usage.waited["write"] / usage.num_inputs,
        "writing, share of the time at 5,000 images/s": 5000 * usage.waited["write"] / usage.num_inputs,
        "own memory, MB: most of the whole run": max(mb for _, mb in memory),
        "own memory, MB: second quarter of the pipeline": float(np.median(during[quarter : 2 * quarter])),
        "own memory, MB: last quarter of the pipeline": float(np.median(during[-quarter:])),
        "what it waits for": usage.summary(),
    }


def own_memory() -> float:
    """Megabytes that this process holds, without files that are mapped."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    return float("nan")


def extract(folder: Path, cache: Path, **settings: Any) -> Any:
    """Do the main job with the network that costs nothing."""
    from featurecache.extraction.extract import make_request, run_extraction
    from featurecache.specs import ExtractionSettings

    return run_extraction(
        folder, cache, make_request(BACKBONE), settings=ExtractionSettings(runtime="torch", **settings)
    )


def make_small_images(folder: Path, count: int) -> None:
    """Write different images of 8x8 pixels, a thousand to a folder."""
    header = b"BM" + (54 + 192).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little")
    header += (40).to_bytes(4, "little") + (8).to_bytes(4, "little") * 2 + b"\x01\x00\x18\x00" + bytes(24)
    rng = np.random.default_rng(0)
    for start in range(0, count, 1000):
        part = folder / f"{start // 1000:04d}"
        part.mkdir(parents=True)
        pixels = rng.integers(0, 256, (min(1000, count - start), 192), np.uint8)
        for number, row in enumerate(pixels):
            (part / f"{number:03d}.bmp").write_bytes(header + row.tobytes())


def walk_and_stat(folder: Path | str) -> int:
    """Look at every file, and at nothing in it; count them."""
    with os.scandir(folder) as entries:
        return sum(walk_and_stat(entry.path) if entry.is_dir() else int(entry.stat().st_size > 0) for entry in entries)
