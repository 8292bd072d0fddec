"""Fitting a head on whatever rows there are, few or many, and telling whether it converged."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from inspect import signature
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import has_fit_parameter

from featurecache.errors import HeadError, RequestError, TaskError
from featurecache.heads.registry import last_step, make_head

_MORE_ITERATIONS = 5
_ROWS_BYTES = 64 << 20
"""Of features that are looked at at a time."""


def fit_estimator(
    estimator: BaseEstimator,
    X: np.ndarray,
    y: np.ndarray,
    weight: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    *,
    name: str = "",
) -> bool:
    """Fit ``estimator`` in place and tell whether it converged.

    A head that stops at its iteration limit is fitted once more with five times the limit; the iteration warnings
    of scikit-learn become the returned flag.

    Parameters
    ----------
    estimator : classifier
        Unfitted; changed in place.
    X : ndarray of shape (n_samples, n_features), float32 or float64
    y : ndarray of shape (n_samples,)
    weight : ndarray of shape (n_samples,), optional
        How much each row counts, for heads that take weights.
    groups : ndarray of shape (n_samples,), optional
        Rows that belong together, for heads that hold some out to stop by.
    name : str
        How to call the head in an error message.

    Raises
    ------
    HeadError
        scikit-learn refuses the data; the message names the head.
    """
    beside = _beside(estimator, weight, groups)
    try:
        if _converges(estimator, X, y, beside):
            return True
        limit = last_step(estimator).get_params(deep=False).get("max_iter")
        if not isinstance(limit, int) or limit < 1:
            return False
        last_step(estimator).set_params(max_iter=_MORE_ITERATIONS * limit)
        return _converges(estimator, X, y, beside)
    except RequestError:  # an input that is gone is not the head's fault
        raise
    except (ValueError, FloatingPointError, np.linalg.LinAlgError, MemoryError) as error:
        raise HeadError(_refusal(name or type(last_step(estimator)).__name__, X, y, error)) from error


def load_arithmetic(head: BaseEstimator) -> None:
    """Load the library that a head computes with, so that a limit on its threads that is set next holds for it."""
    if hasattr(last_step(head), "fit_folds"):
        import_module("torch")


def fit_folds(
    estimator: BaseEstimator,
    grid: Sequence[Mapping[str, Any]],
    X: np.ndarray,
    y: np.ndarray,
    fold: np.ndarray,
    weight: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    *,
    name: str = "",
) -> Iterator[tuple[dict[str, Any], list[BaseEstimator]]]:
    """Fit every setting of a grid without each fold: side by side where the head can, else one after the other.

    Parameters
    ----------
    estimator : classifier
        Unfitted; is not changed.
    grid : sequence of mapping
        Settings of the classifier, the simplest model first.
    X : ndarray of shape (n_samples, n_features)
    y : ndarray of shape (n_samples,), or (n_samples, n_outputs)
        Classes; or labels, or numbers.
    fold : ndarray of shape (n_samples,)
        The fold of each row; -1 for rows that are never held out.
    weight : ndarray of shape (n_samples,), optional
        How much each row counts, for heads that take weights.
    groups : ndarray of shape (n_samples,), optional
        Rows that belong together, for heads that hold some out to stop by.
    name : str
        How to call the head in an error message.

    Yields
    ------
    (setting, estimators)
        One fitted estimator for each fold; a single one where no row is held out. A fold without which one class is
        left gets an estimator that always names that.

    Raises
    ------
    HeadError
        The head refuses the data.
    """
    kept = [fold != each for each in np.unique(fold[fold >= 0])] or [np.ones(len(fold), bool)]
    num_classes = _num_classes(y)
    names = {key for setting in grid for key in setting}
    together = names <= getattr(estimator, "side_by_side", frozenset()) and bool(names)
    if together and all(_num_classes(y[each]) == num_classes for each in kept):
        try:
            beside = {"sample_weight": weight, "groups": groups}
            known = signature(estimator.fit_folds).parameters
            given = {key: each for key, each in beside.items() if each is not None and key in known}
            yield from estimator.fit_folds(X, y, fold, grid, **given)
        except RequestError:
            raise
        except (ValueError, RuntimeError, np.linalg.LinAlgError, MemoryError) as error:
            raise HeadError(_refusal(name or type(estimator).__name__, X, y, error)) from error
        return
    for setting in grid:
        fitted = []
        for each in kept:
            one_class = _num_classes(y[each]) == 1
            fitted.append(make_head("majority") if one_class else clone(estimator))
            if not one_class:
                last_step(fitted[-1]).set_params(**setting)
            rows: list[Any] = [X, y, weight, groups]
            if not each.all():
                rows = [None if array is None else array[each] for array in rows]
            fit_estimator(fitted[-1], *rows, name=name)
        yield dict(setting), fitted


def _num_classes(y: np.ndarray) -> int:
    """Return how many classes there are; labels and numbers, (n_samples, n_outputs), have none: 0."""
    return len(np.unique(y)) if y.ndim == 1 else 0


def fit_head(name: str, X: np.ndarray, y: np.ndarray, **params: Any) -> BaseEstimator:
    """Fit one head with given parameters, without any search.

    Parameters
    ----------
    name : str
    X : ndarray of shape (n_samples, n_features), real
    y : array-like of shape (n_samples,)
        Labels of any kind that scikit-learn takes: text, numbers, booleans.
    **params
        Parameters of the classifier, such as ``C=0.1``.

    Raises
    ------
    TaskError, HeadError
        Fewer than two classes, no rows, features that are not finite, or that the head refuses.
    """
    estimator = make_head(name, **params)
    X, y = check_labelled(X, y)
    if len(np.unique(y)) < 2:
        raise TaskError(f"all {len(y)} rows have the same label; a head needs rows of two classes or more")
    fit_estimator(estimator, X, y, name=name)
    return estimator


def check_features(X: np.ndarray, part: str) -> np.ndarray:
    """Return ``X`` as a contiguous (n_samples, n_features) array of float32 or float64, all finite.

    Raises
    ------
    HeadError
        Wrong number of axes, no feature, or a value that is not finite.
    """
    X = X if isinstance(X, np.memmap) else np.asarray(X)
    if X.ndim != 2 or X.shape[1] == 0:
        raise HeadError(f"{part} features have shape {X.shape}, heads need (n_samples, n_features); pool the tap first")
    if X.dtype.kind not in "fiub":
        raise HeadError(f"{part} features are {X.dtype}, heads need real numbers; convert them first")
    if not (X.flags.c_contiguous and X.dtype in (np.float32, np.float64)):
        X = np.ascontiguousarray(X, dtype=X.dtype if X.dtype == np.float64 else np.float32)
    step = max(_ROWS_BYTES // (X.shape[1] * X.itemsize), 1)
    finite = np.concatenate(
        [np.isfinite(X[start : start + step]).all(axis=1) for start in range(0, len(X), step)] or [np.ones(0, bool)]
    )
    if not finite.all():
        row = int(np.argmin(finite))
        raise HeadError(
            f"{part} features are not finite in {int((~finite).sum())} of {len(X)} rows, first in row {row}; "
            "extract these rows again in float32 or leave them out"
        )
    return X


def check_labelled(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ``X`` as `check_features` does and ``y``, of any kind, as an array of as many labels.

    Raises
    ------
    TaskError, HeadError
        No rows, not one label per row, or features that are not finite numbers.
    """
    y = np.asarray(y)
    if y.ndim != 1 or len(y) != len(X) or len(y) == 0:
        raise TaskError(
            f"{len(X)} rows and labels of shape {y.shape} do not match; give one label for each of some rows"
        )
    return check_features(X, "given"), y


def _converges(estimator: BaseEstimator, X: np.ndarray, y: np.ndarray, beside: dict[str, np.ndarray]) -> bool:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        estimator.fit(X, y, **beside)
    for warning in caught:
        if not issubclass(warning.category, ConvergenceWarning):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)


def _beside(estimator: BaseEstimator, weight: np.ndarray | None, groups: np.ndarray | None) -> dict[str, np.ndarray]:
    """Return weights and groups as ``fit`` takes them: by name for each step of a pipeline that takes any."""
    steps = estimator.steps if isinstance(estimator, Pipeline) else [("", estimator)]
    given = {"sample_weight": weight, "groups": groups}
    return {
        f"{name}__{key}" if name else key: each
        for name, step in steps
        for key, each in given.items()
        if each is not None and has_fit_parameter(step, key)
    }


def _refusal(name: str, X: np.ndarray, y: np.ndarray, error: BaseException) -> str:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    classes = f" in {count} classes" if (count := _num_classes(np.asarray(y))) else ""
    size = f"{X.shape[0]} rows of {X.shape[1]} features" if np.ndim(X) == 2 else f"an array of shape {np.shape(X)}"
    return f"head {name!r} cannot be fitted on {size}{classes}: {reason}. Choose another head or check the features"
