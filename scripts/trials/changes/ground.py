"""Images, a small network and a cache of them, and what is checked after a change."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from trials.common import run_child, write_images

BACKBONE = "python:trials.changes.ground:network"
TAPS = ("stem:avg", "body:avg")
altered: dict[str, Any] = {"change": None, "forward": None}
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
            if altered["forward"]:
                maps = altered["forward"](maps)
            return self.fc(self.body(maps).mean((2, 3)))

    module = Network()
    if altered["change"]:
        with torch.no_grad():
            altered["change"](module)
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

        altered["change"] = self.change
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


def make_ground(scratch: Path) -> Ground:
    source, cache, weights = scratch / "photos", scratch / "cache", scratch / "weights.pth"
    write_images(source, count=10)
    rng = np.random.default_rng(0)
    save_image(source / "even" / "turned.jpg", rng, orientation=6)
    save_image(source / "even" / "clear.png", rng, mode="RGBA")

    def work() -> int:
        import torch

        torch.save(network().state_dict(), weights)
        Run(source, cache).go()
        return 0

    if (ended := run_child(work)).status:
        raise RuntimeError(f"the run before the changes failed: {ended.error}")
    return Ground(source, cache, weights, scratch)


def save_image(path: Path, rng: np.random.Generator, *, mode: str = "RGB", orientation: int = 1) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(rng.integers(0, 256, (44, 60, len(mode)), dtype=np.uint8)).save(path, exif=exif)


def ends_of(report: Any) -> Ends:
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


def stale(run: Run, report: Any) -> list[str]:
    """Compare what the cache now says of every file with a fresh extraction of the same."""
    fresh = ends_of(replace(run, cache=run.cache.with_name("fresh")).go())
    shutil.rmtree(run.cache.with_name("fresh"))
    listing = report.store.listings.load(run.source)
    ids = np.asarray(report.store.samples.ids)
    problems = []
    for path, row in listing.row_of.items():
        digest = hashlib.sha256((run.source / path).read_bytes()).digest()
        if ids[row].tobytes() != digest:
            problems.append(f"{path} is taken for what it was before")
            continue
        for key, held in ends_of(report).items():
            if held.get(digest) != fresh[key][digest]:
                problems.append(f"{path} has a stale row at tap {key[0]}")
    return problems


def must_recompute(ground: Ground, *, new_fingerprint: bool, **changed: Any) -> list[str]:
    """Another fingerprint or another feature set, everything computed again, and the old rows untouched."""
    before = Run(ground.source, ground.cache).go()
    old = ends_of(before)
    run = Run(ground.source, ground.cache, **changed)
    report = run.go()
    same = {s.fingerprint for s in report.sets} & {s.fingerprint for s in before.sets}
    problems = ["the fingerprint is the same"] if same and new_fingerprint else []
    if {(s.fingerprint, s.tap, s.dtype) for s in report.sets} <= {(s.fingerprint, s.tap, s.dtype) for s in before.sets}:
        problems.append("no other feature set")
    if report.num_extracted != report.num_samples:
        problems.append(f"{report.num_extracted} of {report.num_samples} samples were computed again")
    if ends_of(before) != old:
        problems.append("the old rows changed")
    return problems + stale(run, report)


def must_see_files(ground: Ground, edit: Callable[[Path], None], *, expected: int) -> list[str]:
    """Exactly the edited files are computed, and every file has the row of its bytes."""
    edit(ground.source)
    run = Run(ground.source, ground.cache)
    report = run.go()
    problems = stale(run, report)
    if report.num_extracted != expected:
        problems.append(f"{report.num_extracted} samples were computed, {expected} expected")
    return problems


def must_keep(ground: Ground, move: Callable[[Path], Path] = lambda path: path, **changed: Any) -> list[str]:
    """Nothing is computed again, and a fresh cache made this way has the same bytes. ``move`` moves the source."""
    before = ends_of(Run(ground.source, ground.cache).go())
    run = Run(move(ground.source), ground.cache, **changed)
    report = run.go()
    problems = [f"{report.num_extracted} samples were computed again"] if report.num_extracted else []
    if ends_of(report) != before:
        problems.append("other rows")
    return problems + stale(run, report)
