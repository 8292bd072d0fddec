"""Attentive probe: equal to a slow reference, and it finds the token that matters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import need
from sklearn.base import clone

from featurecache.cli import main
from featurecache.errors import HeadError
from featurecache.evaluation.search import evaluate_head
from featurecache.heads.attentive import AttentiveClassifier
from featurecache.heads.logistic import LogisticProbe


def marked(
    rng: np.random.Generator, rows: int = 400, tokens: int = 16, width: int = 8
) -> tuple[np.ndarray, np.ndarray]:
    """The class stands in one token at any place, which a loud feature marks; the others speak of other classes."""
    y, place = rng.integers(0, 2, rows), rng.integers(0, tokens, rows)
    X = rng.normal(size=(rows, tokens, width))
    X[:, :, 0] = 3 * rng.choice([-1, 1], (rows, tokens))
    X[np.arange(rows), place, 0] = 3 * (2 * y - 1)
    X[:, :, 1] = 0
    X[np.arange(rows), place, 1] = 8
    return X.reshape(rows, -1), y


def test_it_finds_the_token_that_matters():
    rng = np.random.default_rng(0)
    (X, y), (X_new, y_new) = marked(rng), marked(rng)
    head = AttentiveClassifier(16).fit(X, y)
    mean, mean_new = (each.reshape(400, 16, 8).mean(1) for each in (X, X_new))
    assert head.score(X_new, y_new) > 0.95
    assert LogisticProbe(1.0).fit(mean, y).score(mean_new, y_new) < 0.75
    assert LogisticProbe(0.01).fit(X, y).score(X_new, y_new) < 0.75
    looks = head.attention(X_new)
    assert looks.shape == (400, 16, 8)
    np.testing.assert_allclose(looks.sum(1), 1)


def test_equal_to_a_slow_reference():
    rng = np.random.default_rng(1)
    X, y = rng.normal(3, 2, (50, 5 * 6)), rng.integers(0, 3, 50)
    head = AttentiveClassifier(5, num_queries=4, epochs=2).fit(X, y)
    assert head.queries_.shape == (6, 3)  # four do not divide six features
    for row, logits in zip(X, head.decision_function(X), strict=True):
        tokens, pooled = row.reshape(5, 6), np.zeros(6)
        for query in range(3):
            scores = np.exp([token @ head.queries_[:, query] for token in tokens])
            for feature in range(2 * query, 2 * query + 2):
                pooled[feature] = sum(
                    s * token[feature] for s, token in zip(scores / scores.sum(), tokens, strict=True)
                )
        np.testing.assert_allclose(logits, pooled @ head.coef_ + head.intercept_, atol=1e-9)


def test_path_params_each_is_what_it_is_alone():
    X, y = marked(np.random.default_rng(2), 300)
    fold = np.arange(300) % 3
    settings = [{"weight_decay": 1.0}, {"learning_rate": 0.03}, {"num_queries": 2}]
    head = AttentiveClassifier(16, epochs=3)
    for setting, estimators in head.fit_path(X, y, fold, settings):
        ((_, alone),) = clone(head).fit_path(X, y, fold, [setting])
        for found, expected in zip(estimators, alone, strict=True):
            np.testing.assert_allclose(found.decision_function(X), expected.decision_function(X), rtol=0, atol=1e-9)


def test_features_are_standardised_alike_for_all_tokens():
    X, y = marked(np.random.default_rng(3), 200)
    stretched = (X.reshape(200, 16, 8) * np.geomspace(1e-2, 1e3, 8) + 7).reshape(200, -1)
    found = AttentiveClassifier(16, epochs=2).fit(stretched, y).decision_function(stretched)
    np.testing.assert_allclose(found, AttentiveClassifier(16, epochs=2).fit(X, y).decision_function(X), atol=1e-6)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"num_tokens": 7}, "128 features are not 7 tokens of one width; set num_tokens"),
        ({"num_tokens": 0}, "num_tokens must be a whole number of at least 1, got 0"),
        ({"num_tokens": 16, "num_queries": 0}, "num_queries must be a whole number of at least 1, got 0"),
    ],
)
def test_bad_parameters(params, message):
    X, y = marked(np.random.default_rng(0), 50)
    with pytest.raises(ValueError, match=message):
        AttentiveClassifier(**params).fit(X, y)


def test_features_without_tokens_are_refused():
    X, y = marked(np.random.default_rng(0), 60)
    with pytest.raises(HeadError, match=r"head 'attentive' needs tokens, .* such as blocks\.11:none"):
        evaluate_head("attentive", {"train": (X, y), "test": (X, y)}, 2)


def test_on_the_cached_tokens_of_a_transformer(
    make_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    need("timm")
    source, cache = make_folder(per_class=12), tmp_path / "c"
    taps = ["--tap", "blocks.1:none", "--tap", "default"]
    network = ["--backbone", "timm:test_vit", "--init", "random", *taps, "--runtime", "torch", "--quiet"]
    assert main(["extract", str(source), "--cache", str(cache), *network]) == 0
    assert main(["task", "add", str(cache), "colour", "--from-folders"]) == 0
    train = ["train", str(cache), "--task", "colour", "--head", "attentive", "--json", "--quiet"]
    capsys.readouterr()
    assert main([*train, "--tap", "blocks.1:none", "--save", "looking"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert result["test"]["accuracy"] > 0.6
    predict = [
        "predict",
        str(cache / "heads" / "looking"),
        str(source / "red"),
        "--json",
        "--quiet",
        "--runtime",
        "torch",
    ]
    assert main(predict) == 0
    assert len(json.loads(capsys.readouterr().out)["predictions"]) == 12
    assert main([*train, "--tap", "pre_logits:none"]) == 2
    assert "head 'attentive' needs tokens" in capsys.readouterr().err
    assert main([*train[:-4], "--json", "--quiet", "--tap", "all", "--head", "knn"]) == 0
