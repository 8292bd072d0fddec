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
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib import import_module

import numpy as np
from sklearn.base import BaseEstimator, clone

from featurecache.errors import HeadError
from featurecache.evaluation.deciding import decide
from featurecache.evaluation.fit_progress import FitSteps
from featurecache.evaluation.measure import Measure, ScoreValues
from featurecache.evaluation.measures import measure_of
from featurecache.evaluation.scores import Scores
from featurecache.evaluation.selection import Chosen, Selection
from featurecache.evaluation.split_data import SplitData, Splits, check_splits
from featurecache.heads.checks import is_partial
from featurecache.heads.fitting import fit_estimator, fit_folds, refusals
from featurecache.heads.head import NamedHead, Setting
from featurecache.heads.probability import has_decisions
from featurecache.heads.registry import find_head, list_heads
from featurecache.heads.threads import one_thread
from featurecache.heads.thresholds import Thresholds
from featurecache.specs import TaskKind, task_kind

NEEDS_ALL_KNOWN = "needs all labels or numbers of a sample"
HOLDS_ALL_ROWS = "holds all rows in memory"
"""Why a head is left out where memory does not hold them."""
HeadLike = str | NamedHead
"""The name of a head, or a head with the name that it gets in tables."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class HeadResult:
    """What a search found: the setting that was chosen, its scores, and the fitted estimator."""

    head: str
    params: Setting
    """The setting that was chosen from the head's grid."""
    protocol: str
    """How the setting was chosen: "validation" or "cross-validation"."""
    selection_accuracy: float | None
    """On the rows by which the setting was chosen; None where there are no classes."""
    selection_score: float
    """The metric by which setting and head are chosen, never on the test split: `Measure.score` on those rows."""
    balanced: bool
    """Classes count alike in fitting, where the head can, and in choosing unless the metric says otherwise."""
    metric: str
    """By which settings and heads are chosen; see `featurecache.evaluation.metrics`."""
    selection_y: np.ndarray
    """Class indices of these rows, (n,) int64."""
    selection_pred: np.ndarray
    """What the chosen setting predicted for them, fitted on others, (n,) int64: for comparisons with other heads."""
    selection_proba: np.ndarray | None
    """Its calibrated probabilities of them, (n, n_classes) float64, where the metric reads them; else None."""
    selection_groups: np.ndarray | None
    """Groups of these rows, (n,), or None."""
    selection_index: np.ndarray
    """Which they are among the samples of their split, (n,) int64."""
    selection_log_loss: float | None
    """Of the calibrated probabilities of these rows; None where there are no classes or no probabilities."""
    validation: Scores | ScoreValues
    """On the validation rows, or out of fold inside train when there are none."""
    test: Scores | ScoreValues | None
    reported: str
    """The split that `y_pred` and `proba` are about: "test" or "validation"."""
    y_pred: np.ndarray
    """Class indices on the reported split, (n,) int64; probabilities of labels, or numbers, (n, n_outputs) float64."""
    proba: np.ndarray
    """Probabilities of classes or labels there, (n, n_classes) float64; of numbers, the numbers."""
    estimator: BaseEstimator
    """Fitted on train, or on train and validation where there is a test split."""
    temperature: float
    """For `featurecache.heads.probability.predict_proba`: what calibrates its probabilities."""
    converged: bool
    n_train: int
    """Rows that `estimator` was fitted on; each view is one."""
    seconds: float
    positive: int = 1
    """Which of two classes is the positive one."""
    thresholds: Thresholds | None = None
    """By which classes or labels are predicted, where thresholds were asked for; those of ``selection_pred`` are of the
    other folds. ``y_pred`` of labels is moved so that what holds is above one half."""
    is_kept: bool = False
    """An earlier training found it, and ``estimator`` is not fitted; see `featurecache.evaluation.kept_results`."""

    def to_json(self) -> dict[str, object]:
        """Return the result as plain, finite JSON values, without arrays and estimator."""
        return {
            "head": self.head,
            "params": self.params,
            "seconds": round(self.seconds, 3),
            "protocol": self.protocol,
            "selection_accuracy": self.selection_accuracy,
            "selection_score": self.selection_score,
            "selection_log_loss": self.selection_log_loss,
            "balanced": self.balanced,
            "metric": self.metric,
            "reported": self.reported,
            "converged": self.converged,
            "kept": self.is_kept,
            "threshold": None if self.thresholds is None else self.thresholds.to_json(),
            "validation": self.validation.to_json(),
            "test": None if self.test is None else self.test.to_json(),
        }


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


def search(
    head: NamedHead,
    splits: dict[str, SplitData],
    measure: Measure,
    random_state: int,
    steps: FitSteps | None = None,
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
    splits = {name: data if data.on_disk else data.in_memory() for name, data in splits.items()}
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
        return _scored(
            head,
            final,
            selection,
            chosen,
            splits,
            measure,
            random_state,
            converged=converged,
            n_train=len(y),
            start=start,
        )


def _scored(
    head: NamedHead,
    final: BaseEstimator,
    selection: Selection,
    chosen: Chosen,
    splits: dict[str, SplitData],
    measure: Measure,
    random_state: int,
    *,
    converged: bool,
    n_train: int,
    start: float,
) -> HeadResult:
    """Score a fitted head on the split that is reported, and its selection on the rows by which it was chosen."""
    reported = "test" if "test" in splits else "validation"
    data, held_out = splits[reported], selection.data
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
        head=head.name,
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
        converged=converged,
        n_train=n_train,
        seconds=time.perf_counter() - start,
        positive=measure.positive,
        thresholds=thresholds,
    )


def resolve(head: HeadLike, kind: TaskKind) -> NamedHead:
    """Return the head of a name, or what is a head already.

    Raises
    ------
    HeadError, UnknownNameError
        It is for other kinds of task, or there is none.
    """
    kind = task_kind(kind)
    found = find_head(head, kind=kind) if isinstance(head, str) else head
    if kind not in found.kinds:
        raise HeadError(
            f"head {found.name!r} is for {' or '.join(sorted(found.kinds))}, and the task is of kind {kind}"
        )
    return found


def configured(head: NamedHead, train: SplitData, measure: Measure, random_state: int) -> BaseEstimator:
    """Return an unfitted estimator with this random state, and balanced classes, where it has such parameters.

    Parameters
    ----------
    head : NamedHead
    train : SplitData
    measure : Measure
    random_state : int

    Raises
    ------
    HeadError
        A head that needs tokens, and features without; that cannot weigh samples, and samples with weights; that holds
        all rows in memory, and features that do not fit there; or that has no probabilities, and a metric of these.
    """
    if measure.keeps_proba and not has_decisions(head.estimator):
        needs, option = (measure.metric, "--metric") if measure.reads_proba else ("a threshold", "--threshold")
        raise HeadError(
            f"head {head.name!r} has neither probabilities nor decision values, which {needs} needs; choose another "
            f"head, or another {option}"
        )
    if train.weight is not None and not head.takes_weights:
        able = ", ".join(list_heads(kind=measure.kind, weighted=True))
        raise HeadError(f"head {head.name!r} cannot weigh samples, and these have weights; choose among {able}")
    if is_partial(train.y) and not head.takes_unknown:
        raise HeadError(f"head {head.name!r} {NEEDS_ALL_KNOWN}, and some of these are not; choose another head")
    check_streams(head, train, kind=measure.kind)
    if head.needs_tokens and train.num_tokens == 1:
        raise HeadError(
            f"head {head.name!r} needs tokens, and these features have none; extract a tap that keeps them, such as "
            "blocks.11:none"
        )
    estimator = clone(head.estimator)
    known = estimator.get_params(deep=False)
    # Heads differ in what they can be told; what a head does not know is not asked of it.
    values: Setting = {"random_state": random_state, "num_tokens": train.num_tokens}
    values |= {"class_weight": "balanced"} if measure.balanced else {}
    return estimator.set_params(**{name: value for name, value in values.items() if name in known})


def check_streams(head: NamedHead, train: SplitData, *, kind: TaskKind) -> None:
    """Raise `HeadError` for a head that holds all rows in memory, and features that do not fit there.

    Parameters
    ----------
    head : NamedHead
    train : SplitData
    kind : str
        Of the task.
    """
    if train.on_disk and not head.streams:
        able = ", ".join(list_heads(kind=kind, streaming=True))
        raise HeadError(
            f"head {head.name!r} {HOLDS_ALL_ROWS}, and these features are too large for it; allow more with "
            f"--memory, or choose among {able}"
        )
