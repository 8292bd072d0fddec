"""What our own heads check of rows, labels, weights, grids and folds; errors are scikit-learn's kind."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.model_selection import BaseCrossValidator, GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_consistent_length, column_or_1d, validate_data

from featurecache.errors import HeadError
from featurecache.heads.gradient.datasets import InputDataset

# Of features; all else is converted to the first.
REAL_TYPES = [np.float64, np.float32]

# A label of which it is not known whether it holds; a number that is not known is NaN.
UNKNOWN = -1

# Numbers in all rows: below, float64 and a solution to the last digits cost next to nothing.
SMALL_PROBLEM = 5_000_000

Folds: TypeAlias = int | BaseCrossValidator | Iterable[tuple[Any, Any]]


def is_small(num_rows: int, num_features: int) -> bool:
    """Tell whether a problem is small enough to be computed in float64."""
    return num_rows * num_features <= SMALL_PROBLEM


def has_few_rows(num_rows: int, num_features: int) -> bool:
    """Tell whether problems are solved in the space of the rows.

    With more rows, one set of features for all folds saves more than a smaller space does.
    """
    return is_small(num_rows, num_features) and 2 * num_rows <= num_features


def is_known(y: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell which labels (0, 1 or `UNKNOWN`) or numbers (or NaN) are known, of the shape of ``y``."""
    return np.asarray(np.isfinite(y) if y.dtype.kind == "f" else y >= 0)


def is_partial(y: NDArray[Any]) -> bool:
    """Tell whether any of several labels or numbers (n_samples, n_outputs) is not known."""
    return y.ndim == 2 and not bool(is_known(y).all())


def columns_by_known_rows(known: NDArray[np.bool_]) -> list[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
    """Return columns that are known for the same rows, and these rows: what is fitted together."""
    found: dict[bytes, list[int]] = {}
    for column in range(known.shape[1]):
        found.setdefault(known[:, column].tobytes(), []).append(column)
    return [(np.array(columns), known[:, columns[0]]) for columns in found.values()]


def checked_rows(
    estimator: BaseEstimator, X: Any, y: ArrayLike, *, several: bool = False, numbers: bool = False
) -> tuple[Any, NDArray[Any]]:
    """Return features, float64 or float32, or a memory map as it is, and labels.

    Parameters
    ----------
    estimator : BaseEstimator
        Gets to know the number of features.
    X, y : array-like
    several : bool
        Labels may be (n_samples, n_outputs).
    numbers : bool
        They must be numbers.

    Raises
    ------
    ValueError
        Rows that scikit-learn's estimators refuse too.
    """
    if isinstance(X, np.memmap | InputDataset):  # scikit-learn's own checks would copy it
        estimator.n_features_in_ = X.shape[-1]
        y = np.asarray(y) if several and np.ndim(y) == 2 else column_or_1d(y)
        check_consistent_length(X, y)
        return X, y
    X, y = (
        checked_numbers(estimator, X, y)
        if numbers
        else validate_data(estimator, X, y, dtype=REAL_TYPES, order="C", multi_output=several)
    )
    y = np.asarray(y)
    return X, column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 and not numbers else y


def checked_numbers(estimator: BaseEstimator, X: Any, y: ArrayLike) -> tuple[Any, NDArray[Any]]:
    """Return features and numbers, (n_samples,) or (n_samples, n_targets); of several, some may be NaN: not known.

    Parameters
    ----------
    estimator : BaseEstimator
        Gets to know the number of features.
    X, y : array-like

    Raises
    ------
    ValueError
        What scikit-learn's estimators refuse too, or a target that is known for no row.
    """
    numbers = np.asarray(y)
    if not (numbers.ndim == 2 and numbers.dtype.kind == "f" and np.isnan(numbers).any()):
        X, numbers = validate_data(estimator, X, y, dtype=REAL_TYPES, order="C", multi_output=True, y_numeric=True)
        return X, np.asarray(numbers)
    X = validate_data(estimator, X, dtype=REAL_TYPES, order="C")
    check_consistent_length(X, numbers)
    if np.isinf(numbers).any():
        raise ValueError("Input y contains infinity")
    return X, numbers


def checked_class_weight(given: Any, classes: NDArray[Any]) -> NDArray[np.float64] | Literal["balanced"] | None:
    """Return the weight of each class, or ``given`` where it is None or "balanced".

    Raises
    ------
    ValueError
        Anything but these and a mapping.
    """
    if given is None or given == "balanced":
        return given
    if not isinstance(given, Mapping):
        raise ValueError(f"class_weight must be None, 'balanced' or a mapping, got {given!r}")
    return np.array([float(given.get(label, 1.0)) for label in classes.tolist()])


def checked_indicator(y: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices of the labels, and which of them each row has, (n_samples, n_labels), 0, 1 or `UNKNOWN`.

    Raises
    ------
    ValueError
        Anything but these.
    """
    if y.dtype.kind not in "biuf" or not np.isin(y, (0, 1, UNKNOWN)).all():
        raise ValueError(
            f"Unknown label type: several labels of a row must be given as zeros and ones, {UNKNOWN} where not known"
        )
    return np.arange(y.shape[1]), y.astype(np.int64)


def checked_labels(y: ArrayLike) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the classes, and the index of each row's class.

    Raises
    ------
    ValueError
        Labels that are no classes, or only one class.
    """
    check_classification_targets(y)
    classes, y_index = np.unique(np.asarray(y), return_inverse=True)
    if len(classes) == 1:
        raise ValueError(f"Classifier can't train when only one class is present: {classes[0]!r}")
    return classes, y_index.astype(np.int64)


def checked_to_fit(
    estimator: BaseEstimator,
    X: Any,
    y: ArrayLike,
    sample_weight: ArrayLike | None,
    groups: ArrayLike | None,
    *,
    numbers: bool = False,
) -> tuple[Any, NDArray[Any], NDArray[np.float64] | None, NDArray[np.int64] | None]:
    """Return features, labels or numbers, weights and groups of the rows that have a weight.

    Parameters
    ----------
    estimator, X, y, numbers
        As for `checked_rows`.
    sample_weight, groups : array-like of shape (n_samples,), or None

    Raises
    ------
    ValueError
        What scikit-learn's estimators refuse too.
    """
    rows, targets = checked_rows(estimator, X, y, several=True, numbers=numbers)
    if numbers:
        targets = targets.astype(np.float64)
    else:
        check_classification_targets(targets)
    weight = checked_weight(sample_weight, rows)
    weight, rows, targets, group = with_weight(weight, rows, targets, checked_groups(groups, rows))
    return rows, targets, weight, group


def checked_weight(sample_weight: ArrayLike | None, X: Any) -> NDArray[np.float64] | None:
    """Return the weight of each row, if there are weights.

    Raises
    ------
    ValueError
        Weights that are negative, or not one for each row.
    """
    if sample_weight is None:
        return None
    return np.asarray(_check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True))


def checked_groups(groups: ArrayLike | None, X: Any) -> NDArray[np.int64] | None:
    """Return the number of each row's group, if there are groups.

    Raises
    ------
    ValueError
        Not one group for each row.
    """
    if groups is None:
        return None
    check_consistent_length(X, groups)
    return np.unique(np.asarray(groups), return_inverse=True)[1].astype(np.int64)


def with_weight(weight: NDArray[np.float64] | None, *arrays: Any) -> list[Any]:
    """Return weights and arrays without the rows that have no weight: they must be as if they were not there."""
    if weight is None or (weight > 0).all():
        return [weight, *arrays]
    return [None if array is None else array[weight > 0] for array in (weight, *arrays)]


def check_whole_number(name: str, value: Any, least: int) -> None:
    """Raise `ValueError` unless ``value``, the parameter ``name``, is a whole number of at least ``least``."""
    # True is an int too, and nobody means 1 by it.
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


Scaling = bool | Literal["jointly"]
"""How features are standardised: each by itself, not at all, or all by one number."""


def prior_rows_of(standardize: Scaling, prior_rows: float) -> float:
    """Return the prior rows of the variances, infinitely many where one is to be the variance of all features.

    Raises
    ------
    ValueError
        Neither yes nor no nor "jointly".
    """
    if standardize is True or standardize is False:
        return prior_rows
    if standardize != "jointly":
        raise ValueError(f'standardize must be True, False or "jointly", got {standardize!r}')
    return math.inf


def by_scaling(
    estimator: BaseEstimator, settings: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[dict[str, Any], list[Mapping[str, Any]]]]:
    """Yield parameters that say how features are standardised, and the settings that have them, in their order."""
    for scaling, some in groupby(settings, lambda setting: setting.get("standardize", estimator.standardize)):
        yield {"standardize": scaling}, list(some)


def check_prior_rows(given: Any) -> None:
    """Raise `ValueError` for a negative number of rows."""
    # Not `given < 0`: NaN is refused too.
    if not given >= 0:
        raise ValueError(f"prior_rows must be 0 or more, got {given!r}")


def check_units(head: Any, names: Sequence[str]) -> None:
    """Raise `HeadError` unless a head that was read has these numbers of each feature just where it is to standardise.

    Parameters
    ----------
    head : estimator
        With the parameter ``standardize``.
    names : sequence of str
        Of attributes, (n_features,) float each.
    """
    kind, units = type(head).__name__, [vars(head).get(name) for name in names]
    if type(head.standardize) is not bool:
        raise HeadError(f"its {kind} has standardize={head.standardize!r}, which is neither true nor false")
    for unit in units:
        if (unit is not None) != head.standardize:
            raise HeadError(f"its {kind} has units of its features without need, or none where it needs them")
        # numpy would stretch a single number to all features without a word.
        if unit is not None and not (np.shape(unit) == (head.n_features_in_,) and np.isfinite(unit).all()):
            raise HeadError(f"the units of the features of its {kind} are not a finite number for each of them")


def checked_grid_values(given: float | Sequence[float], name: str) -> list[float]:
    """Return values of C or alpha in increasing order, each once.

    Raises
    ------
    ValueError
        One that is not positive.
    """
    values = sorted({float(value) for value in np.atleast_1d(np.asarray(given, np.float64))})
    if not values or not all(np.isfinite(value) and value > 0 for value in values):
        raise ValueError(f"{name} must be positive and finite, got {given!r}")
    return values


def fold_of_rows(
    cv: Folds, y: NDArray[Any], groups: ArrayLike | None, random_state: int | None, *, classes: bool = True
) -> NDArray[np.int64]:
    """Return the fold of each row, (n_samples,); -1 for rows that are never held out.

    Parameters
    ----------
    cv : int, splitter or iterable of (train, test)
    y : ndarray (n_samples,), or (n_samples, n_outputs)
    groups : array-like of shape (n_samples,), or None
    random_state : int or None
    classes : bool
        Rows have classes: a number of folds is stratified then.

    Raises
    ------
    ValueError
        A splitter that holds out a row more than once.
    """
    if isinstance(cv, int):
        if classes:
            kind = StratifiedKFold if groups is None else StratifiedGroupKFold
        else:
            kind = KFold if groups is None else GroupKFold
        cv = kind(cv, shuffle=True, random_state=random_state)
    # Splitters take only the number of rows from the features: zeros do, and nothing is read.
    fold = np.full(len(y), -1)
    for number, (_, held_out) in enumerate(cv.split(np.zeros(len(y)), y, groups) if hasattr(cv, "split") else cv):
        if (fold[held_out] >= 0).any():
            raise ValueError("cv must hold out each row once; pass a splitter that puts each row into one fold")
        fold[held_out] = number
    return fold
