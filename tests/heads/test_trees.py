"""Boosted trees: what LightGBM grows is kept and asked without it, and a stranger's trees are looked at first."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss, r2_score

from featurecache.errors import HeadError, MissingExtraError
from featurecache.heads.bundle import load_head, save_head
from featurecache.heads.encoding import decode_estimator, encode_estimator
from featurecache.heads.fitting import fit_estimator
from featurecache.heads.registry import list_heads, make_head
from featurecache.heads.trees import MAX_NODES, TREE_ARRAYS, BoostedTrees, BoostedTreesRegressor

lightgbm = pytest.importorskip("lightgbm")
FEW = {"num_boost_round": 8, "num_leaves": 6}


def digits(num_rows: int = 500, num_classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    X, y = load_digits(n_class=num_classes, return_X_y=True)
    return X[:num_rows].astype(np.float32), y[:num_rows]


def numbers(num_rows: int = 200) -> tuple[np.ndarray, np.ndarray]:
    X, _ = digits(num_rows)
    return X, np.stack([X[:, :20].sum(axis=1), X[:, 20] - X[:, 40]], axis=1)


@pytest.fixture
def boosters(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What LightGBM has grown, as it gives it away."""
    grown: list[Any] = []
    train = lightgbm.train
    monkeypatch.setattr(lightgbm, "train", lambda *args, **kwargs: grown.append(train(*args, **kwargs)) or grown[-1])
    return grown


@pytest.mark.parametrize("num_classes", [2, 3, 10])
@pytest.mark.parametrize("num_rows", [300, 1797])  # all rounds, and (of ten classes) stopped early
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sums_are_those_of_lightgbm(boosters, num_classes, num_rows, dtype):
    X, y = digits(num_rows, num_classes)
    X = (X + np.random.default_rng(0).normal(size=X.shape)).astype(dtype)
    head = BoostedTrees(num_boost_round=20).fit(X, y)
    (booster,) = boosters
    strange = np.concatenate([X, X * 1e30, np.zeros_like(X[:1]), np.float32(1e-37) * X[:20]])
    np.testing.assert_array_equal(head.decision_function(strange), booster.predict(strange, raw_score=True))
    np.testing.assert_array_equal(head.decision_function(strange)[7:8], head.decision_function(strange[7:8]))


def test_sums_of_many_rows_are_those_of_each():
    X, y = digits(300)
    head = BoostedTrees(**FEW).fit(X, y)
    many = np.tile(X, (40, 1))
    np.testing.assert_array_equal(head.predict_proba(many), np.tile(head.predict_proba(X), (40, 1)))


def test_equal_rows_grow_equal_trees():
    X, y = digits()
    first, second, other = (BoostedTrees(**FEW, random_state=seed).fit(X, y) for seed in (0, 0, 1))
    for name in TREE_ARRAYS:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert not np.array_equal(first.feature_, other.feature_)


def test_the_best_round_is_the_last_one():
    X, y = digits(1797)
    wrong = (np.random.default_rng(0).random(len(y)) < 0.4) & (np.arange(len(y)) < 1400)
    noisy = np.where(wrong, (y + 3) % 10, y)
    stopped = BoostedTrees(num_leaves=15, learning_rate=0.3).fit(X[:1400], noisy[:1400])
    through = BoostedTrees(num_leaves=15, learning_rate=0.3, validation_fraction=0).fit(X[:1400], noisy[:1400])
    assert len(stopped.value_) < len(through.value_) == 100
    scores = [log_loss(y[1400:], each.predict_proba(X[1400:])) for each in (stopped, through)]
    assert scores[0] < scores[1]


def test_class_weights_are_weights_of_rows():
    X, y = digits(400)
    counts = np.bincount(y)
    by_class = len(y) / 10 / counts
    balanced = BoostedTrees(**FEW, class_weight="balanced").fit(X, y)
    by_hand = BoostedTrees(**FEW, class_weight=dict(enumerate(by_class))).fit(X, y)
    by_row = BoostedTrees(**FEW).fit(X, y, sample_weight=by_class[y])
    np.testing.assert_array_equal(balanced.decision_function(X), by_hand.decision_function(X))
    np.testing.assert_array_equal(balanced.decision_function(X), by_row.decision_function(X))
    assert not (BoostedTrees(**FEW, class_weight={3: 0.0}).fit(X, y).predict(X) == 3).any()


@pytest.mark.parametrize("estimator", [BoostedTrees, BoostedTreesRegressor])
def test_rows_without_weight_are_not_there(estimator):
    X, y = digits(400)
    weight = (np.arange(len(y)) % 3 > 0).astype(float)
    X[weight == 0] = 1e3
    found = estimator(**FEW).fit(X, y, sample_weight=weight)
    expected = estimator(**FEW).fit(X[weight > 0], y[weight > 0])
    np.testing.assert_array_equal(found.predict(X), expected.predict(X))


def test_labels_are_one_booster_each():
    X, y = digits(400)
    labels = np.stack([y % 2, y > 6, y < 0, y < 10], axis=1).astype(np.int64)
    together = BoostedTrees(**FEW).fit(X, labels)
    for label in (0, 1):
        alone = BoostedTrees(**FEW).fit(X, labels[:, label])
        np.testing.assert_allclose(together.predict_proba(X)[:, label], alone.predict_proba(X)[:, 1], rtol=1e-12)
    assert (together.predict(X)[:, 2:] == [0, 1]).all()
    assert np.isfinite(together.predict_log_proba(X)).all()


def test_numbers_are_one_booster_each():
    X, y = numbers()
    together = BoostedTreesRegressor(**FEW).fit(X, y)
    assert together.predict(X).shape == (200, 2)
    for target in range(2):
        alone = BoostedTreesRegressor(**FEW).fit(X, y[:, target])
        np.testing.assert_allclose(together.predict(X)[:, target], alone.predict(X), rtol=1e-12)
    assert r2_score(y, BoostedTreesRegressor().fit(X, y).predict(X)) > 0.9
    np.testing.assert_array_equal(BoostedTreesRegressor().fit(X, np.full(200, 7.0)).predict(X), 7.0)


def test_numbers_finer_than_float32_are_said():
    X, y = numbers()
    seconds = 1.7e9 + y / 1000
    assert r2_score(seconds, BoostedTreesRegressor().fit(X, seconds).predict(X)) > 0.9


@pytest.mark.parametrize("rows", [2, 5, 30])
def test_few_rows_are_not_divided(rows):
    X, y = digits(rows)
    probability = BoostedTrees(min_data_in_leaf=rows).fit(X, y).predict_proba(X)
    np.testing.assert_allclose(probability, np.tile(np.bincount(y)[np.unique(y)] / rows, (rows, 1)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_leaves": 1}, "num_leaves must be a whole number of at least 2, got 1"),
        ({"num_boost_round": 0}, "num_boost_round must be a whole number of at least 1, got 0"),
        ({"min_data_in_leaf": 0.5}, r"min_data_in_leaf must be a whole number of at least 1, got 0\.5"),
        ({"patience": 0}, "patience must be a whole number of at least 1, got 0"),
        ({"num_boost_round": 10**6}, "1000000 rounds of 15 leaves have more than 1048576 nodes; lower num_leaves"),
        ({"learning_rate": 0.0}, r"learning_rate must be positive and finite, got 0\.0"),
        ({"feature_fraction": 0.0}, r"feature_fraction must be above 0 and at most 1, got 0\.0"),
        ({"validation_fraction": 1.0}, r"validation_fraction must be from 0 to below 1, got 1\.0"),
        ({"num_leaves": 200_000, "num_boost_round": 1}, "LightGBM refuses: .*num_leaves"),
        ({"class_weight": "heavy"}, "class_weight must be None, 'balanced' or a mapping, got 'heavy'"),
    ],
)
def test_bad_parameters(changes, message):
    X, y = digits(60)
    with pytest.raises(HeadError, match=f"head 'boosted_trees' cannot be fitted on .*{message}"):
        fit_estimator(BoostedTrees(**changes), X, y, name="boosted_trees")


def test_listing_heads_loads_no_lightgbm():
    code = (
        "import sys; from featurecache.heads.registry import list_heads; "
        "sys.exit('boosted_trees' not in list_heads() or 'lightgbm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_was_grown_is_asked_without_lightgbm(tmp_path, monkeypatch):
    X, y = digits()
    before = BoostedTrees(**FEW).fit(X, y)
    save_head(tmp_path / "head", before, {})
    monkeypatch.setitem(sys.modules, "lightgbm", None)  # as if it were not installed
    after, _ = load_head(tmp_path / "head")
    assert after.predict_proba(X).tobytes() == before.predict_proba(X).tobytes()
    for kind in ("classes", "labels", "numbers"):
        assert "boosted_trees" not in list_heads(kind=kind)
        with pytest.raises(MissingExtraError, match=r"'boosted_trees' needs, is not.*pip install 'lightgbm>="):
            make_head("boosted_trees", kind=kind)
    with pytest.raises(MissingExtraError, match=r"lightgbm is not installed; .*pip install 'lightgbm>="):
        BoostedTrees().fit(X, y)


def spoilt(name: str, at: Any, value: Any) -> Any:
    """Return a change of one array: another value somewhere in it."""

    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays[name][at] = value

    return change


def replaced(name: str, make: Any) -> Any:
    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays[name] = make(arrays[name])

    return change


def lengthened(arrays: dict[str, np.ndarray]) -> None:
    for name in TREE_ARRAYS:
        arrays[f"head.{name}"] = np.repeat(arrays[f"head.{name}"], MAX_NODES // 50, axis=0)


@pytest.mark.parametrize(
    ("estimator", "num_classes"),
    [(BoostedTrees(**FEW), 2), (BoostedTreesRegressor(**FEW), 10)],
    ids=["classes", "numbers"],
)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoilt("head.feature_", (1, 0, 0), -1), "ask for features that are not there"),
        (spoilt("head.feature_", (1, 0, 3), 64), "ask for features that are not there"),
        (spoilt("head.children_", (2, 0, 2, 1), 1), "lead to nodes that are not there, or back"),
        (spoilt("head.children_", (2, 0, 2, 0), -1), "lead to nodes that are not there, or back"),
        (spoilt("head.children_", (2, 0, 2, 0), 11), "lead to nodes that are not there, or back"),
        (spoilt("head.threshold_", (0, 0, 0), np.nan), "thresholds or values .* not finite"),
        (spoilt("head.value_", (0, 0, 5), np.inf), "thresholds or values .* not finite"),
        (replaced("head.value_", lambda a: a[0]), "not numbers in three dimensions"),
        (replaced("head.value_", lambda a: a[:0]), "not numbers in three dimensions"),
        (replaced("head.children_", lambda a: a.astype(np.float32)), "not numbers in three dimensions"),
        (replaced("head.children_", lambda a: a[..., :1]), "which do not fit"),
        (replaced("head.threshold_", lambda a: a[1:]), "which do not fit"),
        (lengthened, "nodes an output; at most 1048576 are read"),
    ],
)
def test_a_strangers_trees_are_refused(estimator, num_classes, change, message):
    tree, arrays = encode_estimator(estimator.fit(*digits(100, num_classes)))
    assert arrays["head.value_"].shape == (8, 1, 11)
    change(arrays)
    with pytest.raises(HeadError, match=message):
        decode_estimator(json.loads(json.dumps(tree)), arrays)


def test_as_many_trees_as_classes_or_numbers():
    tree, arrays = encode_estimator(BoostedTrees(**FEW).fit(*digits(100, 3)))
    tree["state"]["classes_"] = {"strings": ["a", "b"], "object": False}
    with pytest.raises(HeadError, match="its BoostedTrees has 3 trees a round, expected 1"):
        decode_estimator(tree, arrays)
    tree, arrays = encode_estimator(BoostedTreesRegressor(**FEW).fit(*numbers(100)))
    with pytest.raises(HeadError, match="its BoostedTreesRegressor has 2 trees a round, expected 3"):
        decode_estimator(tree, arrays | {"head.intercept_": np.zeros(3)})
    with pytest.raises(HeadError, match="intercept of its BoostedTreesRegressor is not one finite number"):
        decode_estimator(tree, arrays | {"head.intercept_": np.array([0, np.nan])})


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_is_changed_is_refused_or_answers(data):
    """No array leads astray: a row always comes to a leaf, and to a finite sum."""
    X, y = digits(100, 3)
    tree, arrays = encode_estimator(BoostedTrees(num_boost_round=2, num_leaves=6).fit(X, y))
    array = arrays[f"head.{data.draw(st.sampled_from(TREE_ARRAYS))}"].reshape(-1)
    for _ in range(data.draw(st.integers(1, 4))):
        values = st.integers(-3, 12) if array.dtype.kind == "i" else st.floats(width=32)
        array[data.draw(st.integers(0, len(array) - 1))] = data.draw(values)
    try:
        head = decode_estimator(tree, arrays)
    except HeadError:
        return
    assert np.isfinite(head.decision_function(X)).all()
