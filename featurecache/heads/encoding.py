"""A fitted head as plain data: a tree for JSON and a flat mapping of arrays. No pickle, no class looked up by name.

A head states its arrays itself (`Head.to_arrays`); classes are looked up among the heads that there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from sklearn.base import BaseEstimator

from featurecache.errors import HeadError
from featurecache.heads.head import Arrays, HeadMixin
from featurecache.heads.registry import list_heads, saved_class

# Classes that earlier releases saved, and what they were.
_NO_LONGER = {
    "BoostedTrees": "boosted trees",
    "BoostedTreesRegressor": "boosted trees",
    # Before heads were fitted by this package. Weights by distance are others than those of `CosineKnn`.
    "KNeighborsClassifier": "neighbours weighed by their distance",
    "MLPClassifier": "scikit-learn's perceptron",
}
# Attributes of scikit-learn's estimators that follow from others.
_DERIVED = {"_label_binarizer"}


def encode_estimator(estimator: BaseEstimator) -> tuple[dict[str, Any], Arrays]:
    """Return ``(tree, arrays)`` of a fitted head.

    Raises
    ------
    HeadError
        The head states no arrays, one of its values is of a kind that cannot be saved, or it is not fitted.
    """
    name = type(estimator).__name__
    if not hasattr(estimator, "to_arrays") or not hasattr(estimator, "from_arrays"):
        raise HeadError(
            f"a {name} cannot be saved: it states no arrays (to_arrays, from_arrays of featurecache.heads.head.Head); "
            f"heads that do: {', '.join(list_heads(tokens=True))}"
        )
    arrays: Arrays = {}
    # Only what differs from the default, so that a parameter which a later release drops does no harm unused.
    defaults, needless = type(estimator)().get_params(deep=False), getattr(estimator, "not_kept", ())
    params = {
        key: _encode(value, f"head.{key}", arrays)
        for key, value in estimator.get_params(deep=False).items()
        if key not in needless
        # Equal is not enough: True equals 1, and arrays have no single answer.
        and (type(value) is not type(defaults[key]) or isinstance(value, np.ndarray) or value != defaults[key])
    }
    state = {key: _encode_array(array, f"head.{key}", arrays) for key, array in estimator.to_arrays().items()}
    return {"type": name, "params": params, "state": state}, arrays


def decode_estimator(
    tree: Any, arrays: Arrays, *, other_class: Callable[[], type[HeadMixin] | None] | None = None
) -> BaseEstimator:
    """Rebuild the head that `encode_estimator` described, or an earlier release.

    Parameters
    ----------
    tree : JSON value
    arrays : dict of str to ndarray
    other_class : callable, optional
        Returns the class of a head that is none of those that have a name, or None.

    Raises
    ------
    HeadError
        The tree names an unknown class, parameter, attribute or array; or arrays do not belong together.
    """
    name = tree.get("type") if isinstance(tree, dict) else None
    steps: list[tuple[str, Any]] = [("", tree)]
    if name == "Pipeline":  # as releases up to 0.1 put steps before a head
        *before, (_, tree) = _steps(tree)
        steps = [*((f"{step}.", node) for step, node in before), ("", tree)]
        name = tree.get("type") if isinstance(tree, dict) else None
    if name in _NO_LONGER:
        raise HeadError(
            f"it holds {_NO_LONGER[name]}, which this release no longer has; predict with featurecache 0.1, or train "
            "another head"
        )
    cls = saved_class(str(name)) or (None if other_class is None else other_class())
    if cls is None:
        raise HeadError(f"it names the unknown class {name!r}; known: {', '.join(list_heads(tokens=True))}")
    params = {key: _decode(value, arrays) for key, value in _mapping(tree, "params").items()}
    estimator = cast("type[BaseEstimator]", cls)()
    kept = estimator.get_params(deep=False).keys() - getattr(cls, "not_kept", set())
    if name == cls.__name__ and (unknown := params.keys() - kept):
        raise HeadError(f"a {name} has no parameter {min(unknown)!r}")
    state: Arrays = {}
    for prefix, node in steps:
        for key, value in _mapping(node, "state").items():
            if key not in _DERIVED or name == cls.__name__:
                state |= _as_arrays(f"{prefix}{key}", _decode(value, arrays))
    if len(steps) > 1 or (name != cls.__name__ and hasattr(cls, "from_earlier")):
        return cast("BaseEstimator", cls.from_earlier(state, params))
    return cast("BaseEstimator", cls.from_arrays(state, **params))


def _steps(tree: dict[str, Any]) -> list[tuple[str, Any]]:
    steps = tree.get("steps")
    if not isinstance(steps, list) or not steps or not all(isinstance(s, list) and len(s) == 2 for s in steps):
        raise HeadError("its pipeline has no list of steps")
    return [(str(name), node) for name, node in steps]


def _as_arrays(name: str, value: Any) -> Arrays:
    """Return a value of an earlier release as arrays, lists item by item."""
    if isinstance(value, list | tuple) and not all(isinstance(item, str) for item in value):
        items = [_as_arrays(f"{name}.{index}", item) for index, item in enumerate(value)]
        return {key: array for item in items for key, array in item.items()}
    return {} if value is None else {name: np.asarray(value)}


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
    if isinstance(value, dict) and not value:
        return {"dict": {}}
    raise HeadError(f"{where} is a {type(value).__name__}, which cannot be saved; use a plain value")


def _finite(value: Any, where: str) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise HeadError(f"{where} is {value}, which is not a finite number; refit the head before saving it")
    return value


def _encode_array(value: np.ndarray, where: str, arrays: Arrays) -> Any:
    if value.ndim == 0:
        return _finite(value.item(), where)
    if value.dtype.kind in "UO":
        if not all(isinstance(item, str) for item in value.ravel().tolist()) or value.ndim != 1:
            raise HeadError(f"{where} holds objects that are not text, which cannot be saved; use text or numbers")
        return {"strings": value.tolist(), "object": value.dtype.kind == "O"}
    # Matrix products may round differently in the other memory order, so the order is part of what is kept.
    fortran = value.ndim == 2 and value.flags.f_contiguous and not value.flags.c_contiguous
    arrays[where] = np.ascontiguousarray(value.T if fortran else value)
    return {"array": where, "order": "F" if fortran else "C"}


def _mapping(tree: dict[str, Any], key: str) -> dict[str, Any]:
    value = tree.get(key, {}) if isinstance(tree, dict) else None
    if not isinstance(value, dict):
        raise HeadError(f"{key!r} of a head is not a mapping")
    return value


def _decode(value: Any, arrays: Arrays) -> Any:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case {"scalar": item, "dtype": str(dtype), **rest} if not rest:
            if dtype.lstrip("<>|=") not in {"f4", "f8", "i4", "i8", "b1"} or not isinstance(item, bool | int | float):
                raise HeadError(f"it holds a number of the unknown kind {dtype!r}")
            return np.dtype(dtype).type(item)
        case {"strings": list(items), "object": bool(is_object), **rest} if not rest:
            return np.array([str(item) for item in items], dtype=object if is_object else None)
        case {"array": str(key), "order": "C" | "F" as order, **rest} if not rest and key in arrays:
            # A copy is writable and aligned, as scikit-learn's compiled code expects.
            return arrays[key].T.copy(order="F") if order == "F" else arrays[key].copy()
        case {"list": list(items), **rest} if not rest:
            return [_decode(item, arrays) for item in items]
        case {"tuple": list(items), **rest} if not rest:
            return tuple(_decode(item, arrays) for item in items)
        case {"dict": dict(empty), **rest} if not rest and not empty:
            return {}
    raise HeadError(f"it holds a value that this release cannot read: {str(value)[:60]}")
