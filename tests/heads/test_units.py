"""Nearest neighbours and means do not depend on how features are scaled, where they are standardised."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurecache.errors import HeadError
from featurecache.evaluation.search import evaluate_head
from featurecache.evaluation.trained_head import HeadResult
from featurecache.heads.head import NamedHead
from featurecache.heads.preparation import directions, own_units
from featurecache.heads.registry import find_head, make_head

CASES = [("knn", "classification"), ("knn", "regression"), ("nearest_mean", "classification")]


def splits(seed: int, factor: np.ndarray, kind: str = "classification", number: int = 60) -> dict[str, tuple]:
    """Twelve features that are often zero, as behind a rectifier, one never another value, and one of another sign."""
    found = {}
    for index, name in enumerate(("train", "test")):
        rng = np.random.default_rng(1000 * seed + index)
        y = rng.integers(0, 3, number)
        X = np.maximum(rng.normal(size=(number, 12)) + 0.8 * np.eye(3, 12)[y], 0).astype(np.float32)
        X[:, 10] = 0.1 if name == "train" else rng.normal(size=number)
        X[:, 11] *= -1
        found[name] = (X * factor, y if kind == "classification" else (y + 0.3 * X[:, :1].sum(axis=1))[:, None])
    return found


def searched(name: str, kind: str, parts: dict[str, tuple], *, standardize: bool | None = None) -> HeadResult:
    head = find_head(name, kind=kind)
    if standardize is not None:
        own = head.settings_for
        head = NamedHead(name, head.estimator, lambda n: [s for s in own(n) if s["standardize"] is standardize])
    return evaluate_head(head, parts, 3 if kind == "classification" else 1, kind=kind)


@pytest.mark.parametrize(("name", "kind"), CASES)
@given(seed=st.integers(0, 100), least=st.integers(-30, 0), most=st.integers(0, 30))
@settings(max_examples=4)
def test_features_times_any_powers_of_two_are_the_same_features(name, kind, seed, least, most):
    factor = np.exp2(np.random.default_rng(seed).integers(least, most + 1, 12)).astype(np.float32)
    ones = np.ones(12, np.float32)
    result, same = (searched(name, kind, splits(seed, scale, kind), standardize=True) for scale in (factor, ones))
    assert result.params == same.params
    assert result.selection_score == same.selection_score
    np.testing.assert_array_equal(result.selection_pred, same.selection_pred)
    np.testing.assert_array_equal(result.y_pred, same.y_pred)
    np.testing.assert_array_equal(result.proba, same.proba)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_badly_scaled_features_are_standardised(name, kind):
    """Half of the features say nothing, and are a hundred times as large as the others."""
    parts, factor = {}, np.array([1] * 4 + [100] * 4, np.float32)
    for seed, split in enumerate(("train", "test")):
        rng = np.random.default_rng(seed)
        y = rng.integers(0, 3, 200)
        X = (rng.normal(size=(200, 8)) + 2 * np.eye(3, 8)[y]).astype(np.float32) * factor
        parts[split] = (X, y if kind == "classification" else (y + 0.1 * X[:, :1].sum(axis=1))[:, None])
    chosen, as_they_come = searched(name, kind, parts), searched(name, kind, parts, standardize=False)
    assert chosen.params["standardize"] is True
    score = "accuracy" if kind == "classification" else "r2"
    assert chosen.test.to_json()[score] > as_they_come.test.to_json()[score] + 0.15


@pytest.mark.parametrize("name", ["knn", "nearest_mean"])
def test_the_scales_that_a_network_gives_are_kept_where_nothing_can_be_chosen(name):
    """With one label a class a feature's own variance is chance: standardised, accuracy falls from 0.90 to 0.61."""
    parts = splits(0, np.ones(12, np.float32))
    rows = [int(np.flatnonzero(parts["train"][1] == label)[0]) for label in range(3)]
    one_each = {**parts, "train": tuple(array[rows] for array in parts["train"])}
    assert searched(name, "classification", one_each).params["standardize"] is False
    assert make_head(name).standardize is False


def test_few_rows_do_not_choose_among_more_settings():
    few, enough = (find_head("knn").settings_for(number) for number in (39, 40))
    assert not any(setting["standardize"] for setting in few)
    assert [setting["n_neighbors"] for setting in enough if setting["standardize"]] == [20, 5, 1]


def test_units_are_those_of_the_rows():
    rows = np.array([[1, 5, 2.0**-140, 0.1], [3, 5, 0, 0.1], [5, 5, 0, 0.1]], np.float32)
    mean, factor = own_units(rows)
    np.testing.assert_allclose(mean, rows.astype(float).mean(axis=0))
    np.testing.assert_allclose(factor, [1 / np.std([1, 3, 5]), 0, 0, 0])
    found = directions(rows + np.float32(7), mean, factor)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    assert (found[:, 1:] == 0).all()


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_units_of_a_stranger(name, kind):
    X, y = splits(0, np.ones(12, np.float32), kind)["train"]
    plain, head = make_head(name, kind=kind).fit(X, y), make_head(name, kind=kind, standardize=True).fit(X, y)
    arrays, params = head.to_arrays(), head.get_params()
    names = sorted({"factor_", "mean_"} & (arrays.keys() - plain.to_arrays().keys()))
    for name in names:
        without = {key: array for key, array in arrays.items() if key != name}
        with pytest.raises(HeadError, match="has units of its features without need, or none where it needs them"):
            type(head).from_arrays(without, **params)
        for unit in (np.full(12, np.nan), np.ones(11), np.ones((1, 12))):
            with pytest.raises(HeadError, match="the units of the features of its .* are not a finite number for each"):
                type(head).from_arrays({**arrays, name: unit}, **params)
    with pytest.raises(HeadError, match="without need"):
        type(head).from_arrays(arrays, **{**params, "standardize": False})
    with pytest.raises(HeadError, match="has standardize='yes', which is neither true nor false"):
        type(head).from_arrays(arrays, **{**params, "standardize": "yes"})
    assert "factor_" not in plain.to_arrays()
