"""Fitting a head on whatever rows there are, few or many, and telling whether it converged."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from inspect import signature
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, clone, is_regressor
from sklearn.dummy import DummyRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import has_fit_parameter

from featurecache.errors import HeadError, RequestError, TaskError
from featurecache.heads.checks import is_partial, known_cells
from featurecache.heads.linear.tasks import FitsTasks
from featurecache.heads.preparation import mean_and_scale
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
    y = _with_unknown(estimator, y)
    beside = _beside(estimator, weight, groups)
    with _refusals(estimator, X, y, name):
        if _converges(estimator, X, y, beside):
            return True
        limit = last_step(estimator).get_params(deep=False).get("max_iter")
        if not isinstance(limit, int) or limit < 1:
            return False
        last_step(estimator).set_params(max_iter=_MORE_ITERATIONS * limit)
        return _converges(estimator, X, y, beside)


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
    y, kept = _with_unknown(estimator, y), _kept(fold)
    if _goes_side_by_side(estimator, grid, y, fold):
        beside = {"sample_weight": weight, "groups": groups}
        known = signature(estimator.fit_folds).parameters
        given = {key: each for key, each in beside.items() if each is not None and key in known}
        with _refusals(estimator, X, y, name):
            yield from estimator.fit_folds(X, y, fold, grid, **given)
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


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskToFit:
    """Rows, what one task says of them, and how settings are tried on it."""

    head: BaseEstimator
    """Unfitted; is not changed."""
    grid: Sequence[Mapping[str, Any]]
    X: np.ndarray
    y: np.ndarray
    fold: np.ndarray
    groups: np.ndarray | None = None


def fit_folds_of_tasks(
    tasks: Sequence[TaskToFit], weight: np.ndarray | None = None, *, name: str = ""
) -> Iterator[tuple[int, dict[str, Any], list[BaseEstimator]]]:
    """Do what `fit_folds` does for several tasks: side by side where the head can.

    They are on the same rows, or on as many with other features, that weigh alike.

    Yields
    ------
    (place, setting, estimators)
        The place of the task, and what `fit_folds` yields for it.

    Raises
    ------
    HeadError
        The head refuses the data of one of the tasks.
    """
    tasks = [replace(task, y=_with_unknown(task.head, task.y)) for task in tasks]
    heads, Xs, ys, folds = ([getattr(task, field) for task in tasks] for field in ("head", "X", "y", "fold"))
    keys = [
        (_shared_settings(task.head), repr(task.grid))
        if _goes_side_by_side(task.head, task.grid, task.y, task.fold)
        else (None, "")
        for task in tasks
    ]
    for batch in _batches(heads, keys, Xs, ys, folds):
        first = tasks[batch[0]]
        if len(batch) == 1:
            fitted = fit_folds(first.head, first.grid, first.X, first.y, first.fold, weight, first.groups, name=name)
            for setting, estimators in fitted:
                yield batch[0], setting, estimators
            continue
        mine = [[each[place] for place in batch] for each in (Xs, ys, folds)]
        new = [clone(heads[place]) for place in batch]
        with _refusals(first.head, first.X, first.y, name):
            for setting, found in first.head.fit_folds_of_tasks(new, *mine, first.grid, weight):
                for place, estimators in zip(batch, found, strict=True):
                    yield place, setting, estimators


def fit_tasks(
    estimators: Sequence[BaseEstimator],
    Xs: Sequence[np.ndarray],
    ys: Sequence[np.ndarray],
    weight: np.ndarray | None = None,
    groups: Sequence[np.ndarray | None] | None = None,
    *,
    name: str = "",
) -> list[bool]:
    """Fit an estimator for each of several tasks, and tell which converged; see `fit_estimator`.

    The tasks are on the same rows, or on as many with other features, that weigh alike.
    """
    ys = [_with_unknown(estimator, y) for estimator, y in zip(estimators, ys, strict=True)]
    groups = groups or [None] * len(ys)
    weighted = weight is not None and not bool((weight > 0).all())
    keys = [
        (None if weighted or _num_classes(y) == 1 else _shared_settings(estimator), "")
        for estimator, y in zip(estimators, ys, strict=True)
    ]
    never = [np.full(len(X), -1) for X in Xs]
    converged = [False] * len(ys)
    for batch in _batches(estimators, keys, Xs, ys, never):
        mine = [estimators[place] for place in batch]
        rows, said = ([each[place] for place in batch] for each in (Xs, ys))
        with _refusals(mine[0], rows[0], said[0], name):
            done = mine[0].fit_tasks(mine, rows, said, weight) if len(batch) > 1 else [False]
        for place, is_done in zip(batch, done, strict=True):
            # One that did not converge is given more looks, by itself.
            more = estimators[place], Xs[place], ys[place], weight, groups[place]
            converged[place] = is_done or fit_estimator(*more, name=name)
    return converged


def _shared_settings(head: BaseEstimator) -> str | None:
    """Return what the heads of tasks must have in common to be fitted together; None for one that never is."""
    known = head.get_params(deep=False)
    if not isinstance(head, FitsTasks) or any(known.get(name) is not None for name in ("Cs", "alphas")):
        return None
    own = {*head.side_by_side, "class_weight", "random_state"}
    return repr((type(head), sorted((name, value) for name, value in known.items() if name not in own)))


def _batches(
    heads: Sequence[BaseEstimator],
    keys: Sequence[tuple[str | None, str]],
    *of_tasks: Sequence[np.ndarray],
) -> list[list[int]]:
    """Return the places of tasks that are fitted together: of equal keys, and as many as a head wants."""
    alike: dict[Any, list[int]] = {}
    for place, key in enumerate(keys):
        alike.setdefault(place if key[0] is None else key, []).append(place)
    found = []
    for places in alike.values():
        of_these = [[each[place] for place in places] for each in of_tasks]
        batches = [[0]] if len(places) == 1 else heads[places[0]].batches(*of_these)
        found += [[places[each] for each in batch] for batch in batches]
    return found


def _kept(fold: np.ndarray) -> list[np.ndarray]:
    """Return which rows are outside each fold; all of them where no row is held out."""
    return [fold != each for each in np.unique(fold[fold >= 0])] or [np.ones(len(fold), bool)]


def _goes_side_by_side(
    estimator: BaseEstimator, grid: Sequence[Mapping[str, Any]], y: np.ndarray, fold: np.ndarray
) -> bool:
    """Tell whether a head fits these settings and folds side by side.

    All folds must leave all classes, or three, where a head with one output for each class can do without some.
    """
    names = {key for setting in grid for key in setting}
    if not names or not names <= getattr(estimator, "side_by_side", frozenset()):
        return False
    enough = min(_num_classes(y), 3) if isinstance(estimator, FitsTasks) else _num_classes(y)
    return all(_num_classes(y[each]) >= enough for each in _kept(fold))


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


def _with_unknown(estimator: BaseEstimator, y: np.ndarray) -> np.ndarray:
    """Return labels or numbers as an estimator takes those that are not known: a regressor as NaN."""
    if not is_partial(y):
        return y
    return np.where(known_cells(y), y, np.nan) if is_regressor(last_step(estimator)) else y


def _fit_mean(estimator: DummyRegressor, X: np.ndarray, y: np.ndarray, weight: np.ndarray | None) -> None:
    """Fit the mean of each number over the rows where it is known; scikit-learn's own refuses others."""
    estimator.fit(X, np.nan_to_num(y))
    estimator.constant_ = mean_and_scale(y, weight)[0][None]


def _converges(estimator: BaseEstimator, X: np.ndarray, y: np.ndarray, beside: dict[str, np.ndarray]) -> bool:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        if isinstance(estimator, DummyRegressor) and is_partial(y):
            _fit_mean(estimator, X, y, beside.get("sample_weight"))
        else:
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


@contextmanager
def _refusals(estimator: BaseEstimator, X: np.ndarray, y: np.ndarray, name: str) -> Iterator[None]:
    """Say which head could not be fitted on what, where it raises."""
    try:
        yield
    except RequestError:  # an input that is gone is not the head's fault
        raise
    except (ValueError, RuntimeError, FloatingPointError, np.linalg.LinAlgError, MemoryError) as error:
        raise HeadError(_refusal(name or type(last_step(estimator)).__name__, X, y, error)) from error


def _refusal(name: str, X: np.ndarray, y: np.ndarray, error: BaseException) -> str:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    classes = f" in {count} classes" if (count := _num_classes(np.asarray(y))) else ""
    size = f"{X.shape[0]} rows of {X.shape[1]} features" if np.ndim(X) == 2 else f"an array of shape {np.shape(X)}"
    return f"head {name!r} cannot be fitted on {size}{classes}: {reason}. Choose another head or check the features"
