"""How a head is judged: chosen on validation rows, fitted again on all it may see, then one look at the test rows.

==================  =====================================  ==================  ======================
parts given         the setting is chosen by               fitted again on     reported on
==================  =====================================  ==================  ======================
validation, test    accuracy on validation                 train + validation  test
test                cross-validation inside train          train               test
validation          cross-validation inside train          train               validation
==================  =====================================  ==================  ======================

Nothing that is reported as "test" is looked at before the last column; standardisation is part of the head and sees
the rows that the head is fitted on, no others. Groups (of one photo, of one patient) are never divided by folds, and
intervals and comparisons draw whole groups. Heads that are fitted on several views of each sample are judged by the
same table: on the plain features of a sample, or on the mean of the probabilities over its views.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from joblib import effective_n_jobs
from sklearn.base import BaseEstimator

from featurecache.errors import FeatureCacheError
from featurecache.evaluation.measures import Figures, Measure, measure_of
from featurecache.evaluation.parts import Part, RowsToFit, Split, check_parts
from featurecache.evaluation.processes import in_processes
from featurecache.evaluation.scores import Scores
from featurecache.evaluation.scores import evaluate as evaluate
from featurecache.evaluation.selection import Choice, Question, build, choose
from featurecache.heads.checks import sets_of
from featurecache.heads.fitting import fit_head as fit_head
from featurecache.heads.fitting import fit_tasks, load_arithmetic
from featurecache.heads.registry import HEADS, OTHER_HEADS, TOKEN_HEADS, fits_tasks, make_head
from featurecache.heads.threads import one_thread
from featurecache.specs import TaskKind

# Below this many feature values, starting a second process takes longer than fitting all heads in this one.
_WORTH_A_PROCESS = 500_000
_SLOWEST_FIRST = (
    *("attentive", "rbf_svm", "mlp", "linear_svm", "logistic"),
    *("ridge", "knn", "gda", "nearest_mean", "majority"),
)
UNINTERRUPTIBLE = frozenset({"rbf_svm"})
"""Heads that spend minutes in compiled code, which no signal reaches."""
_SLOW = frozenset({"attentive", "rbf_svm", "mlp"})


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class HeadResult:
    """One head: what was chosen, how good it is, and the fitted estimator."""

    head: str
    params: dict[str, Any]
    """The setting that was chosen from the head's grid."""
    seconds: float
    protocol: str
    """How the setting was chosen: "validation" or "cross-validation"."""
    selection_accuracy: float | None
    """On the rows by which the setting was chosen; None where there are no classes."""
    selection_score: float
    """By which setting and head are chosen, never by the last look: `Measure.goodness` on those rows."""
    balanced: bool
    """Classes count alike, in choosing and, where the head can, in fitting."""
    selection_y: np.ndarray
    """Class indices of these rows, (n,) int64."""
    selection_pred: np.ndarray
    """What the chosen setting predicted for them, fitted on others, (n,) int64: for comparisons with other heads."""
    selection_groups: np.ndarray | None
    """Groups of these rows, (n,), or None."""
    validation: Scores | Figures
    """On the validation rows, or out of fold inside train when there are none."""
    test: Scores | Figures | None
    reported: str
    """The part that `y_pred` and `proba` are about: "test" or "validation"."""
    y_pred: np.ndarray
    """Class indices on the reported part, (n,) int64; probabilities of labels, or numbers, (n, n_outputs) float64."""
    proba: np.ndarray
    """Probabilities of classes or labels there, (n, n_classes) float64; of numbers, the numbers."""
    estimator: BaseEstimator
    """Fitted on train, or on train and validation where there is a test part."""
    temperature: float
    """Goes with `estimator` to `predict_proba`; 1.0 for heads with probabilities of their own."""
    converged: bool
    n_train: int
    """Rows that `estimator` was fitted on; each view is one."""

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain, finite JSON values, without arrays and estimator."""
        return {
            "head": self.head,
            "params": self.params,
            "seconds": round(self.seconds, 3),
            "protocol": self.protocol,
            "selection_accuracy": self.selection_accuracy,
            "selection_score": self.selection_score,
            "balanced": self.balanced,
            "reported": self.reported,
            "converged": self.converged,
            "validation": self.validation.to_json(),
            "test": None if self.test is None else self.test.to_json(),
        }


def evaluate_head(
    name: str,
    parts: Split,
    n_classes: int,
    *,
    kind: TaskKind = "classes",
    balanced: bool = False,
    random_state: int = 0,
) -> HeadResult:
    """Choose, fit and judge one head by the protocol at the top of this module.

    Parameters
    ----------
    name : str
        One of `featurecache.heads.registry.list_heads()`.
    parts : mapping
        ``{"train": (X, y), "validation": (X, y), "test": (X, y)}``, the last or the middle one may be absent;
        X (n_samples, n_features) real, y (n_samples,) class indices, or (n_samples, n_classes) labels or numbers. A
        `Part` in the place of a pair has several views of each sample.
    n_classes : int
        Or number of labels, or of numbers.
    kind : str
        What is said of a sample: ``classes``, ``labels`` or ``numbers``.
    balanced : bool
        Choose by balanced accuracy, and give all classes the same total weight where the head can.
    random_state : int
        Seeds folds, heads and bootstrap.

    Raises
    ------
    TaskError
        Parts that cannot be learned from or judged on.
    HeadError
        Features that are not finite, or that the head refuses.
    """
    make_head(name, kind=kind)
    measure = measure_of(kind, n_classes, balanced=balanced)
    return _evaluate(name, check_parts(parts, measure.check), measure, random_state)


def evaluate_heads(
    names: Sequence[str],
    taps: Sequence[Split],
    n_classes: int,
    *,
    n_jobs: int = -1,
    kind: TaskKind = "classes",
    balanced: bool = False,
    random_state: int = 0,
    progress: Callable[[HeadResult], None] | None = None,
) -> list[list[HeadResult]]:
    """Judge several heads on one or more taps, in parallel processes where the data is large enough to be worth it.

    Parameters
    ----------
    taps : sequence of mapping
        For each tap its parts, as for `evaluate_head`: of the same samples, with as many features. A head fits them
        side by side where it can.
    names, n_classes, kind, balanced, random_state
        As for `evaluate_head`.
    n_jobs : int
        Processes at most; -1 is one per core. Results do not depend on it.
    progress : callable, optional
        Called in this process with each `HeadResult` as it is ready, of the taps in any order.

    Returns
    -------
    list of list of HeadResult
        For each tap the highest selection score first; of equals, the order of ``names``. They are what each tap gives
        alone, but for rounding where taps are fitted side by side; ``seconds`` are an equal share then.

    Raises
    ------
    TaskError, HeadError
        As `evaluate_head`; a head that refuses the data is named.
    """
    names = list(dict.fromkeys(names))
    for name in names:
        make_head(name, kind=kind)
    measure = measure_of(kind, n_classes, balanced=balanced)
    checked = [check_parts(parts, measure.check) for parts in taps]
    found: list[list[HeadResult]] = [[] for _ in taps]
    for places, results in _evaluated(names, checked, measure, n_jobs, random_state):
        for place, result in zip(places, results, strict=True):
            found[place].append(result)
            if progress is not None:
                progress(result)
    return [sorted(results, key=lambda each: (-each.selection_score, names.index(each.head))) for results in found]


def are_built_in(names: Iterable[str], kind: TaskKind) -> bool:
    """Tell whether a fresh process knows these heads: not those that this program registered."""
    return set(names) <= set((*HEADS, *TOKEN_HEADS) if kind == "classes" else OTHER_HEADS)


def _evaluated(
    names: list[str], taps: list[dict[str, Part]], measure: Measure, n_jobs: int, random_state: int
) -> Iterator[tuple[list[int], list[HeadResult]]]:
    """Yield numbers of taps with the results of a head on them."""
    ordered = sorted(names, key=lambda name: _SLOWEST_FIRST.index(name) if name in _SLOWEST_FIRST else -1)
    every = list(range(len(taps)))
    jobs = [
        (name, places)
        for name in ordered
        for places in ([every] if fits_tasks(name, kind=measure.kind) else [[place] for place in every])
    ]
    arguments = ((name, places, [taps[place] for place in places], measure, random_state) for name, places in jobs)
    leaves = _may_leave_process(names, taps, measure)
    workers = min(effective_n_jobs(n_jobs), len(jobs)) if leaves else 1
    if workers == 1 and not (leaves and UNINTERRUPTIBLE.intersection(names)):
        yield from (_evaluate_together(*each) for each in arguments)
        return
    # Processes, not threads: scikit-learn silences warnings by settings that threads of one process share.
    yield from in_processes(_evaluate_together, arguments, workers=workers)


def is_worth_a_process(sizes: Iterable[int]) -> bool:
    """Tell whether features of so many values take longer to fit than a process takes to start."""
    return max(sizes, default=0) >= _WORTH_A_PROCESS


def _may_leave_process(names: list[str], taps: list[dict[str, Part]], measure: Measure) -> bool:
    sizes = [parts["train"].fitted.size for parts in taps]
    # Quick heads are fitted on several small taps before another process has started.
    worth_it = (sum(sizes) if _SLOW.intersection(names) else max(sizes)) >= _WORTH_A_PROCESS
    return worth_it and not any(parts["train"].on_disk for parts in taps) and are_built_in(names, measure.kind)


def _evaluate_together(
    name: str, places: list[int], taps: list[dict[str, Part]], measure: Measure, random_state: int
) -> tuple[list[int], list[HeadResult]]:
    if len(taps) > 1:
        with suppress(FeatureCacheError):  # of one of the taps: by itself it says of what
            return places, evaluate_tasks(name, taps, [measure] * len(taps), random_state)
    return places, [_evaluate(name, parts, measure, random_state) for parts in taps]


def evaluate_tasks(
    name: str, tasks: Sequence[dict[str, Part]], measures: Sequence[Measure], random_state: int
) -> list[HeadResult]:
    """Judge one head for several tasks on the same samples, which it fits side by side where it can.

    Parameters
    ----------
    name : str
        As for `evaluate_head`.
    tasks : sequence of dict
        For each task its parts, as `check_parts` returns them: the same samples in the same order, with the same
        weights and as many features; those on the same features have the same arrays.
    measures : sequence of Measure
        Of each task.
    random_state : int

    Returns
    -------
    list of HeadResult
        What `evaluate_head` gives for each task, but for rounding; ``seconds`` are an equal share of all.

    Raises
    ------
    TaskError, HeadError
        As `evaluate_head`, for one of the tasks.
    """
    tasks = [{part: rows if rows.on_disk else rows.in_memory() for part, rows in parts.items()} for parts in tasks]
    # One thread always, also without other processes: sums in another order would give other last digits.
    load_arithmetic(make_head(name, kind=measures[0].kind))
    with one_thread():
        start = time.perf_counter()
        questions = [_question(*each, random_state) for each in zip(tasks, measures, strict=True)]
        choices = choose(name, questions)
        to_fit = _rows_to_fit(tasks)
        estimators = [
            build(name, choice.params, measure, parts["train"], random_state)
            for choice, measure, parts in zip(choices, measures, tasks, strict=True)
        ]
        Xs, ys, groups = ([getattr(rows, field) for rows in to_fit] for field in ("X", "y", "groups"))
        converged = fit_tasks(estimators, Xs, ys, to_fit[0].weight, groups, name=name)
        results = [
            _result(name, parts, measure, random_state, choice, estimator)
            for parts, measure, choice, estimator in zip(tasks, measures, choices, estimators, strict=True)
        ]
        seconds = (time.perf_counter() - start) / len(tasks)
    return [
        replace(result, converged=did_converge, n_train=len(to_fit[0].y), seconds=seconds)
        for result, did_converge in zip(results, converged, strict=True)
    ]


def _evaluate(name: str, parts: dict[str, Part], measure: Measure, random_state: int) -> HeadResult:
    return evaluate_tasks(name, [parts], [measure], random_state)[0]


def _question(parts: dict[str, Part], measure: Measure, random_state: int) -> Question:
    validation = parts["validation"] if "validation" in parts and "test" in parts else None
    return Question(train=parts["train"], validation=validation, measure=measure, random_state=random_state)


def _rows_to_fit(tasks: Sequence[dict[str, Part]]) -> list[RowsToFit]:
    """Return what the last fit of each task is on; joining parts may copy features, once for all tasks on them."""
    known: dict[int, np.ndarray] = {}
    found = []
    for parts, number in zip(tasks, sets_of([parts["train"].fitted for parts in tasks]), strict=True):
        bare = {name: part.without_features() for name, part in parts.items()} if number in known else parts
        both = "validation" in parts and "test" in parts
        rows = (bare["train"].with_samples_of(bare["validation"]) if both else bare["train"]).rows_to_fit()
        found.append(rows._replace(X=known.setdefault(number, rows.X)))
    return found


def _result(
    name: str, parts: dict[str, Part], measure: Measure, random_state: int, choice: Choice, estimator: BaseEstimator
) -> HeadResult:
    """Take the last look; how the fitting went is not known here."""
    reported = "test" if "test" in parts else "validation"
    part = parts[reported]
    y_pred = measure.answers(estimator, part, choice.temperature)
    figures = measure.figures(part.y, y_pred, part.groups, random_state=random_state)
    validation, test = figures, None
    if reported == "test":
        validation = measure.figures(choice.y, choice.y_pred, choice.groups, random_state=random_state)
        test = figures
    return HeadResult(
        head=name,
        params=choice.params,
        protocol=choice.protocol,
        selection_accuracy=choice.accuracy,
        selection_score=choice.score,
        balanced=measure.balanced,
        selection_y=choice.y,
        selection_pred=choice.y_pred,
        selection_groups=choice.groups,
        validation=validation,
        test=test,
        reported=reported,
        y_pred=y_pred,
        proba=measure.certainties(estimator, part, choice.temperature, y_pred),
        estimator=estimator,
        temperature=choice.temperature,
        converged=True,
        n_train=0,
        seconds=0.0,
    )
