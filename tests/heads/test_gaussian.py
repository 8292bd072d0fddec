"""Gaussians that share one covariance: the reference form, and the form in the space of the rows, are the same."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from sklearn.covariance import ledoit_wolf

from featurecache.heads.encoding import encode_estimator
from featurecache.heads.fitting import fit_head
from featurecache.heads.gda import GaussianDiscriminant
from featurecache.heads.registry import make_head


def reference(X: np.ndarray, y: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Return the log probabilities of new rows by the plain formula."""
    means = np.stack([X[y == k].mean(axis=0) for k in np.unique(y)])
    covariance, _ = ledoit_wolf(X - means[y], assume_centered=True)
    variance = np.trace(covariance) / len(covariance)
    covariance = covariance + (1e-6 * variance if variance > 0 else 1.0) * np.eye(len(covariance))
    apart = new[:, None] - means
    return log_softmax(
        np.log(np.bincount(y) / len(y)) - 0.5 * np.einsum("nkd,de,nke->nk", apart, np.linalg.inv(covariance), apart),
        axis=1,
    )


@given(
    seed=st.integers(0, 10_000),
    n_samples=st.integers(4, 30),
    n_features=st.integers(1, 60),
    n_classes=st.integers(2, 4),
    rank=st.sampled_from([1, 3, 60]),
    mean=st.sampled_from([0.0, 30.0]),
)
@settings(max_examples=80)
def test_both_forms_are_the_shrunk_covariance(seed, n_samples, n_features, n_classes, rank, mean):
    rng = np.random.default_rng(seed)
    rank = min(rank, n_features)
    y = rng.permutation(np.arange(n_samples) % n_classes)
    X = (
        rng.normal(size=(n_samples, rank)) @ rng.normal(size=(rank, n_features))
        + mean
        + rng.normal(size=(n_classes, n_features))[y]
    )
    head, new = GaussianDiscriminant(standardize=False).fit(X, y), X[:4] + 0.1 * rng.normal(size=(4, n_features))
    shrinkage = ledoit_wolf(X - np.stack([X[y == k].mean(axis=0) for k in range(n_classes)])[y], assume_centered=True)[
        1
    ]
    assert head.shrinkage_ == pytest.approx(shrinkage, rel=1e-8, abs=1e-10)
    expected = reference(X, y, new)
    found = head.predict_log_proba(new)
    assert np.allclose(np.exp(found), np.exp(expected), rtol=1e-8, atol=1e-8)


def test_classes_of_single_rows():
    """No residual is left, so all directions are alike: the class of the nearest row."""
    X = np.random.default_rng(0).normal(size=(6, 40))
    head = GaussianDiscriminant(standardize=False).fit(X, np.arange(6))
    assert head.predict(X + 0.01).tolist() == list(range(6))
    assert np.allclose(head.predict_log_proba(X), reference(X, np.arange(6), X), rtol=1e-8, atol=1e-8)


def test_few_rows_of_many_features_take_no_square_of_these():
    """The covariance of 20,000 features has 3.2 GB; the process may take half a gigabyte beyond what it has loaded."""
    code = """
import resource
import numpy as np
from featurecache.heads.registry import make_head
rng = np.random.default_rng(0)
X, y = rng.normal(size=(24, 20_000)).astype(np.float32), np.arange(24) % 3
X += 0.1 * y[:, None]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
head = make_head("gda").fit(X, y)
assert (head.predict(X) == y).all()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    taken = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert taken < 500_000  # kB


def test_what_is_saved_is_a_row_for_each_class():
    rng = np.random.default_rng(1)
    head = fit_head("gda", rng.normal(size=(12, 300)), np.arange(12) % 3)
    _, arrays = encode_estimator(head)
    assert max(array.size for array in arrays.values()) == 3 * 300


def test_shrinkage_is_worth_having():
    """With as many features as rows the plain covariance has no inverse that is worth anything."""
    rng = np.random.default_rng(2)
    centres = 0.7 * rng.normal(size=(3, 60))
    (X, y), (new, truth) = (
        (centres[y] + rng.normal(size=(n, 60)) @ np.diag(np.linspace(0.3, 2, 60)), y)
        for n, y in ((66, np.arange(66) % 3), (600, np.arange(600) % 3))
    )
    shrunk = make_head("gda").fit(X, y).score(new, truth)
    means = np.stack([X[y == k].mean(axis=0) for k in range(3)])
    residuals = X - means[y]
    plain = np.linalg.inv(residuals.T @ residuals / 66 + 1e-6 * np.eye(60))
    apart = new[:, None] - means
    assert shrunk > np.mean(np.einsum("nkd,de,nke->nk", apart, plain, apart).argmin(axis=1) == truth) + 0.1


def test_a_prior_draws_the_variances_of_all_features_that_vary():
    """As if features came divided by the shrunk scales; one that is constant stays as it is."""
    rng = np.random.default_rng(0)
    y = np.arange(12) % 3
    X = rng.normal(size=(12, 40)) * np.geomspace(0.01, 100, 40) + rng.normal(size=(3, 40))[y]
    X[:, 7] = 5.0
    variance = X.var(axis=0)
    varies = np.arange(40) != 7
    scale = np.sqrt((12 * variance + 10 * variance[varies].mean()) / 22)
    prepared = (X - X.mean(axis=0)) / np.where(varies, scale, 1.0)
    found = GaussianDiscriminant(prior_rows=10.0).fit(X, y).decision_function(X)
    expected = GaussianDiscriminant(standardize=False).fit(prepared, y).decision_function(prepared)
    np.testing.assert_allclose(found, expected, rtol=1e-8)
