"""What people write by hand, and what peers do, on the same files."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import load

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
    listing = store.listings.load(source)
    assert listing is not None
    rows = np.array([listing.row_of[path.name] for path in files])
    features, reference = store.features().read(rows).astype(np.float32), np.load(saved)
    reference = reference.reshape(features.shape)
    return float(np.abs(features - reference).max() / np.abs(reference).max())
