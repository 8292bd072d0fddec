"""A head as layers of a network says what the estimator says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from featurecache.deployment.exporting.head_layers import head_layers
from featurecache.deployment.saved import SavedHead
from featurecache.errors import HeadError
from featurecache.heads.attentive import AttentiveClassifier
from featurecache.heads.knn import CosineKnn, CosineKnnRegressor
from featurecache.heads.registry import list_heads, make_head
from featurecache.specs import TaskKind

NUM_FEATURES = 12


def exported(kind: TaskKind) -> list[str]:
    return list_heads(tokens=True, kind=kind)


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(1, 2, (count, NUM_FEATURES)).astype(np.float32)


def saved(estimator, classes: int, kind: TaskKind = "classification", temperature: float | None = None) -> SavedHead:
    names = [f"class {place}" for place in range(classes)]
    return SavedHead(estimator, None, "any:none", "float32", names, temperature, {}, kind)  # type: ignore[arg-type]


def assert_same(head: SavedHead) -> None:
    X = rows(50, seed=1)
    if not isinstance(head.estimator, CosineKnn | CosineKnnRegressor):  # all rows are equally near to it
        X[0] = 0
    with torch.no_grad():
        found = head_layers(head)(torch.from_numpy(X)).numpy()
    expected = head.probabilities(X)
    np.testing.assert_allclose(found, expected, atol=1e-5 * max(1, np.abs(expected).max()))


def outcomes(kind: TaskKind, X: np.ndarray, num_outputs: int) -> np.ndarray:
    values = X[:, :num_outputs] + 0.3 * np.random.default_rng(2).normal(size=(len(X), num_outputs))
    if kind == "regression":
        return 30 * values + 7
    return values.argmax(axis=1) if kind == "classification" else (values > 1).astype(np.int64)


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in ("classification", "multilabel", "regression") for name in exported(kind)],
)
def test_every_built_in_head(kind: TaskKind, name: str) -> None:
    X = rows(80)
    params = {"mlp": {"epochs": 3}, "attentive": {"epochs": 3, "num_tokens": 3}}.get(name, {})
    estimator = make_head(name, kind=kind, **params).fit(X, outcomes(kind, X, 4))
    assert_same(saved(estimator, 4, kind, 0.7 if kind == "classification" else None))


@pytest.mark.parametrize("name", ["logistic", "ridge", "mlp", "knn", "gda"])
def test_a_class_that_training_never_saw_has_probability_zero(name: str) -> None:
    X = rows(80)
    estimator = make_head(name, **({"epochs": 3} if name == "mlp" else {}))
    head = saved(estimator.fit(X, 2 * outcomes("classification", X, 3)), 6)
    assert_same(head)
    assert (head.probabilities(X)[:, 1::2] == 0).all()


def test_perceptrons_without_hidden_layers_and_one_with_three() -> None:
    X = rows(80)
    for hidden_layers in (0, 3):
        assert_same(
            saved(make_head("mlp", hidden_layers=hidden_layers, epochs=3).fit(X, outcomes("classification", X, 3)), 3)
        )


def test_more_neighbours_than_rows() -> None:
    X = rows(5)
    assert_same(saved(make_head("knn", n_neighbors=20).fit(X, [0, 1, 0, 1, 1]), 2))


def test_a_query_looks_at_its_slice_of_a_token() -> None:
    X = rows(80)
    assert_same(saved(AttentiveClassifier(3, num_queries=2, epochs=3).fit(X, outcomes("classification", X, 3)), 3))


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (LogisticRegression(), "a LogisticRegression cannot be exported: it states no network .* that do: logistic,"),
    ],
)
def test_what_has_no_layers_is_named(estimator, message: str) -> None:
    X = rows(80)
    with pytest.raises(HeadError, match=message):
        head_layers(saved(estimator.fit(X, outcomes("classification", X, 3)), 3))
