"""How good predictions are: scikit-learn's scores, each with a 95 % interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support, recall_score

from featurecache.errors import TaskError
from featurecache.evaluation.intervals import group_cells, group_intervals, intervals
from featurecache.heads.fitting import check_rows

OutputScores = dict[str, str | float | None]
"""Name, number of samples and scores of one class, label or number; None for what so few samples do not have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Accuracy, balanced accuracy and macro F1 of ``n`` predictions, with 95 % intervals."""

    n: int
    """Number of rows that were predicted."""
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    balanced_accuracy: float
    """Mean recall of the classes that occur among the labels."""
    balanced_accuracy_low: float
    balanced_accuracy_high: float
    macro_f1: float
    """Mean F1 of the classes that occur among the labels or the predictions."""
    macro_f1_low: float
    macro_f1_high: float

    def to_json(self) -> dict[str, float]:
        """Return the fields as a dict of plain numbers, all finite."""
        return asdict(self)


def score(
    y_true: np.ndarray,
    y_pred: np.ndarray,
    n_classes: int,
    *,
    groups: np.ndarray | None = None,
    random_state: int = 0,
    n_resamples: int = 2000,
) -> Scores:
    """Score predictions.

    The scores are scikit-learn's; the intervals come from `featurecache.evaluation.intervals.intervals`.

    Parameters
    ----------
    y_true, y_pred : ndarray of shape (n_samples,), class indices below ``n_classes``
    n_classes : int
    groups : ndarray of int, shape (n_samples,), optional
        Rows of one group are alike: the bootstrap draws whole groups.
    random_state : int
        Seed of the bootstrap.
    n_resamples : int
        Number of bootstrap resamples.

    Raises
    ------
    TaskError
        No rows, or labels that are not class indices.
    """
    matrix = confusion(y_true, y_pred, n_classes)
    if groups is None or len(np.unique(groups)) == len(groups):
        low, high = intervals(matrix, random_state=random_state, n_resamples=n_resamples)
    else:
        cells = group_cells(y_true, y_pred, groups, n_classes)
        low, high = group_intervals(cells, n_classes, random_state=random_state, n_resamples=n_resamples)
    # balanced_accuracy_score is this recall, but warns about every class that is only predicted.
    balanced = recall_score(y_true, y_pred, labels=np.unique(y_true), average="macro", zero_division=0.0)
    point = np.array(
        [accuracy_score(y_true, y_pred), balanced, f1_score(y_true, y_pred, average="macro", zero_division=0.0)]
    )
    # The last digit may differ between the two ways to compute a score; an interval holds its score.
    low, high = np.minimum(low, point), np.maximum(high, point)
    values: dict[str, float] = {}
    for i, name in enumerate(("accuracy", "balanced_accuracy", "macro_f1")):
        values |= {name: float(point[i]), f"{name}_low": float(low[i]), f"{name}_high": float(high[i])}
    return Scores(n=len(y_true), **values)


def evaluate(estimator: BaseEstimator, X: np.ndarray, y: np.ndarray) -> Scores:
    """Score a fitted estimator on rows it was not fitted on; labels of any kind.

    Parameters
    ----------
    estimator : fitted classifier
    X : ndarray of shape (n_samples, n_features), real
    y : array-like of shape (n_samples,)
        Labels of the kind that the estimator was fitted on.

    Raises
    ------
    TaskError, HeadError
        No rows, or features that are not finite.
    """
    X, y = check_rows(X, y)
    y_pred = np.asarray(estimator.predict(X))
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
            f"{len(y_true)} labels cannot be compared with {len(y_pred)} predictions; pass one of each per row"
        )
    # scikit-learn would score names as well, and count a misspelt one as wrong.
    for what, values in (("label", y_true), ("prediction", y_pred)):
        if values.dtype.kind not in "iu" or values.min() < 0 or values.max() >= n_classes:
            raise TaskError(f"a {what} is not a class index in 0..{n_classes - 1}; encode labels as class indices")
    return confusion_matrix(y_true, y_pred, labels=np.arange(n_classes)).astype(np.int64)


def per_class(y_true: np.ndarray, y_pred: np.ndarray, classes: Sequence[str]) -> list[OutputScores]:
    """Return scikit-learn's precision, recall and F1 for each class.

    Parameters
    ----------
    y_true, y_pred : ndarray of shape (n_samples,), class indices
    classes : sequence of str
        Class names; position is the class index.

    Returns
    -------
    list of dict
        ``{"class", "n", "precision", "recall", "f1"}``, one per class in order; ``n`` counts the labels. A ratio
        without any row to count is 0.
    """
    precision, recall, f1, support = precision_recall_fscore_support(
        y_true, y_pred, labels=np.arange(len(classes)), average=None, zero_division=0.0
    )
    return [
        {"class": name, "n": int(n), "precision": float(p), "recall": float(r), "f1": float(f)}
        for name, n, p, r, f in zip(classes, support, precision, recall, f1, strict=True)
    ]
