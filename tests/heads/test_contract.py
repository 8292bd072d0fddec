"""Every head of the package keeps the contract."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sklearn.base import BaseEstimator

from featurecache.heads import registry
from featurecache.heads.registry import make_head
from featurecache.testing import HeadContract


class TestLogistic(HeadContract):
    def make_head(self) -> BaseEstimator:
        return make_head("logistic", tol=1e-9)


class TestLinearSvm(HeadContract):
    def make_head(self) -> BaseEstimator:
        return make_head("linear_svm", tol=1e-9)


class TestRbfSvm(HeadContract):
    def make_head(self) -> BaseEstimator:
        return make_head("rbf_svm")


class TestMlpClassifier(HeadContract):
    path_tolerance = 0.3  # of other rows to stop by, and other batches

    def make_head(self) -> BaseEstimator:
        return make_head("mlp", epochs=3)


class TestMlpRegressor(HeadContract):
    path_tolerance = 0.3

    def make_head(self) -> BaseEstimator:
        return make_head("mlp", kind="regression", epochs=3)


class TestKnn(HeadContract):
    def make_head(self) -> BaseEstimator:
        return make_head("knn")


class TestKnnRegressor(HeadContract):
    def make_head(self) -> BaseEstimator:
        return make_head("knn", kind="regression")


class TestKnnStandardised(HeadContract):
    def make_head(self) -> BaseEstimator:
        return make_head("knn", standardize=True)


class TestKnnRegressorStandardised(HeadContract):
    def make_head(self) -> BaseEstimator:
        return make_head("knn", kind="regression", standardize=True)


class TestRidge(HeadContract):
    def make_head(self) -> BaseEstimator:
        return make_head("ridge")


class TestRidgeRegressor(HeadContract):
    def make_head(self) -> BaseEstimator:
        return make_head("ridge", kind="regression")


class TestGda(HeadContract):
    def make_head(self) -> BaseEstimator:
        return make_head("gda")


class TestNearestMean(HeadContract):
    def make_head(self) -> BaseEstimator:
        return make_head("nearest_mean")


class TestNearestMeanStandardised(HeadContract):
    def make_head(self) -> BaseEstimator:
        return make_head("nearest_mean", standardize=True)


class TestMajority(HeadContract):
    def make_head(self) -> BaseEstimator:
        return make_head("majority")


class TestMean(HeadContract):
    def make_head(self) -> BaseEstimator:
        return make_head("mean", kind="regression")


class TestAttentive(HeadContract):
    path_tolerance = 0.3

    def make_head(self) -> BaseEstimator:
        return make_head("attentive", epochs=3, num_tokens=3)


def test_every_registered_head_keeps_the_contract() -> None:
    """A head that is added is tried, or this test says which is not."""
    texts = [path.read_text() for path in Path(__file__).parent.glob("test_*.py")]
    tried = "\n".join(text for text in texts if "(HeadContract)" in text)
    for name, classes in registry._BUILT_IN.items():
        named = f'make_head("{name}"' in tried
        assert all(named or re.search(rf"\b{cls.__name__}\(", tried) for cls in classes), name


def test_a_contract_that_is_not_filled_in_fails() -> None:
    class Forgotten(HeadContract):
        pass

    with pytest.raises(NotImplementedError, match="Forgotten is to define make_head"):
        Forgotten().make_head()
