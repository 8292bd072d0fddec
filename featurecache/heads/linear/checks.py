"""What linear heads check of labels, weights, strengths and folds before they fit; errors are scikit-learn's kind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import BaseCrossValidator, StratifiedGroupKFold, StratifiedKFold
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight

Folds: TypeAlias = int | BaseCrossValidator | Iterable[tuple[Any, Any]]


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


def checked_weight(
    sample_weight: ArrayLike | None, X: Any, y: NDArray[np.int64]
) -> tuple[Any, NDArray[np.int64], NDArray[np.float64] | None]:
    """Return rows, labels and weights without the rows that have no weight: they must be as if they were not there.

    Raises
    ------
    ValueError
        Weights that are negative, or not one for each row.
    """
    if sample_weight is None:
        return X, y, None
    weight = np.asarray(_check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True))
    kept = weight > 0
    return (X, y, weight) if kept.all() else (X[kept], y[kept], weight[kept])


def checked_strengths(given: float | Sequence[float], name: str) -> list[float]:
    """Return strengths in increasing order, each once.

    Raises
    ------
    ValueError
        One that is not positive.
    """
    strengths = sorted({float(each) for each in np.atleast_1d(np.asarray(given, np.float64))})
    if not strengths or not all(np.isfinite(each) and each > 0 for each in strengths):
        raise ValueError(f"{name} must be positive and finite, got {given!r}")
    return strengths


def fold_of_rows(
    cv: Folds, y: NDArray[np.int64], groups: ArrayLike | None, random_state: int | None
) -> NDArray[np.int64]:
    """Return the fold of each row, (n_samples,); -1 for rows that are never held out.

    Raises
    ------
    ValueError
        A splitter that holds out a row more than once.
    """
    if isinstance(cv, int):
        kind = StratifiedKFold if groups is None else StratifiedGroupKFold
        cv = kind(cv, shuffle=True, random_state=random_state)
    fold = np.full(len(y), -1)
    for number, (_, held_out) in enumerate(cv.split(np.zeros(len(y)), y, groups) if hasattr(cv, "split") else cv):
        if (fold[held_out] >= 0).any():
            raise ValueError("cv must hold out each row once; pass a splitter that divides the rows into folds")
        fold[held_out] = number
    return fold
