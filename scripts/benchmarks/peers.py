"""Logistic regression as other libraries fit it, each fit in a process of its own that is stopped at a limit."""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SCIKIT_LEARN, INTELEX = "sklearn.linear_model", "sklearnex.linear_model"
"""Modules that have a ``LogisticRegression``."""

FIT = """
import sys, time
from importlib import import_module
import numpy as np
module, folder, C = sys.argv[1:]
Z, y = (np.array(np.load(f"{folder}/{name}.npy", mmap_mode="r")) for name in ("Z", "y"))
model = import_module(module).LogisticRegression(C=float(C), solver="lbfgs", max_iter=1000)
print("ready", flush=True)
started = time.perf_counter()
model.fit(Z, y)
seconds = time.perf_counter() - started
found = {"coef": model.coef_, "intercept": model.intercept_, "iterations": np.max(model.n_iter_)}
np.savez(f"{folder}/fit.npz", seconds=seconds, **found)
"""
"""Read by another Python, without this package and perhaps with other libraries. Loading is not part of the time."""


@dataclass(frozen=True, kw_only=True)
class PeerFit:
    """One fit."""

    C: float
    seconds: float
    """Of the fit; the limit where it was stopped there, which is less than it would have taken."""
    is_stopped: bool
    coef: np.ndarray | None = None
    """(n_classes, n_features), for features as they were given; None where the fit was stopped."""
    intercept: np.ndarray | None = None
    """(n_classes,)."""
    iterations: int = 0


def fit_peers(python: str, module: str, Z: np.ndarray, y: np.ndarray, Cs: list[float], limit: float) -> list[PeerFit]:
    """Fit each strength by itself.

    Parameters
    ----------
    python : str
        That has the module.
    module : str
        `SCIKIT_LEARN` or `INTELEX`.
    Z : ndarray (n_samples, n_features)
        Standardised already.
    y : ndarray (n_samples,)
    Cs : list of float
    limit : float
        Seconds of each fit, after which it is killed.

    Raises
    ------
    CalledProcessError
        The other Python cannot fit; what it says of that is on stderr.
    """
    with tempfile.TemporaryDirectory() as scratch:
        for name, array in (("Z", Z), ("y", y)):
            np.save(Path(scratch) / f"{name}.npy", array)
        return [
            _fit([python, "-W", "ignore", "-c", FIT, module, scratch, repr(C)], Path(scratch), C, limit) for C in Cs
        ]


def _fit(command: list[str], folder: Path, C: float, limit: float) -> PeerFit:
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()  # "ready", or nothing where it failed: the limit is for the fit alone
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            return PeerFit(C=C, seconds=limit, is_stopped=True)
        finally:
            process.kill()
    if status:
        raise subprocess.CalledProcessError(status, command[:1])
    with np.load(folder / "fit.npz") as found:
        seconds, coef, intercept, iterations = (found[key] for key in ("seconds", "coef", "intercept", "iterations"))
    return PeerFit(
        C=C, seconds=float(seconds), is_stopped=False, coef=coef, intercept=intercept, iterations=int(iterations)
    )


def total_of(fits: list[PeerFit], places: np.ndarray, num_strengths: int) -> float:
    """Estimate the seconds of all strengths from those of some, by lines between them; a lower bound if one is."""
    return float(np.interp(np.arange(num_strengths), places, [fit.seconds for fit in fits]).sum())


def bounded(value: Any, fits: list[PeerFit]) -> Any:
    """Return a figure that grows with the seconds of the fits, as a lower bound if one of them was stopped."""
    return {"at least": value} if any(fit.is_stopped for fit in fits) else value
