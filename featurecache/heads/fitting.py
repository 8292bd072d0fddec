"""Fitting a head on whatever rows there are, few or many, and telling whether it converged."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, clone, is_regressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import has_fit_parameter

from featurecache.errors import FeatureCacheError, HeadError, TaskError
from featurecache.heads.baseline import MajorityClassifier
from featurecache.heads.checks import is_known, is_partial
from featurecache.heads.head import Setting
from featurecache.heads.recorded_warnings import recorded_warnings
from featurecache.heads.registry import make_head
from featurecache.heads.solver.classifier import LinearClassifier
from featurecache.wording import counted

# Once more, and not until it converges: separable classes would take any number of them where C is large.
_MORE_ITERATIONS = 5
# Of features that are checked at a time.
_ROWS_BYTES = 64 << 20


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
    estimator : estimator
        Unfitted; changed in place.
    X : ndarray of shape (n_samples, n_features), float32 or float64
    y : ndarray of shape (n_samples,), or (n_samples, n_outputs)
        Class indices; labels or numbers.
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
    if is_partial(y) and is_regressor(estimator):  # numbers that are not known are NaN, also those of labels
        y = np.where(is_known(y), y, np.nan)
    limit = estimator.get_params(deep=False).get("max_iter")
    given = {"sample_weight": weight, "groups": groups}
    fit_params = {key: value for key, value in given.items() if value is not None and has_fit_parameter(estimator, key)}
    for more in (1, _MORE_ITERATIONS):
        if more > 1:
            if not isinstance(limit, int) or limit < 1:
                return False
            estimator.set_params(max_iter=more * limit)
        with refusals(estimator, X, y, name), recorded_warnings() as caught:
            estimator.fit(X, y, **fit_params)
        for warning in caught:
            # Recorded to see whether it converged; what else was warned of is for the user.
            if not issubclass(warning.category, ConvergenceWarning):
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        if not any(issubclass(warning.category, ConvergenceWarning) for warning in caught):
            return True
    return False


def fit_folds(
    estimator: BaseEstimator,
    settings: Sequence[Setting],
    X: np.ndarray,
    y: np.ndarray,
    fold: np.ndarray,
    weight: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    *,
    name: str = "",
) -> Iterator[tuple[Setting, list[BaseEstimator]]]:
    """Fit every setting without each fold: together where the head can, else one after the other.

    Parameters
    ----------
    estimator : estimator
        Unfitted; is not changed.
    settings : sequence of mapping
        Parameters of the estimator, the simplest model first.
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

    Returns
    -------
    iterator of (setting, estimators)
        One fitted estimator for each fold; a single one where no row is held out. A fold without which one class is
        left gets an estimator that always predicts that. What a head refuses is raised as it comes; see `refusals`.
    """
    if is_partial(y) and is_regressor(estimator):
        y = np.where(is_known(y), y, np.nan)
    if not fits_together(estimator, settings, y, fold):
        return _fit_each(estimator, settings, X, y, fold, weight, groups, name)
    given, known = {"sample_weight": weight, "groups": groups}, signature(estimator.fit_path).parameters
    fit_params = {key: value for key, value in given.items() if value is not None and key in known}
    found: Iterator[tuple[Setting, list[BaseEstimator]]] = estimator.fit_path(X, y, fold, settings, **fit_params)
    return found


def fits_together(estimator: BaseEstimator, settings: Sequence[Setting], y: np.ndarray, fold: np.ndarray) -> bool:
    """Tell whether a head fits these settings and folds together.

    Parameters
    ----------
    estimator : estimator
    settings : sequence of mapping
    y, fold : ndarray
        As for `fit_folds`. All folds must leave all classes, or three, where a head with one output for each class can
        do without some.
    """
    names = {key for setting in settings for key in setting}
    if not names or not names <= getattr(estimator, "path_params", frozenset()):
        return False
    # Else one class with a single row would make every setting and fold a fit of its own.
    enough = min(_num_classes(y), 3) if isinstance(estimator, LinearClassifier) else _num_classes(y)
    if not (fold >= 0).any():
        return _num_classes(y) >= enough
    return all(_num_classes(y[fold != number]) >= enough for number in np.unique(fold[fold >= 0]))


def _fit_each(
    estimator: BaseEstimator,
    settings: Sequence[Setting],
    X: np.ndarray,
    y: np.ndarray,
    fold: np.ndarray,
    weight: np.ndarray | None,
    groups: np.ndarray | None,
    name: str,
) -> Iterator[tuple[Setting, list[BaseEstimator]]]:
    # All rows where none is held out.
    outside_folds = [fold != number for number in np.unique(fold[fold >= 0])] or [np.ones(len(fold), bool)]
    for setting in settings:
        fitted = []
        for kept in outside_folds:
            one_class = _num_classes(y[kept]) == 1
            fitted.append(MajorityClassifier() if one_class else clone(estimator).set_params(**setting))
            rows: list[Any] = [X, y, weight, groups]
            # Indexing copies: where nothing is held out, the arrays are handed on as they are.
            if not kept.all():
                rows = [None if array is None else array[kept] for array in rows]
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
    X, y = check_rows(X, y)
    if len(np.unique(y)) < 2:
        raise TaskError(f"{counted(len(y), 'row', verb='has')} one label; a head needs rows of two classes or more")
    fit_estimator(estimator, X, y, name=name)
    return estimator


def check_features(X: np.ndarray, split: str) -> np.ndarray:
    """Return ``X`` as a contiguous (n_samples, n_features) array of float32 or float64, all finite.

    Raises
    ------
    HeadError
        Wrong number of axes, no feature, or a value that is not finite.
    """
    X = X if isinstance(X, np.memmap) else np.asarray(X)
    if X.ndim != 2 or X.shape[1] == 0:
        raise HeadError(
            f"{split} features have shape {X.shape}, heads need (n_samples, n_features); pool the tap first"
        )
    if X.dtype.kind not in "fiub":
        raise HeadError(f"{split} features are {X.dtype}, heads need real numbers; convert them first")
    if not (X.flags.c_contiguous and X.dtype in (np.float32, np.float64)):
        X = np.ascontiguousarray(X, dtype=X.dtype if X.dtype == np.float64 else np.float32)
    step = max(_ROWS_BYTES // (X.shape[1] * X.itemsize), 1)
    finite = np.concatenate(
        [np.isfinite(X[start : start + step]).all(axis=1) for start in range(0, len(X), step)] or [np.ones(0, bool)]
    )
    if not finite.all():
        row = int(np.argmin(finite))
        raise HeadError(
            f"{split} features are not finite in {counted((~finite).sum(), 'row', of=len(X))}, first in row {row}; "
            "extract these rows again in float32 or leave them out"
        )
    return X


def check_rows(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ``X`` as `check_features` does and ``y``, of any kind, as an array of as many labels.

    Raises
    ------
    TaskError, HeadError
        No rows, not one label per row, or features that are not finite numbers.
    """
    y = np.asarray(y)
    if y.ndim != 1 or len(y) != len(X) or len(y) == 0:
        raise TaskError(
            f"{counted(len(X), 'row')} and labels of shape {y.shape} do not match; give one label for each of some rows"
        )
    return check_features(X, "given"), y


@contextmanager
def refusals(estimator: BaseEstimator, X: np.ndarray, y: np.ndarray, name: str) -> Iterator[None]:
    """Raise `HeadError` that names the head and the data where fitting raises.

    Parameters
    ----------
    estimator : estimator
    X, y : ndarray
        What it is fitted on.
    name : str
        Of the head; its class when empty.
    """
    try:
        yield
    except FeatureCacheError:  # says already what is wrong, and is not always the head's fault
        raise
    except (ValueError, RuntimeError, FloatingPointError, np.linalg.LinAlgError, MemoryError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        classes = f" in {counted(count, 'class')}" if (count := _num_classes(np.asarray(y))) else ""
        size = (
            f"{counted(X.shape[0], 'row')} of {counted(X.shape[-1], 'feature')}"
            if len(np.shape(X)) > 1
            else f"an array of shape {np.shape(X)}"
        )
        raise HeadError(
            f"head {(name or type(estimator).__name__)!r} cannot be fitted on {size}{classes}: {reason}. Choose "
            "another head or check the features"
        ) from error
