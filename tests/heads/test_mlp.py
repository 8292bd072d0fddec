"""Multilayer perceptrons: side by side equals alone, and the memory map equals memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featurecache.errors import HeadError
from featurecache.heads.fitting import fit_estimator
from featurecache.heads.gradient import fold_features
from featurecache.heads.mlp import MlpClassifier

SETTINGS: list[dict[str, Any]] = [
    {"hidden_layers": 0, "learning_rate": 0.01},
    {"hidden_layers": 1, "learning_rate": 0.01},
    {"hidden_layers": 1, "learning_rate": 0.001, "weight_decay": 1.0},
    {"hidden_layers": 2, "width": 8, "learning_rate": 0.003},
]


def digits(num_rows: int = 1797, dtype: Any = np.float64) -> tuple[np.ndarray, np.ndarray]:
    X, y = load_digits(return_X_y=True)
    return X[:num_rows].astype(dtype), y[:num_rows]


@pytest.mark.parametrize("num_rows", [300, 1797])  # all steps, and stopped early
def test_path_params_each_is_what_it_is_alone(num_rows):
    X, y = digits(num_rows)
    fold = np.arange(len(y)) % 4 - 1  # some rows are never held out
    head = MlpClassifier(width=16, epochs=6, patience=2)
    together = list(head.fit_path(X, y, fold, SETTINGS))
    assert [setting for setting, _ in together] == SETTINGS
    for setting, estimators in together:
        ((_, alone),) = clone(head).fit_path(X, y, fold, [setting])
        assert len(estimators) == 3
        for found, expected in zip(estimators, alone, strict=True):
            assert found.get_params() == clone(head).set_params(**setting).get_params()
            assert found.n_iter_ == expected.n_iter_
            np.testing.assert_allclose(found.decision_function(X), expected.decision_function(X), rtol=0, atol=1e-9)


def test_a_fold_is_never_seen():
    X, y = digits(1200)
    fold = np.where(np.arange(len(y)) < 300, 0, -1)
    head = MlpClassifier(epochs=3, width=8)
    spoiled = X.copy()
    spoiled[:300] = np.random.default_rng(0).normal(50, 30, (300, X.shape[1]))
    changed = np.where(fold == 0, (y + 1) % 10, y)
    ((_, (first,)),) = head.fit_path(X, y, fold, [{}])
    ((_, (second,)),) = clone(head).fit_path(spoiled, changed, fold, [{}])
    np.testing.assert_allclose(first.decision_function(X), second.decision_function(X), atol=1e-9)


def few_rows(num_rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two classes in 400 features of very different scales."""
    rng = np.random.default_rng(seed)
    y = np.arange(num_rows) % 2
    X = (rng.normal(size=(num_rows, 400)) + 0.4 * y[:, None] * (np.arange(400) % 4 == 0)) * np.geomspace(0.1, 10, 400)
    return X, y


def test_few_rows_are_trained_in_their_space_and_a_fold_is_never_seen():
    """Weights lie in the space of the rows that were fitted on; those that are held out change nothing."""
    X, y = few_rows(60)
    fold = np.where(np.arange(60) < 12, 0, -1)
    ((_, (first,)),) = MlpClassifier(epochs=3).fit_path(X, y, fold, [{}])
    spoiled = np.where(fold[:, None] == 0, 1e3, X)
    ((_, (second,)),) = MlpClassifier(epochs=3).fit_path(spoiled, np.where(fold == 0, 1 - y, y), fold, [{}])
    np.testing.assert_allclose(first.decision_function(X), second.decision_function(X), rtol=0, atol=1e-6)
    values = np.linalg.svd(first.coefs_[0], compute_uv=False)
    assert (values > 1e-6 * values[0]).sum() == 47  # of 48 rows that have a mean


def test_the_space_of_few_rows_gives_heads_as_good_as_all_features_do(monkeypatch):
    """By accuracy on other rows, the mean over draws; here single features matter, which the space does not know."""
    test, right = few_rows(600, seed=99), {True: [], False: []}
    for is_few, scores in right.items():
        monkeypatch.setattr(fold_features, "has_few_rows", lambda *size, is_few=is_few: is_few)
        for seed in range(3):
            head = MlpClassifier(learning_rate=0.003).fit(*few_rows(60, seed))
            scores.append(head.score(*test))
    assert np.mean(right[True]) > np.mean(right[False]) - 0.05


def test_a_memory_map_trains_the_same(tmp_path):
    X, y = digits(dtype=np.float32)
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    found, expected = (MlpClassifier(epochs=3, width=16).fit(rows, y) for rows in (mapped, X))
    for ours, theirs in zip(found.coefs_, expected.coefs_, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_weights_are_those_of_the_round_that_did_best():
    X, y = digits()
    wrong = (np.random.default_rng(0).random(len(y)) < 0.4) & (np.arange(len(y)) < 1200)
    noisy = np.where(wrong, (y + 3) % 10, y)
    head = MlpClassifier(epochs=60, learning_rate=0.01, weight_decay=0, patience=4)
    stopped = clone(head).fit(X[:1200], noisy[:1200])
    through = clone(head).set_params(validation_fraction=0).fit(X[:1200], noisy[:1200])
    assert stopped.n_iter_ < through.n_iter_ == 60 * 5
    scores = [log_loss(y[1200:], each.predict_proba(X[1200:])) for each in (stopped, through)]
    assert scores[0] < scores[1]


def test_without_hidden_layers_it_approaches_logistic_regression():
    from sklearn.linear_model import LogisticRegression

    X, y = digits(300)
    head = MlpClassifier(0, learning_rate=0.05, weight_decay=0, validation_fraction=0, batch_size=300, epochs=700).fit(
        X, y
    )
    plain = make_pipeline(StandardScaler(), LogisticRegression(C=1e6, max_iter=5000)).fit(X, y)
    losses = [log_loss(y, each.predict_proba(X)) for each in (head, plain)]
    assert losses[0] < losses[1] + 1e-3


def test_class_weights():
    X, y = digits(900)
    counts = np.bincount(y)
    balanced = MlpClassifier(epochs=3, class_weight="balanced").fit(X, y)
    by_hand = MlpClassifier(epochs=3, class_weight=dict(enumerate(len(y) / 10 / counts))).fit(X, y)
    np.testing.assert_allclose(balanced.decision_function(X), by_hand.decision_function(X), atol=1e-9)
    ignored = MlpClassifier(epochs=3, class_weight={3: 0.0}).fit(X, y)
    assert (MlpClassifier(epochs=3).fit(X, y).predict(X) == 3).sum() > 50
    assert (ignored.predict(X) == 3).sum() < 5


def test_rows_without_weight_are_not_there():
    X, y = digits(900)
    weight = (np.arange(len(y)) % 3 > 0).astype(float)
    X[weight == 0] = 1e3
    found = MlpClassifier(epochs=3).fit(X, y, sample_weight=weight)
    expected = MlpClassifier(epochs=3).fit(X[weight > 0], y[weight > 0])
    np.testing.assert_array_equal(found.decision_function(X), expected.decision_function(X))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_layers": -1}, "hidden_layers must be a whole number of at least 0, got -1"),
        ({"width": 0}, "width must be a whole number of at least 1, got 0"),
        ({"learning_rate": 0.0}, r"learning_rate must be positive and finite, got 0\.0"),
        ({"weight_decay": -1.0}, r"weight_decay must not be negative, got -1\.0"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"patience": 0.5}, r"patience must be a whole number of at least 1, got 0\.5"),
        ({"epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
        ({"validation_fraction": 1.0}, r"validation_fraction must be from 0 to below 1, got 1\.0"),
        ({"class_weight": "heavy"}, "class_weight must be None, 'balanced' or a mapping, got 'heavy'"),
        ({"learning_rate": 1e300}, r"training diverges at the learning rate 1e\+300; use a smaller one"),
    ],
)
def test_bad_parameters(changes, message):
    X, y = digits(200)
    with pytest.raises(ValueError, match=message):
        MlpClassifier(**({"hidden_layers": 2, "epochs": 2} | changes)).fit(X, y)


def test_one_that_diverges_does_no_harm_to_those_beside_it():
    X, y = digits(400)
    settings = [{"learning_rate": 1e300}, {"learning_rate": 0.01}]
    (_, (lost,)), (_, (found,)) = MlpClassifier(2, epochs=5).fit_path(X, y, np.full(400, -1), settings)
    np.testing.assert_allclose(lost.predict_proba(X), 0.1)
    assert found.score(X, y) > 0.9


def test_a_head_that_diverges_is_named():
    X, y = digits(200)
    with pytest.raises(HeadError, match="head 'mlp' cannot be fitted .*: training diverges"):
        fit_estimator(MlpClassifier(2, learning_rate=1e300), X, y, name="mlp")
