"""A fitted head as plain data: a tree for JSON and a flat mapping of arrays. No pickle, no class looked up by name.

The classes below are the only ones that are written or built. For each, the listed attributes are those that its
predictions need; anything else that fitting left behind (optimiser state, loss curves) is not kept.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import LabelBinarizer, Normalizer, StandardScaler
from sklearn.svm import SVC, LinearSVC

from featurecache.errors import HeadError
from featurecache.heads.finetuned import FineTuned, FineTunedClassifier, FineTunedRegressor
from featurecache.heads.gaussian import GaussianDiscriminant, NearestMean
from featurecache.heads.gradient.attentive import AttentiveProbe
from featurecache.heads.gradient.mlp import MlpProbe, MlpRegressor
from featurecache.heads.linear.estimators import LinearSvmProbe, LogisticProbe
from featurecache.heads.linear.ridge import RidgeProbe, RidgeRegressor
from featurecache.heads.nearest import CosineKnn, CosineKnnRegressor
from featurecache.heads.trees import MAX_NODES, TREE_ARRAYS, BoostedTrees, BoostedTreesRegressor

Arrays = dict[str, np.ndarray]

_SVC_STATE = (
    "support_ support_vectors_ _n_support dual_coef_ _dual_coef_ intercept_ _intercept_ _probA _probB fit_status_ "
    "shape_fit_ _sparse _gamma class_weight_ classes_ _effective_probability _num_iter n_iter_"
)
_KNN_STATE = (
    "_fit_X _y classes_ outputs_2d_ effective_metric_ effective_metric_params_ _fit_method _tree n_samples_fit_"
)
_STATE: dict[type, str] = {
    StandardScaler: "mean_ var_ scale_ n_samples_seen_",
    Normalizer: "",
    LabelBinarizer: "classes_ y_type_ sparse_input_",
    LogisticRegression: "classes_ coef_ intercept_ n_iter_",
    LinearSVC: "classes_ coef_ intercept_ n_iter_",
    SVC: _SVC_STATE,
    MLPClassifier: "classes_ coefs_ intercepts_ n_layers_ n_outputs_ out_activation_ _label_binarizer n_iter_",
    KNeighborsClassifier: _KNN_STATE,
    RidgeClassifier: "classes_ coef_ intercept_ n_iter_ solver_ _label_binarizer",
    LogisticProbe: "classes_ coef_ intercept_ n_iter_ multilabel_",
    LinearSvmProbe: "classes_ coef_ intercept_ n_iter_",
    RidgeProbe: "classes_ coef_ intercept_",
    RidgeRegressor: "coef_ intercept_",
    MlpProbe: "classes_ coefs_ intercepts_ n_iter_ multilabel_",
    MlpRegressor: "coefs_ intercepts_ n_iter_ flat_ target_mean_ target_scale_",
    AttentiveProbe: "classes_ queries_ coef_ intercept_ n_iter_ multilabel_",
    CosineKnn: "classes_ directions_ labels_",
    CosineKnnRegressor: "directions_ targets_",
    GaussianDiscriminant: "classes_ coef_ intercept_",
    NearestMean: "classes_ coef_ intercept_",
    BoostedTrees: "classes_ feature_ threshold_ children_ value_ multilabel_",
    BoostedTreesRegressor: "feature_ threshold_ children_ value_ intercept_",
    FineTunedClassifier: "classes_ names_ arrays_ n_iter_ multilabel_",
    FineTunedRegressor: "names_ arrays_ n_iter_ flat_ target_mean_ target_scale_",
    DummyClassifier: "classes_ class_prior_ n_classes_ n_outputs_ _strategy sparse_output_",
    DummyRegressor: "constant_ n_outputs_",
}
_CLASSES = {cls.__name__: cls for cls in (Pipeline, *_STATE)}
# A property in some scikit-learn releases and an attribute in others: written when there, never required.
_OPTIONAL = {"classes_", "_effective_probability", "_num_iter", "_probA", "_probB", "n_iter_", "multilabel_"}


def encode_estimator(estimator: BaseEstimator) -> tuple[dict[str, Any], Arrays]:
    """Return ``(tree, arrays)`` of a fitted head.

    Raises
    ------
    HeadError
        The head, one of its steps or one of its values is of a kind that cannot be saved, or it is not fitted.
    """
    arrays: Arrays = {}
    return _encode_node(estimator, "head", arrays), arrays


def decode_estimator(tree: Any, arrays: Arrays) -> BaseEstimator:
    """Rebuild the head that `encode_estimator` described.

    Raises
    ------
    HeadError
        The tree names an unknown class, parameter, attribute or array.
    """
    return _decode_node(tree, arrays)


def _encode_node(estimator: BaseEstimator, where: str, arrays: Arrays) -> dict[str, Any]:
    cls = type(estimator)
    if cls not in _CLASSES.values():
        raise HeadError(f"a {cls.__name__} cannot be saved; heads that can: {', '.join(sorted(_CLASSES))}")
    if isinstance(estimator, Pipeline):
        steps = [[name, _encode_node(step, f"{where}.{name}", arrays)] for name, step in estimator.steps]
        return {"type": "Pipeline", "steps": steps}
    return {
        "type": cls.__name__,
        "params": {k: _encode(v, f"{where}.{k}", arrays) for k, v in _changed_params(estimator).items()},
        "state": {k: _encode(v, f"{where}.{k}", arrays) for k, v in _state(estimator).items()},
    }


def _changed_params(estimator: BaseEstimator) -> dict[str, Any]:
    # Only what differs from the default, so that a parameter which a later scikit-learn drops does no harm unused.
    defaults, needless = type(estimator)().get_params(deep=False), getattr(estimator, "not_kept", ())
    given = estimator.get_params(deep=False)
    return {k: v for k, v in given.items() if k not in needless and not _same(v, defaults[k])}


def _same(value: Any, default: Any) -> bool:
    return type(value) is type(default) and not isinstance(value, np.ndarray) and bool(value == default)


def _state(estimator: BaseEstimator) -> dict[str, Any]:
    fitted = vars(estimator)
    names = ["n_features_in_", *_STATE[type(estimator)].split()]
    optional = _OPTIONAL | (
        {"n_features_in_"} if isinstance(estimator, LabelBinarizer | DummyClassifier | DummyRegressor) else set()
    )
    if missing := [name for name in names if name not in fitted and name not in optional]:
        raise HeadError(f"{type(estimator).__name__} has no {missing[0]}; fit the head before saving it")
    return {name: fitted[name] for name in names if name in fitted}


def _encode(value: Any, where: str, arrays: Arrays) -> Any:
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and type(value) is float):
        return _finite(value, where)
    if isinstance(value, np.generic):
        return {"scalar": _finite(value.item(), where), "dtype": value.dtype.str}
    if isinstance(value, np.ndarray):
        return _encode_array(value, where, arrays)
    if isinstance(value, list | tuple):
        items = [_encode(item, f"{where}.{i}", arrays) for i, item in enumerate(value)]
        return {"list" if isinstance(value, list) else "tuple": items}
    if isinstance(value, BaseEstimator):
        return {"estimator": _encode_node(value, where, arrays)}
    if isinstance(value, dict) and not value:
        return {"dict": {}}
    raise HeadError(f"{where} is a {type(value).__name__}, which cannot be saved; use a plain value")


def _finite(value: Any, where: str) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise HeadError(f"{where} is {value}, which is not a finite number; refit the head before saving it")
    return value


def _encode_array(value: np.ndarray, where: str, arrays: Arrays) -> dict[str, Any]:
    if value.dtype.kind in "UO":
        if not all(isinstance(item, str) for item in value.ravel().tolist()) or value.ndim != 1:
            raise HeadError(f"{where} holds objects that are not text, which cannot be saved; use text or numbers")
        return {"strings": value.tolist(), "object": value.dtype.kind == "O"}
    # Matrix products may round differently in the other memory order, so the order is part of what is kept.
    fortran = value.ndim == 2 and value.flags.f_contiguous and not value.flags.c_contiguous
    arrays[where] = np.ascontiguousarray(value.T if fortran else value)
    return {"array": where, "order": "F" if fortran else "C"}


def _decode_node(tree: Any, arrays: Arrays) -> BaseEstimator:
    name = tree.get("type") if isinstance(tree, dict) else None
    if not isinstance(name, str) or name not in _CLASSES:
        raise HeadError(f"it names the unknown class {name!r}; known: {', '.join(sorted(_CLASSES))}")
    if name == "Pipeline":
        return _decode_pipeline(tree, arrays)
    cls = _CLASSES[name]
    params = {k: _decode(v, arrays) for k, v in _mapping(tree, "params").items()}
    state = {k: _decode(v, arrays) for k, v in _mapping(tree, "state").items()}
    estimator = cls()
    _refuse_unknown(name, "parameter", params, estimator.get_params(deep=False))
    _refuse_unknown(
        name, "parameter", params, estimator.get_params(deep=False).keys() - getattr(cls, "not_kept", set())
    )
    _refuse_unknown(name, "attribute", state, ["n_features_in_", *_STATE[cls].split()])
    estimator.set_params(**params)
    for key, value in state.items():
        setattr(estimator, key, value)
    _state(estimator)
    if isinstance(estimator, SVC):
        _check_svc(estimator)
    if isinstance(estimator, CosineKnn):
        _check_knn(estimator)
    if isinstance(estimator, MlpProbe | MlpRegressor):
        _check_mlp(estimator)
    if isinstance(estimator, RidgeRegressor):
        _check_ridge_regressor(estimator)
    if isinstance(estimator, CosineKnnRegressor):
        _check_knn_regressor(estimator)
    if isinstance(estimator, DummyRegressor):
        _check_mean(estimator)
    if isinstance(estimator, AttentiveProbe):
        _check_attentive(estimator)
    if isinstance(estimator, BoostedTrees | BoostedTreesRegressor):
        _check_trees(estimator)
    if isinstance(estimator, FineTuned):
        _check_finetuned(estimator)
    return estimator


def _decode_pipeline(tree: dict[str, Any], arrays: Arrays) -> Pipeline:
    steps = tree.get("steps")
    if not isinstance(steps, list) or not steps or not all(isinstance(s, list) and len(s) == 2 for s in steps):
        raise HeadError("its pipeline has no list of steps")
    return Pipeline([(str(name), _decode_node(node, arrays)) for name, node in steps])


def _mapping(tree: dict[str, Any], key: str) -> dict[str, Any]:
    value = tree.get(key, {})
    if not isinstance(value, dict):
        raise HeadError(f"{key!r} of a {tree['type']} is not a mapping")
    return value


def _refuse_unknown(cls: str, kind: str, given: dict[str, Any], known: Any) -> None:
    if unknown := [name for name in given if name not in known]:
        raise HeadError(f"a {cls} of this scikit-learn has no {kind} {unknown[0]!r}")


def _decode(value: Any, arrays: Arrays) -> Any:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case {"scalar": item, "dtype": str(dtype), **rest} if not rest:
            return _decode_scalar(item, dtype)
        case {"strings": list(items), "object": bool(is_object), **rest} if not rest:
            return np.array([str(item) for item in items], dtype=object if is_object else None)
        case {"array": str(key), "order": "C" | "F" as order, **rest} if not rest and key in arrays:
            # A copy is writable and aligned, as scikit-learn's compiled code expects.
            return arrays[key].T.copy(order="F") if order == "F" else arrays[key].copy()
        case {"list": list(items), **rest} if not rest:
            return [_decode(item, arrays) for item in items]
        case {"tuple": list(items), **rest} if not rest:
            return tuple(_decode(item, arrays) for item in items)
        case {"estimator": node, **rest} if not rest:
            return _decode_node(node, arrays)
        case {"dict": dict(empty), **rest} if not rest and not empty:
            return {}
    raise HeadError(f"it holds a value that this release cannot read: {str(value)[:60]}")


def _decode_scalar(item: Any, dtype: str) -> np.generic:
    if dtype.lstrip("<>|=") not in {"f4", "f8", "i4", "i8", "b1"} or not isinstance(item, bool | int | float):
        raise HeadError(f"it holds a number of the unknown kind {dtype!r}")
    return np.dtype(dtype).type(item)


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
        if not isinstance(values, np.ndarray) or values.dtype.kind != "f" or not np.isfinite(values).all():
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


def _check_trees(estimator: BoostedTrees | BoostedTreesRegressor) -> None:
    """Refuse nodes that are not there, and ways that lead back: a row would go round for ever."""
    name = type(estimator).__name__
    feature, threshold, children, value = arrays = [getattr(estimator, each) for each in TREE_ARRAYS]
    kinds = [each.dtype.kind if isinstance(each, np.ndarray) else "" for each in arrays]
    if kinds != ["i", "f", "i", "f"] or value.ndim != 3 or 0 in value.shape:
        raise HeadError(f"the nodes of its {name} are not numbers in three dimensions")
    shapes = [each.shape for each in arrays]
    if shapes != [value.shape, value.shape, (*value.shape, 2), value.shape]:
        raise HeadError(f"the nodes of its {name} have shapes {shapes}, which do not fit")
    num_rounds, _, num_nodes = value.shape
    if num_rounds * num_nodes > MAX_NODES:
        raise HeadError(
            f"the trees of its {name} have {num_rounds * num_nodes} nodes an output; at most {MAX_NODES} are read"
        )
    if feature.min() < 0 or feature.max() >= estimator.n_features_in_:
        raise HeadError(f"the trees of its {name} ask for features that are not there")
    if (children < np.arange(num_nodes)[:, None]).any() or children.max() >= num_nodes:
        raise HeadError(f"the trees of its {name} lead to nodes that are not there, or back")
    if not np.isfinite(threshold).all() or not np.isfinite(value).all():
        raise HeadError(f"the thresholds or values of its {name} are not finite numbers")
    _check_outputs(estimator)


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
    if math.prod(shape) != estimator.n_features_in_:
        raise HeadError(f"its activations of shape {shape} are not {estimator.n_features_in_} numbers")


def _check_outputs(estimator: BoostedTrees | BoostedTreesRegressor) -> None:
    """Refuse as many trees a round as no such head has."""
    num_outputs = estimator.value_.shape[1]
    if isinstance(estimator, BoostedTrees):
        several = len(estimator.classes_) > 2 or estimator.multilabel_
        wanted = len(estimator.classes_) if several else 1
    else:
        intercept = estimator.intercept_
        if not isinstance(intercept, np.ndarray) or intercept.ndim > 1 or not np.isfinite(intercept).all():
            raise HeadError("the intercept of its BoostedTreesRegressor is not one finite number for each output")
        wanted = intercept.size
    if num_outputs != wanted:
        raise HeadError(f"its {type(estimator).__name__} has {num_outputs} trees a round, expected {wanted}")


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
