"""What must be noticed: a change that is overlooked would give stale rows."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from trials.changes.ground import Ground, Run, altered, must_recompute, must_see_files, save_image, stale


def must_notice() -> dict[str, Callable[[Ground], list[str]]]:
    """All changes of networks, preprocess, requests, files and labels."""
    attempts: dict[str, Callable[[Ground], list[str]]] = {
        name: partial(must_recompute, new_fingerprint=True, change=change) for name, change in _networks().items()
    }
    for name, value in _PREPROCESS.items():
        attempts[f"preprocess: {name}"] = partial(must_recompute, new_fingerprint=True, preprocess=((name, value),))
    attempts["precision of the arithmetic"] = partial(must_recompute, new_fingerprint=True, precision="bfloat16")
    attempts["another backbone name"] = partial(
        must_recompute, new_fingerprint=True, backbone="python:trials.changes.ground:renamed"
    )
    attempts["one bit of a weights file"] = _weights_file
    attempts["the code of `forward`, all layers as before"] = _forward_code
    attempts["another node as tap"] = partial(must_recompute, new_fingerprint=False, taps=("body.0:avg",))
    attempts["another pooling"] = partial(must_recompute, new_fingerprint=False, taps=("body:max",))
    attempts["another type of stored numbers"] = partial(must_recompute, new_fingerprint=False, dtype="bfloat16")
    for name, (edit, expected) in _EDITS.items():
        attempts[name] = partial(must_see_files, edit=edit, expected=expected)
    attempts["one label"] = _one_label
    return attempts


_PREPROCESS = {
    "resize": 44,
    "crop": 28,
    "interpolation": "bicubic",
    "antialias": False,
    "resize_on": "device",
    "orientation": "stored",
    "jpeg_decoding": "full",
    "background": (0, 0, 0),
    "mean": (0.5, 0.5, 0.501),
    "std": (0.5, 0.5, 0.501),
    "max_pixels": 99_999_999,
    "max_bytes": 499_999_999,
}


def _networks() -> dict[str, Callable[[Any], None]]:
    from torch import nn

    def flip(tensor_of: Callable[[Any], Any]) -> Callable[[Any], None]:
        def change(net: Any) -> None:
            import torch

            values = tensor_of(net).view(-1)
            values.view(torch.int32 if values.dtype == torch.float32 else torch.int64)[0] ^= 1

        return change

    def set_layer(path: str, place: int, make: Callable[[], Any]) -> Callable[[Any], None]:
        def change(net: Any) -> None:
            getattr(net, path)[place] = make()

        return change

    def set_attribute(place: int, name: str, value: Any) -> Callable[[Any], None]:
        return lambda net: setattr(net.body[place], name, value)

    def other_weights(net: Any) -> None:
        for parameter in net.parameters():
            parameter.mul_(1.25)

    def swap(net: Any) -> None:
        net.body = nn.Sequential(net.body[0], net.body[2], net.body[1])

    return {
        "one bit of a convolution's weight": flip(lambda net: net.body[0].weight),
        "one bit of a convolution's bias": flip(lambda net: net.body[0].bias),
        "one bit of a batch norm's weight": flip(lambda net: net.body[1].weight),
        "one bit of a batch norm's running mean": flip(lambda net: net.body[1].running_mean),
        "one bit of a batch norm's running variance": flip(lambda net: net.body[1].running_var),
        "one bit of a batch norm's counter": flip(lambda net: net.body[1].num_batches_tracked),
        "one bit of a buffer outside the state dict": flip(lambda net: net.scale),
        "all weights": other_weights,
        "stride": set_attribute(0, "stride", (1, 1)),
        "padding": set_attribute(0, "padding", (0, 0)),
        "dilation": set_attribute(0, "dilation", (2, 2)),
        "epsilon of a batch norm": set_attribute(1, "eps", 1e-3),
        "slope of an activation": set_attribute(2, "negative_slope", 0.2),
        "class of an activation": set_layer("stem", 2, nn.GELU),
        "a pooling layer in place of an activation": set_layer("body", 2, lambda: nn.MaxPool2d(2)),
        "one layer more": lambda net: net.stem.append(nn.Tanh()),
        "two layers in another order": swap,
    }


def _weights_file(ground: Ground) -> list[str]:
    import torch

    problems = []
    path = ground.scratch / "own.pth"
    shutil.copy(ground.weights, path)
    first = Run(ground.source, ground.cache, weights=path).go()
    state = torch.load(path, weights_only=True)
    state["stem.0.weight"].view(-1).view(torch.int32)[0] ^= 1
    torch.save(state, path)
    run = Run(ground.source, ground.cache, weights=path)
    report = run.go()
    if first.num_extracted or report.num_extracted != report.num_samples:
        problems.append(f"{first.num_extracted} and {report.num_extracted} samples were computed")
    return problems + stale(run, report)


def _forward_code(ground: Ground) -> list[str]:
    """No digest can tell; the program's own images, computed again, can: the run is refused."""
    from featurecache.errors import DriftError

    altered["forward"] = lambda maps: maps * 2
    try:
        report = Run(ground.source, ground.cache).go()
    except DriftError:
        return []
    return [f"{report.num_extracted} samples were computed again and the run was not refused"]


def _edit(source: Path) -> None:
    path = source / "odd" / "0001.png"
    path.write_bytes((source / "odd" / "0003.png").read_bytes() + b"one byte more")


def _edit_same_size(source: Path) -> None:
    path = source / "even" / "turned.jpg"
    data = bytearray(path.read_bytes())
    data[-40] ^= 1  # within the coded pixels
    path.write_bytes(data)


def _edit_hidden(source: Path) -> None:
    times = (source / "even" / "turned.jpg").stat()
    _edit_same_size(source)
    os.utime(source / "even" / "turned.jpg", ns=(times.st_atime_ns, times.st_mtime_ns))


def _exchange(source: Path) -> None:
    first, second, middle = source / "odd" / "0001.png", source / "odd" / "0003.png", source / "odd" / "x.png"
    second.write_bytes(second.read_bytes() + b"\0")
    first.rename(middle)
    second.rename(first)
    middle.rename(second)


def _add(source: Path) -> None:
    save_image(source / "odd" / "added.png", np.random.default_rng(77))


def _damage(source: Path) -> None:
    path = source / "odd" / "0001.png"
    path.write_bytes(path.read_bytes()[:-200])


def _mend(source: Path) -> None:
    save_image(source / "odd" / "broken-0.png", np.random.default_rng(78))


_EDITS: dict[str, tuple[Callable[[Path], None], int]] = {
    "a file edited, another size": (_edit, 1),
    "a file edited, the same size": (_edit_same_size, 1),
    "a file edited, its size and modification time put back": (_edit_hidden, 1),
    "two files exchanged, one of them edited": (_exchange, 1),
    "a file added": (_add, 1),
    "a file damaged": (_damage, 1),
    "a damaged file mended": (_mend, 1),
}


def _one_label(ground: Ground) -> list[str]:
    from featurecache.store.label_tables import labels_from_csv
    from featurecache.store.store import FeatureStore

    table = ground.scratch / "labels.csv"
    parts = ("train", "train", "train", "train", "test", "test")
    paths = [f"odd/{number:04d}.png" for number in (1, 3, 5, 7)] + ["even/0000.png", "even/0002.png"]
    seen = []
    for last in ("b", "a"):
        lines = zip(paths, ("a", "b", "a", "b", "a", last), parts, strict=True)
        table.write_text("path,label,split\n" + "".join(f"{','.join(line)}\n" for line in lines))
        store = FeatureStore.open(ground.cache)
        task = store.add_task("letters", labels_from_csv(table, root=ground.source), replace=True)
        stored = FeatureStore.open(ground.cache).task("letters")
        seen.append({i.tobytes(): task.classes[k] for i, k in zip(stored.ids, stored.labels, strict=True)})
    changed = [key for key in seen[0] if seen[0][key] != seen[1].get(key)]
    return [] if len(changed) == 1 else [f"{len(changed)} labels changed, 1 expected"]
