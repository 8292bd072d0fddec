"""Deeper layers against the loop that people write by hand. Run by `benchmark.py`."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np


def add_recipe_options(parser: argparse.ArgumentParser) -> None:
    """Add which images and which network."""
    parser.add_argument("cache", type=Path, help="with pooled features of the network, and a task of classes")
    parser.add_argument("source", type=Path, help="the images")
    parser.add_argument("--task", required=True)
    parser.add_argument("--backbone", required=True, help="torchvision:NAME or timm:NAME")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--from-tap", action="append", default=[], help="cached activations to train a tail from")


def bench_recipe(args: argparse.Namespace) -> dict[str, Any]:
    """Test accuracy of the linear head, of tails and of the whole network, and of a plain loop by hand.

    The loop: AdamW at 1e-4 for pretrained and 1e-3 for new layers, cosine, flips and crops, batches of 32.
    """
    import featurecache as fc

    store = fc.FeatureStore.open(args.cache)
    task = store.task(args.task)
    found: dict[str, Any] = {"classes": len(task.classes), **{f"{k} samples": v for k, v in task.counts().items()}}
    common = ["train", str(args.cache), "--task", args.task, "--backbone", args.backbone, "--look-at-test"]
    layers = ["--weights", str(args.weights), "--epochs", str(args.epochs)]
    runs = {
        "linear head": ["--head", "logistic", "--views", "0"],
        **{f"tail from {tap}": ["--head", "tail", "--from-tap", tap, *layers] for tap in args.from_tap},
        "whole network": ["--head", "tail", "--from-images", str(args.source), "--augment", "views", *layers],
    }
    for name, options in runs.items():
        found[name] = _test_accuracy([*common, *options])
        print(f"{name}: {found[name]:.4f}", flush=True)
    found["by hand"] = by_hand(args, store, task)
    print(f"by hand: {found['by hand']:.4f}", flush=True)
    ours = max(value for name, value in found.items() if name in runs)
    return {**found, "best of ours - by hand": ours - found["by hand"]}


def _test_accuracy(command: list[str]) -> float:
    done = subprocess.run(
        [sys.executable, "-m", "featurecache", *command, "--json", "--quiet"], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    result = json.loads(done.stdout)["results"][0]
    return float(result[result["reported"]]["accuracy"])


def by_hand(args: argparse.Namespace, store: Any, task: Any) -> float:
    """Train the whole network as people do, and return its accuracy on the test split."""
    import torch
    from PIL import Image
    from torch import nn

    from featurecache.backbones.torchvision_compat import import_torchvision

    import_torchvision()
    from torchvision.transforms import v2

    torch.manual_seed(0)
    module, new = _network(args.backbone, args.weights, len(task.classes))
    is_vit = "vit" in args.backbone
    mean, std = ([0.5] * 3, [0.5] * 3) if is_vit else ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    finish = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    train_transform = v2.Compose([v2.RandomResizedCrop(224, scale=(0.5, 1.0)), v2.RandomHorizontalFlip(), *finish])
    test_transform = v2.Compose([v2.Resize(248 if is_vit else 256), v2.CenterCrop(224), *finish])
    rows = store.samples.rows_of(task.ids)
    listing = store.listings.load(args.source)
    pictures = []
    for name in listing.paths_of(rows):
        with Image.open(args.source / name) as image:
            pictures.append(image.convert("RGB"))
    train, test = (np.flatnonzero(task.splits == number) for number in (0, 2 if task.has("test") else 1))
    pretrained = [p for p in module.parameters() if all(p is not q for q in new)]
    optimiser = torch.optim.AdamW([{"params": pretrained, "lr": 1e-4}, {"params": new, "lr": 1e-3}], weight_decay=0.05)
    steps = args.epochs * -(-len(train) // 32)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    rng, loss_of = np.random.default_rng(0), nn.CrossEntropyLoss()
    for _ in range(args.epochs):
        module.train()
        order = rng.permutation(train)
        for some in np.array_split(order, -(-len(order) // 32)):
            batch = torch.stack([train_transform(pictures[index]) for index in some])
            loss = loss_of(module(batch), torch.from_numpy(task.labels[some]).long())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    module.eval()
    right = 0
    with torch.inference_mode():
        for some in np.array_split(test, -(-len(test) // 32)):
            batch = torch.stack([test_transform(pictures[index]) for index in some])
            right += int((module(batch).argmax(1).numpy() == task.labels[some]).sum())
    return right / len(test)


def _network(name: str, weights: Path, n_classes: int) -> tuple[Any, list[Any]]:
    """Return a pretrained network with a new output layer, and the parameters of that."""
    import torch
    from torch import nn

    library, _, architecture = name.partition(":")
    if library == "timm":
        import safetensors.torch
        import timm

        module = timm.create_model(architecture, num_classes=n_classes)
        state = safetensors.torch.load_file(weights)
        module.load_state_dict({k: v for k, v in state.items() if not k.startswith("head.")}, strict=False)
        return module, list(module.get_classifier().parameters())
    import torchvision

    module = torchvision.models.get_model(architecture)
    module.load_state_dict(torch.load(weights, weights_only=True))
    if architecture.startswith("squeezenet"):
        module.classifier[1] = nn.Conv2d(512, n_classes, 1)
        return module, list(module.classifier[1].parameters())
    module.fc = nn.Linear(module.fc.in_features, n_classes)
    return module, list(module.fc.parameters())
