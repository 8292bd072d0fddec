"""What the arrays of a head that was read must be like, so that it neither crashes nor answers by numbers made up.

A stranger's record may name the right classes and attributes and hold anything in them; numpy would stretch some of it
to fit without a word, and compiled code read beyond its end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from types import UnionType
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.dummy import DummyRegressor
from sklearn.svm import SVC

from featurecache.errors import HeadError
from featurecache.heads.gradient.attentive import AttentiveProbe
from featurecache.heads.gradient.mlp import MlpProbe, MlpRegressor
from featurecache.heads.gradient.tuner import FineTuned
from featurecache.heads.linear.ridge import RidgeRegressor
from featurecache.heads.nearest import CosineKnn, CosineKnnRegressor


def check_sound(estimator: BaseEstimator) -> None:
    """Refuse a head whose arrays do not belong together, with `HeadError`."""
    for kind, check in _CHECKS:
        if isinstance(estimator, kind):
            check(estimator)


def _check_knn(estimator: CosineKnn) -> None:
    """Refuse votes that would be lost or made up: what a try on a few rows does not show."""
    directions, labels, n_classes = estimator.directions_, estimator.labels_, len(estimator.classes_)
    if np.ndim(directions) != 2 or len(directions) == 0 or np.shape(labels) != (len(directions),):
        raise HeadError("the rows and labels of its CosineKnn do not belong together")
    if directions.dtype.kind != "f" or not np.isfinite(directions).all():
        raise HeadError("the rows of its CosineKnn are not finite numbers")
    if labels.dtype.kind != "i" or labels.min() < 0 or labels.max() >= n_classes or n_classes > len(labels):
        raise HeadError("the labels of its CosineKnn are not those of its classes")
    _check_neighbours(estimator)


def _check_knn_regressor(estimator: CosineKnnRegressor) -> None:
    """Refuse rows and numbers that do not belong together."""
    directions, targets = estimator.directions_, estimator.targets_
    for values in (directions, targets):
        if not isinstance(values, np.ndarray) or values.dtype.kind != "f" or np.isinf(values).any():
            raise HeadError("the rows or numbers of its CosineKnnRegressor are not finite numbers")
    # Of several numbers of a row, some may be unknown.
    if np.isnan(directions).any() or (targets.ndim == 1 and np.isnan(targets).any()):
        raise HeadError("the rows or numbers of its CosineKnnRegressor are not finite numbers")
    if directions.ndim != 2 or len(directions) == 0 or targets.ndim not in (1, 2) or len(targets) != len(directions):
        raise HeadError("the rows and numbers of its CosineKnnRegressor do not belong together")
    _check_neighbours(estimator)


def _check_mean(estimator: DummyRegressor) -> None:
    """Refuse numbers that are not as many as it says."""
    values, count = estimator.constant_, estimator.n_outputs_
    if type(count) is not int or np.shape(values) != (1, count) or not np.isfinite(values).all():
        raise HeadError("the numbers of its DummyRegressor are not as many finite ones as it says")


def _check_ridge_regressor(estimator: RidgeRegressor) -> None:
    """Refuse weights and intercepts that would be stretched to fit each other."""
    coef, intercept = estimator.coef_, estimator.intercept_
    if np.ndim(coef) not in (1, 2) or np.shape(intercept) != np.shape(coef)[:-1]:
        raise HeadError("the weights and intercepts of its RidgeRegressor do not belong together")
    if not np.isfinite(coef).all() or not np.isfinite(intercept).all():
        raise HeadError("the weights of its RidgeRegressor are not finite numbers")


def _check_neighbours(estimator: CosineKnn | CosineKnnRegressor) -> None:
    count, temperature = estimator.n_neighbors, estimator.temperature
    if type(count) is not int or count < 1 or not isinstance(temperature, int | float) or not temperature > 0:
        raise HeadError(f"its {type(estimator).__name__} has {count!r} neighbours and the temperature {temperature!r}")


def _check_mlp(estimator: MlpProbe | MlpRegressor) -> None:
    """Refuse layers that do not follow one another: some would be stretched to fit without a word."""
    name = type(estimator).__name__
    coefs, intercepts = estimator.coefs_, estimator.intercepts_
    if not isinstance(coefs, list) or not isinstance(intercepts, list) or not 0 < len(coefs) == len(intercepts):
        raise HeadError(f"the layers of its {name} do not belong together")
    if any(not isinstance(each, np.ndarray) or each.dtype.kind != "f" for each in (*coefs, *intercepts)):
        raise HeadError(f"the layers of its {name} are not numbers")
    widths = [estimator.n_features_in_, *(len(intercept) for intercept in intercepts if intercept.ndim == 1)]
    shapes = list(pairwise(widths))
    of_numbers = isinstance(estimator, MlpRegressor)
    num_outputs = (1 if estimator.flat_ else widths[-1]) if of_numbers else len(estimator.classes_)
    units = [estimator.target_mean_, estimator.target_scale_] if of_numbers else []
    if any(np.shape(each) != (num_outputs,) or not np.isfinite(each).all() for each in units):
        raise HeadError(f"the units of its {name} are not {num_outputs} finite numbers")
    if [coef.shape for coef in coefs] != shapes or widths[-1] != num_outputs:
        raise HeadError(f"the layers of its {name} have shapes {[coef.shape for coef in coefs]}, which do not fit")


def _check_attentive(estimator: AttentiveProbe) -> None:
    """Refuse tokens, queries and weights that do not belong together."""
    tokens, found = estimator.num_tokens, (estimator.queries_, estimator.coef_, estimator.intercept_)
    if any(not isinstance(each, np.ndarray) or each.dtype.kind != "f" for each in found):
        raise HeadError("the weights of its AttentiveProbe are not numbers")
    if type(tokens) is not int or tokens < 1 or estimator.n_features_in_ % tokens or estimator.queries_.ndim != 2:
        raise HeadError(f"its AttentiveProbe has {tokens!r} tokens, which do not fit its features")
    width, queries = estimator.n_features_in_ // tokens, estimator.queries_.shape[1]
    n_classes = len(estimator.classes_)
    wanted = [(width, queries), (width, n_classes), (n_classes,)]
    if [each.shape for each in found] != wanted or queries < 1 or width % queries:
        raise HeadError(f"the weights of its AttentiveProbe have shapes {[each.shape for each in found]}")


def _check_finetuned(estimator: FineTuned) -> None:
    """Refuse tensors that are not numbers, and activations that have another size than the rows."""
    names, arrays, shape = estimator.names_, estimator.arrays_, estimator.shape
    if not isinstance(names, list) or not isinstance(arrays, list) or len(names) != len(arrays):
        raise HeadError("the names and values of its layers do not belong together")
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise HeadError("the names of its layers are not different texts")
    if not all(
        isinstance(each, np.ndarray) and each.dtype.kind in "fib" and not np.isnan(each).any() for each in arrays
    ):
        raise HeadError("the values of its layers are not finite numbers")
    if not isinstance(shape, tuple) or not all(type(size) is int and size > 0 for size in shape):
        raise HeadError(f"the shape of its activations is {shape!r:.80}")
    if not isinstance(getattr(estimator, "joined_", False), bool):
        raise HeadError("what its layers end in is not said by yes or no")
    if math.prod(shape) != estimator.n_features_in_:
        raise HeadError(f"its activations of shape {shape} are not {estimator.n_features_in_} numbers")


def _check_svc(estimator: SVC) -> None:
    """Refuse shapes that do not fit together: libsvm reads by them without looking."""
    n_classes, n_vectors = len(estimator.classes_), len(estimator.support_vectors_)
    expected = {
        "support_": (n_vectors,),
        "support_vectors_": (n_vectors, estimator.n_features_in_),
        "_n_support": (n_classes,),
        "_dual_coef_": (n_classes - 1, n_vectors),
        "_intercept_": (n_classes * (n_classes - 1) // 2,),
    }
    for name, shape in expected.items():
        if np.shape(getattr(estimator, name)) != shape:
            raise HeadError(f"{name} of its SVC has shape {np.shape(getattr(estimator, name))}, expected {shape}")
    if int(estimator._n_support.sum()) != n_vectors or (estimator._n_support < 0).any():
        raise HeadError("the support vectors of its SVC do not add up")


_CHECKS: tuple[tuple[type | UnionType, Callable[[Any], None]], ...] = (
    (SVC, _check_svc),
    (CosineKnn, _check_knn),
    (MlpProbe | MlpRegressor, _check_mlp),
    (RidgeRegressor, _check_ridge_regressor),
    (CosineKnnRegressor, _check_knn_regressor),
    (DummyRegressor, _check_mean),
    (AttentiveProbe, _check_attentive),
    (FineTuned, _check_finetuned),
)
