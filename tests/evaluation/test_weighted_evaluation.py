"""Samples that count more: as if they were there more often, where heads can weigh them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from featurecache.errors import HeadError
from featurecache.evaluation.search import evaluate_head
from featurecache.evaluation.split_data import SplitData
from featurecache.heads.fitting import fit_estimator, fit_folds
from featurecache.heads.registry import find_head, list_heads, make_head

pytestmark = pytest.mark.usefixtures("few_settings")

KINDS = ("classification", "multilabel", "regression")
WEIGHING = [(kind, name) for kind in KINDS for name in list_heads(kind=kind, weighted=True)]

NO_ONE_OPTIMUM = ("mlp", "rbf_svm")
"""What these find depends on the order and number of rows."""


def rows(kind: str, number: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(number, 6))
    said = X @ rng.normal(size=(6, 3)) + rng.normal(size=(number, 3))
    return X, {"classification": said.argmax(axis=1), "multilabel": (said > 0).astype(np.int64), "regression": said}[
        kind
    ]


def said_by(estimator: Any, X: np.ndarray) -> np.ndarray:
    return np.asarray(getattr(estimator, "decision_function", estimator.predict)(X), np.float64)


@pytest.mark.parametrize(("kind", "name"), [each for each in WEIGHING if each[1] not in NO_ONE_OPTIMUM])
def test_a_weight_is_a_number_of_copies(kind, name):
    X, y = rows(kind, 90)
    weight = np.arange(90) % 3 + 1
    fold = np.arange(90) // 30
    grid = find_head(name, kind=kind).settings_for(200)[3:7] or [{}]  # each near the one before it
    head = make_head(name, kind=kind)
    weighed = fit_folds(head, grid, X, y, fold, weight.astype(float))
    copied = fit_folds(head, grid, *(np.repeat(each, weight, axis=0) for each in (X, y, fold)))
    for (setting, here), (setting_there, there) in zip(weighed, copied, strict=True):
        assert setting == setting_there
        for first, second in zip(here, there, strict=True):
            np.testing.assert_allclose(said_by(first, X), said_by(second, X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "name"), WEIGHING)
def test_equal_weights_change_nothing_and_others_do(kind, name):
    X, y = rows(kind, 300)
    found = []
    for weight in (None, np.ones(300), np.where(X[:, 0] > 0, 5.0, 0.2)):
        head = make_head(name, kind=kind)
        fit_estimator(head, X, y, weight, name=name)
        found.append(np.asarray(getattr(head, "predict_proba", head.predict)(X), np.float64))
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    assert np.abs(found[0] - found[2]).max() > 1e-3


@pytest.mark.parametrize(
    ("kind", "name", "names"),
    [(*each, ("train", "validation", "test")) for each in WEIGHING]
    # An mlp trains for long on every fold, in the same way.
    + [(*each, ("train", "test")) for each in WEIGHING if each[1] != "mlp"],
)
def test_every_weighing_head_under_every_protocol(kind, name, names):
    given = {}
    for seed, part in enumerate(names):
        X, y = rows(kind, 60, seed=0)
        X = X + np.random.default_rng(seed).normal(size=X.shape) / 10
        views = np.stack([X, X + 0.01], axis=1)
        given[part] = SplitData(y=y, fit_views=views, eval_views=X[:, None], weight=np.linspace(0.1, 2.0, 60))
    result = evaluate_head(name, given, 3, kind=kind)
    assert result.n_train == 2 * 60 * (len(names) - 1)


@pytest.mark.parametrize("name", ["knn", "gda", "nearest_mean"])
def test_a_head_that_cannot_weigh_says_which_can(name):
    X, y = rows("classification", 60)
    part = SplitData(y=y, fit_views=X[:, None], eval_views=X[:, None], weight=np.ones(60))
    with pytest.raises(HeadError, match=f"head '{name}' cannot weigh samples, and these have .* choose among logistic"):
        evaluate_head(name, {"train": part, "test": part}, 3)
