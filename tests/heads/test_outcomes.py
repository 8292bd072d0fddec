"""Heads that say several labels, or numbers, in the place of one class."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featurecache.errors import HeadError, UnknownNameError
from featurecache.heads.baseline import MeanRegressor
from featurecache.heads.bundle import load_head, save_head
from featurecache.heads.encoding import decode_estimator, encode_estimator
from featurecache.heads.knn import CosineKnnRegressor
from featurecache.heads.linear_svm import LinearSvmProbe
from featurecache.heads.logistic import LogisticProbe
from featurecache.heads.mlp import MlpClassifier, MlpRegressor
from featurecache.heads.registry import list_heads, make_head, register_head
from featurecache.heads.ridge import RidgeRegressor

KINDS = [(kind, name) for kind in ("multilabel", "regression") for name in list_heads(kind=kind)]


def data(kind: str, rows: int = 120, outputs: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(rows, 6)).astype(np.float32) + 2
    said = X @ rng.normal(size=(6, outputs)) + 0.1 * rng.normal(size=(rows, outputs))
    return X, (said > np.median(said, axis=0)).astype(np.int64) if kind == "multilabel" else 1000 + 50 * said


def test_each_kind_has_its_heads():
    assert set(list_heads(kind="multilabel")) == {"logistic", "mlp", "ridge", "knn", "mean"}
    assert set(list_heads(kind="regression")) == {"mlp", "ridge", "knn", "mean"}
    with pytest.raises(UnknownNameError, match="unknown head for regression 'logistic'"):
        make_head("logistic", kind="regression")
    with pytest.raises(ValueError, match="'ridge' is already registered"):
        register_head("ridge", RidgeRegressor, lambda n: [{}], kind="multilabel")


@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_heads_learn_and_are_kept(kind, name, tmp_path):
    X, y = data(kind)
    weak = {"C": 1.0} if name == "logistic" else {}
    head = make_head(name, kind=kind, **weak).fit(X[:90], y[:90])
    said = head.predict_proba(X[90:]) if hasattr(head, "predict_proba") else head.predict(X[90:])
    assert said.shape == (30, 3)
    quality = r2_score(y[90:], said)
    assert quality < 0.01 if name == "mean" else quality > 0.3
    save_head(tmp_path / "head", head, {})
    again, _ = load_head(tmp_path / "head")[:2]
    answers = again.predict_proba(X[90:]) if hasattr(again, "predict_proba") else again.predict(X[90:])
    np.testing.assert_array_equal(said, answers)


def test_labels_are_one_regression_each():
    X, y = data("multilabel")
    ours = LogisticProbe(C=0.1).fit(X.astype(np.float64), y)
    for label in range(3):
        theirs = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-10)).fit(
            X.astype(np.float64), y[:, label]
        )
        np.testing.assert_allclose(ours.predict_proba(X)[:, label], theirs.predict_proba(X)[:, 1], atol=1e-5)
    np.testing.assert_array_equal(ours.predict(X), (ours.predict_proba(X) > 0.5).astype(int))


def test_a_label_that_never_or_always_holds():
    X, y = data("multilabel")
    y[:, 0], y[:, 1] = 0, 1
    said = LogisticProbe(C=1.0).fit(X, y).predict_proba(X)
    assert (said[:, 0] < 0.1).all()
    assert (said[:, 1] > 0.9).all()
    assert np.isfinite(MlpClassifier().fit(X, y).predict_proba(X)).all()


def test_values_of_C_are_chosen_for_all_labels():
    X, y = data("multilabel")
    noisy = y.copy()
    noisy[::5] = 1 - noisy[::5]
    chosen = LogisticProbe(Cs=[1e-6, 1e-2, 10.0]).fit(X, noisy)
    assert chosen.C_ > 1e-6
    assert chosen.scores_.shape == (3,)
    assert chosen.scores_.argmax() == [1e-6, 1e-2, 10.0].index(chosen.C_)


@pytest.mark.parametrize("outputs", [1, 2])
def test_ridge_is_ridge_and_leave_one_out_is_exact(outputs):
    X, y = data("regression", rows=40, outputs=outputs)
    X, y = X.astype(np.float64), y[:, 0] if outputs == 1 else y
    scaled = StandardScaler().fit_transform(X)
    ours = RidgeRegressor(alpha=3.0).fit(X, y)
    np.testing.assert_allclose(ours.predict(X), Ridge(alpha=3.0).fit(scaled, y).predict(scaled), rtol=1e-9)
    chosen = RidgeRegressor(alphas=[0.1, 3.0, 100.0]).fit(X, y)
    for alpha, score in zip([100.0, 3.0, 0.1], chosen.scores_, strict=True):
        held_out = cross_val_predict(Ridge(alpha=alpha), scaled, y, cv=LeaveOneOut())
        assert score == pytest.approx(r2_score(y, held_out), abs=1e-9)
    assert chosen.alpha_ == [100.0, 3.0, 0.1][chosen.scores_.argmax()]
    grouped = RidgeRegressor(alphas=[0.1, 3.0], cv=4).fit(X, y, groups=np.repeat(np.arange(8), 5))
    assert grouped.scores_.shape == (2,)


def test_weights_are_repetitions():
    X, y = data("regression", rows=30)
    times = np.arange(30) % 3
    few = RidgeRegressor(alpha=2.0).fit(X, y, sample_weight=times)
    many = RidgeRegressor(alpha=2.0).fit(np.repeat(X, times, axis=0), np.repeat(y, times, axis=0))
    np.testing.assert_allclose(few.coef_, many.coef_, rtol=1e-6)


def test_neighbours_mean():
    X, y = data("regression")
    one = CosineKnnRegressor(1).fit(X, y)
    np.testing.assert_array_equal(one.predict(X), y)
    all_alike = CosineKnnRegressor(1000, temperature=1e6).fit(X, y)
    np.testing.assert_allclose(all_alike.predict(X), np.tile(y.mean(axis=0), (120, 1)), rtol=1e-3)


def test_numbers_far_from_zero_are_learned():
    X, y = data("regression")
    assert r2_score(y * 1e6, MlpRegressor().fit(X, y * 1e6).predict(X)) > 0.9
    assert MlpRegressor().fit(X, y[:, 0]).predict(X).shape == (120,)
    assert np.ptp(MlpRegressor().fit(X, np.full(120, 7.0)).predict(X)) < 1


@pytest.mark.parametrize("head", [LogisticProbe, MlpClassifier])
def test_what_labels_cannot_be(head):
    X, y = data("multilabel")
    with pytest.raises(ValueError, match="given as zeros and ones"):
        head().fit(X, np.where(y == 1, 2, 0))
    with pytest.raises(ValueError, match="class_weight is for rows of one class each"):
        head(class_weight="balanced").fit(X, y)
    with pytest.raises(ValueError, match="1d array"):
        LinearSvmProbe().fit(X, y)


@pytest.mark.parametrize(
    ("head", "name", "spoil", "message"),
    [
        (MeanRegressor(), "constant_", lambda a: np.tile(a, (2, 1)), "not finite ones in one row"),
        (MeanRegressor(), "constant_", lambda a: a * np.nan, "not finite ones in one row"),
        (RidgeRegressor(), "intercept_", lambda a: a[:1], "do not belong together"),
        (RidgeRegressor(), "coef_", lambda a: np.full_like(a, np.nan), "not finite"),
        (CosineKnnRegressor(), "targets_", lambda a: a[:5], "do not belong together"),
        (CosineKnnRegressor(), "directions_", lambda a: np.full_like(a, np.inf), "not finite"),
    ],
)
def test_a_strangers_regressor_is_refused(head, name, spoil, message):
    X, y = data("regression")
    tree, arrays = encode_estimator(head.fit(X, y))
    key = tree["state"][name]["array"]
    arrays[key] = spoil(arrays[key])
    with pytest.raises(HeadError, match=message):
        decode_estimator(json.loads(json.dumps(tree)), arrays)


def test_numbers_finer_than_float32_are_said():
    """Seconds since 1970: float32 knows them to 128 seconds."""
    X, y = data("regression")
    seconds = 1.7e9 + 10 * (y - y.mean(axis=0)) / y.std(axis=0)
    for head in (MlpRegressor(), RidgeRegressor()):
        assert r2_score(seconds, head.fit(X, seconds).predict(X)) > 0.9
