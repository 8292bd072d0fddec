"""Make the archive of every kind of head that this release saves: a small cache, its heads, and what they predict.

    python tests/store/archives/make_heads.py NAME

Writes ``heads-NAME/`` beside this file. It is made by the command line of the release whose heads are kept, and an
archive that exists is never written again: later releases are to predict from it what it says, or to refuse a head by a
line that names the way out.
"""

from __future__ import annotations

import csv
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ARCHIVES = Path(__file__).resolve().parent
sys.path[:0] = [
    str(ARCHIVES.parents[2]),
    str(ARCHIVES.parents[1]),
    str(ARCHIVES),
]  # the package, and the networks that tests use

BACKBONE = "python:tiny_backbones:tiny"
TOKENS = "python:tiny_backbones:tokens"
PROGRAM = "network.pt2"
TAPS = ("stem:avg", "pre_logits:none", "stem:none")
RUN = ("--runtime", "torch", "--batch-size", "4", "--dtype", "float32", "--quiet")
TASKS = {
    "brightness": ("classes", ("--from-folders",)),
    "three": ("classes", ("--label-column", "three")),
    "marks": ("labels", ("--kind", "labels", "--label-column", "bright", "--label-column", "warm")),
    "sizes": ("numbers", ("--kind", "numbers", "--label-column", "height", "--label-column", "width")),
}
SMALL = ("--resize", "16", "--crop", "16")
NEW = range(100, 106)
"""Images that are predicted."""
LAYERS = ("--from-tap", "stem:none", "--epochs", "2", "--batch-size", "8", "--backbone", BACKBONE)


def write_photos(folder: Path, numbers: range = range(30)) -> list[dict[str, Any]]:
    """Write images of two classes, and return what a table says of each."""
    from PIL import Image

    rows = []
    for number in numbers:
        path = folder / ("dark", "light")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 90, (36, 40, 3), dtype=np.uint8)
        pixels += np.uint8(80 * (number % 2))
        pixels[..., number % 3] += np.uint8(70)
        Image.fromarray(pixels).save(path)
        rows.append(
            {
                "path": path.relative_to(folder).as_posix(),
                "three": "abc"[number % 3],
                "bright": number % 2,
                "warm": int(number % 3 == 0),
                "height": 10.0 + 3 * (number % 2) + 0.1 * number,
                "width": 5.0 - (number % 3),
            }
        )
    return rows


def write_program(path: Path) -> None:
    """Export the test network as a program, whose preprocess travels in it."""
    import tiny_backbones
    import torch

    network = tiny_backbones.tiny().eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(network, (torch.rand(2, 3, 32, 32),), dynamic_shapes=({0: batch},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names files of this machine
    torch.export.save(program, path)


def heads_of(task: str) -> dict[str, tuple[str, ...]]:
    """Names under which heads of a task are kept, and the options that make them."""
    from featurecache import list_heads

    kind, _ = TASKS[task]
    # Names of kinds changed after some of these archives were made.
    known = {name for each in (kind, _LATER[kind]) for name in _listed(list_heads, each)}
    heads = {f"{task}-{name}": ("--tap", "stem:avg", "--head", name) for name in sorted(known)}
    heads[f"{task}-tail"] = ("--tap", "pre_logits:none", "--head", "tail", *LAYERS)
    heads[f"{task}-layers"] = ("--tap", "pre_logits:none", "--head", "layers:linear", *LAYERS)
    if kind == "classes":
        heads[f"{task}-balanced"] = ("--tap", "stem:avg", "--head", "logistic", "--balanced")
    return heads


_LATER = {"classes": "classification", "labels": "multilabel", "numbers": "regression"}


def _listed(list_heads: Any, kind: str) -> list[str]:
    try:
        return list(list_heads(kind=kind))
    except (LookupError, ValueError):
        return []


def run(*arguments: object) -> None:
    from featurecache.cli import main

    if main([str(each) for each in arguments]) != 0:
        raise SystemExit(f"failed: {' '.join(map(str, arguments))}")


def fill(archive: Path, photos: Path) -> None:
    """Make the caches and their heads."""
    rows = write_photos(photos)
    table = photos.parent / "table.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    cache = archive / "cache"
    run("extract", photos, "--cache", cache, "--backbone", BACKBONE, *(f"--tap={tap}" for tap in TAPS), *SMALL, *RUN)
    run("extract", photos, "--cache", cache, "--backbone", BACKBONE, "--tap", "stem:avg", "--views", "2", *SMALL, *RUN)
    for task, (_, options) in TASKS.items():
        run("task", "add", cache, task, *([] if "--from-folders" in options else [table]), *options)
        for name, choice in heads_of(task).items():
            plain = () if "layers" in name or "tail" in name else ("--views", "0", "--random-state", "0")
            run("train", cache, "--task", task, *choice, *plain, "--save", name, "--quiet", "--jobs", "1")
    views = ("--tap", "stem:avg", "--views", "2", "--head", "logistic", "--tta")
    run("train", cache, "--task", "three", *views, "--save", "three-views", "--quiet", "--jobs", "1")
    tokens = ("--backbone", TOKENS, "--tap", "block:none", *SMALL, *RUN)
    run("extract", photos, "--cache", archive / "cache_of_tokens", *tokens)
    run("task", "add", archive / "cache_of_tokens", "brightness", "--from-folders")
    attentive = ("--task", "brightness", "--head", "attentive", "--save", "attentive", "--quiet", "--jobs", "1")
    run("train", archive / "cache_of_tokens", *attentive)
    write_program(archive / PROGRAM)
    os.chdir(archive)
    run("extract", photos, "--cache", "cache_of_program", "--backbone", f"file:{PROGRAM}", *RUN)
    run("task", "add", "cache_of_program", "brightness", "--from-folders")
    run("train", "cache_of_program", "--task", "brightness", "--head", "ridge", "--save", "ridge", "--quiet")


def move_to_nowhere(cache: Path, photos: Path) -> None:
    """Let the archive know nothing of the machine that it was made on."""
    import make

    from featurecache import FeatureStore

    make.move_to_nowhere(FeatureStore.open(cache), photos)


def identities(cache: Path) -> list[list[Any]]:
    """Fingerprint, tap, type and views of every feature set: what must never change."""
    from featurecache import FeatureStore

    sets = [[s.fingerprint, s.tap, s.dtype, s.num_views] for s in FeatureStore.open(cache).feature_sets()]
    return sorted(sets, key=str)


def predictions(head: Path, photos: Path, backbone: str = BACKBONE) -> list[dict[str, str]]:
    """What a head says of images, by the command line: the rows of its table."""
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "out.csv"
        run("predict", head, photos, "--backbone", backbone, "--out", table, "--quiet")
        with table.open(newline="") as file:
            return [{**row, "path": Path(row["path"]).name} for row in csv.DictReader(file)]


def main() -> int:
    """Make the archive."""
    archive = ARCHIVES / f"heads-{sys.argv[1]}"
    if archive.exists():
        print(f"{archive.name} is there already", file=sys.stderr)  # noqa: T201
        return 1
    archive.mkdir()
    with tempfile.TemporaryDirectory() as scratch:
        photos = Path(scratch) / "photos"
        fill(archive, photos)
        for path in sorted(archive.glob("cache*")):
            move_to_nowhere(path, photos)
        new = Path(scratch) / "new"
        write_photos(new, NEW)
        heads = sorted(path.parent for path in (archive / "cache" / "heads").glob("*/head.json"))
        expected = {
            "features": {path.name: identities(path) for path in sorted(archive.glob("cache*"))},
            "heads": {head.name: predictions(head, new) for head in heads},
            "tokens": predictions(archive / "cache_of_tokens" / "heads" / "attentive", new, TOKENS),
            "program": predictions(Path("cache_of_program/heads/ridge"), new, f"file:{PROGRAM}"),
        }
    (archive / "expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
