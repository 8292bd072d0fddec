"""The metrics by which settings and heads can be chosen: their names, what tables call them, and who has which.

Names are those of scikit-learn's scorers. What a metric is called among the scores of a kind of task is older, and
stays: results are kept under these names.
"""

from __future__ import annotations

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
