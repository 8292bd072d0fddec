"""Disk to committed shards, beside the ceilings of the machine and what people write by hand. Run by `benchmark.py`.

The bound on a CPU is cores / (CPU seconds of an image to read and decode, on one thread, + CPU seconds of an image of
the fastest forward pass that agrees with the reference): decoding and the network share the cores, and no pipeline can
be quicker than both together at full use. What we reach counts everything from the scan of the folder to the last
commit but the start-up (loading the network, preparing and trying the runtimes), which does not grow with the images
and is printed beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from benchmark_common import spread, timed

_THINGSVISION = """
import json, sys, time, torch
from thingsvision import get_extractor
from thingsvision.utils.data import DataLoader, ImageDataset
name, root, out = sys.argv[1:4]
extractor = get_extractor(model_name=name, source="torchvision", device="cpu", pretrained=False)
data = ImageDataset(root=root, out_path=out, backend="pt", transforms=extractor.get_transformations())
started = time.perf_counter()
node = {"resnet50": "avgpool", "mobilenet_v3_large": "avgpool"}.get(name, "avgpool")
rows = extractor.extract_features(
    batches=DataLoader(dataset=data, batch_size=32, backend="pt"), module_name=node, flatten_acts=True
)
print(json.dumps({"seconds": time.perf_counter() - started, "rows": len(rows)}))
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what is particular to this benchmark."""
    parser.add_argument("source", type=Path, help="folder of images")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--init", choices=["pretrained", "random"], default="pretrained")
    parser.add_argument("--images", type=int, default=640, help="how many files to use (default 640)")
    parser.add_argument("--runtime", default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--photographs", action="store_true", help="first make 12-megapixel JPEGs of the images")
    parser.add_argument("--no-baselines", action="store_true", help="leave the plain loop and the DataLoader out")
    parser.add_argument("--thingsvision", type=Path, metavar="PYTHON", help="an interpreter that has it, to compare")


def bench_extraction(args: argparse.Namespace) -> dict[str, Any]:
    """Disk to committed shards against ceilings, a plain loop, a DataLoader loop and a peer, on the same files."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, saved = Path(scratch) / "files", Path(scratch) / "plain.npy"
        chosen = find_files(args.source, args.images)
        files = (make_photographs if args.photographs else link_files)(chosen, folder)
        caches = (Path(scratch) / f"cache{number}" for number in range(1000))
        ours: list[dict[str, Any]] = []

        def featurecache() -> float:
            ours.append(in_new_process(extract_all, args, folder, next(caches)))
            return float(ours[-1]["seconds"] - ours[-1]["startup_seconds"])

        runs: dict[str, Callable[[], float]] = {"featurecache": featurecache}
        if not args.no_baselines:
            runs["plain loop"] = lambda: in_new_process(plain_loop, args, files, saved)
            runs["DataLoader loop"] = lambda: in_new_process(loader_loop, args, files)
        if args.thingsvision:
            runs["thingsvision"] = lambda: thingsvision(args, folder, Path(scratch) / "peer")
        measured: dict[str, list[float]] = {name: [] for name in runs}
        # Before and after each run of ours: the machine may be slower in one minute than in the next.
        before, bounds, ceilings = in_new_process(measure_ceilings, args, files), [], []
        for _ in range(args.repeats):
            for name, run in runs.items():
                measured[name].append(len(files) / run())
                if name == "featurecache":
                    after = in_new_process(measure_ceilings, args, files)
                    bounds.append((before["bound"] + after["bound"]) / 2)
                    ceilings.append(after)
                    before = after
        difference = None if args.no_baselines else compare_features(Path(scratch) / "cache0", folder, files, saved)
    result: dict[str, Any] = {
        "images": len(files),
        "backbone": args.backbone,
        "runtime": ours[-1]["runtime"],
        "device": args.device,
        "images_per_second": {name: spread(values) for name, values in measured.items()},
        "ceilings, images_per_second": {name: spread([c[name] for c in ceilings]) for name in ceilings[0]},
        "featurecache / bound": spread([a / b for a, b in zip(measured["featurecache"], bounds, strict=True)]),
        "start-up, seconds": spread([report["startup_seconds"] for report in ours]),
        "what it waits for": ours[-1]["summary"],
    }
    for name in measured.keys() - {"featurecache"}:
        ratios = [a / b for a, b in zip(measured["featurecache"], measured[name], strict=True)]
        result[f"featurecache / {name}"] = spread(ratios)
    if difference is not None:
        result["largest relative difference of features from the plain loop"] = difference
    return result


def in_new_process(work: Callable[..., Any], args: argparse.Namespace, *more: Any) -> Any:
    """Run something where no other library has threads or memory left over from before."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(work, args, *more).result()


def load(args: argparse.Namespace) -> tuple[Any, Any]:
    """Return the network and its default tap."""
    from featurecache.backbones.registry import load_backbone
    from featurecache.backbones.taps import resolve_taps

    backbone = load_backbone(request_of(args))
    return backbone, resolve_taps(backbone, ["default"])


def request_of(args: argparse.Namespace) -> Any:
    """Return what names the network."""
    from featurecache.extraction.extract import make_request

    return make_request(args.backbone, weights=args.weights, init=args.init, precision=args.precision)


def extract_all(args: argparse.Namespace, folder: Path, cache: Path) -> dict[str, Any]:
    """Do the main job."""
    from featurecache.extraction.extract import run_extraction
    from featurecache.specs import ExtractionSettings

    settings = ExtractionSettings(runtime=args.runtime, batch_size=args.batch_size, device=args.device, dtype="float32")
    report = run_extraction(folder, cache, request_of(args), settings=settings)
    return {
        "seconds": report.seconds,
        "startup_seconds": report.startup_seconds,
        "runtime": report.runtime,
        "summary": report.usage[0].summary(),
    }


def measure_ceilings(args: argparse.Namespace, files: list[Path]) -> dict[str, float]:
    """Images per second of each part of the machine alone, and of all together."""
    from featurecache.machine import num_cores

    (backbone, taps), cores = load(args), num_cores()
    part = files[:: max(len(files) // (40 if args.photographs else 300), 1)]
    decoding = decode_seconds(part, backbone)
    forward, wall = forward_seconds(backbone, taps, args)
    ceilings = {"decode": cores / decoding, "disk": 1 / disk_seconds(part, taps)}
    if args.device == "cpu":
        fastest = min(forward.values())
        ceilings |= {f"forward, {name}": cores / seconds for name, seconds in forward.items()}
        return ceilings | {"bound": cores / (decoding + fastest)}
    ceilings |= {f"forward, {name}": 1 / seconds for name, seconds in wall.items()}
    return ceilings | {"bound": min(ceilings["decode"], ceilings["disk"], *(1 / s for s in wall.values()))}


def decode_seconds(files: list[Path], backbone: Any) -> float:
    """CPU seconds to read and decode an image, on one thread with nothing beside it."""
    from featurecache.extraction.modality import modality_of
    from featurecache.sources.images import pillow_defaults

    modality = modality_of(backbone.preprocess)
    with pillow_defaults():
        modality.load(files[0].read_bytes())
        started = time.thread_time()
        for path in files:
            modality.load(path.read_bytes())
        return (time.thread_time() - started) / len(files)


def forward_seconds(backbone: Any, taps: Any, args: argparse.Namespace) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of an image, of all cores and of the clock, for each runtime that agrees with the reference."""
    from featurecache.backbones.runtimes import open_runtime
    from featurecache.errors import RuntimeMismatchError

    cpu, wall = {}, {}
    rng, crop = np.random.default_rng(0), backbone.preprocess.crop
    for name in ["torch", "openvino"] if args.device == "cpu" and args.precision == "float32" else ["torch"]:
        runtime = open_runtime(backbone, taps, runtime=name, device=args.device, batch_size=args.batch_size)
        batches = [rng.integers(0, 256, (runtime.batch_size, crop, crop, 3), np.uint8) for _ in range(4)]
        try:
            for _ in runtime.map(batches):
                pass
        except RuntimeMismatchError:
            continue
        started, on_cores = time.perf_counter(), time.process_time()
        count = sum(1 for _ in runtime.map(for_seconds(batches, 4.0)))
        cpu[name] = (time.process_time() - on_cores) / (count * runtime.batch_size)
        wall[name] = (time.perf_counter() - started) / (count * runtime.batch_size)
        runtime.close()
    return cpu, wall


def for_seconds(batches: list[np.ndarray], seconds: float) -> Iterator[np.ndarray]:
    """Yield batches for a while."""
    started, number = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        yield batches[number % len(batches)]
        number += 1


def disk_seconds(files: list[Path], taps: Any) -> float:
    """Seconds to read an image's bytes and to write and fsync its features, one after the other."""
    started = time.perf_counter()
    for path in files:
        path.read_bytes()
    reading = (time.perf_counter() - started) / len(files)
    row = np.zeros(sum(math.prod(tap.shape) for tap in taps), np.float32).tobytes()
    with tempfile.TemporaryFile() as file:
        started = time.perf_counter()
        for _ in range(4096):
            file.write(row)
        file.flush()
        os.fsync(file.fileno())
        return reading + (time.perf_counter() - started) / 4096


def find_files(folder: Path, limit: int) -> list[Path]:
    """Return images of every class in turn, so that a part has the classes of the whole."""
    from featurecache.sources.folder import find_images

    files = find_images([folder])
    step = max(len(files) // limit, 1)
    return files[::step][:limit]


def link_files(files: list[Path], folder: Path) -> list[Path]:
    """Put the chosen files into a folder of their own without copying them."""
    folder.mkdir(parents=True)
    links = [folder / f"{number:06d}{path.suffix}" for number, path in enumerate(files)]
    for link, path in zip(links, files, strict=True):
        link.symlink_to(path.resolve())
    return links


def make_photographs(files: list[Path], folder: Path) -> list[Path]:
    """Make JPEGs of 4000x3000 pixels, with the grain of a sensor, of other images; after 64, the same under new ids."""
    from PIL import Image

    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    grain = rng.integers(-9, 10, (3000, 4000, 3), np.int16)
    made = []
    for number, path in enumerate(files[:64]):
        pixels = np.asarray(Image.open(path).convert("RGB").resize((4000, 3000), Image.Resampling.BICUBIC), np.int16)
        noisy = np.clip(pixels + np.roll(grain, number * 37, axis=1), 0, 255).astype(np.uint8)
        made.append(folder / f"{number:06d}.jpg")
        Image.fromarray(noisy).save(made[-1], quality=88)
    for number in range(len(made), len(files)):  # bytes behind a JPEG's end are nothing to a decoder
        path = folder / f"{number:06d}.jpg"
        path.write_bytes(made[number % 64].read_bytes() + number.to_bytes(4, "little"))
        made.append(path)
    return made


def plain_loop(args: argparse.Namespace, files: list[Path], target: Path) -> float:
    """What people write by hand: open, resize, stack 32, run eager, save one .npy. Returns seconds."""
    import torch

    from featurecache.backbones.taps import TappedBackbone

    backbone, taps = load(args)
    (tap,), network, started = taps, TappedBackbone(backbone, taps), time.perf_counter()
    rows, batch = [], []
    prepare = by_hand(backbone.preprocess)
    for number, path in enumerate(files, 1):
        batch.append(prepare(path))
        if len(batch) == 32 or number == len(files):
            with torch.no_grad():
                rows.append(network(torch.stack(batch))[tap.name].numpy())
            batch = []
    np.save(target, np.concatenate(rows))
    return time.perf_counter() - started


def loader_loop(args: argparse.Namespace, files: list[Path]) -> float:
    """The same with a DataLoader that has a worker process for each core."""
    import torch

    from featurecache.backbones.taps import TappedBackbone
    from featurecache.machine import num_cores

    backbone, taps = load(args)
    (tap,), network, started = taps, TappedBackbone(backbone, taps), time.perf_counter()
    data = torch.utils.data.DataLoader(
        Files(files, backbone.preprocess), batch_size=32, num_workers=num_cores(), multiprocessing_context="fork"
    )
    with torch.no_grad():
        np.concatenate([network(batch)[tap.name].numpy() for batch in data])
    return time.perf_counter() - started


class Files:
    """A torch dataset of prepared images."""

    def __init__(self, files: list[Path], spec: Any) -> None:
        self._files, self._prepare = files, by_hand(spec)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Any:
        return self._prepare(self._files[index])


def by_hand(spec: Any) -> Callable[[Path], Any]:
    """Return what opens, resizes, crops and normalises a file, in full resolution."""
    import torch
    from PIL import Image, ImageOps

    resample = getattr(Image.Resampling, spec.interpolation.upper())
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (spec.mean, spec.std))

    def prepare(path: Path) -> Any:
        image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        short = min(image.size)
        image = image.resize((spec.resize * image.width // short, spec.resize * image.height // short), resample)
        left, top = round((image.width - spec.crop) / 2), round((image.height - spec.crop) / 2)  # as torchvision
        image = image.crop((left, top, left + spec.crop, top + spec.crop))
        return (torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).contiguous() / 255 - mean) / std

    return prepare


def thingsvision(args: argparse.Namespace, folder: Path, out: Path) -> float:
    """Seconds that thingsvision takes with the same network, without its start-up."""
    name = args.backbone.removeprefix("torchvision:")
    command = [str(args.thingsvision), "-c", _THINGSVISION, name, str(folder), str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"thingsvision failed: {done.stderr.strip().splitlines()[-1]}")
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])


def compare_features(cache: Path, source: Path, files: list[Path], saved: Path) -> float:
    """Largest difference between the cached features and the plain loop's, relative to the largest feature."""
    from featurecache.store.store import FeatureStore

    store = FeatureStore.open(cache)
    view = store.views.load(source)
    assert view is not None
    rows = np.array([view.row_of[path.name] for path in files])
    features, reference = store.features().read(rows).astype(np.float32), np.load(saved)
    reference = reference.reshape(features.shape)
    return float(np.abs(features - reference).max() / np.abs(reference).max())


def bench_forward(args: argparse.Namespace) -> dict[str, Any]:
    """The forward pass alone: one large batch on all cores, small ones side by side, OpenVINO."""
    import torch

    from featurecache.backbones.normalized import Normalized
    from featurecache.backbones.registry import load_backbone
    from featurecache.backbones.runtimes import open_runtime
    from featurecache.backbones.taps import TappedBackbone, resolve_taps
    from featurecache.extraction.extract import make_request

    backbone = load_backbone(make_request(args.backbone, weights=args.weights, init=args.init))
    taps, crop = resolve_taps(backbone, ["default"]), backbone.preprocess.crop
    images = np.random.default_rng(0).integers(0, 256, (64, crop, crop, 3), np.uint8)
    eager = Normalized(TappedBackbone(backbone, taps), backbone.preprocess)
    eager.to(memory_format=torch.channels_last)

    def one_batch(size: int) -> None:
        with torch.inference_mode():
            for start in range(0, len(images), size):
                eager(torch.from_numpy(images[start : start + size]))

    runs: dict[str, Callable[[], Any]] = {
        f"torch, one batch of {size}": lambda size=size: one_batch(size) for size in (8, 32)
    }
    for name in ("torch", "openvino"):
        for size in (2, 4, 8, 32):
            runtime = open_runtime(backbone, taps, runtime=name, batch_size=size)
            parts = [images[start : start + size] for start in range(0, len(images), size)]
            runs[f"{name}, batches of {size} side by side"] = lambda r=runtime, p=parts: list(r.map(p))
    measured: dict[str, list[float]] = {name: [] for name in runs}
    for call in runs.values():
        call()
    for _ in range(args.repeats):
        for name, call in runs.items():
            measured[name].append(len(images) / timed(call))
    return {"backbone": args.backbone, "images_per_second": {name: spread(v) for name, v in measured.items()}}


def bench_decoding(args: argparse.Namespace) -> dict[str, Any]:
    """Read and decode: one thread, all cores, and large photographs in full and scaled."""
    from concurrent.futures import ThreadPoolExecutor

    from featurecache.machine import num_cores
    from featurecache.sources.images import load_image, pillow_defaults
    from featurecache.specs import PreprocessSpec

    spec = PreprocessSpec(interpolation="bicubic")
    full = spec.override(jpeg_decoding="full")
    files = find_files(args.source, args.images)
    with tempfile.TemporaryDirectory() as scratch, pillow_defaults(), ThreadPoolExecutor(num_cores()) as pool:
        large = make_photographs(files[:8], Path(scratch) / "large")
        datas = [path.read_bytes() for path in large]
        runs: dict[str, tuple[int, Callable[[], Any]]] = {
            "one thread": (len(files), lambda: [load_image(path.read_bytes(), spec) for path in files]),
            "all cores": (len(files), lambda: list(pool.map(lambda path: load_image(path.read_bytes(), spec), files))),
            "4000x3000 pixels, full, one thread": (len(datas), lambda: [load_image(data, full) for data in datas]),
            "4000x3000 pixels, scaled, one thread": (len(datas), lambda: [load_image(data, spec) for data in datas]),
        }
        measured: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(args.repeats):
            for name, (count, call) in runs.items():
                measured[name].append(count / timed(call))
        pairs = [(load_image(data, spec).astype(int), load_image(data, full).astype(int)) for data in datas]
    differences = [np.abs(a - b) for a, b in pairs]
    return {
        "images_per_second": {name: spread(values) for name, values in measured.items()},
        "all cores / one thread": spread(
            [a / b for a, b in zip(measured["all cores"], measured["one thread"], strict=True)]
        ),
        "scaled - full, mean of 255": float(np.mean([d.mean() for d in differences])),
        "scaled - full, most of 255": int(max(d.max() for d in differences)),
    }
