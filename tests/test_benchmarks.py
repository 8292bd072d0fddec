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
    fits = peers.fit_peers(sys.executable, peers.SCIKIT_LEARN, Z, y, [0.1, 10.0], 600)
    for fit, C in zip(fits, (0.1, 10.0), strict=True):
        here = LogisticRegression(C=C, solver="lbfgs", max_iter=1000).fit(Z, y)
        assert (fit.C, fit.is_stopped, fit.iterations) == (C, False, here.n_iter_.max())
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


@pytest.mark.parametrize(
    ("limit", "is_bound"), [("0", True), pytest.param("600", False, marks=pytest.mark.slow)], ids=["stopped", "whole"]
)
def test_figures_say_whether_they_are_lower_bounds(
    limit: str, is_bound: bool, make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    cache = tmp_path / "c"
    extract = ["extract", str(make_folder(per_class=20)), "--cache", str(cache), "--backbone", TINY]
    assert main([*extract, "--runtime", "torch", "--batch-size", "8", "--quiet"]) == 0
    assert main(["task", "add", str(cache), "colour", "--from-folders"]) == 0
    script, out = REPOSITORY / "scripts" / "benchmark.py", tmp_path / "out.json"
    command = [sys.executable, str(script), "heads", str(cache), "--task", "colour", "--strengths", "8", "--folds", "2"]
    command += ["--sampled", "2"]
    done = subprocess.run(
        [*command, "--repeats", "1", "--limit", limit, "--json", str(out)],
        check=True,
        capture_output=True,
        text=True,
    )
    found = json.loads(out.read_text())
    assert ("at least" in found["scikit-learn / ours"]) == is_bound
    assert isinstance(found["scikit-learn, all of them, estimated, seconds"], dict) == is_bound
    assert (found["largest (ours - theirs) / theirs of the objective, scikit-learn"] is None) == is_bound
    assert ("at least" in done.stdout) == ("stopped after 0 s" in done.stdout) == is_bound
    if not is_bound:
        key = "test accuracy, scikit-learn with that C"
        assert found[key] == pytest.approx(found["test accuracy, ours"], abs=0.1)
