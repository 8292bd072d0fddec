import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import log_loss

from featurecache.errors import HeadError
from featurecache.heads.fitting import fit_estimator
from featurecache.heads.probability import decision_values, fit_temperature, needs_temperature, predict_proba
from featurecache.heads.registry import HEADS, make_head


def _fitted(name, classes, n=90):
    rng = np.random.default_rng(1)
    y = np.array(classes)[np.arange(n) % len(classes)]
    X = (rng.normal(size=(n, 6)) + y[:, None] * np.arange(6) / 4).astype(np.float32)
    estimator = make_head(name)
    fit_estimator(estimator, X, y)
    return estimator, X


@pytest.mark.parametrize("classes", [[0, 1], [0, 1, 2], [0, 3], [1, 2, 4]], ids=str)
@pytest.mark.parametrize("name", HEADS)
def test_probabilities_sum_to_one_and_agree_with_predictions(name, classes):
    estimator, X = _fitted(name, classes)
    proba = predict_proba(estimator, X, 0.7, 5)
    assert proba.shape == (90, 5)
    assert proba.dtype == np.float64
    np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_array_equal(proba.argmax(axis=1), estimator.predict(X))
    assert (proba[:, [c for c in range(5) if c not in classes]] == 0).all()


def test_binary_margin_becomes_a_sigmoid():
    estimator, X = _fitted("ridge", [0, 1])
    sigmoid = 1 / (1 + np.exp(-estimator.decision_function(X).astype(np.float64) / 0.5))
    np.testing.assert_allclose(predict_proba(estimator, X, 0.5, 2)[:, 1], sigmoid, rtol=1e-12)


def test_only_margins_need_a_temperature():
    for name in HEADS:
        head = make_head(name)
        assert needs_temperature(head) == (not hasattr(type(head), "predict_proba")), name
    assert {name for name in HEADS if needs_temperature(make_head(name))} >= {"linear_svm", "ridge"}


def test_temperature_is_the_minimum_of_the_log_loss():
    rng = np.random.default_rng(0)
    decisions = rng.normal(size=(500, 3)) * 4
    y = np.array([rng.choice(3, p=p) for p in softmax(decisions / 2.5, axis=1)])
    best = fit_temperature(decisions, y)
    assert 2.0 < best < 3.1
    losses = [log_loss(y, softmax(decisions / t, axis=1)) for t in (best, best * 0.97, best * 1.03)]
    assert losses[0] == min(losses)


def test_temperature_without_usable_rows_is_one():
    assert fit_temperature(np.array([[0.0, -np.inf]]), np.array([1])) == 1.0


def test_messages():
    estimator, X = _fitted("ridge", [0, 1])
    with pytest.raises(HeadError, match="temperature must be positive and finite, got 0"):
        predict_proba(estimator, X, 0, 2)
    with pytest.raises(HeadError, match=r"not on indices 0\.\.0; encode the labels"):
        decision_values(estimator, X, 1)
