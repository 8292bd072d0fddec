"""Deeper layers against the loop that people write by hand. Run by `benchmark.py`."""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
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
    parser.add_argument("--start", choices=["fresh", "probe"], help="output layer of tails at first")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each kind on the task's own splits")
    parser.add_argument("--folds", type=int, help="judge on each of so many parts of all samples in turn, instead")
    parser.add_argument("--only", action="append", help="beginning of what is trained; repeat for several")


def bench_recipe(args: argparse.Namespace) -> dict[str, Any]:
    """Test accuracy of the linear head, of tails and of the whole network, and of a plain loop by hand.

    The loop: AdamW at 1e-4 for pretrained and 1e-3 for new layers, cosine, flips and crops, batches of 32.
    """
    import featurecache as fc

    store = fc.FeatureStore.open(args.cache)
    layers = ["--head", "tail", "--weights", str(args.weights), "--epochs", str(args.epochs)]
    layers += ["--start", args.start] if args.start else []
    runs = {
        "linear head": ["--head", "logistic", "--views", "0"],
        **{f"tail from {tap}": ["--from-tap", tap, *layers] for tap in args.from_tap},
        "whole network": ["--from-images", str(args.source), "--augment", "views", *layers],
        "by hand": [],
    }
    runs = {name: options for name, options in runs.items() if name.startswith(tuple(args.only or [""]))}
    accuracies: dict[str, list[float]] = {name: [] for name in runs}
    # Round by round, so that one that is stopped early has some of each kind.
    for number in range(args.folds or args.seeds):
        task = _fold(store, args, number) if args.folds else store.task(args.task)
        for name, options in runs.items():
            if name == "by hand":
                accuracy = by_hand(args, store, task, number)
            else:
                common = ["train", str(args.cache), "--task", task.name, "--backbone", args.backbone]
                accuracy = _test_accuracy([*common, *options, "--look-at-test", "--random-state", str(number)])
            accuracies[name].append(accuracy)
            print(f"{'fold' if args.folds else 'seed'} {number}, {name}: {accuracy:.4f}", flush=True)
        if args.folds:
            _featurecache("rm", str(args.cache), "task", task.name)
    for name, some in accuracies.items():
        against = f"; against by hand: {_mean(np.subtract(some, hand))}" if (hand := accuracies.get("by hand")) else ""
        print(f"{name}: {_mean(some)}{against}")
    return {"rounds": args.folds or args.seeds, **{name: float(np.mean(some)) for name, some in accuracies.items()}}


def _mean(values: Any) -> str:
    error = f" (standard error {np.std(values, ddof=1) / len(values) ** 0.5:.4f})" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{error}"


def _fold(store: Any, args: argparse.Namespace, number: int) -> Any:
    """Add a task of the same labels, of which one fold is for test, the next for validation, and the rest to train."""
    from sklearn.model_selection import StratifiedKFold

    task, num_folds = store.task(args.task), args.folds
    folds = np.empty(len(task.labels), int)
    for fold, (_, held_out) in enumerate(
        StratifiedKFold(num_folds, shuffle=True, random_state=0).split(folds, task.labels)
    ):
        folds[held_out] = fold
    names = {number: "test", (number + 1) % num_folds: "validation"}
    paths = store.listings.load(args.source).paths_of(store.samples.rows_of(task.ids))
    with tempfile.NamedTemporaryFile("w", suffix=".csv", newline="") as table:
        rows = csv.writer(table)
        rows.writerow(["path", "label", "split"])
        for path, label, fold in zip(paths, task.labels.tolist(), folds.tolist(), strict=True):
            rows.writerow([path, task.classes[label], names.get(fold, "train")])
        table.flush()
        added = f"{args.task}-fold-{number}-of-{num_folds}"
        _featurecache("task", "add", str(store.path), added, table.name, "--replace")
    return store.task(added)


def _featurecache(*command: str) -> str:
    done = subprocess.run([sys.executable, "-m", "featurecache", *command, "--json"], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


def _test_accuracy(command: list[str]) -> float:
    result = json.loads(_featurecache(*command, "--quiet"))["results"][0]
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
    # As our own layers are: on train and validation where there is a test split.
    judged = 2 if task.has("test") else 1
    train, test = np.flatnonzero(task.splits < judged), np.flatnonzero(task.splits == judged)
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
