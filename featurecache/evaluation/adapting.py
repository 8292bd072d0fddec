"""A head for a target domain without labels: several ways to adapt the source, and the one that the target bears out.

The tuned head on the source alone is taken unless another one answers near neighbours in the target alike by more than
chance; see `featurecache.evaluation.agreement`. Adaptation hurts more often
than it helps, and nothing on the source shows that. Labels of target samples, where there are any, are looked at only
to be shown.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from featurecache.errors import RequestError, TaskError
from featurecache.evaluation.agreement import Agreement, choose_by_agreement
from featurecache.evaluation.configuring import resolve
from featurecache.evaluation.domains import cached_rows_of_domain
from featurecache.evaluation.intervals import LEAST_GROUPS, wilson
from featurecache.evaluation.measures import measure_of
from featurecache.evaluation.near_copies import near_copies
from featurecache.evaluation.search import search
from featurecache.evaluation.split_data import SplitData, check_splits
from featurecache.evaluation.task_features import read_splits, splits_without_features
from featurecache.evaluation.trained_head import TrainedHead
from featurecache.heads.adaptation import (
    able_methods,
    corrected_prior,
    fit_adaptation,
    shares_by_confusion,
    shifted_intercept,
)
from featurecache.heads.registry import LINEAR_PROBES
from featurecache.progress import Progress, Silent
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.samples import Rows, some_rows
from featurecache.store.store import FeatureStore
from featurecache.store.tasks import Task, read_views
from featurecache.wording import counted

HEAD: Final = LINEAR_PROBES["classification"]
"""Linear, so that it takes the adaptation into its coefficients; with probabilities."""
SHIFTS: Final = ("em", "bbse")
"""Corrections of the shares of classes, taken only where they are named: they hurt where anything else differs."""
MAX_FEATURES: Final = 8192
"""The covariance of more is too large."""
# Neighbours are compared all with all, of each head.
_MAX_TARGET_ROWS = 5000


@dataclass(frozen=True, slots=True, eq=False)
class AdaptedHead:
    """A head for the target domain, and what tells how good it is there.

    Attributes
    ----------
    method : str
    head : TrainedHead
        Its figures are of the source; its estimator takes target samples as they come.
    agreement : Agreement
        How far near neighbours in the target get the same class, beside the head on the source alone.
    accuracy : tuple of float or None
        On target samples with labels, with its interval; nothing is chosen by it.
    """

    method: str
    head: TrainedHead
    agreement: Agreement
    accuracy: tuple[float, float, float] | None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        accuracy = None if self.accuracy is None else dict(zip(("value", "low", "high"), self.accuracy, strict=True))
        values = asdict(self.agreement)
        # Of fewer than five groups there is no interval: its ends are infinite.
        plain = {name: value if np.isfinite(value) else None for name, value in values.items()}
        return {"method": self.method, "agreement": plain.pop("value"), **plain, "accuracy": accuracy}


@dataclass(frozen=True, slots=True, eq=False)
class AdaptationReport:
    """All ways that were tried, the source alone first.

    Attributes
    ----------
    heads : list of AdaptedHead
    chosen : AdaptedHead
    domain : str
    num_source, num_target, num_labeled : int
        Samples of the source, and of the target; those of the target that have a label.
    is_of_one_class : bool
        The head on the source gives nearly all of the target one class, which tells nothing about adapting.
    target_rows : ndarray of int64 (num_target,)
        Of the sample table.
    """

    heads: list[AdaptedHead]
    chosen: AdaptedHead
    domain: str
    num_source: int
    num_target: int
    num_labeled: int
    is_of_one_class: bool
    target_rows: Rows

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "domain": self.domain,
            "num_source": self.num_source,
            "num_target": self.num_target,
            "num_labelled": self.num_labeled,
            "is_of_one_class": self.is_of_one_class,
            "chosen": self.chosen.method,
            "methods": [head.to_json() for head in self.heads],
        }

    def about(self) -> dict[str, Any]:
        """Return what a kept head says of its adaptation."""
        return {"method": self.chosen.method, "target_domain": self.domain, "target_samples": self.num_target}


def adapt_heads(
    store: FeatureStore,
    task: Task,
    feature_set: FeatureSet,
    domain: str,
    method: str = "auto",
    *,
    random_state: int = 0,
    progress: Progress | None = None,
) -> AdaptationReport:
    """Fit the logistic head on the source, adapted to a target domain in one way or several, and choose.

    Parameters
    ----------
    store : FeatureStore
    task : Task
        With classes. Its samples of the target are left out of fitting.
    feature_set : FeatureSet
        Plain and pooled.
    domain : str
        The target: a split or a domain of the task, or a pattern of paths of cached samples, with a label or not.
    method : str
        ``source``, ``standardize``, ``coral``, ``subspace``, ``transport`` (extra ``adapt``), ``em`` or ``bbse``; or
        ``auto``: the first five as far as they are installed, and the rule at the top of this module.
    random_state : int
        Of folds, fits and the sample of the target.
    progress : Progress, optional
        Told of each way.

    Raises
    ------
    RequestError
        Another kind of task, an unknown way, or features that are too many.
    TaskError
        Too few samples are left for the source.
    """
    _check(task, feature_set, method)
    features = feature_set.open()
    target_rows = cached_rows_of_domain(store, task, domain, features)
    rows = some_rows(target_rows, _MAX_TARGET_ROWS, random_state)
    if len(rows) < LEAST_GROUPS:
        raise RequestError(
            f"the target domain {domain} has {counted(len(rows), 'sample')} with features; adapting takes "
            f"{LEAST_GROUPS} at least"
        )
    target = read_views(features, rows)[:, 0]
    # Near-copies get the same class whatever the head: they are one sample, and no neighbours of each other.
    copies = near_copies(target)
    alike = copies.group if copies.are_distinct else np.arange(len(target))
    source = _source_splits(task, feature_set, target_rows)
    assert task.samples is not None
    index = task.indices_of(rows)
    labels = np.where(index >= 0, task.labels[np.maximum(index, 0)], -1).astype(np.int64)  # -1: without a label
    # The source alone always comes first: what the others are compared with.
    methods = able_methods() if method == "auto" else list(dict.fromkeys(["source", method]))
    progress = progress or Silent()
    progress.start("adapting", len(methods))
    heads: list[TrainedHead] = []
    for name in methods:
        heads.append(_fitted(task, feature_set, source, target, name, random_state))
        progress.advance(1)
    predictions = [np.asarray(head.result.estimator.predict(target), np.int64) for head in heads]
    best, agreements, is_of_one_class = choose_by_agreement(target, predictions, alike)
    found = [
        AdaptedHead(name, head, agreed, _accuracy(labels, classes))
        for name, head, agreed, classes in zip(methods, heads, agreements, predictions, strict=True)
    ]
    return AdaptationReport(
        found,
        found[best] if method == "auto" else found[-1],
        domain,
        num_source=sum(len(data) for data in source.values()),
        num_target=len(target_rows),
        num_labeled=int((labels >= 0).sum()),
        is_of_one_class=is_of_one_class,
        target_rows=target_rows,
    )


def _check(task: Task, feature_set: FeatureSet, method: str) -> None:
    if task.kind != "classification":
        raise RequestError(f"adapting takes a task of classes; {task.name!r} is of kind {task.kind}")
    known = ("auto", *able_methods(), "transport", *SHIFTS)
    if method not in known:
        raise RequestError(f"unknown way to adapt {method!r}; known: {', '.join(dict.fromkeys(known))}")
    if feature_set.num_views is not None or not feature_set.is_pooled:
        raise RequestError(f"adapting takes plain, pooled features; {feature_set.tap} is not that")
    if (count := feature_set.activation_shape[0]) > MAX_FEATURES:
        raise RequestError(f"adapting takes up to {MAX_FEATURES:,} features; {feature_set.tap} has {count:,}, pool it")


def _source_splits(task: Task, feature_set: FeatureSet, target: Rows) -> dict[str, SplitData]:
    """Return the splits of a task without the samples of the target."""
    features = feature_set.open()
    rows, _ = splits_without_features(task, features, features)
    read = read_splits(task, features, features, ())
    kept = {name: np.flatnonzero(~np.isin(rows[name], target)) for name in read}
    found = {name: read[name].take(some) for name, some in kept.items() if len(some)}
    if "train" not in found or len(found) < 2:
        raise TaskError(
            f"task {task.name!r} has samples of the {', '.join(found) or 'target'} split alone outside the target "
            "domain; a source needs train samples, and others to judge by"
        )
    return found


def _fitted(
    task: Task,
    feature_set: FeatureSet,
    source: dict[str, SplitData],
    target: NDArray[np.float32],
    method: str,
    random_state: int,
) -> TrainedHead:
    """Return a head fitted on the adapted source, that takes target samples as they come."""
    measure = measure_of(task.kind, len(task.classes))
    # Plain features: one view of each sample.
    X = {name: np.asarray(data.eval_views[:])[:, 0] for name, data in source.items()}
    # A shift of the shares of classes moves the intercept alone, after the head is fitted on the source as it is.
    adaptation = fit_adaptation("source" if method in SHIFTS else method, X["train"], source["train"].y, target)
    mapped = {}
    for name, data in source.items():
        views = adaptation.of_source(X[name]).astype(np.float32)[:, None]
        mapped[name] = replace(data, fit_views=views, eval_views=views)
    result = search(resolve(HEAD, task.kind), check_splits(mapped, measure.check), measure, random_state)
    estimator: Any = result.estimator
    if method in SHIFTS:
        estimator.intercept_ = _corrected(task, estimator, method, source["train"], result, target)
    else:
        # Into the coefficients, so that the head takes target samples as they come.
        estimator.coef_, estimator.intercept_ = adaptation.unfold(estimator.coef_, estimator.intercept_)
        estimator.n_features_in_ = estimator.coef_.shape[1]
    return TrainedHead(task, feature_set, result, feature_set)


def _corrected(
    task: Task, estimator: Any, method: str, train: SplitData, result: Any, target: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Return the intercept of a head for the shares of classes in the target."""
    count = len(result.proba[0])
    prior = np.bincount(train.y, minlength=count) / len(train.y)
    proba = np.zeros((len(target), count))
    proba[:, estimator.classes_] = estimator.predict_proba(target)
    if method == "em":
        shares = corrected_prior(proba, np.maximum(prior, 1e-6))
    else:
        confusion = np.zeros((count, count))
        # Counted on rows that were not fitted on, each class weighed as it is in training.
        np.add.at(confusion, (result.selection_pred, result.selection_y), 1.0)
        if (unseen := np.flatnonzero((prior > 0) & (confusion.sum(axis=0) == 0))).size:
            raise TaskError(
                f"class {task.classes[unseen[0]]!r} is in no sample that the head was judged by, so bbse cannot tell "
                "its share; label more of it, or adapt by em"
            )
        confusion *= prior / np.maximum(confusion.sum(axis=0), 1.0)
        shares = shares_by_confusion(confusion, np.bincount(proba.argmax(axis=1), minlength=count) / len(proba), prior)
    return np.asarray(shifted_intercept(estimator.intercept_, shares, prior, estimator.classes_.tolist()))


def _accuracy(labels: NDArray[np.int64], classes: NDArray[np.int64]) -> tuple[float, float, float] | None:
    """Return the accuracy on the samples that have a label, with its interval."""
    known = labels >= 0
    if not (count := int(known.sum())):
        return None
    right = int((classes[known] == labels[known]).sum())
    low, high = wilson(right, count)
    return right / count, float(low), float(high)
