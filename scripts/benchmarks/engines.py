"""Several workers on one folder, against one process with all cores. Run by `benchmark.py`.

On a CPU nothing is to be gained: what is measured is how little is lost to leases, to commits, and to the end, when one
worker computes the last shard alone. On machines with several GPUs the same workers add up.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.common import find_files, link_files, spread


def add_engines_options(parser: argparse.ArgumentParser) -> None:
    """Add which images, and which network."""
    parser.add_argument("source", type=Path, help="folder of images")
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument(
        "--runtime", default="torch", help="one for all, so that no trial of runtimes disturbs the other"
    )
    parser.add_argument("--few", type=int, default=16, help="images of the runs that show the start-up (default 16)")


def bench_engines(args: argparse.Namespace) -> dict[str, Any]:
    """Images per second of two plain processes, and of each engine, over those of one process with all cores."""
    from featurecache.machine import num_cores

    half = ["--jobs", str(max(num_cores() // 2, 1))]
    arms: dict[str, list[list[str]]] = {
        "local": [[]],
        "two plain processes": [half, half],
        "processes": [["--engine", "processes"]],
    }
    if find_spec("ray"):
        arms["ray"] = [["--engine", "ray", "--processes", "2"]]
    rates: dict[str, list[float]] = {name: [] for name in arms}
    walls: dict[str, list[float]] = {name: [] for name in arms}
    twice = 0
    with tempfile.TemporaryDirectory() as scratch:
        folder, few = Path(scratch) / "images", Path(scratch) / "few"
        files = find_files(args.source, args.images)
        link_files(files, folder)
        link_files(files[: args.few], few)
        for repeat in range(args.repeats):
            for name, commands in arms.items():
                cache = Path(scratch) / f"{name}-{repeat}"
                start_up, _ = extract(args, few, cache.with_name(f"few-{name}-{repeat}"), commands)
                seconds, reports = extract(args, folder, cache, commands)
                twice += sum(report["extracted"] for report in reports) - reports[0]["samples"]
                walls[name].append(start_up)
                # What a run of few images takes as well is no part of the rate.
                rates[name].append((len(files) - args.few) / (seconds - start_up))
    found: dict[str, Any] = {"images": len(files), "images per second": {n: spread(r) for n, r in rates.items()}}
    for name in arms.keys() - {"local"}:
        found[f"{name} / local"] = spread([a / b for a, b in zip(rates[name], rates["local"], strict=True)])
    for name in walls.keys() - {"local"}:
        longer = [a - b for a, b in zip(walls[name], walls["local"], strict=True)]
        found[f"{name} - local, seconds of {args.few} images"] = spread(longer)
    return {**found, "computed twice": twice}


def extract(
    args: argparse.Namespace, folder: Path, cache: Path, commands: list[list[str]]
) -> tuple[float, list[dict[str, Any]]]:
    """Start extractions at once, and return the seconds of all, and their reports.

    Parameters
    ----------
    args : Namespace
    folder, cache : Path
    commands : list of list of str
        More options for each of them.
    """
    common = [str(folder), "--cache", str(cache), "--backbone", args.backbone, "--runtime", args.runtime]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    started = perf_counter()
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "featurecache", "extract", *common, *options, "--device", "cpu", "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        for options in commands
    ]
    texts = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit(f"an extraction of {folder} failed")
    return perf_counter() - started, [json.loads(text) for text in texts]
