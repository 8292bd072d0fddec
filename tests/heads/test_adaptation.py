"""Ways to adapt a source to a target: what each promises, and that a linear head takes it up exactly."""

from __future__ import annotations

import numpy as np
import pytest

from featurecache.errors import MissingExtraError, RequestError
from featurecache.heads import adaptation
from featurecache.heads.adaptation import (
    METHODS,
    corrected_prior,
    fit_adaptation,
    shares_by_confusion,
    shifted_intercept,
)
from featurecache.heads.fitting import fit_head

pytestmark = pytest.mark.quick
ABLE = [name for name in METHODS if name != "transport"]


def domains(seed: int = 0, d: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return two domains of the same classes; in the second features are turned, stretched and moved."""
    rng = np.random.default_rng(seed)
    means = 3 * rng.normal(size=(3, d))
    y, y_t = np.arange(300) % 3, np.arange(240) % 3
    X, target = (means[classes] + rng.normal(size=(len(classes), d)) for classes in (y, y_t))
    stretched = target * np.linspace(0.5, 2, d) + 4 * rng.normal(size=d)
    return X.astype(np.float32), y, stretched.astype(np.float32), y_t


@pytest.mark.parametrize("method", ABLE)
def test_a_linear_head_takes_the_adaptation_up_exactly(method: str) -> None:
    X, y, target, _ = domains()
    found = fit_adaptation(method, X, y, target)
    head = fit_head("logistic", found.of_source(X).astype(np.float32), y, C=0.1)
    expected = found.of_target(target) @ head.coef_.T + head.intercept_
    coef, intercept = found.unfold(head.coef_, head.intercept_)
    np.testing.assert_allclose(target @ coef.T + intercept, expected, rtol=1e-6, atol=1e-6)


def test_domains_are_alike_afterwards() -> None:
    X, y, target, _ = domains()
    for method in ("standardize", "coral"):
        found = fit_adaptation(method, X, y, target)
        source, other = found.of_source(X), found.of_target(target)
        np.testing.assert_allclose(source.mean(axis=0), other.mean(axis=0), atol=1e-5)
        if method == "coral":
            # As alike as the paper's identity, added to both, lets them be.
            before = np.linalg.norm(np.corrcoef(X.T) - np.corrcoef(target.T))
            assert np.linalg.norm(np.cov(source.T) - np.cov(other.T)) < before / 2
    found = fit_adaptation("subspace", X, y, target)
    assert found.of_source(X).shape[1] == found.of_target(target).shape[1] == 12


@pytest.mark.parametrize("method", ["standardize", "coral"])
def test_a_moved_and_stretched_target_is_recovered(method: str) -> None:
    gained = []
    for seed in range(5):
        X, y, target, y_t = domains(seed)
        right = {}
        for name in ("source", method):
            found = fit_adaptation(name, X, y, target)
            head = fit_head("logistic", found.of_source(X).astype(np.float32), y, C=0.1)
            right[name] = np.mean(head.predict(found.of_target(target).astype(np.float32)) == y_t)
        gained.append(right[method] - right["source"])
    assert np.mean(gained) > 0.1


def test_constant_features_and_few_target_samples_make_no_trouble() -> None:
    X, y, target, _ = domains()
    X[:, 0], target[:, 1] = 1.0, -2.0
    for method in ABLE:
        found = fit_adaptation(method, X, y, target[:3])
        assert np.isfinite(found.of_source(X)).all()
        assert np.isfinite(found.of_target(target)).all()


def test_transport_moves_classes_onto_those_of_the_target() -> None:
    pytest.importorskip("ot")
    X, y, target, y_t = domains()
    found = fit_adaptation("transport", X, y, target)
    head = fit_head("logistic", found.of_source(X).astype(np.float32), y, C=0.1)
    assert np.mean(head.predict(found.of_target(target).astype(np.float32)) == y_t) > 0.9


def test_what_cannot_be_done_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y, target, _ = domains()
    with pytest.raises(RequestError, match="unknown way to adapt 'magic'; known: auto, source, standardize"):
        fit_adaptation("magic", X, y, target)
    with pytest.raises(RequestError, match="the target domain has 1 sample with features; adapting takes two"):
        fit_adaptation("coral", X, y, target[:1])
    monkeypatch.setattr(adaptation, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"POT, which --adapt transport needs, is not inst.*pip install"):
        fit_adaptation("transport", X, y, target)
    assert "transport" not in adaptation.able_methods()


@pytest.mark.parametrize("how", ["em", "bbse"])
def test_other_shares_of_the_same_classes_are_found(how: str) -> None:
    """Classes look alike in both domains: then the shares are told, and the shifted head is as good as a fitted one."""
    rng = np.random.default_rng(0)
    means = np.array([[0.0, 0.0], [1.5, 0.0], [0.0, 1.5]])
    y, y_t = rng.choice(3, 3000, p=[1 / 3] * 3), rng.choice(3, 3000, p=[0.7, 0.2, 0.1])
    X, target = ((means[c] + rng.normal(size=(len(c), 2))).astype(np.float32) for c in (y, y_t))
    head, prior = fit_head("logistic", X, y, C=1.0), np.bincount(y) / len(y)
    proba = head.predict_proba(target)
    if how == "em":
        shares = corrected_prior(proba, prior)
    else:
        confusion = np.zeros((3, 3))
        np.add.at(confusion, (head.predict(X), y), 1 / len(y))
        shares = shares_by_confusion(confusion, np.bincount(proba.argmax(axis=1), minlength=3) / len(proba), prior)
    np.testing.assert_allclose(shares, [0.7, 0.2, 0.1], atol=0.08)
    shifted = target @ head.coef_.T + shifted_intercept(head.intercept_, shares, prior, [0, 1, 2])
    assert np.mean(shifted.argmax(axis=1) == y_t) > np.mean(proba.argmax(axis=1) == y_t) + 0.03


def test_of_two_classes_one_intercept_is_shifted() -> None:
    shifted = shifted_intercept(np.array([0.5]), np.array([0.2, 0.8]), np.array([0.5, 0.5]), [0, 1])
    np.testing.assert_allclose(shifted, [0.5 + np.log(0.8 / 0.2)])
