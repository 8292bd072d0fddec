"""Rows to stop by: groups and views of a sample stay together, and what is held out says nothing about units."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone

from featurecache.evaluation.split_data import SplitData
from featurecache.heads.fitting import fit_folds
from featurecache.heads.gradient import stacked_training
from featurecache.heads.linear_svm import LinearSvmProbe
from featurecache.heads.logistic import LogisticProbe
from featurecache.heads.mlp import MlpClassifier, MlpRegressor
from featurecache.heads.preparation import mean_and_scale, rows_to_stop_by
from featurecache.heads.ridge import RidgeProbe

SETTING = {LogisticProbe: {"C": 0.1}, LinearSvmProbe: {"C": 0.01}, RidgeProbe: {"alpha": 3.0}}


@given(size=st.integers(1, 60), kind=st.sampled_from(["classification", "regression"]), seed=st.integers(0, 99))
def test_groups_are_drawn_whole(size, kind, seed):
    groups = np.random.default_rng(seed).permutation(np.arange(3000) // size)
    y = np.arange(3000) % 3
    said = y if kind == "classification" else y[:, None].astype(float)
    drawn = rows_to_stop_by(said, np.ones((1, 3000), bool), groups, fraction=0.1, random_state=seed)
    assert set(groups[drawn]).isdisjoint(np.delete(groups, drawn))
    assert 300 <= len(drawn) < 300 + size
    assert np.array_equal(drawn, np.unique(drawn))


@pytest.mark.parametrize("groups", [np.zeros(3000, int), np.arange(3000) % 3], ids=["one group", "a class is a group"])
def test_none_are_drawn_where_a_group_is_too_much(groups):
    y = np.arange(3000) % 3
    assert len(rows_to_stop_by(y, np.ones((1, 3000), bool), groups, fraction=0.1, random_state=0)) == 0


def test_views_of_a_sample_and_samples_of_a_group_are_handed_on_together(monkeypatch):
    seen = []
    monkeypatch.setattr(
        stacked_training, "rows_to_stop_by", lambda y, f, group, **k: seen.append(group) or np.zeros(0, int)
    )
    rng = np.random.default_rng(0)
    views = rng.normal(size=(30, 2, 4))
    for groups in (None, np.arange(30) // 3):
        part = SplitData(y=np.arange(30) % 3, fit_views=views, eval_views=views[:, :1], groups=groups)
        X, y, weight, of_rows = part.fit_rows()
        head = MlpClassifier(epochs=1)
        for _ in fit_folds(head, [{"learning_rate": 1e-3}], X, y, np.repeat(np.arange(30) // 10, 2), weight, of_rows):
            pass
        expected = np.repeat(np.arange(30) if groups is None else groups, 2)
        np.testing.assert_array_equal(seen.pop(), expected)
    plain = SplitData(y=np.arange(30) % 3, fit_views=views[:, :1], eval_views=views[:, :1])
    assert plain.fit_rows().groups is None


def test_units_are_those_of_the_rows_that_are_fitted_on():
    rng = np.random.default_rng(0)
    X, fold = rng.normal(size=(90, 4)), np.arange(90) // 30
    y = X[:, :1] + np.array([0.0, 100.0, 10_000.0])[fold][:, None]
    ((_, fitted),) = MlpRegressor(epochs=1).fit_path(X, y, fold, [{"learning_rate": 1e-3}])
    for each, estimator in enumerate(fitted):
        mean, scale = mean_and_scale(y[fold != each], None)
        np.testing.assert_array_equal([estimator.target_mean_, estimator.target_scale_], [mean, scale])
        alone = MlpRegressor(epochs=1, learning_rate=1e-3).fit(X[fold != each], y[fold != each])
        np.testing.assert_array_equal(alone.target_mean_, estimator.target_mean_)


@pytest.mark.parametrize("probe", [LogisticProbe(C=0.1), RidgeProbe(alpha=3.0), LinearSvmProbe(C=0.01)])
@pytest.mark.parametrize(("rows", "features"), [(12, 40), (60, 5)], ids=["few rows", "many rows"])
def test_shrunk_variances_are_those_of_rescaled_features(probe, rows, features):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(rows, features)) * np.linspace(0.1, 3, features), np.arange(rows) % 3
    variance = X.var(axis=0)
    scale = np.sqrt((rows * variance + 10 * variance.mean()) / (rows + 10))
    found = clone(probe).set_params(prior_rows=10.0).fit(X, y)
    by_hand = clone(probe).set_params(standardize=False).fit((X - X.mean(axis=0)) / scale, y)
    np.testing.assert_allclose(found.coef_ * scale, by_hand.coef_, rtol=1e-4, atol=1e-6)
    ((_, (held_out, *_)),) = found.fit_path(X, y, np.arange(rows) // (rows // 2), [SETTING[type(probe)]])
    half = slice(rows // 2, None)
    again = clone(found).set_params(**SETTING[type(probe)]).fit(X[half], y[half])
    # The search ends within its tolerance of the optimum, the last fit at the optimum.
    np.testing.assert_allclose(
        held_out.coef_ * scale, again.coef_ * scale, atol=0.02 * np.abs(again.coef_ * scale).max()
    )


def test_a_negative_prior_is_refused():
    with pytest.raises(ValueError, match="prior_rows must be 0 or more, got -1"):
        LogisticProbe(prior_rows=-1).fit(np.eye(4), [0, 1, 0, 1])
    with pytest.raises(ValueError, match="prior_rows must be 0 or more, got -1"):
        RidgeProbe(prior_rows=-1).fit(np.eye(4), [0, 1, 0, 1])
