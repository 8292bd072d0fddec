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
    parser.add_argument("--start", choices=["fresh", "probe"], default="fresh", help="output layer at first")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each kind, whose mean is compared")


def bench_recipe(args: argparse.Namespace) -> dict[str, Any]:
    """Test accuracy of the linear head, of tails and of the whole network, and of a plain loop by hand.

    The loop: AdamW at 1e-4 for pretrained and 1e-3 for new layers, cosine, flips and crops, batches of 32.
    """
    import featurecache as fc

    store = fc.FeatureStore.open(args.cache)
    task = store.task(args.task)
    found: dict[str, Any] = {"classes": len(task.classes), **{f"{k} samples": v for k, v in task.counts().items()}}
    common = ["train", str(args.cache), "--task", args.task, "--backbone", args.backbone, "--look-at-test"]
    layers = ["--head", "tail", "--weights", str(args.weights), "--epochs", str(args.epochs), "--start", args.start]
    runs = {
        "linear head": ["--head", "logistic", "--views", "0"],
        **{f"tail from {tap}": ["--from-tap", tap, *layers] for tap in args.from_tap},
        "whole network": ["--from-images", str(args.source), "--augment", "views", *layers],
    }
    accuracies: dict[str, list[float]] = {}
    # Seed by seed, so that a run that is stopped early has some of each kind.
    for seed in range(args.seeds):
        for name, options in runs.items():
            found_here = _test_accuracy([*common, *options, "--random-state", str(seed)])
            accuracies.setdefault(name, []).append(found_here)
            print(f"seed {seed}, {name}: {found_here:.4f}", flush=True)
        accuracies.setdefault("by hand", []).append(by_hand(args, store, task, seed))
        print(f"seed {seed}, by hand: {accuracies['by hand'][-1]:.4f}", flush=True)
    means = {name: float(np.mean(some)) for name, some in accuracies.items()}
    for name, some in accuracies.items():
        error = f" (standard error over seeds {np.std(some, ddof=1) / len(some) ** 0.5:.4f})" if args.seeds > 1 else ""
        print(f"{name}: {means[name]:.4f}{error}", flush=True)
    against = {f"{name} - by hand": means[name] - means["by hand"] for name in runs}
    return {**found, **means, **against}


def _test_accuracy(command: list[str]) -> float:
    done = subprocess.run(
        [sys.executable, "-m", "featurecache", *command, "--json", "--quiet"], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    result = json.loads(done.stdout)["results"][0]
    return float(result[result["reported"]]["accuracy"])


def by_hand(args: argparse.Namespace, store: Any, task: Any, seed: int = 0) -> float:
    """Train the whole network as people do, and return its accuracy on the test split."""
    import torch
    from PIL import Image
    from torch import nn

    from featurecache.backbones.torchvision_compat import import_torchvision

    import_torchvision()
    from torchvision.transforms import v2

    torch.manual_seed(seed)
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
    rng, loss_of = np.random.default_rng(seed), nn.CrossEntropyLoss()
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
