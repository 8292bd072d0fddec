"""Bias, variance or mismatch: which of the gaps between errors is the largest, and what to do about it.

The decomposition is Ng's ("Machine Learning Yearning", 2018, chapters 20 to 43): error in the sample (avoidable bias,
as far as the task can be done without error), out of fold less in the sample (variance), on the target less out of fold
(mismatch), and on test data less on the data that choices were made by (overfitting to the dev set). A gap is named
only where its interval excludes zero and it is larger than the next by more than chance (5 %, one-sided).

Errors of an arm by split: on rows that are in the evidence, fitted without them, and on rows that are not in it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from featurecache.advice.evidence import MAX_ROWS, Evidence, ProbedArm, gains
from featurecache.advice.finding import Finding
from featurecache.advice.paired import in_words, mean_difference
from featurecache.advice.probe import predict_new
from featurecache.evaluation.domains import cached_rows_of_domain
from featurecache.evaluation.intervals import LEAST_GROUPS
from featurecache.evaluation.selection import fold_numbers
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.labels import SPLITS
from featurecache.store.samples import Rows, some_rows
from featurecache.store.store import FeatureStore
from featurecache.store.tasks import Task, read_views

_WHAT_TO_DO = {
    "bias": "richer features: another layer or backbone, or layers trained deeper",
    "variance": "more labels, augmented views, or stronger regularisation",
    "mismatch": "labels of the target, or adaptation to it",
    "overfitting to dev": "a larger dev set",
}
ErrorsOf = tuple[NDArray[np.float64], NDArray[np.int64] | None]
"""Errors of rows, (n,), and the groups of these."""


def diagnosis_finding(
    in_sample: NDArray[np.float64],
    out_of_fold: NDArray[np.float64],
    floor: NDArray[np.float64],
    groups: NDArray[np.int64] | None = None,
    *,
    target: NDArray[np.float64] | None = None,
    target_groups: NDArray[np.int64] | None = None,
    target_name: str = "target",
    others: Mapping[str, ErrorsOf] | None = None,
    commands: Mapping[str, str | None] | None = None,
) -> Finding:
    """Name the largest gap.

    Parameters
    ----------
    in_sample, out_of_fold, floor : ndarray (n,)
        Errors of each row: of the fit on all rows, of fits without it, and of the largest class.
    groups : ndarray of int (n,), optional
    target : ndarray (m,), optional
        Errors of the rows of another split or domain, by the fit on all rows.
    target_groups : ndarray of int (m,), optional
    target_name : str
    others : mapping of str to (errors, groups), optional
        Of other rows, each by a fit that has not seen them: ``train-dev``, ``dev``, ``test``. Of the last one the
        difference from the target, else from ``dev``, is a gap too.
    commands : mapping, optional
        By gap: what to run next.
    """
    others = dict(others or {})
    fit = {"in sample": (in_sample, groups), "out of fold": (out_of_fold, groups)}
    gaps = {"bias": _Gap({"fit": (in_sample, groups)}), "variance": _Gap({"fit": (out_of_fold - in_sample, groups)})}
    if target is not None:
        gaps["mismatch"] = _Gap({"target": (target, target_groups), "fit": (-out_of_fold, groups)})
    # Test data are compared with what choices were made by: the target where there is one.
    if "test" in others and target is not None:
        gaps["overfitting to dev"] = _Gap({"test": others["test"], "target": (-target, target_groups)})
    elif "test" in others and "dev" in others:
        dev, dev_groups = others["dev"]
        gaps["overfitting to dev"] = _Gap({"test": others["test"], "dev": (-dev, dev_groups)})
    errors = {"largest class": (floor, groups), **fit}
    errors |= {name: values for name, values in others.items() if name != "test"}
    errors |= {} if target is None else {target_name: (target, target_groups)}
    errors |= {"test": others["test"]} if "test" in others else {}
    means = {name: mean_difference(*values) for name, values in errors.items()}
    details = {
        "errors": {
            name: {"error": found.mean, "low": found.low, "high": found.high, "n": float(found.n)}
            for name, found in means.items()
        },
        "gaps": {name: {"gap": gap.mean, "low": gap.low, "high": gap.high} for name, gap in gaps.items()},
    }
    order = sorted(gaps, key=lambda name: -gaps[name].mean)
    first = gaps[order[0]]
    shown = ", ".join(f"{name} {in_words(gaps[name].mean, gaps[name].low, gaps[name].high)}" for name in order)
    n = len(out_of_fold) + (0 if target is None else len(target))
    basis = "errors of a linear probe: in the sample, out of fold" + ("" if target is None else f", on {target_name}")
    verdict, text, command = "cannot tell", f"no gap stands out: {shown}", None
    if first.low > 0 and first.exceeds(gaps[order[1]]):
        verdict, command = order[0], (commands or {}).get(order[0])
        text = f"the largest gap is {verdict}: {shown}; what helps is {_WHAT_TO_DO[verdict]}"
    return Finding(
        question="diagnosis",
        verdict=verdict,
        text=text,
        figure=first.mean,
        low=first.low,
        high=first.high,
        n=n,
        basis=basis,
        next_command=command,
        details=details,
    )


class _Gap:
    """A difference of mean errors: a sum of means, each over the rows of another sample.

    Parameters
    ----------
    terms : mapping of str to (values, groups)
        By the name of the sample; two gaps that name the same one have the same rows there.
    """

    def __init__(self, terms: Mapping[str, ErrorsOf]) -> None:
        self._terms = terms
        self.mean, error, num_units = _sum_of_means(terms)
        # Where one of the samples has too few rows or groups for an interval, the sum has none. Degrees of freedom of
        # the smallest sample: an interval that is rather too wide.
        half = float(student_t.ppf(0.975, max(num_units - 1, 1))) * error
        self.low, self.high = self.mean - half, self.mean + half

    def exceeds(self, other: _Gap) -> bool:
        """Tell whether this gap is the larger one; wrong for at most 5 % of the samples that could have been drawn.

        One-sided, because what may be wrong is the direction: of two equal gaps either may be named.
        """
        # Row by row where both have the rows: the errors out of fold are in two gaps, with opposite signs.
        difference = dict(self._terms)
        for sample, (values, groups) in other._terms.items():
            own = difference[sample][0] if sample in difference else 0.0
            difference[sample] = own - values, groups
        mean, error, num_units = _sum_of_means(difference)
        return bool(mean > float(student_t.ppf(0.95, max(num_units - 1, 1))) * error)


def _sum_of_means(terms: Mapping[str, ErrorsOf]) -> tuple[float, float, int]:
    """Return the sum, its standard error, and the rows or groups of the smallest sample."""
    found = [mean_difference(values, groups) for values, groups in terms.values()]
    mean = sum(term.mean for term in found)
    return mean, float(np.linalg.norm([term.error for term in found])), min(term.num_units for term in found)


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
