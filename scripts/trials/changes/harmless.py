"""What must not matter: changes of the machine, the places and the way of asking."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from trials.changes.ground import Ground, Run, ends_of, must_keep, must_see_files, stale


def must_not_matter() -> dict[str, Callable[[Ground], list[str]]]:
    """Changes of the machine, the places and the way of asking."""
    return {
        "number of workers": partial(must_keep, num_workers=5),
        "rows in a shard": partial(must_keep, shard_rows=5),
        "batch size (features within 1e-6)": _batch_size,
        "the same request again": must_keep,
        "source moved": partial(must_keep, move=_moved),
        "source reached through a link": partial(must_keep, move=_linked),
        "cache moved": lambda g: _moved_cache(g, _moved),
        "cache copied": lambda g: _moved_cache(g, _copied),
        "modification times": partial(must_see_files, edit=_touch, expected=0),
        "files renamed, so their order too": partial(must_see_files, edit=_rename, expected=0),
        "a copy of a file": partial(must_see_files, edit=_copy_one, expected=0),
        "files that are no images": partial(must_see_files, edit=_add_text, expected=0),
        "weights of the removed output layer": partial(must_keep, change=lambda net: net.fc.weight.add_(1)),
        "network in training mode, with gradients": partial(must_keep, change=lambda net: net.train()),
        "memory format of the weights": partial(must_keep, change=_channels_last),
        "weights file: .pth or .safetensors": _safetensors,
        "Pillow's global flags": _pillow_flags,
    }


def _batch_size(ground: Ground) -> list[str]:
    values = []
    for size in (4, 16):
        report = Run(ground.source, ground.scratch / f"batch{size}", dtype="float32", batch_size=size).go()
        features = [s.open() for s in report.sets]
        values.append(np.concatenate([f.read(f.rows[f.usable(f.rows)]) for f in features], axis=1))
    scale = np.abs(values[0]).max()
    error = float(np.abs(values[0] - values[1]).max() / scale)
    return ([] if error <= 1e-6 else [f"features differ by {error:.1e}"]) + must_keep(ground, batch_size=4)


def _moved(path: Path) -> Path:
    return path.rename(path.with_name(f"moved {path.name}"))


def _copied(path: Path) -> Path:
    return Path(shutil.copytree(path, path.with_name(f"copy of {path.name}")))


def _linked(path: Path) -> Path:
    link = path.with_name("link")
    link.symlink_to(path)
    return link


def _moved_cache(ground: Ground, move: Callable[[Path], Path]) -> list[str]:
    before = ends_of(Run(ground.source, ground.cache).go())
    run = Run(ground.source, move(ground.cache))
    report = run.go()
    problems = [] if ends_of(report) == before and report.num_extracted == 0 else ["something was computed again"]
    return problems + stale(run, report)


def _touch(source: Path) -> None:
    for path in source.rglob("*.png"):
        os.utime(path, (1_000_000_000, 1_000_000_000))


def _rename(source: Path) -> None:
    for number, path in enumerate(sorted(source.rglob("*.*"), reverse=True)):
        path.rename(path.with_name(f"z{number:03d}{path.suffix}"))


def _copy_one(source: Path) -> None:
    shutil.copy(source / "odd" / "0001.png", source / "even" / "again.png")


def _add_text(source: Path) -> None:
    (source / "notes.txt").write_text("no image")
    (source / ".hidden.png").write_bytes(b"not looked at")


def _channels_last(net: Any) -> None:
    import torch

    net.to(memory_format=torch.channels_last)


def _safetensors(ground: Ground) -> list[str]:
    import torch
    from safetensors.torch import save_file

    path = ground.scratch / "own.safetensors"
    save_file(torch.load(ground.weights, weights_only=True), path)
    return must_keep(ground, weights=ground.weights) + must_keep(ground, weights=path)


def _pillow_flags(ground: Ground) -> list[str]:
    from PIL import Image, ImageFile

    Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = 10, True
    try:
        fresh = ends_of(Run(ground.source, ground.scratch / "flags").go())
    finally:
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = 89_478_485, False
    return [] if fresh == ends_of(Run(ground.source, ground.cache).go()) else ["other rows"]
