"""How good predictions are: scikit-learn's scores, each with a 95 % interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, recall_score

from featurecache.errors import TaskError
from featurecache.evaluation.intervals import Cells, group_intervals, holding, intervals
from featurecache.heads.fitting import check_rows
from featurecache.records import PlainValues
from featurecache.wording import counted

OutputScores = dict[str, str | float | None]
"""Name, number of samples and scores of one class, label or number; None for what so few samples do not have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores(PlainValues):
    """Accuracy, balanced accuracy and macro F1 of ``n`` predictions, with 95 % intervals.

    Bounds are None where no interval can be given: of all scores with fewer than 5 groups, of balanced accuracy and
    macro F1 with a class of fewer than 5 rows.
    """

    n: int
    """Number of rows that were predicted."""
    accuracy: float
    accuracy_low: float | None
    accuracy_high: float | None
    balanced_accuracy: float
    """Mean recall of the classes that occur among the labels."""
    balanced_accuracy_low: float | None
    balanced_accuracy_high: float | None
    macro_f1: float
    """Mean F1 of the classes that occur among the labels or the predictions."""
    macro_f1_low: float | None
    macro_f1_high: float | None


def score(y_true: np.ndarray, y_pred: np.ndarray, n_classes: int, *, groups: np.ndarray | None = None) -> Scores:
    """Score predictions.

    The scores are scikit-learn's; the intervals come from `featurecache.evaluation.intervals`.

    Parameters
    ----------
    y_true, y_pred : ndarray of shape (n_samples,), class indices below ``n_classes``
    n_classes : int
    groups : ndarray of int, shape (n_samples,), optional
        Rows of one group are alike: the intervals are of as many groups.

    Raises
    ------
    TaskError
        No rows, or labels that are not class indices.
    """
    matrix = confusion(y_true, y_pred, n_classes)
    labels, predictions = np.nonzero(matrix)
    cells = Cells(labels, predictions, n_classes)
    if groups is None or len(np.unique(groups)) == len(groups):
        low, high = intervals(matrix[None, labels, predictions], cells)
    else:
        order = np.argsort(groups, kind="stable")
        numbers = np.zeros(matrix.shape, np.int64)
        numbers[labels, predictions] = np.arange(len(labels))
        starts = np.unique(groups[order], return_index=True)[1]
        low, high = group_intervals(numbers[y_true[order], y_pred[order]][None], starts, cells)
    # balanced_accuracy_score is this recall, but warns about every class that is only predicted.
    balanced = recall_score(y_true, y_pred, labels=np.unique(y_true), average="macro", zero_division=0.0)
    point = [accuracy_score(y_true, y_pred), balanced, f1_score(y_true, y_pred, average="macro", zero_division=0.0)]
    values: dict[str, float | None] = {}
    names = ("accuracy", "balanced_accuracy", "macro_f1")
    for name, value, *ends in zip(names, map(float, point), low[0].tolist(), high[0].tolist(), strict=True):
        # The last digit may differ between the two ways to compute a score; an interval holds its score.
        bounds = (None, None) if np.isnan(ends[0]) else holding(value, *ends)
        values |= {name: value, f"{name}_low": bounds[0], f"{name}_high": bounds[1]}
    return Scores(n=len(y_true), **values)  # type: ignore[arg-type]


def evaluate(estimator: BaseEstimator, X: np.ndarray, y: np.ndarray) -> Scores:
    """Score a fitted estimator on rows it was not fitted on; labels of any kind.

    Parameters
    ----------
    estimator : fitted classifier
    X : ndarray of shape (n_samples, n_features), real
    y : array-like of shape (n_samples,)
        Labels of the kind that the estimator was fitted on: codes, or names.

    Raises
    ------
    TaskError, HeadError
        No rows, codes where the estimator predicts names or the other way round, or features that are not finite.
    """
    X, y = check_rows(X, y)
    y_pred = np.asarray(estimator.predict(X))
    # As text, code 1 would be the class that is called 1.
    if (y.dtype.kind in "OSU") != (y_pred.dtype.kind in "OSU"):
        raise TaskError(
            f"labels are {y.dtype} and predictions {y_pred.dtype}: one are codes and the other names of classes; fit "
            "and evaluate on the same, `Task.decode` gives the names of codes"
        )
    # A head may predict classes that the new rows do not have.
    classes, indices = np.unique(np.concatenate([y, y_pred]), return_inverse=True)
    return score(indices[: len(y)], indices[len(y) :], len(classes))


def confusion(y_true: np.ndarray, y_pred: np.ndarray, n_classes: int) -> np.ndarray:
    """Return the confusion matrix, (n_classes, n_classes) int64; rows are labels, columns predictions.

    Parameters
    ----------
    y_true, y_pred : ndarray of shape (n_samples,), class indices
    n_classes : int

    Raises
    ------
    TaskError
        No rows, arrays of different length, or labels that are not class indices.
    """
    y_true, y_pred = np.asarray(y_true), np.asarray(y_pred)
    if len(y_true) == 0:
        raise TaskError("there are no rows to score; give the split that is scored some labelled rows")
    if y_true.shape != y_pred.shape:
        raise TaskError(
            f"{counted(len(y_true), 'label')} cannot be compared with {counted(len(y_pred), 'prediction')}; pass "
            "one of each "
            "per row"
        )
    # scikit-learn would score names as well, and count a misspelt one as wrong.
    for what, values in (("label", y_true), ("prediction", y_pred)):
        if values.dtype.kind not in "iu" or values.min() < 0 or values.max() >= n_classes:
            raise TaskError(f"a {what} is not a class index in 0..{n_classes - 1}; encode labels as class indices")
    return confusion_matrix(y_true, y_pred, labels=np.arange(n_classes)).astype(np.int64)
