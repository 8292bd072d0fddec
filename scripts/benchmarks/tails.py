"""What a cache saves in training a tail: epochs, one with the frozen layers recomputed. Run by `benchmark.py tails`."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import find_files, spread

CACHE, RECOMPUTED, DECODED = "from the cache", "recomputed", "decoded and recomputed"

if TYPE_CHECKING:
    from torch import Tensor, nn

    from featurecache.backbones.taps import TappedBackbone
    from featurecache.heads.gradient.datasets import Dataset
    from featurecache.heads.gradient.trainable import TrainableLayers


def bench_tails(args: argparse.Namespace) -> dict[str, Any]:
    """One epoch of a tail from cached activations, against one that computes the layers before the cut from images.

    With ``--images``, also against one that decodes these images first, as every epoch without a cache must.
    """
    import numpy as np
    import torch

    from featurecache.backbones.cutting import valid_cuts
    from featurecache.backbones.registry import load_backbone
    from featurecache.backbones.taps import TappedBackbone, resolve_taps
    from featurecache.finetuning.factories import layer_factory
    from featurecache.heads.gradient.datasets import ActivationDataset
    from featurecache.machine import num_cores
    from featurecache.specs import BackboneRequest

    torch.set_num_threads(num_cores())
    request = BackboneRequest(name=args.backbone, weights=args.weights, init="pretrained" if args.weights else "random")
    backbone = load_backbone(request)
    (tap,) = resolve_taps(backbone, [args.tap])
    before = TappedBackbone(backbone, [tap])
    make = layer_factory("tail", tap.name, tap.shape, backbone)
    decode, images = _images(args, backbone.preprocess)
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        cached = np.memmap(Path(folder) / "activations", np.float32, "w+", shape=(args.rows, *tap.shape))
        with torch.inference_mode():
            for start in range(0, args.rows, args.batch_size):
                some = slice(start, start + args.batch_size)
                cached[some] = before(images[some])[tap.name].numpy()
        for turn in range(args.repeats + 1):  # the first is to warm up
            found = {
                CACHE: _epoch(make(10), ActivationDataset(cached.reshape(len(cached), -1), tap.shape), args),
                RECOMPUTED: _epoch(
                    _with_frozen(before, make(10)),
                    ActivationDataset(images.flatten(1).numpy(), tuple(images.shape[1:])),
                    args,
                ),
            }
            if decode is not None:
                found[DECODED] = _epoch(_with_frozen(before, make(10)), decode, args)
            for name, value in found.items():
                seconds.setdefault(name, []).extend([value] if turn else [])

    def ratios(name: str) -> list[float]:
        return [slow / quick for slow, quick in zip(seconds[name], seconds[CACHE], strict=True)]

    bound = next(cut.speedup for cut in valid_cuts(backbone) if cut.tap == tap.name)
    assert bound is not None
    return {
        "backbone": args.backbone,
        "cut after": tap.name,
        "rows": args.rows,
        "seconds of an epoch": {name: spread(values) for name, values in seconds.items()},
        **{f"{name} / {CACHE}": spread(ratios(name)) for name in seconds if name != CACHE},
        "bound, by operations": bound,
        "share of the bound": spread([ratio / bound for ratio in ratios(RECOMPUTED)]),
    }


def _images(args: argparse.Namespace, preprocess: Any) -> tuple[Dataset | None, Tensor]:
    """Return images as a data set that decodes them, if there are any, and all of them decoded, or else noise."""
    import numpy as np
    import torch

    from featurecache.finetuning.images import ImageDataset
    from featurecache.sources.files import NamedFiles
    from featurecache.sources.inputs import inputs_of

    if args.images is None:
        return None, torch.randn(args.rows, 3, preprocess.crop, preprocess.crop)
    files = find_files(args.images, args.rows)
    args.rows = len(files)
    dataset = ImageDataset(list(inputs_of(NamedFiles(files))), preprocess)
    return dataset, dataset.read(np.arange(len(files)))


def _with_frozen(before: TappedBackbone, layers: TrainableLayers) -> TrainableLayers:
    """Return layers that take images: those before the cut, frozen, in front of the others."""
    import torch
    from torch import nn

    from featurecache.heads.gradient.trainable import TrainableLayers

    class Whole(nn.Module):
        """The frozen layers, then the tail."""

        def __init__(self, tail: nn.Module) -> None:
            super().__init__()
            self.tail = tail

        def forward(self, images_BCHW: Tensor) -> Tensor:
            with torch.no_grad():
                (activations,) = before(images_BCHW).values()
            found: Tensor = self.tail(activations)
            return found

    return TrainableLayers(Whole(layers.body), layers.output)


def _epoch(layers: TrainableLayers, dataset: Dataset, args: argparse.Namespace) -> float:
    """Train for an epoch, and return how many seconds it took."""
    import numpy as np
    import torch

    from featurecache.heads.gradient.layer_training import LayerTrainer, TrainingData
    from featurecache.heads.gradient.options import LayerSetting

    setting = LayerSetting(learning_rate=1e-4, batch_size=args.batch_size, epochs=1, warmup=0.0)
    data = TrainingData(
        dataset=dataset, y=torch.arange(args.rows) % 10, weight=torch.ones(args.rows),
        fitted=np.arange(args.rows), held_out=np.zeros(0, np.int64), kind="classification",
    )  # fmt: skip
    started = time.perf_counter()
    LayerTrainer(layers, data, setting).run()
    return time.perf_counter() - started


def add_options(parser: argparse.ArgumentParser) -> None:
    """Describe what to run."""
    parser.add_argument("--backbone", default="torchvision:resnet50")
    parser.add_argument("--weights", type=Path, help="random weights without it: they cost the same")
    parser.add_argument("--tap", default="layer3:none")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="train on these, not on noise")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
