"""The comparison of linear heads with other libraries, on little data: what is stopped is a lower bound."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY, TINY
from sklearn.linear_model import LogisticRegression

from featurecache.cli import main


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts"))
    return importlib.import_module("benchmarks.peers")


def test_a_fit_in_another_process_is_that_fit(peers: Any) -> None:
    rng = np.random.default_rng(0)
    Z, y = rng.normal(size=(90, 5)), np.arange(90) % 3
    (fit,) = peers.fit_peers(sys.executable, peers.SCIKIT_LEARN, Z, y, [0.1], 600)
    here = LogisticRegression(C=0.1, solver="lbfgs", max_iter=1000).fit(Z, y)
    assert (fit.C, fit.is_stopped, fit.iterations) == (0.1, False, here.n_iter_.max())
    assert 0 < fit.seconds < 600
    np.testing.assert_allclose(fit.coef, here.coef_, rtol=1e-6)
    np.testing.assert_allclose(fit.intercept, here.intercept_, rtol=1e-6, atol=1e-9)


def test_a_fit_is_stopped_at_the_limit_and_makes_a_lower_bound(peers: Any) -> None:
    rng = np.random.default_rng(0)
    Z, y = rng.normal(size=(20_000, 200)), rng.integers(0, 20, 20_000)
    (fit,) = peers.fit_peers(sys.executable, peers.SCIKIT_LEARN, Z, y, [1e5], 0.01)
    assert (fit.seconds, fit.is_stopped, fit.coef) == (0.01, True, None)
    done = peers.PeerFit(C=1.0, seconds=3.0, is_stopped=False)
    assert peers.bounded(7.0, [done, fit]) == {"at least": 7.0}
    assert peers.bounded(7.0, [done, done]) == 7.0
    assert peers.total_of([done, fit], np.array([1, 3]), 5) == pytest.approx(3 + 3 + (3 + 0.01) / 2 + 0.01 + 0.01)


def test_a_python_that_cannot_fit(peers: Any, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        peers.fit_peers(sys.executable, "no_such_module", np.zeros((4, 2)), np.arange(4) % 2, [1.0], 600)
    assert "No module named 'no_such_module'" in capfd.readouterr().err


@pytest.fixture
def colours(make_folder: Callable[..., Path], tmp_path: Path) -> Path:
    cache = tmp_path / "c"
    extract = ["extract", str(make_folder(per_class=20)), "--cache", str(cache), "--backbone", TINY]
    assert main([*extract, "--runtime", "torch", "--batch-size", "8", "--quiet"]) == 0
    assert main(["task", "add", str(cache), "colour", "--from-folders"]) == 0
    return cache


COMMAND = ["--task", "colour", "--strengths", "8", "--folds", "2", "--sampled", "2", "--repeats", "1"]


def test_figures_of_stopped_fits_are_lower_bounds(
    peers: Any, colours: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fit_peers(python: str, module: str, Z: np.ndarray, y: np.ndarray, Cs: list[float], limit: float) -> list[Any]:
        return [peers.PeerFit(C=C, seconds=limit, is_stopped=True) for C in Cs]

    heads, out = importlib.import_module("benchmarks.heads"), colours.parent / "out.json"
    monkeypatch.setattr(heads, "fit_peers", fit_peers)
    arguments = ["benchmark", "heads", str(colours), *COMMAND, "--limit", "0", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    capsys.readouterr()
    importlib.import_module("benchmark").main()
    found = json.loads(out.read_text())
    assert "at least" in found["scikit-learn / ours"]
    assert "at least" in found["scikit-learn, all of them, estimated, seconds"]
    assert found["largest (ours - theirs) / theirs of the objective, scikit-learn"] is None
    said = capsys.readouterr().out
    assert "at least" in said
    assert "stopped after 0 s" in said


@pytest.mark.slow
def test_figures_of_whole_fits_are_no_bounds(colours: Path) -> None:
    script, out = REPOSITORY / "scripts" / "benchmark.py", colours.parent / "out.json"
    command = [sys.executable, str(script), "heads", str(colours), *COMMAND, "--limit", "600", "--json", str(out)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(out.read_text())
    assert "at least" not in found["scikit-learn / ours"]
    assert not isinstance(found["scikit-learn, all of them, estimated, seconds"], dict)
    assert found["largest (ours - theirs) / theirs of the objective, scikit-learn"] is not None
    assert "at least" not in done.stdout
    key = "test accuracy, scikit-learn with that C"
    assert found[key] == pytest.approx(found["test accuracy, ours"], abs=0.1)


@pytest.mark.slow
def test_a_file_larger_than_the_memory_is_fitted(colours: Path) -> None:
    script, out = REPOSITORY / "scripts" / "benchmark.py", colours.parent / "out.json"
    sizes = ["--task", "colour", "--gigabytes", "0.01", "--limit", "4", "--repeats", "1"]
    subprocess.run([sys.executable, str(script), "memory", str(colours), *sizes, "--json", str(out)], check=True)
    assert json.loads(out.read_text())["looks at the rows"] > 0
