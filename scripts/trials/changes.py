"""What must be noticed, and what must not matter. A change that is overlooked would give stale rows."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from trials.common import Options, Tally, for_each, problems_of, run_child, warm_up, write_images

BACKBONE = "python:trials.changes:network"
TAPS = ("stem:avg", "body:avg")
_current: dict[str, Any] = {"change": None, "forward": None}
"""What the factories below do to the network they return."""

Ends = dict[tuple[str, str], dict[bytes, Any]]
"""(tap, dtype) -> sample id -> stored bytes, or the status of a bad input."""


def network() -> Any:
    """A small network with batch norm, a buffer that no state dict holds, and a classifier; changed on request."""
    import torch
    from torch import nn

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
            self.body = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.LeakyReLU(0.1))
            self.register_buffer("scale", torch.full((8, 1, 1), 1.5), persistent=False)
            self.fc = nn.Linear(16, 10)

        def forward(self, images: Any) -> Any:
            maps = self.stem(images) * self.scale
            if _current["forward"]:
                maps = _current["forward"](maps)
            return self.fc(self.body(maps).mean((2, 3)))

    module = Network()
    if _current["change"]:
        with torch.no_grad():
            _current["change"](module)
    return module


def renamed() -> Any:
    """The same network under another name."""
    return network()


for _factory in (network, renamed):
    _factory.preprocess = {"resize": 40, "crop": 32, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    _factory.classifier = "fc"


@dataclass(frozen=True)
class Ground:
    """Images and a cache of them."""

    source: Path
    cache: Path
    weights: Path
    scratch: Path


@dataclass(frozen=True)
class Run:
    """One extraction: from where, into which cache, with what changed."""

    source: Path
    cache: Path
    change: Callable[[Any], None] | None = None
    backbone: str = BACKBONE
    taps: tuple[str, ...] = TAPS
    preprocess: tuple[tuple[str, Any], ...] = ()
    weights: Path | None = None
    dtype: str = "float16"
    precision: str = "float32"
    batch_size: int = 4
    num_workers: int = 2
    shard_rows: int = 16

    def go(self) -> Any:
        """Extract, and return the report."""
        from featurecache.extraction.extract import make_request, run_extraction
        from featurecache.specs import ExtractionSettings

        _current["change"] = self.change
        request = make_request(
            self.backbone, weights=self.weights, preprocess=dict(self.preprocess), precision=self.precision
        )
        settings = ExtractionSettings(
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            runtime="torch",
            shard_rows=self.shard_rows,
            dtype=self.dtype,  # type: ignore[arg-type]
        )
        return run_extraction(self.source, self.cache, request, taps=self.taps, settings=settings)


def try_changes(options: Options) -> list[Tally]:
    """Try every change against a copy of one cache."""
    warm_up()
    ground = _make_ground(options.scratch)
    noticed = Tally("changes that must be noticed were not, or left a stale row")
    harmless = Tally("changes that must not matter did")
    for tally, attempts in ((noticed, must_notice()), (harmless, must_not_matter())):
        names = list(attempts)
        trials = [(ground, attempts[name], name) for name in names]
        for name, result in zip(names, for_each(trials, _attempt, jobs=options.jobs), strict=True):
            problems = problems_of(result)
            tally.add(problems, label=name)
            tally.notes.append(f"{'FAILED' if problems else 'ok':7}{name}")
        right = tally.num_trials - len(tally.violations)
        tally.notes.insert(0, f"{right} of {tally.num_trials} as promised:")
    return [noticed, harmless]


def _attempt(trial: tuple[Ground, Callable[[Ground], list[str]], str]) -> dict[str, Any]:
    ground, attempt, name = trial
    _current.update(change=None, forward=None)  # one process makes several attempts
    place = ground.scratch / hashlib.sha256(name.encode()).hexdigest()[:12]
    shutil.copytree(ground.source, place / "photos")
    # The same absolute path would be the same source; the copy is scanned anew, so its view is made first.
    shutil.copytree(ground.cache, place / "cache")
    own = Ground(place / "photos", place / "cache", ground.weights, place)
    problems = [] if Run(own.source, own.cache).go().num_extracted == 0 else ["moving the source recomputed something"]
    problems += attempt(own)
    shutil.rmtree(place)
    return {"problems": problems}


def _make_ground(scratch: Path) -> Ground:
    source, cache, weights = scratch / "photos", scratch / "cache", scratch / "weights.pth"
    write_images(source, count=10)
    rng = np.random.default_rng(0)
    _save_image(source / "even" / "turned.jpg", rng, orientation=6)
    _save_image(source / "even" / "clear.png", rng, mode="RGBA")

    def work() -> int:
        import torch

        torch.save(network().state_dict(), weights)
        Run(source, cache).go()
        return 0

    if (ended := run_child(work)).status:
        raise RuntimeError(f"the run before the changes failed: {ended.error}")
    return Ground(source, cache, weights, scratch)


def _save_image(path: Path, rng: np.random.Generator, *, mode: str = "RGB", orientation: int = 1) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(rng.integers(0, 256, (44, 60, len(mode)), dtype=np.uint8)).save(path, exif=exif)


# What is checked


def _ends(report: Any) -> Ends:
    """What the feature sets of a run hold for what its source holds now."""
    ids, ends = np.asarray(report.store.samples.ids), {}
    for feature_set in report.sets:
        features = feature_set.open()
        good = features.rows[features.usable(features.rows)]
        held: dict[bytes, Any] = {ids[row].tobytes(): status for row, (status, _) in features.bad.items()}
        held |= {
            ids[row].tobytes(): value.tobytes() for row, value in zip(good.tolist(), features.read(good), strict=True)
        }
        ends[feature_set.tap, feature_set.dtype] = held
    return ends


def _stale(run: Run, report: Any) -> list[str]:
    """Compare what the cache now says of every file with a fresh extraction of the same."""
    fresh = _ends(replace(run, cache=run.cache.with_name("fresh")).go())
    shutil.rmtree(run.cache.with_name("fresh"))
    view = report.store.views.load(run.source)
    ids = np.asarray(report.store.samples.ids)
    problems = []
    for path, row in view.row_of.items():
        digest = hashlib.sha256((run.source / path).read_bytes()).digest()
        if ids[row].tobytes() != digest:
            problems.append(f"{path} is taken for what it was before")
            continue
        for key, held in _ends(report).items():
            if held.get(digest) != fresh[key][digest]:
                problems.append(f"{path} has a stale row at tap {key[0]}")
    return problems


def _must_recompute(ground: Ground, *, new_fingerprint: bool, **changed: Any) -> list[str]:
    """Another fingerprint or another feature set, everything computed again, and the old rows untouched."""
    before = Run(ground.source, ground.cache).go()
    old = _ends(before)
    run = Run(ground.source, ground.cache, **changed)
    report = run.go()
    same = {s.fingerprint for s in report.sets} & {s.fingerprint for s in before.sets}
    problems = ["the fingerprint is the same"] if same and new_fingerprint else []
    if {(s.fingerprint, s.tap, s.dtype) for s in report.sets} <= {(s.fingerprint, s.tap, s.dtype) for s in before.sets}:
        problems.append("no other feature set")
    if report.num_extracted != report.num_samples:
        problems.append(f"{report.num_extracted} of {report.num_samples} samples were computed again")
    if _ends(before) != old:
        problems.append("the old rows changed")
    return problems + _stale(run, report)


def _must_see_files(ground: Ground, edit: Callable[[Path], None], *, expected: int) -> list[str]:
    """Exactly the edited files are computed, and every file has the row of its bytes."""
    edit(ground.source)
    run = Run(ground.source, ground.cache)
    report = run.go()
    problems = _stale(run, report)
    if report.num_extracted != expected:
        problems.append(f"{report.num_extracted} samples were computed, {expected} expected")
    return problems


def _must_keep(ground: Ground, move: Callable[[Path], Path] = lambda path: path, **changed: Any) -> list[str]:
    """Nothing is computed again, and a fresh cache made this way has the same bytes. ``move`` moves the source."""
    before = _ends(Run(ground.source, ground.cache).go())
    run = Run(move(ground.source), ground.cache, **changed)
    report = run.go()
    problems = [f"{report.num_extracted} samples were computed again"] if report.num_extracted else []
    if _ends(report) != before:
        problems.append("other rows")
    return problems + _stale(run, report)


# What must be noticed


def must_notice() -> dict[str, Callable[[Ground], list[str]]]:
    """All changes of networks, preprocess, requests, files and labels."""
    attempts: dict[str, Callable[[Ground], list[str]]] = {
        name: partial(_must_recompute, new_fingerprint=True, change=change) for name, change in _networks().items()
    }
    for name, value in _PREPROCESS.items():
        attempts[f"preprocess: {name}"] = partial(_must_recompute, new_fingerprint=True, preprocess=((name, value),))
    attempts["precision of the arithmetic"] = partial(_must_recompute, new_fingerprint=True, precision="bfloat16")
    attempts["another backbone name"] = partial(
        _must_recompute, new_fingerprint=True, backbone="python:trials.changes:renamed"
    )
    attempts["one bit of a weights file"] = _weights_file
    attempts["the code of `forward`, all layers as before"] = _forward_code
    attempts["another node as tap"] = partial(_must_recompute, new_fingerprint=False, taps=("body.0:avg",))
    attempts["another pooling"] = partial(_must_recompute, new_fingerprint=False, taps=("body:max",))
    attempts["another type of stored numbers"] = partial(_must_recompute, new_fingerprint=False, dtype="bfloat16")
    for name, (edit, expected) in _EDITS.items():
        attempts[name] = partial(_must_see_files, edit=edit, expected=expected)
    attempts["one label"] = _one_label
    return attempts


_PREPROCESS = {
    "resize": 44,
    "crop": 28,
    "interpolation": "bicubic",
    "antialias": False,
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
    return problems + _stale(run, report)


def _forward_code(ground: Ground) -> list[str]:
    """No digest can tell; the program's own images, computed again, can: the run is refused."""
    from featurecache.errors import DriftError

    _current["forward"] = lambda maps: maps * 2
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
    _save_image(source / "odd" / "added.png", np.random.default_rng(77))


def _damage(source: Path) -> None:
    path = source / "odd" / "0001.png"
    path.write_bytes(path.read_bytes()[:-200])


def _mend(source: Path) -> None:
    _save_image(source / "odd" / "broken-0.png", np.random.default_rng(78))


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
    from featurecache.store.labels import labels_from_csv
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


# What must not matter


def must_not_matter() -> dict[str, Callable[[Ground], list[str]]]:
    """Changes of the machine, the places and the way of asking."""
    return {
        "number of workers": partial(_must_keep, num_workers=5),
        "rows in a shard": partial(_must_keep, shard_rows=5),
        "batch size (features within 1e-6)": _batch_size,
        "the same request again": _must_keep,
        "source moved": partial(_must_keep, move=_moved),
        "source reached through a link": partial(_must_keep, move=_linked),
        "cache moved": lambda g: _moved_cache(g, _moved),
        "cache copied": lambda g: _moved_cache(g, _copied),
        "modification times": partial(_must_see_files, edit=_touch, expected=0),
        "files renamed, so their order too": partial(_must_see_files, edit=_rename, expected=0),
        "a copy of a file": partial(_must_see_files, edit=_copy_one, expected=0),
        "files that are no images": partial(_must_see_files, edit=_add_text, expected=0),
        "weights of the removed output layer": partial(_must_keep, change=lambda net: net.fc.weight.add_(1)),
        "network in training mode, with gradients": partial(_must_keep, change=lambda net: net.train()),
        "memory format of the weights": partial(_must_keep, change=_channels_last),
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
    return ([] if error <= 1e-6 else [f"features differ by {error:.1e}"]) + _must_keep(ground, batch_size=4)


def _moved(path: Path) -> Path:
    return path.rename(path.with_name(f"moved {path.name}"))


def _copied(path: Path) -> Path:
    return Path(shutil.copytree(path, path.with_name(f"copy of {path.name}")))


def _linked(path: Path) -> Path:
    link = path.with_name("link")
    link.symlink_to(path)
    return link


def _moved_cache(ground: Ground, move: Callable[[Path], Path]) -> list[str]:
    before = _ends(Run(ground.source, ground.cache).go())
    run = Run(ground.source, move(ground.cache))
    report = run.go()
    problems = [] if _ends(report) == before and report.num_extracted == 0 else ["something was computed again"]
    return problems + _stale(run, report)


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
    return _must_keep(ground, weights=ground.weights) + _must_keep(ground, weights=path)


def _pillow_flags(ground: Ground) -> list[str]:
    from PIL import Image, ImageFile

    Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = 10, True
    try:
        fresh = _ends(Run(ground.source, ground.scratch / "flags").go())
    finally:
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = 89_478_485, False
    return [] if fresh == _ends(Run(ground.source, ground.cache).go()) else ["other rows"]
