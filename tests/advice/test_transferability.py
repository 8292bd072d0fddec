"""LogME and the H-score against slow references, and against the probe that they stand beside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import write_cache
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from sklearn.covariance import LedoitWolf

import featurecache as fc
from featurecache.advice.probe import one_hot
from featurecache.advice.transferability import IMAGENET_ACCURACY, h_score, log_me
from featurecache.backbones.torchvision_compat import import_torchvision


def made(n: int, d: int, apart: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    return apart * rng.normal(size=(3, d))[y] + rng.normal(size=(n, d)), y


@pytest.mark.parametrize(("n", "d"), [(40, 6), (20, 50)])
def test_log_me_is_the_greatest_evidence_of_a_gaussian_model(n: int, d: int) -> None:
    X, y = made(n, d, 1.0)
    Y = one_hot(y, 3)
    found = []
    for column in Y.T:

        def negative(logs: np.ndarray, column: np.ndarray = column) -> float:
            alpha, beta = np.exp(logs)
            # Weights N(0, 1 / alpha), noise N(0, 1 / beta): the targets are Gaussian.
            covariance = X @ X.T / alpha + np.eye(n) / beta
            return -float(multivariate_normal(np.zeros(n), covariance, allow_singular=True).logpdf(column)) / n

        found.append(-minimize(negative, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-9}).fun)
    assert log_me(X, Y) == pytest.approx(np.mean(found), abs=2e-4)


@pytest.mark.parametrize(("n", "d"), [(60, 8), (30, 70)])
def test_h_score_equals_its_definition_and_is_bounded(n: int, d: int) -> None:
    X, y = made(n, d, 0.8)
    centred = X - X.mean(axis=0)
    covariance = LedoitWolf(assume_centered=True).fit(centred).covariance_
    means = np.stack([centred[y == k].mean(axis=0) for k in range(3)])[y]
    expected = np.trace(np.linalg.solve(covariance, means.T @ means / n))
    assert h_score(X, y) == pytest.approx(min(expected, 2), rel=1e-6)
    assert h_score(*made(n, d, 50.0)) <= 2
    assert h_score(np.ones((n, d)), y) == 0


def test_better_features_have_higher_scores_however_many_they_are() -> None:
    for d in (5, 300):
        sets = [made(90, d, apart) for apart in (0.0, 0.5, 2.0)]
        evidence, spread = [log_me(X, one_hot(y, 3)) for X, y in sets], [h_score(X, y) for X, y in sets]
        assert evidence == sorted(evidence)
        assert spread == sorted(spread)
        # Of many features and few rows any classes lie as far apart as can be: the probe stands first.
        assert (spread[0] < spread[2]) == (d == 5)


def test_classes_that_are_not_there_and_features_that_do_not_vary_say_nothing() -> None:
    X, y = made(60, 8, 1.0)
    with_absent = np.concatenate([one_hot(y, 3), np.zeros((60, 1))], axis=1)
    assert log_me(X, with_absent) == log_me(X, one_hot(y, 3))
    assert log_me(np.zeros((60, 8)), one_hot(y, 3)) is None
    assert log_me(X, np.ones((60, 1))) is None


def test_they_stand_beside_the_probe(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, "stem.0:avg", "pre_logits:none", per_class=15)
    (finding,) = fc.advise(cache, "colour", only=["what"])
    ranking = finding.details["ranking"]
    assert all(np.isfinite(row["log_me"]) and 0 <= row["h_score"] <= 2 for row in ranking)
    assert all(row["imagenet_accuracy"] is None for row in ranking)  # of a network that nobody has published
    chosen = finding.details["would_have_chosen"]
    assert "log_me" in chosen
    assert "imagenet_accuracy" not in chosen
    best = max(ranking, key=lambda row: row["log_me"])
    assert chosen["log_me"] == {"name": best["name"], "right": best["verdict"] != "worse"}


def test_published_figures_are_those_of_torchvision() -> None:
    torchvision = import_torchvision()
    for name, accuracy in IMAGENET_ACCURACY.items():
        library, _, network = name.partition(":")
        if library == "torchvision":
            weights = torchvision.models.get_model_weights(network).DEFAULT
            assert weights.meta["_metrics"]["ImageNet-1K"]["acc@1"] == pytest.approx(accuracy, abs=0.06), name
