"""A search chooses one head's setting on validation rows, fits it again on all it may see, and scores it once on test.

==================  =====================================  ==================  ======================
splits given        the setting is chosen by               fitted again on     reported on
==================  =====================================  ==================  ======================
validation, test    score on validation                    train + validation  test
test                cross-validation inside train          train               test
validation          cross-validation inside train          train               validation
==================  =====================================  ==================  ======================

Nothing that is reported as "test" is used before the last column; standardisation is part of the head and sees
the rows that the head is fitted on, no others. Groups (of one photo, of one patient) are never divided by folds, and
intervals and comparisons draw whole groups. Heads that are fitted on several views of each sample are scored by the
same table: on the plain features of a sample, or on the mean of the probabilities over its views.

Predictions by thresholds, and figures of these that the choice of the thresholds does not flatter.

Thresholds are chosen by the predictions of the setting that was chosen, for samples that it was not fitted on: those by
which it was chosen, never those that are reported. On these samples themselves, each fold is predicted by the
thresholds that the others give.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from itertools import starmap
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from sklearn.base import BaseEstimator, clone

from featurecache.errors import TaskError
from featurecache.evaluation.chosen_score import ranked
from featurecache.evaluation.configuring import HeadLike, configured, resolve
from featurecache.evaluation.fit_progress import FitSteps, watched
from featurecache.evaluation.measure import Measure
from featurecache.evaluation.measures import measure_of
from featurecache.evaluation.processes import FitBackend
from featurecache.evaluation.selection import Chosen, Selection, fold_numbers
from featurecache.evaluation.split_data import SplitData, Splits, check_splits
from featurecache.evaluation.trained_head import HeadResult
from featurecache.heads.fitting import fit_estimator, fit_folds, refusals
from featurecache.heads.head import NamedHead
from featurecache.heads.threads import one_thread
from featurecache.heads.thresholds import Thresholds, choose_thresholds
from featurecache.progress import Progress
from featurecache.specs import TaskKind

if TYPE_CHECKING:
    from featurecache.evaluation.kept_results import KeptResults

WORTH_A_PROCESS = 500_000
"""Below this many feature values, starting a second process takes longer than fitting all heads in this one."""


def evaluate_head(
    head: HeadLike,
    splits: Splits,
    n_classes: int,
    *,
    kind: TaskKind = "classification",
    balanced: bool = False,
    metric: str | None = None,
    random_state: int = 0,
) -> HeadResult:
    """Choose, fit and score one head by the protocol at the top of this module.

    Parameters
    ----------
    head : str or NamedHead
        One of `featurecache.heads.registry.list_heads()`, or an estimator with a name.
    splits : mapping
        ``{"train": (X, y), "validation": (X, y), "test": (X, y)}``, the last or the middle one may be absent;
        X (n_samples, n_features) real, y (n_samples,) class indices, or (n_samples, n_classes) labels or numbers. A
        `SplitData` instead of a pair may have several views of each sample.
    n_classes : int
        Or number of labels, or of numbers.
    kind : str
        Of the task: ``classification``, ``multilabel`` or ``regression``.
    balanced : bool
        Choose by balanced accuracy, and give all classes the same total weight where the head can.
    metric : str, optional
        Choose by this one instead; see `featurecache.evaluation.metrics`.
    random_state : int
        Seeds folds, heads and bootstrap.

    Raises
    ------
    TaskError
        Splits that cannot be learned from or evaluated on.
    HeadError
        Features that are not finite, or that the head refuses.
    """
    named, measure = resolve(head, kind), measure_of(kind, n_classes, balanced=balanced, metric=metric)
    return search(named, check_splits(splits, measure.check), measure, random_state)


def evaluate_heads(
    heads: Sequence[HeadLike],
    splits: Splits,
    n_classes: int,
    *,
    n_jobs: int | None = None,
    kind: TaskKind = "classification",
    balanced: bool = False,
    metric: str | None = None,
    random_state: int = 0,
    progress: Progress | None = None,
) -> list[HeadResult]:
    """Evaluate several heads, in parallel processes where the data is large enough to be worth it.

    Parameters
    ----------
    heads, splits, n_classes, kind, balanced, metric, random_state
        As for `evaluate_head`.
    n_jobs : int, optional
        Processes at most; -1 is one per core. When left out, as many as a `joblib.parallel_config` around the call
        says, or one per core. Fits run on the backend that it names. Results depend on neither.
    progress : Progress, optional
        Told of each head that is ready, and of the settings of those that are fitted.

    Returns
    -------
    list of HeadResult
        The head to keep first; see `featurecache.evaluation.chosen_score.ranked`.

    Raises
    ------
    TaskError, HeadError
        As for one head; a head that refuses the data is named.
    """
    named = list({head.name: head for head in (resolve(name, kind) for name in heads)}.values())
    measure = measure_of(kind, n_classes, balanced=balanced, metric=metric)
    return search_all([HeadsAndData(named, splits)], measure, random_state, n_jobs=n_jobs, progress=progress)[0]


class HeadsAndData(NamedTuple):
    """Heads, and what they are fitted and evaluated on."""

    heads: Sequence[NamedHead]
    splits: Splits
    label: str = ""
    """What tells these features from others on progress, such as " on blocks.11:cls"."""
    kept: KeptResults | None = None
    """Where results are taken up that are there already, and kept that are new."""


def search_all(
    requests: Sequence[HeadsAndData],
    measure: Measure,
    random_state: int,
    *,
    n_jobs: int | None = None,
    progress: Progress | None = None,
) -> list[list[HeadResult]]:
    """Do the searches of heads on several feature sets, all in the same processes.

    Parameters
    ----------
    requests : sequence of HeadsAndData
        Held in memory together.
    measure : Measure
    random_state, n_jobs, progress
        As for `evaluate_heads`.

    Returns
    -------
    list of list of HeadResult
        As `evaluate_heads`, for each of ``requests``.

    Raises
    ------
    TaskError, HeadError
        As `evaluate_heads`.
    """
    checked = [check_splits(request.splits, measure.check) for request in requests]
    results: list[dict[str, HeadResult]] = []
    for request, splits in zip(requests, checked, strict=True):
        recalled = [request.kept.recall(head, splits) for head in request.heads] if request.kept else []
        results.append({result.head: result for result in recalled if result is not None})
    if progress is not None and any(results):
        progress.advance(sum(map(len, results)))
    everything = [(number, head) for number, request in enumerate(requests) for head in request.heads]
    searches = [(number, head) for number, head in everything if head.name not in results[number]]
    # One that begins last would keep the other processes waiting for it.
    searches.sort(key=lambda numbered: -numbered[1].relative_seconds)
    backend = FitBackend.active(n_jobs)
    is_large = sum(splits["train"].fit_views.size for splits in checked) >= WORTH_A_PROCESS
    in_reach = not any(splits["train"].on_disk or not backend.reads(splits) for splits in checked)
    workers = min(backend.count, len(searches)) if in_reach and (is_large or not backend.starts_slowly) else 1
    # A head that no signal reaches gets a process of its own even alone, so that Ctrl-C ends it.
    unreachable = in_reach and is_large and any(not head.interruptible for _, head in searches)
    with watched(progress) as folder:
        arguments = (
            (head, checked[number], measure, random_state, FitSteps(folder, head.name + requests[number].label))
            for number, head in searches
        )
        if workers <= 1 and not (unreachable and backend.has_own_processes):
            found: Iterator[tuple[int, HeadResult]] = enumerate(starmap(search, arguments))
        else:
            found = backend.run(search, arguments, workers=max(workers, 1))
        for index, result in found:
            number, head = searches[index]
            results[number][head.name] = result
            if kept := requests[number].kept:
                kept.remember(head, result)
            if progress is not None:
                progress.advance(1)
    # In the order of the heads, not in that in which processes were ready: of equals the first is chosen.
    ordered = [
        [found_of[head.name] for head in request.heads] for request, found_of in zip(requests, results, strict=True)
    ]
    return [ranked(of_set, measure, lambda result: result) for of_set in ordered]


def search(
    head: NamedHead, splits: dict[str, SplitData], measure: Measure, random_state: int, steps: FitSteps | None = None
) -> HeadResult:
    """Choose the setting of a head, fit it again and score it, by the protocol at the top of this module.

    Parameters
    ----------
    head : NamedHead
    splits : dict
        As `check_splits` returns them.
    measure : Measure
    random_state : int
    steps : FitSteps, optional
        Told which setting is being fitted.

    Raises
    ------
    HeadError
        The head refuses the data.
    """
    splits = {name: data.in_memory() for name, data in splits.items()}
    train, validation = splits["train"], splits.get("validation") if "test" in splits else None
    estimator, steps = configured(head, train, measure, random_state), steps or FitSteps()
    if hasattr(estimator, "fit_path"):
        import_module("torch")  # what it computes with: a limit on threads that is set next holds for it then
    start = time.perf_counter()
    # One thread always, also without other processes: sums in another order would give other last digits.
    with one_thread():
        selection = Selection(head, train, validation, measure, random_state)
        X, y, weight, groups = train.fit_rows()
        num_views = train.fit_views.shape[1]
        settings = head.settings_for(selection.num_fitted * num_views)
        if not selection.is_informed:
            settings = [{name: estimator.get_params()[name] for name in settings[0]}]
        steps.at(1, count := len(settings) * len(selection.folds))
        try:
            with refusals(estimator, X, y, head.name):
                for repeat, fold in enumerate(selection.folds):
                    rows = np.repeat(fold, num_views)
                    found = fit_folds(estimator, settings, X, y, rows, weight, groups, name=head.name)
                    for number, (params, fitted) in enumerate(found):
                        selection.offer(repeat, number, params, fitted)
                        steps.at(min(repeat * len(settings) + number + 2, count), count)
        finally:
            steps.end()
        chosen = selection.choose()
        # The chosen setting is fitted on all that it may see.
        if validation is not None:
            X, y, weight, groups = train.with_samples_of(validation).fit_rows()
        final = clone(estimator).set_params(**chosen.params)
        converged = fit_estimator(final, X, y, weight, groups, name=head.name)
        return _scored(selection, chosen, final, splits, start, converged=converged, n_train=len(y))


def _scored(
    selection: Selection, chosen: Chosen, final: BaseEstimator, splits: dict[str, SplitData], start: float, **fit: Any
) -> HeadResult:
    """Score a fitted head on the split that is reported, and its selection on the rows by which it was chosen."""
    reported = "test" if "test" in splits else "validation"
    data, held_out, measure, random_state = splits[reported], selection.data, selection.measure, selection.random_state
    thresholds, chosen = decide(measure, held_out, chosen, random_state)
    y_pred = measure.predict(final, data, chosen.temperature)
    proba = measure.predict_proba(final, data, chosen.temperature, y_pred)
    if thresholds is not None:
        y_pred = thresholds.decide(proba)
    scores = of_selection = measure.scores(data.y, y_pred, data.groups, proba=proba, random_state=random_state)
    if reported == "test":
        of_selection = measure.scores(
            held_out.y, chosen.y_pred, held_out.groups, proba=chosen.proba, random_state=random_state
        )
    accuracy = float(np.mean(held_out.y == chosen.y_pred)) if held_out.y.ndim == 1 else None
    return HeadResult(
        **fit,
        head=selection.head.name,
        params=chosen.params,
        protocol=selection.protocol,
        selection_accuracy=accuracy,
        selection_score=chosen.score,
        balanced=measure.balanced,
        metric=measure.metric,
        selection_y=held_out.y,
        selection_pred=chosen.y_pred,
        selection_proba=chosen.proba,
        selection_groups=held_out.groups,
        selection_index=selection.index,
        selection_log_loss=chosen.log_loss,
        validation=of_selection,
        test=scores if reported == "test" else None,
        reported=reported,
        y_pred=y_pred,
        proba=proba,
        estimator=final,
        temperature=chosen.temperature,
        seconds=time.perf_counter() - start,
        positive=measure.positive,
        thresholds=thresholds,
    )


def decide(
    measure: Measure, held_out: SplitData, chosen: Chosen, random_state: int
) -> tuple[Thresholds | None, Chosen]:
    """Return the thresholds that a measure asks for, and what was chosen with predictions by thresholds.

    Parameters
    ----------
    measure : Measure
    held_out : SplitData
        The samples by which the setting was chosen.
    chosen : Chosen
    random_state : int
        Of the folds.
    """
    if measure.threshold is None:
        return None, chosen
    y, rule, positive = held_out.y, measure.threshold, measure.positive
    # Of labels the predictions stand for probabilities, and no others are kept.
    proba = chosen.y_pred.clip(0, 1) if chosen.proba is None else chosen.proba
    thresholds = choose_thresholds(rule, y, proba, positive)
    y_pred = thresholds.decide(proba)
    # By their own thresholds the samples would look better than new ones: these were chosen to fit them.
    for rows in _folds(held_out, random_state):
        others = np.delete(np.arange(len(y)), rows)
        y_pred[rows] = choose_thresholds(rule, y[others], proba[others], positive).decide(proba[rows])
    score = measure.score(y, measure.outputs(y_pred, proba))
    return thresholds, replace(chosen, y_pred=y_pred, proba=proba, score=score)


def _folds(held_out: SplitData, random_state: int) -> list[np.ndarray]:
    """Return the samples of each fold; none where all are of one group, and known by the threshold of all."""
    try:
        fold = fold_numbers(held_out.y, held_out.groups, random_state=random_state)
    except TaskError:
        return []
    return [np.flatnonzero(fold == number) for number in range(int(fold.max()) + 1)]
