"""Small jobs as commands, against the import of the libraries that they need. Run by `benchmark.py`.

Commands and import take turns, each in a process of its own, so that the ratios hold on a machine whose speed changes.
Seconds of the processor count too: others may share it. Of each the least is compared, as nothing makes a run quicker.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from benchmarks.common import find_files

_IMPORTS = [sys.executable, "-c", "import torch, sklearn"]


class Cost(NamedTuple):
    """What a process took."""

    wall: float
    """Seconds."""
    cpu: float
    """Seconds of all its threads."""


def add_start_up_options(parser: argparse.ArgumentParser) -> None:
    """Add which images, and which network."""
    parser.add_argument("source", type=Path, help="one folder of images for each class")
    parser.add_argument("--images", type=int, default=180)
    parser.add_argument("--predicted", type=int, default=10, help="images in the folder that is predicted (default 10)")
    parser.add_argument("--backbone", default="efficientnet_lite0")


def bench_start_up(args: argparse.Namespace) -> dict[str, Any]:
    """Extract, train and predict a few images by commands, against ``python -c "import torch, sklearn"``."""
    costs: dict[str, list[Cost]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder, few = Path(scratch) / "images", Path(scratch) / "few"
        spread_classes(args.source, folder, args.images)
        few.mkdir()
        for number, file in enumerate(find_files(folder, args.predicted)):
            shutil.copy(file, few / f"{number}{file.suffix}")
        # Once before: files are read from the disk, and modules compiled, the first time.
        for repeat in range(args.repeats + 1):
            for name, command in commands(folder, few, Path(scratch) / str(repeat), args.backbone):
                cost = run(command)
                if repeat:
                    costs.setdefault(name, []).append(cost)
    imports = costs.pop("import torch, sklearn")
    least = {name: Cost(*map(min, zip(*found, strict=True))) for name, found in [("imports", imports), *costs.items()]}
    base = least.pop("imports")
    found: dict[str, Any] = {"images": args.images, "imports, seconds": base.wall, "imports, CPU seconds": base.cpu}
    for name, cost in least.items():
        found[f"{name} / imports"] = cost.wall / base.wall
        found[f"{name} / imports, CPU"] = cost.cpu / base.cpu
        found[f"{name} - imports, seconds"] = cost.wall - base.wall
    return found


def commands(folder: Path, few: Path, cache: Path, backbone: str) -> Iterator[tuple[str, list[str]]]:
    """Yield what is timed, each when what it needs is there; all begin with an empty cache.

    Parameters
    ----------
    folder, few : Path
        Images to learn from, and to predict.
    cache : Path
        Is made.
    backbone : str
    """
    ours = [sys.executable, "-m", "featurecache"]
    yield "import torch, sklearn", _IMPORTS
    yield "extract", [*ours, "extract", str(folder), "--cache", str(cache), "--backbone", backbone]
    run([*ours, "task", "add", str(cache), "kind", "--from-folders"])
    # What was trained before need not be trained again.
    untrained = shutil.copytree(cache, cache.with_name(f"{cache.name}-untrained"))
    train = ["--task", "kind"]
    yield "train --head logistic", [*ours, "train", str(cache), *train, "--head", "logistic", "--save", "kept"]
    yield "predict", [*ours, "predict", str(cache / "heads" / "kept"), str(few)]
    yield "train", [*ours, "train", str(untrained), *train]


def run(command: list[str]) -> Cost:
    """Run a command, and return what it took."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    # Written in this process's environment, it would have each of them compile all modules again.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    before, start = os.times(), perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    wall, after = perf_counter() - start, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Cost(wall, cpu)


def spread_classes(source: Path, folder: Path, count: int) -> None:
    """Copy images, as many of each class as of the others.

    Parameters
    ----------
    source : Path
        One folder for each class.
    folder : Path
        Is made like it.
    count : int
        Of images in all.
    """
    classes = sorted(path for path in source.iterdir() if path.is_dir())
    for label in classes:
        (folder / label.name).mkdir(parents=True)
        for file in find_files(label, count // len(classes)):
            shutil.copy(file, folder / label.name)
