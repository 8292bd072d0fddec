import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.utils.estimator_checks import check_estimator

from featurecache.errors import HeadError, UnknownNameError
from featurecache.heads import registry
from featurecache.heads.fitting import fit_estimator
from featurecache.heads.knn import CosineKnnRegressor
from featurecache.heads.mlp import MlpRegressor
from featurecache.heads.rbf_svm import RbfSvm
from featurecache.heads.registry import (
    HEADS,
    TOKEN_HEADS,
    find_head,
    list_heads,
    make_head,
    register_head,
)
from featurecache.heads.ridge import RidgeRegressor

LIBSVM = "libsvm ends when a step gains less than a thousandth, earlier or later by how weights are put"
QUICK = {"epochs": 8, "batch_size": 32, "learning_rate": 0.05}
"""Of heads trained by gradient steps: enough for the checks that ask for accuracy, in a fifth of the time."""
PARAMS = {"mlp": {**QUICK, "width": 8}, "attentive": QUICK}
REGRESSORS = [RidgeRegressor(), CosineKnnRegressor(), MlpRegressor(**QUICK, width=8)]


def _expected(estimator):
    return {"check_sample_weight_equivalence_on_dense_data": LIBSVM} if isinstance(estimator, RbfSvm) else {}


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "estimator",
    [*(pytest.param(make_head(name, **PARAMS.get(name, {})), id=name) for name in (*HEADS, *TOKEN_HEADS)), *REGRESSORS],
    ids=lambda each: type(each).__name__,
)
def test_head_passes_the_checks_of_scikit_learn(estimator):
    results = check_estimator(estimator, expected_failed_checks=_expected(estimator), on_skip=None, on_fail=None)
    assert len(results) > 30
    failed = {each["check_name"]: each["exception"] for each in results if each["status"] == "failed"}
    assert failed == {}
    excused = [each["check_name"] for each in results if each["expected_to_fail"] and each["status"] == "passed"]
    assert excused == []


def test_built_in_heads_are_listed():
    assert list_heads()[: len(HEADS)] == list(HEADS)
    assert set(list_heads(tokens=True)) == {*list_heads(), *TOKEN_HEADS}


def test_unknown_head_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match="unknown head 'logistc'; did you mean 'logistic'"):
        make_head("logistc")


def test_unknown_parameter_names_the_head():
    with pytest.raises(UnknownNameError, match="parameter of head 'ridge' 'alhpa'; did you mean 'alpha'"):
        make_head("ridge", alhpa=1)


def test_parameters_reach_the_classifier():
    assert make_head("logistic", C=3.0).C == 3.0


def test_a_head_can_be_registered_once(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTERED", {})
    register_head("prior", DummyClassifier, lambda n: [{}])
    assert "prior" in list_heads()
    with pytest.raises(ValueError, match="'prior' is already registered"):
        register_head("prior", DummyClassifier, lambda n: [{}])


@pytest.mark.parametrize("n_samples", [1, 2, 7, 1000])
def test_no_more_neighbours_are_searched_than_there_are_rows(n_samples):
    assert all(params["n_neighbors"] <= n_samples for params in find_head("knn").settings_for(n_samples))


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("y", [[0, 1], [0, 0, 0, 1], [0, 1, 2, 0, 1, 2, 0], [0] * 150 + [1] * 149 + [2]], ids=len)
def test_heads_fit_tiny_classes_and_constant_features(name, y):
    X = np.random.default_rng(0).normal(size=(len(y), 3)).astype(np.float32)
    X[:, 1] = 5
    estimator = make_head(name)
    fit_estimator(estimator, X, np.array(y), name=name)
    assert set(estimator.predict(X)) <= set(y)


def test_iteration_limit_is_raised_then_reported():
    X = np.random.default_rng(0).normal(size=(60, 5))
    y = np.arange(60) % 2
    raised = make_head("logistic", max_iter=3, C=1.0)
    assert fit_estimator(raised, X, y)
    assert raised.max_iter == 15
    assert not fit_estimator(make_head("logistic", max_iter=1, C=1e4, tol=1e-12), X, y)


def test_a_refusal_names_the_head():
    with pytest.raises(HeadError, match=r"head 'ridge' cannot be fitted on 2 rows of 1 feature in 2 classes: .*NaN"):
        fit_estimator(make_head("ridge"), np.array([[1.0], [np.nan]]), np.array([0, 1]), name="ridge")
