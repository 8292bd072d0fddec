"""Few labels: accuracy and log loss of our heads over random draws, against scikit-learn's. Run by `benchmark.py`.

Both opponents are fixed beforehand: ``LogisticRegression()`` on the features as they are, and ``LogisticRegressionCV``
that chooses C by log loss in folds. On every draw all are fitted on the same samples and judged on all others.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

PEERS = ("untuned", "by log loss")
_LEAST = 1e-9
_LEAST_JUDGED = 5
"""Samples of each class that are left to judge by."""


def add_small_options(parser: argparse.ArgumentParser) -> None:
    """Add which features, how many labels and draws."""
    parser.add_argument(
        "caches", type=Path, nargs="+", metavar="CACHE", help="each with features and a task of classes"
    )
    parser.add_argument("--task", default="run", help="its name in every cache (default run)")
    parser.add_argument("--labels", type=int, action="append", metavar="N", help="of each class (5, 10, 20 and 40)")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--head", action="append", help="instead of logistic; several: the one that is chosen")
    parser.add_argument("--jobs", type=int, default=-1)


def bench_small(args: argparse.Namespace) -> dict[str, Any]:
    """Fit on few labels, many times; print differences of accuracy and ratios of log loss, by set and pooled."""
    from featurecache.evaluation.processes import FitBackend

    backend, heads, found = FitBackend.active(args.jobs), args.head or ["logistic"], {}
    for label, X, y in read_sets(args.caches, args.task):
        for num_labels in args.labels or [5, 10, 20, 40]:
            counts = np.bincount(y)
            enough = np.flatnonzero(counts >= num_labels + _LEAST_JUDGED)
            if len(enough) < max(2, 0.8 * np.count_nonzero(counts)):
                continue
            kept = np.isin(y, enough)
            draws = [(X[kept], np.searchsorted(enough, y[kept]), num_labels, heads, seed) for seed in range(args.draws)]
            rows = np.array([row for _, row in backend.run(draw, draws, workers=backend.count)])
            found[f"{label}, {num_labels} labels"] = rows
            print(f"{label}, {num_labels} labels of each class", flush=True)
            for index, name in enumerate((", ".join(heads), *PEERS)):
                accuracy, loss = rows[:, index].T
                figures = f"accuracy {accuracy.mean():.4f}, log loss {loss.mean():.3f}, worst {loss.max():.3f}"
                print(f"  {name:<24} {figures}", flush=True)
    return {f"against scikit-learn, {name}": _pooled(found, 1 + index) for index, name in enumerate(PEERS)}


def read_sets(caches: list[Path], task: str) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield a name, features and class indices of each feature set of each cache, all splits of the task together."""
    import featurecache as fc

    for cache in caches:
        store = fc.FeatureStore.open(cache)
        labels = store.task(task)
        for feature_set in store.feature_sets():
            parts = [labels.select(feature_set.open(), split=split) for split in labels.counts()]
            X, y = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
            yield f"{cache.name} ({feature_set.identity.backbone})", X.astype(np.float32), y


def draw(X: np.ndarray, y: np.ndarray, num_labels: int, heads: list[str], seed: int) -> list[tuple[float, float]]:
    """Return accuracy and log loss of our head, and of each peer, fitted on one draw.

    Parameters
    ----------
    X : ndarray (n_samples, n_features)
    y : ndarray (n_samples,)
    num_labels : int
        Of each class.
    heads : list of str
        Of several, the one that is chosen.
    seed : int
        Of the draw.
    """
    from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
    from sklearn.model_selection import train_test_split

    from featurecache.evaluation.search import evaluate_heads

    n_classes = int(y.max()) + 1
    X_fit, X_test, y_fit, y_test = train_test_split(
        X, y, train_size=num_labels * n_classes, stratify=y, random_state=seed
    )
    chosen = evaluate_heads(heads, {"train": (X_fit, y_fit), "test": (X_test, y_test)}, n_classes, n_jobs=1)[0]
    found = [chosen.proba]
    num_folds = max(2, min(3, num_labels))
    searched = LogisticRegressionCV(
        Cs=np.logspace(-3, 2, 6), cv=num_folds, scoring="neg_log_loss", max_iter=1000, random_state=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # their own, of parameters that will have other defaults
        for model in (LogisticRegression(max_iter=3000), searched):
            found.append(model.fit(X_fit, y_fit).predict_proba(X_test))
    of_label = [proba[np.arange(len(y_test)), y_test] for proba in found]
    right = [float(np.mean(proba.argmax(axis=1) == y_test)) for proba in found]
    return [(r, float(-np.log(np.maximum(p, _LEAST)).mean())) for r, p in zip(right, of_label, strict=True)]


def _pooled(found: dict[str, np.ndarray], peer: int) -> dict[str, Any]:
    """Return how our head compares with one peer: draws of a set are alike, sets count alike."""
    differences = {name: rows[:, 0, 0] - rows[:, peer, 0] for name, rows in found.items()}
    ratios = np.concatenate([np.log(rows[:, 0, 1] / rows[:, peer, 1]) for rows in found.values()])
    means = np.array([values.mean() for values in differences.values()])
    errors = np.array([values.std(ddof=1) / np.sqrt(len(values)) for values in differences.values()])
    pooled, error = means.mean(), np.sqrt(np.sum(errors**2)) / len(errors)
    worst = min(differences, key=lambda name: differences[name].mean())
    return {
        "accuracy, difference, mean over sets": float(pooled),
        "its lower 95 % bound": float(pooled - 1.645 * error),
        "the worst set": f"{differences[worst].mean():+.4f} ({worst})",
        "log loss, ratio, geometric mean": float(np.exp(ratios.mean())),
        "its 90th percentile over draws": float(np.exp(np.percentile(ratios, 90))),
    }


def add_reruns_options(parser: argparse.ArgumentParser) -> None:
    """Add which features, how many samples to begin with, and draws."""
    add_small_options(parser)
    parser.add_argument("--begin", type=int, default=60, help="labelled samples of the first run (default 60)")
    parser.add_argument("--reruns", type=int, default=5)
    parser.add_argument("--add", type=int, default=10, help="samples that each rerun has more (default 10)")


def bench_reruns(args: argparse.Namespace) -> dict[str, Any]:
    """Add ten samples, train again, five times: print by how much the probability of a new sample moves."""
    from featurecache.evaluation.processes import FitBackend
    from featurecache.heads.registry import list_heads

    backend, heads, steps, spreads = (
        FitBackend.active(args.jobs),
        args.head or list_heads(kind="classification"),
        [],
        [],
    )
    for label, X, y in read_sets(args.caches, args.task):
        sizes = [args.begin + args.add * number for number in range(args.reruns + 1)]
        if len(y) < sizes[-1] + 50:
            continue
        runs = [(X, y, sizes, heads, seed) for seed in range(args.draws)]
        moves = [move for _, move in backend.run(reruns, runs, workers=backend.count)]
        steps.append(np.mean([step for step, _, _ in moves]))
        spreads.append(np.mean([spread for _, spread, _ in moves]))
        chosen = "; ".join(" ".join(names) for _, _, names in moves)
        print(f"{label}: moves by {steps[-1]:.3f} at a rerun, {spreads[-1]:.3f} over all ({chosen})", flush=True)
    return {
        "move at a rerun, mean over sets": float(np.mean(steps)),
        "the worst set": float(np.max(steps)),
        "most less least over all reruns, mean over sets": float(np.mean(spreads)),
    }


def reruns(
    X: np.ndarray, y: np.ndarray, sizes: list[int], heads: list[str], seed: int
) -> tuple[float, float, list[str]]:
    """Return the mean move of the probabilities of new samples at a rerun and over all, and the heads that were chosen.

    Each run trains as `featurecache run` does: the split of a sample stays, the head that is chosen on validation
    samples is fitted once more on all. The probability is that of the class that the first run predicts.

    Parameters
    ----------
    X : ndarray (n_samples, n_features)
    y : ndarray (n_samples,)
    sizes : list of int
        Labelled samples of each run.
    heads : list of str
    seed : int
        Of the order in which samples come.
    """
    from sklearn.base import clone

    from featurecache.evaluation.search import evaluate_heads
    from featurecache.heads.probability import predict_proba

    rng = np.random.default_rng(seed)
    order, n_classes = rng.permutation(len(y)), int(y.max()) + 1
    # Two of each class come first, and are trained on, so that each run knows all classes.
    first = np.concatenate([order[y[order] == label][:2] for label in range(n_classes)])
    order = np.concatenate([first, order[~np.isin(order, first)]])
    part = np.where(np.arange(len(y)) < len(first), 0, rng.choice(3, len(y), p=[0.6, 0.2, 0.2]))
    new, probabilities, names = order[sizes[-1] :], [], []
    for size in sizes:
        of = {name: order[:size][part[:size] == k] for k, name in enumerate(("train", "validation", "test"))}
        splits = {name: (X[rows], y[rows]) for name, rows in of.items() if len(rows)}
        chosen = evaluate_heads(heads, splits, n_classes, n_jobs=1)[0]
        final = clone(chosen.estimator).fit(X[order[:size]], y[order[:size]])
        probabilities.append(predict_proba(final, X[new], chosen.temperature, n_classes))
        names.append(chosen.head)
    of_first = probabilities[0].argmax(axis=1)
    moved = np.array([proba[np.arange(len(new)), of_first] for proba in probabilities])
    return float(np.abs(np.diff(moved, axis=0)).mean()), float(np.ptp(moved, axis=0).mean()), names
