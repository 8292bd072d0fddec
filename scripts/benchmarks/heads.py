"""The price of a whole protocol of linear heads, against fitting each head by itself. Run by `benchmark.py`."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.common import spread, timed
from benchmarks.peers import INTELEX, SCIKIT_LEARN, PeerFit, bounded, fit_peers, total_of


def add_heads_options(parser: argparse.ArgumentParser) -> None:
    """Add which features, and how many fits."""
    parser.add_argument("cache", type=Path)
    parser.add_argument("--task", required=True)
    parser.add_argument("--rows", type=int, default=50_000, help="training rows, at most (default 50000)")
    parser.add_argument("--strengths", type=int, default=45)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--sampled", type=int, default=6, help="fits of the others that are measured (default 6)")
    parser.add_argument("--intelex", metavar="PYTHON", help="a Python that has scikit-learn-intelex")
    parser.add_argument(
        "--limit", type=float, default=600.0, metavar="SECONDS", help="stop each fit of the others there (default 600)"
    )


def bench_heads(args: argparse.Namespace) -> dict[str, Any]:
    """All strengths and folds of logistic regression; the totals of others are estimated from some of their fits.

    A fit of theirs that is stopped at the limit counts as the limit, and what is computed from it is a lower bound.
    """
    from sklearn.model_selection import StratifiedKFold
    from sklearn.preprocessing import StandardScaler

    from featurecache.heads.logistic import LogisticProbe
    from featurecache.heads.ridge import RidgeProbe

    X, y, X_test, y_test = read_task(args.cache, args.task, args.rows)
    Cs = np.logspace(-6, 5, args.strengths)
    ours, ridge = [], []
    for _ in range(args.repeats):
        probe = LogisticProbe(Cs=Cs.tolist(), cv=args.folds)
        ours.append(timed(lambda probe=probe: probe.fit(X, y)))
        closed = RidgeProbe(alphas=np.logspace(-2, 7, args.strengths).tolist())
        ridge.append(timed(lambda closed=closed: closed.fit(X, y)))
    kept, held_out = next(iter(StratifiedKFold(args.folds, shuffle=True, random_state=0).split(X, y)))
    fold = np.full(len(y), -1)
    fold[held_out] = 0
    settings = [{"C": C} for C in Cs.tolist()]
    path = {setting["C"]: fitted[0] for setting, fitted in LogisticProbe().fit_path(X, y, fold, settings)}
    scaler = StandardScaler().fit(X)
    (chosen,) = fit_peers(sys.executable, SCIKIT_LEARN, scaler.transform(X), y, [probe.C_], args.limit)
    result: dict[str, Any] = {
        "rows x features, classes": f"{X.shape[0]} x {X.shape[1]}, {len(np.unique(y))}",
        "strengths x folds": f"{args.strengths} x {args.folds}",
        "ours, all of them and the last fit, seconds": spread(ours),
        "chosen C": probe.C_,
        "test accuracy, ours": float(probe.score(X_test, y_test)),
        "test accuracy, scikit-learn with that C": accuracy_of(chosen, scaler.transform(X_test), y_test),
        "ridge, all strengths with leave-one-out, seconds": spread(ridge),
        "ridge, test accuracy": float(closed.score(X_test, y_test)),
    }
    peers = {"scikit-learn": (sys.executable, SCIKIT_LEARN)}
    if args.intelex:
        peers["scikit-learn-intelex"] = (args.intelex, INTELEX)
    places = np.linspace(2, args.strengths - 3, args.sampled).round().astype(int)
    scaler = StandardScaler().fit(X[kept])
    Z, y = scaler.transform(X[kept]), y[kept]
    for name, peer in peers.items():
        fits = fit_peers(*peer, Z, y, Cs[places].tolist(), args.limit)
        differences = [difference(fit, Z, y, scaler, path[fit.C]) for fit in fits]
        total = total_of(fits, places, args.strengths) * args.folds
        said = zip(fits, differences, strict=True)
        result |= {
            f"{name}, sampled fits": {f"C = {fit.C:.1e}": describe(fit, each) for fit, each in said},
            f"{name}, all of them, estimated, seconds": bounded(total, fits),
            f"{name} / ours": bounded(spread([total / seconds for seconds in ours]), fits),
            f"largest (ours - theirs) / theirs of the objective, {name}": max(
                (each for each in differences if each is not None), default=None
            ),
        }
    return result


def read_task(cache: Path, task: str, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return training features and labels, in a random order, and those of the test part."""
    import featurecache as fc

    store = fc.FeatureStore.open(cache)
    labels, features = store.task(task), store.features()
    X_test, y_test = labels.select(features, split="test")
    return *shuffled(*labels.select(features, split="train"), rows), X_test.astype(np.float32), y_test


def shuffled(X: np.ndarray, y: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return features and labels in a random order, so many at most."""
    chosen = np.random.default_rng(0).permutation(len(y))[:rows]
    return X[chosen].astype(np.float32), y[chosen]


def difference(fit: PeerFit, Z: np.ndarray, y: np.ndarray, scaler: Any, ours: Any) -> float | None:
    """Return how far our objective is above theirs, relative to theirs; None where theirs was stopped."""
    if fit.is_stopped:
        return None
    theirs = objective(Z, y, fit.C, fit.coef, fit.intercept)
    value = objective(Z, y, fit.C, ours.coef_ * scaler.scale_, ours.intercept_ + ours.coef_ @ scaler.mean_)
    return (value - theirs) / theirs


def objective(Z: np.ndarray, y: np.ndarray, C: float, W: np.ndarray, b: np.ndarray) -> float:
    """The mean loss and the penalty, in float64, a block of rows at a time."""
    loss = 0.0
    for start in range(0, len(y), 4096):
        margins = Z[start : start + 4096].astype(np.float64) @ W.T.astype(np.float64) + b
        largest = margins.max(axis=1)
        total = largest + np.log(np.exp(margins - largest[:, None]).sum(axis=1))
        loss += float((total - margins[np.arange(len(margins)), y[start : start + 4096]]).sum())
    return loss / len(y) + float((W.astype(np.float64) ** 2).sum()) / (2 * C * len(y))


def describe(fit: PeerFit, difference: float | None) -> str:
    """Say how long a fit took, and how ours compares."""
    if difference is None:
        return f"stopped after {fit.seconds:.0f} s"
    return f"{fit.seconds:.1f} s, {fit.iterations} iterations; objective of ours {difference:+.1e}"


def accuracy_of(fit: PeerFit, Z: np.ndarray, y: np.ndarray) -> float | None:
    """Return the share of rows that a fit is right about; None where it was stopped."""
    if fit.is_stopped:
        return None
    return float(np.mean((Z @ fit.coef.T + fit.intercept).argmax(axis=1) == y))


def add_memory_options(parser: argparse.ArgumentParser) -> None:
    """Add how large the file and how small the memory is."""
    parser.add_argument("cache", type=Path)
    parser.add_argument("--task", required=True)
    parser.add_argument("--gigabytes", type=float, default=8.0, help="of features in the file (default 8)")
    parser.add_argument("--limit", type=float, default=2.0, help="gigabytes of memory that the process may have")


def bench_memory(args: argparse.Namespace) -> dict[str, Any]:
    """Fit a file of features that is larger than the memory allowed: real ones, with noise, repeated."""
    X, y, _, _ = read_task(args.cache, args.task, 50_000)
    with tempfile.TemporaryDirectory(dir=args.cache.resolve().parent) as scratch:
        path = Path(scratch) / "features.bin"
        num_rows = int(args.gigabytes * 1e9) // (4 * X.shape[1])
        mapped, rng = np.memmap(path, np.float32, "w+", shape=(num_rows, X.shape[1])), np.random.default_rng(0)
        for start in range(0, num_rows, len(X)):
            part = X[: num_rows - start]
            mapped[start : start + len(part)] = part + rng.normal(0, 0.1, part.shape).astype(np.float32)
        mapped.flush()
        np.save(Path(scratch) / "y.npy", np.resize(y, num_rows))
        command = [sys.executable, "-m", "benchmarks.heads", scratch, str(X.shape[1]), str(args.limit)]
        started = perf_counter()
        done = subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[1])
        return {"rows x features": f"{num_rows} x {X.shape[1]}", "seconds": perf_counter() - started} | json.loads(
            done.stdout
        )


def fit_within(folder: Path, num_features: int, gigabytes: float) -> dict[str, Any]:
    """Fit within a limit on the memory that is not a file's."""
    import resource

    from featurecache.heads.logistic import LogisticProbe

    resource.setrlimit(resource.RLIMIT_DATA, (int(gigabytes * 1e9),) * 2)
    y = np.load(folder / "y.npy")
    X = np.memmap(folder / "features.bin", np.float32, "r", shape=(len(y), num_features))
    probe = LogisticProbe(C=1e-4).fit(X, y)
    return {"limit of private memory, GB": gigabytes, "looks at the rows": probe.n_iter_}


def add_mlp_options(parser: argparse.ArgumentParser) -> None:
    """Add which features, and how many heads."""
    parser.add_argument("cache", type=Path)
    parser.add_argument("--task", required=True)
    parser.add_argument("--rows", type=int, default=50_000, help="training rows, at most (default 50000)")
    parser.add_argument("--heads", type=int, default=52)
    parser.add_argument("--epochs", type=int, default=3)


def bench_mlp(args: argparse.Namespace) -> dict[str, Any]:
    """Heads at as many learning rates side by side, as DINOv2 trains 52, against one of them; and their products alone.

    What all of them take less than one after the other is what they share: reading, and the time of a step that is not
    arithmetic. The matrix products of the linear ones are a bound that nothing can share away.
    """
    from featurecache.heads.mlp import MlpClassifier

    X, y, X_test, y_test = read_task(args.cache, args.task, args.rows)
    never = np.full(len(y), -1)
    rates = np.geomspace(1e-5, 1e-1, args.heads).tolist()
    result: dict[str, Any] = {"rows x features, classes": f"{X.shape[0]} x {X.shape[1]}, {len(np.unique(y))}"}
    single = [{"learning_rate": rates[len(rates) // 2]}]
    list(MlpClassifier(0, epochs=1).fit_path(X, y, never, single))  # loading libraries is no part of a fit
    for hidden_layers in (0, 1):
        head = MlpClassifier(hidden_layers, epochs=args.epochs, patience=args.epochs + 1)
        one, all_of_them, fitted = [], [], []
        for _ in range(args.repeats):
            one.append(timed(lambda head=head, single=single: list(head.fit_path(X, y, never, single))))
            settings = [{"learning_rate": rate} for rate in rates]
            keep = partial(fitted.extend)
            all_of_them.append(timed(lambda h=head, s=settings, k=keep: k(h.fit_path(X, y, never, s))))
        best = max(estimator.score(X_test, y_test) for _, (estimator,) in fitted)
        result[f"{hidden_layers} hidden layers of {head.width}"] = {
            "one, seconds": spread(one),
            f"{args.heads} side by side, seconds": spread(all_of_them),
            f"{args.heads} / one": spread([many / alone for many, alone in zip(all_of_them, one, strict=True)]),
            "greatest test accuracy": best,
        }
        if not hidden_layers:
            products = [
                timed(lambda head=head: _products(X, head.batch_size, args.heads * len(np.unique(y)), args.epochs))
                for _ in range(args.repeats)
            ]
            result[f"matrix products of {args.heads} alone / one, without hidden layers"] = spread(
                [alone / whole for alone, whole in zip(products, one, strict=True)]
            )
    return result


def _products(X: np.ndarray, batch_size: int, num_outputs: int, epochs: int) -> None:
    """Do the products of a training of linear heads: what each batch gets, and the gradient."""
    import torch

    batches = torch.from_numpy(X[: len(X) // batch_size * batch_size]).view(-1, batch_size, X.shape[1])
    weights = torch.zeros(X.shape[1], num_outputs)
    for _ in range(epochs):
        for batch in batches:
            torch.mm(batch.T, torch.mm(batch, weights))


if __name__ == "__main__":
    print(json.dumps(fit_within(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))))
