"""Errors of an arm by split: on rows that are in the evidence, fitted without them, and on rows that are not in it."""

from __future__ import annotations

import numpy as np

from featurecache.advice.diagnosis import ErrorsOf
from featurecache.advice.evidence import MAX_ROWS, Evidence, gains
from featurecache.advice.probe import predict_new
from featurecache.advice.probed_arms import ProbedArm
from featurecache.evaluation.domains import cached_rows_of_domain
from featurecache.evaluation.intervals import LEAST_GROUPS
from featurecache.evaluation.selection import fold_numbers
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.labels import SPLITS
from featurecache.store.samples import Rows, some_rows
from featurecache.store.store import FeatureStore
from featurecache.store.tasks import Task, read_views


def rows_of_test_split(
    store: FeatureStore, task: Task, feature_set: FeatureSet, domain: str | None = None, *, random_state: int = 0
) -> Rows:
    """Return the rows of the test split, or a sample of them; only those of a domain where one is named.

    Parameters
    ----------
    store : FeatureStore
    task : Task
    feature_set : FeatureSet
    domain : str, optional
        All test rows where it is the name of a split.
    random_state : int
        Of the sample.
    """
    if not task.has("test"):
        return np.empty(0, np.int64)
    features = feature_set.open()
    rows = some_rows(task.rows(features, "test")[0], MAX_ROWS, random_state)
    if domain is None or domain in SPLITS:
        return rows
    return rows[np.isin(rows, cached_rows_of_domain(store, task, domain, features))]


def errors_on(evidence: Evidence, arm: ProbedArm, rows: Rows) -> ErrorsOf:
    """Return the errors on other rows by the fit on all rows of the evidence, and the groups of those rows.

    Parameters
    ----------
    evidence : Evidence
    arm : ProbedArm
    rows : ndarray of int64
        Those without a label are left out.
    """
    task, features = evidence.task, arm.feature_set.open()
    found = [task.rows(features, split) for split in filter(task.has, SPLITS)]
    known, y = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    known, y = known[chosen := np.isin(known, rows)], y[chosen]
    X = read_views(features, known)[:, 0]
    # With the penalty that was chosen out of fold: these rows choose nothing.
    predicted = predict_new(arm.features(), evidence.targets, X, arm.probe.penalty)
    groups = task.groups_of(known)
    return 1.0 - gains(y, predicted, task.kind), None if groups is None else groups.astype(np.int64)


def errors_by_split(evidence: Evidence, arm: ProbedArm, *, random_state: int = 0) -> dict[str, ErrorsOf]:
    """Return errors on samples cut from the train split (``train-dev``) and on the validation split (``dev``).

    Both are of one fit, on the rest of the train split; too few rows have no errors.

    Parameters
    ----------
    evidence : Evidence
    arm : ProbedArm
    random_state : int
        Of the cut.
    """
    task = evidence.task
    X, is_train = arm.features(), task.splits[task.indices_of(evidence.rows)] == SPLITS.index("train")
    cut, found = is_train.copy(), dict[str, ErrorsOf]()
    groups = None if evidence.groups is None else evidence.groups[is_train]
    if is_train.sum() > LEAST_GROUPS and (groups is None or len(np.unique(groups)) > 1):
        cut[is_train] = fold_numbers(evidence.y[is_train], groups, random_state=random_state) == 0
    fitted = is_train & ~cut
    for name, rows in (("train-dev", cut), ("dev", ~is_train)):
        if fitted.sum() < LEAST_GROUPS or rows.sum() < LEAST_GROUPS:
            continue
        predicted = predict_new(X[fitted], evidence.targets[fitted], X[rows], arm.probe.penalty)
        groups = None if evidence.groups is None else evidence.groups[rows]
        found[name] = 1.0 - gains(evidence.y[rows], predicted, task.kind), groups
    return found
