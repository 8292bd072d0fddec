"""What advice is worth on real sets: labels chosen, outliers found, domains adapted to. Run by `benchmark.py`."""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.small import read_sets

RATE = 0.05


def add_sets_options(parser: argparse.ArgumentParser) -> None:
    """Add which features, and how often they are divided."""
    parser.add_argument("caches", type=Path, nargs="+", metavar="CACHE", help="each with a task of classes")
    parser.add_argument("--task", default="run", help="its name in every cache (default run)")
    parser.add_argument("--draws", type=int, default=10)


def bench_labelling(args: argparse.Namespace) -> dict[str, Any]:
    """Label what `advise --label-next` names, and random samples: accuracy from one label of a class to sixteen."""
    found: dict[str, Any] = {}
    for label, X, y in read_sets(args.caches, args.task):
        n_classes = int(y.max()) + 1
        sizes = [n_classes, n_classes, 2 * n_classes, 4 * n_classes, 8 * n_classes]
        curves = np.array([_curves(X, y, n_classes, sizes, seed) for seed in range(args.draws)])
        apart = (curves[:, 0] - curves[:, 1]).mean(axis=1)
        error = apart.std(ddof=1) / np.sqrt(len(apart))
        found[label] = {
            "labels": ", ".join(map(str, np.cumsum(sizes))),
            "chosen": ", ".join(f"{value:.3f}" for value in curves[:, 0].mean(axis=0)),
            "random": ", ".join(f"{value:.3f}" for value in curves[:, 1].mean(axis=0)),
            "mean difference": float(apart.mean()),
            "two standard errors": float(2 * error),
        }
    return found


def _curves(X: np.ndarray, y: np.ndarray, n_classes: int, sizes: list[int], seed: int) -> list[list[float]]:
    """Return the accuracies on held-out samples with labels that are chosen, and with random ones."""
    from featurecache.advice.active_learning import choose_samples
    from featurecache.advice.probe import linear_probe, one_hot, predict_new

    rng = np.random.default_rng(seed)
    order = rng.permutation(len(y))
    held_out, pool = order[: len(y) * 3 // 10], np.sort(order[len(y) * 3 // 10 :])
    curves = []
    for is_chosen in (True, False):
        labelled, curve = np.empty(0, np.int64), list[float]()
        for size in sizes:
            free = np.setdiff1d(np.arange(len(pool)), labelled)
            if is_chosen:
                new = choose_samples(X[pool], labelled, y[pool][labelled], n_classes, size, random_state=seed)
            else:
                new = rng.permutation(free)[:size]
            labelled = np.concatenate([labelled, new])
            rows, Y = X[pool][labelled], one_hot(y[pool][labelled], n_classes)
            penalty = linear_probe(rows, Y, np.arange(len(labelled)) % min(5, len(labelled))).penalty
            answers = predict_new(rows, Y, X[held_out], penalty).argmax(axis=1)
            curve.append(float(np.mean(answers == y[held_out])))
        curves.append(curve)
    return curves


def bench_outliers(args: argparse.Namespace) -> dict[str, Any]:
    """Fit on two thirds of each set: how many of the rest are named, and how many samples of the other sets."""
    from featurecache.heads.outliers import OutlierDetector, most_rows
    from featurecache.store.samples import some_rows

    sets = [(label, X) for label, X, _ in read_sets(args.caches, args.task)]
    found: dict[str, Any] = {}
    for label, X in sets:
        backbone = label.rpartition("(")[2]
        others = {name: other for name, other in sets if name != label and name.rpartition("(")[2] == backbone}
        named: dict[str, list[float]] = {"false alarms": [], **{f"found of {name}": [] for name in others}}
        for seed in range(args.draws):
            order = np.random.default_rng(seed).permutation(len(X))
            fitted = some_rows(order[: len(X) * 2 // 3], most_rows(X.shape[1]), random_state=seed)
            detector = OutlierDetector.fit(X[fitted], random_state=seed)
            assert detector is not None
            named["false alarms"].append(float((detector.p_values(X[order[len(X) * 2 // 3 :]]) <= RATE).mean()))
            for name, other in others.items():
                named[f"found of {name}"].append(float((detector.p_values(other[:500]) <= RATE).mean()))
        found[label] = {name: float(np.mean(shares)) for name, shares in named.items()}
    return found


def add_adaptation_options(parser: argparse.ArgumentParser) -> None:
    """Add which features and domains."""
    parser.add_argument("cache", type=Path, metavar="CACHE")
    parser.add_argument("--task", required=True, help="of classes, with labels in all domains")
    parser.add_argument("--domain", action="append", required=True, metavar="PATTERN", help="of paths; repeat")
    parser.add_argument("--backbone", metavar="B", help="only its features")


def bench_adaptation(args: argparse.Namespace) -> dict[str, Any]:
    """Adapt each domain to each other one without its labels; then look at these."""
    from fnmatch import fnmatchcase

    import featurecache as fc
    from featurecache.evaluation.adapting import adapt_heads

    store = fc.FeatureStore.open(args.cache)
    task = store.task(args.task)
    names = store.samples.uris_of(store.samples.rows_of(task.ids))
    member = {domain: np.array([fnmatchcase(name, domain) for name in names]) for domain in args.domain}
    found: dict[str, Any] = {}
    for feature_set in store.select_sets(backbone=args.backbone, views=0):
        gains = []
        for source, target in permutations(args.domain, 2):
            kept = member[source] | member[target]
            splits = np.where(member[target], 2, np.random.default_rng(0).random(len(names)) < 0.2)[kept]
            pair = replace(task, ids=task.ids[kept], labels=task.labels[kept], splits=splits.astype(np.uint8))
            report = adapt_heads(store, pair, feature_set, "test")
            accuracy = {head.method: head.accuracy[0] for head in report.heads if head.accuracy is not None}
            gains.append(accuracy[report.chosen.method] - accuracy["source"])
            shown = ", ".join(f"{method} {value:.3f}" for method, value in accuracy.items())
            line = f"{source} -> {target}: {report.chosen.method} ({gains[-1]:+.3f}); {shown}"
            print(f"{feature_set.identity.backbone} {line}", flush=True)
        found[feature_set.identity.backbone] = {
            "mean gain": float(np.mean(gains)),
            "least": float(min(gains)),
            "greatest": float(max(gains)),
            "adapted": int(np.count_nonzero(gains)),
            "pairs": len(gains),
        }
    return found
