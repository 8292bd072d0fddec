"""A fitted head as plain data: a tree for JSON and a flat mapping of arrays. No pickle, no class looked up by name.

The classes below are the only ones that are written or built. For each, the listed attributes are those that its
predictions need; anything else that fitting left behind (optimiser state, loss curves) is not kept.
"""

from __future__ import annotations

import math
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
from featurecache.heads.gaussian import GaussianDiscriminant, NearestMean
from featurecache.heads.gradient.attentive import AttentiveProbe
from featurecache.heads.gradient.finetuned import FineTunedClassifier, FineTunedRegressor
from featurecache.heads.gradient.mlp import MlpProbe, MlpRegressor
from featurecache.heads.linear.estimators import LinearSvmProbe, LogisticProbe
from featurecache.heads.linear.ridge import RidgeProbe, RidgeRegressor
from featurecache.heads.nearest import CosineKnn, CosineKnnRegressor
from featurecache.heads.soundness import check_sound

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
    FineTunedClassifier: "classes_ names_ arrays_ n_iter_ multilabel_ joined_",
    FineTunedRegressor: "names_ arrays_ n_iter_ flat_ target_mean_ target_scale_ joined_",
    DummyClassifier: "classes_ class_prior_ n_classes_ n_outputs_ _strategy sparse_output_",
    DummyRegressor: "constant_ n_outputs_",
}
_GONE = frozenset({"BoostedTrees", "BoostedTreesRegressor"})
_CLASSES = {cls.__name__: cls for cls in (Pipeline, *_STATE)}
# A property in some scikit-learn releases and an attribute in others: written when there, never required.
_OPTIONAL = {"classes_", "_effective_probability", "_num_iter", "_probA", "_probB", "n_iter_", "multilabel_", "joined_"}


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
    if name in _GONE:
        raise HeadError(
            "it holds boosted trees, which this release no longer has; predict with featurecache 0.1, or train "
            "another head"
        )
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
    check_sound(estimator)
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
