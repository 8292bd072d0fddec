"""The metrics by which settings and heads can be chosen: their names, what tables call them, and who has which.

Names are those of scikit-learn's scorers. What a metric is called among the scores of a kind of task is older, and
stays: results are kept under these names.

What each row adds to a metric that is no mean over rows: pseudo-values of the jackknife.

A metric of n rows changes when a row is left out; n - 1 times that change, added to the metric, is what the row adds.
Moved so that their mean is the metric itself, these take the place of the zeros and ones of accuracy: the spread of
their differences between two heads, divided by the root of n, is a standard error of the difference (Efron, "The
Jackknife, the Bootstrap and Other Resampling Plans", 1982). Of the area under the ROC curve they are the structural
components of DeLong, DeLong & Clarke-Pearson (Biometrics 44, 1988). Derivatives instead of rows left out are simpler,
but call one of nine equal heads worse by macro F1 in 12 % of tables of 150 rows with a class of 15; these do in 6 %.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from featurecache.errors import TaskError, UnknownNameError
from featurecache.specs import TaskKind

SCORES_OF_METRICS: dict[TaskKind, dict[str, tuple[str, str]]] = {
    "classification": {
        "accuracy": ("accuracy", "accuracy"),
        "balanced_accuracy": ("balanced_accuracy", "balanced"),
        "f1_macro": ("macro_f1", "macro F1"),
        "roc_auc": ("roc_auc", "AUROC"),
        "average_precision": ("average_precision", "AP"),
        "log_loss": ("log_loss", "log loss"),
    },
    "multilabel": {
        "average_precision": ("mean_average_precision", "mean AP"),
        "f1_macro": ("macro_f1", "macro F1"),
        "accuracy": ("exact_match", "all right"),
        "roc_auc": ("roc_auc", "AUROC"),
        "log_loss": ("log_loss", "log loss"),
    },
    "regression": {"r2": ("r2", "R2")},
}
"""Of each kind of task, the metrics (the default first): the name among its scores, and in tables."""
METRICS = tuple(dict.fromkeys(name for metrics in SCORES_OF_METRICS.values() for name in metrics))
OF_PROBA = frozenset({"roc_auc", "average_precision", "log_loss"})
"""Those that read probabilities; the others read the predicted classes. All of several labels read probabilities."""
_OTHER_NAMES = {
    "auc": "roc_auc",
    "auroc": "roc_auc",
    "roc_auc_ovr": "roc_auc",
    "ap": "average_precision",
    "balanced": "balanced_accuracy",
    "macro_f1": "f1_macro",
    "neg_log_loss": "log_loss",
}


def metric_named(name: str) -> str:
    """Return scikit-learn's name of a metric, from that or from a plain spelling: ``macro-f1``, ``AUROC``.

    Raises
    ------
    UnknownNameError
        There is no such metric.
    """
    # Papers and other tools write hyphens, spaces and capitals.
    plain = name.strip().lower().replace("-", "_").replace(" ", "_")
    found = _OTHER_NAMES.get(plain, plain)
    if found not in METRICS:
        raise UnknownNameError("metric", name, METRICS)
    return found


def metric_of(kind: TaskKind, metric: str | None, *, balanced: bool = False) -> str:
    """Return the metric of a kind of task.

    Parameters
    ----------
    kind : str
    metric : str or None
        As for `metric_named`; the default of the kind when None.
    balanced : bool
        The default is then balanced accuracy.

    Raises
    ------
    TaskError
        The kind does not have it.
    UnknownNameError
        There is no such metric.
    """
    if metric is None:
        return "balanced_accuracy" if balanced else next(iter(SCORES_OF_METRICS[kind]))
    if (found := metric_named(metric)) not in SCORES_OF_METRICS[kind]:
        able = ", ".join(SCORES_OF_METRICS[kind])
        raise TaskError(f"a task of kind {kind} has no metric {found}; leave it out, or choose among {able}")
    return found


def is_less_better(figure: str) -> bool:
    """Tell whether less of a score is better."""
    return figure == "log_loss"


LEAST_PROBABILITY = 1e-15
"""One certain mistake would cost infinity, and hide all others."""
Component = Callable[[np.ndarray, np.ndarray], tuple[float, np.ndarray]]
"""From what holds (n,) and scores (n,), the metric of one class, and the metric without each row, (n,)."""


def balanced_weights(y: np.ndarray) -> np.ndarray:
    """Return the weight of each row that gives all classes which occur the same total, of mean 1."""
    counts = np.bincount(y)
    return np.asarray(len(y) / (np.count_nonzero(counts) * counts[y]))


def f1_rows(y: np.ndarray, predictions: np.ndarray, n_classes: int) -> np.ndarray:
    """Return what each row adds to macro F1, (n,) float64.

    Parameters
    ----------
    y, predictions : ndarray of int (n,)
        Class indices; classes that occur in neither have no F1.
    n_classes : int
    """
    is_right = y == predictions
    right = np.bincount(y[is_right], minlength=n_classes)
    # Of each class, the rows of it and those that are predicted to be of it, the divisor of its F1.
    both = np.bincount(y, minlength=n_classes) + np.bincount(predictions, minlength=n_classes)
    f1, of_label, of_prediction = _f1(right, both), both[y] - 1 - is_right, both[predictions] - 1 - is_right
    total, count = f1.sum(), np.count_nonzero(both)
    without = total + _f1(right[y] - is_right, of_label) - f1[y]
    left = count - (of_label == 0).astype(np.int64)
    # A wrong row is in two classes.
    without += np.where(is_right, 0.0, _f1(right[predictions], of_prediction) - f1[predictions])
    left -= ~is_right & (of_prediction == 0)
    return _pseudo_values(total / count, without / np.maximum(left, 1))


def _f1(right: np.ndarray, both: np.ndarray) -> np.ndarray:
    return np.asarray(np.where(both > 0, 2 * right / np.maximum(both, 1), 0.0))


def _pseudo_values(value: float | np.ndarray, left_out: np.ndarray) -> np.ndarray:
    """Return what each row adds, from the metric and the metric without each row; their mean is the metric."""
    moved = (len(left_out) - 1) * (value - left_out)
    return np.asarray(value + moved - moved.mean())


def log_loss_rows(proba: np.ndarray) -> np.ndarray:
    """Return what each row adds to the negative log loss, from the probability of what holds, (n,)."""
    return np.asarray(np.log(np.maximum(proba, LEAST_PROBABILITY)))


def mean_rows(holds: Iterable[np.ndarray], scores: Iterable[np.ndarray], component: Component) -> np.ndarray:
    """Return what each row adds to the mean of a metric over classes or labels, (n,) float64.

    Parameters
    ----------
    holds : iterable of ndarray of int (n,)
        Of each class or label: 1, 0, or -1 where it is not known. One that is not both, 0 and 1, is left out.
    scores : iterable of ndarray (n,)
    component : callable
        `roc_auc` or `average_precision`.

    Returns
    -------
    ndarray
        NaN where no class or label has the metric.
    """
    rows = []
    for holding, scored in zip(holds, scores, strict=True):
        known = holding >= 0
        if len(np.unique(holding[known])) == 2:
            value, left_out = component(holding[known] == 1, np.asarray(scored[known], np.float64))
            found = np.full(len(known), value)
            # Rows of which nothing is known neither raise nor lower it.
            found[known] += (_pseudo_values(value, left_out) - value) * len(known) / np.count_nonzero(known)
            rows.append(found)
    if not rows:
        return np.full(len(known), np.nan)
    return np.asarray(np.mean(rows, axis=0))


def roc_auc(holds: np.ndarray, scores: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the area under the ROC curve, and that without each row.

    Parameters
    ----------
    holds : ndarray of bool (n,)
    scores : ndarray (n,)
    """
    positive, negative = np.sort(scores[holds]), np.sort(scores[~holds])
    # Of equal scores, half are on the right side.
    below = (np.searchsorted(negative, scores[holds]) + np.searchsorted(negative, scores[holds], "right")) / 2
    above = (np.searchsorted(positive, scores[~holds]) + np.searchsorted(positive, scores[~holds], "right")) / 2
    total, left_out = float(below.sum()), np.empty(len(scores))
    # Without the only row of a side there is no area: it is taken for the area of all rows.
    area = total / (len(positive) * len(negative))
    left_out[holds] = (total - below) / ((len(positive) - 1) * len(negative)) if len(positive) > 1 else area
    won = len(positive) - above
    left_out[~holds] = (total - won) / (len(positive) * (len(negative) - 1)) if len(negative) > 1 else area
    return area, left_out


def average_precision(holds: np.ndarray, scores: np.ndarray) -> tuple[float, np.ndarray]:
    """Return average precision as scikit-learn defines it, and that without each row.

    Parameters
    ----------
    holds : ndarray of bool (n,)
    scores : ndarray (n,)
    """
    order = np.argsort(-scores, kind="stable")
    held, num_held = holds[order].astype(np.float64), np.count_nonzero(holds)
    # Rows of equal scores are counted together: each has the precision at the end of its run.
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    of_run = np.searchsorted(ends, np.arange(len(order)))
    hits, seen = np.cumsum(held)[ends][of_run], (ends + 1.0)[of_run]
    value = float((held * hits / seen).sum() / num_held)
    # Without a row, those before its run are as precise as they were, and of the others one less is seen.
    starts, others = np.append(0, ends[:-1] + 1)[of_run], np.maximum(seen - 1, 1)
    before = np.append(0.0, np.cumsum(held * hits / seen))[starts]
    one_hit_less, no_hit_less = (
        np.append(np.cumsum((held * left / others)[::-1])[::-1], 0.0)[starts] for left in (hits - 1, hits)
    )
    of_positive = (before + one_hit_less - (hits - 1) / others) / (num_held - 1) if num_held > 1 else value
    left_out = np.empty(len(scores))
    left_out[order] = np.where(held > 0, of_positive, (before + no_hit_less) / num_held)
    return value, left_out
