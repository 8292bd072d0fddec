"""The closed form is the slow and obvious fit, and intervals of paired differences cover."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from featurecache.advice import probe
from featurecache.advice.more_data import _ridge
from featurecache.advice.paired import mean_difference
from featurecache.advice.probe import linear_probe, one_hot, predict_new
from featurecache.heads.preparation import scaled


def made(n: int, d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    y = generator.integers(0, 3, n)
    X = generator.normal(size=(n, d)) * generator.uniform(0.1, 10, d) + generator.normal(size=d)
    X[:, :3] += 2 * np.eye(3)[y]
    return X.astype(np.float32), y


def penalties_of(X: np.ndarray) -> np.ndarray:
    values = probe._axes(scaled(X))[1]
    return probe.PENALTIES * values.sum() / len(values)


@pytest.mark.parametrize(("n", "d"), [(60, 8), (40, 100), (41, 41), (30, 1)])
def test_out_of_fold_is_what_fits_without_the_fold_predict(n: int, d: int) -> None:
    X, y = made(n, max(d, 3))
    X, folds, Y = X[:, :d], np.arange(n) % 5, one_hot(y, 3)
    found, rows = linear_probe(X, Y, folds), scaled(X)
    errors, predictions = [], []
    for penalty in penalties_of(X):
        out = np.empty(Y.shape)
        for number in range(5):
            kept = folds != number
            out[~kept] = Ridge(penalty, solver="cholesky").fit(rows[kept], Y[kept]).predict(rows[~kept])
        predictions.append(out)
        errors.append(((out - Y) ** 2).sum(axis=1))
    for number in range(5):
        # The penalty of a fold is that with the least error on the others.
        totals = [error[folds != number].sum() for error in errors]
        chosen = len(totals) - 1 - int(np.argmin(totals[::-1]))
        mine = folds == number
        np.testing.assert_allclose(found.out_of_fold[mine], predictions[chosen][mine], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("n", "d"), [(60, 8), (40, 100)])
def test_new_rows_are_predicted_by_the_fit_on_all(n: int, d: int) -> None:
    X, y = made(n, d)
    Y, new = one_hot(y, 3), made(25, d, seed=7)[0]
    found = linear_probe(X, Y, np.arange(n) % 5)
    np.testing.assert_allclose(predict_new(X, Y, X, found.penalty), found.in_sample, atol=1e-8)
    both = np.concatenate([X, new]).astype(np.float64)
    mean, spread = X.astype(np.float64).mean(axis=0), X.astype(np.float64).std(axis=0)
    variance = (n * spread**2 + 10 * (spread**2).mean()) / (n + 10)
    rows = (both - mean) / np.sqrt(variance)
    expected = Ridge(found.penalty, solver="cholesky").fit(rows[:n], Y).predict(rows[n:])
    np.testing.assert_allclose(predict_new(X, Y, new, found.penalty), expected, atol=1e-8)


def test_the_kernel_form_of_the_learning_curve_is_ridge_regression() -> None:
    X, y = made(50, 70)
    rows, Y = scaled(X), one_hot(y, 3)
    kernel = rows @ rows.T
    found = _ridge(kernel[:30, :30], Y[:30], kernel[30:, :30], 3.0)
    expected = Ridge(3.0, solver="cholesky").fit(rows[:30], Y[:30]).predict(rows[30:])
    np.testing.assert_allclose(found, expected, atol=1e-8)


def test_constant_features_are_no_obstacle() -> None:
    X, y = np.ones((20, 5), np.float32), np.arange(20) % 2
    found = linear_probe(X, one_hot(y, 2), np.arange(20) // 4)
    assert np.isfinite(found.out_of_fold).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([-3, 0, 5]))
def test_the_unit_of_the_features_does_not_matter(seed: int, power: int) -> None:
    X, y = made(40, 12, seed)
    folds, Y = np.arange(40) % 4, one_hot(y, 3)
    np.testing.assert_allclose(
        linear_probe(X * 2.0**power, Y, folds).out_of_fold, linear_probe(X, Y, folds).out_of_fold, rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("num_groups", [None, 40])
def test_intervals_of_paired_differences_cover(num_groups: int | None) -> None:
    generator, held, count = np.random.default_rng(0), 0, 600
    for _ in range(count):
        n = 200
        groups = None if num_groups is None else np.arange(n) % num_groups
        shift = np.zeros(n) if groups is None else generator.normal(0, 0.3, num_groups)[groups]
        first = (generator.normal(shift) < 1.0).astype(np.float64)
        second = (generator.normal(shift) < 0.8).astype(np.float64)
        found = mean_difference(first - second, groups)
        truth = _share(1.0, num_groups) - _share(0.8, num_groups)
        held += found.low <= truth <= found.high
    assert held / count > 0.93


def _share(threshold: float, num_groups: int | None) -> float:
    from scipy.stats import norm

    return float(norm.cdf(threshold / np.sqrt(1 + (0.09 if num_groups else 0.0))))
