"""Choosing one setting from a head's grid, on held-out rows or by cross-validation inside the training rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.model_selection import BaseCrossValidator, GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

from featurecache.errors import HeadError, TaskError
from featurecache.evaluation.calibration import log_loss
from featurecache.evaluation.judging import decisions, most_probable, probabilities, temperature_of
from featurecache.evaluation.measures import Measure
from featurecache.evaluation.parts import Part, smallest_class
from featurecache.heads.checks import is_partial
from featurecache.heads.fitting import TaskToFit, fit_folds_of_tasks
from featurecache.heads.probability import needs_temperature
from featurecache.heads.registry import (
    head_grid,
    last_step,
    list_heads,
    make_head,
    needs_tokens,
    streams,
    takes_unknown,
    takes_weights,
)
from featurecache.specs import TaskKind

MAX_FOLDS = 5
NEEDS_ALL_KNOWN = "needs all labels or numbers of a sample"
HOLDS_ALL_ROWS = "holds all rows in memory"
"""Why a head is left out where memory does not hold them."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Choice:
    """The chosen setting and what it predicted for rows it was not trained on."""

    params: dict[str, Any]
    protocol: str
    """"validation" or "cross-validation"."""
    y: np.ndarray
    """What is said of the held-out rows: (n,) class indices, or (n, n_outputs)."""
    y_pred: np.ndarray
    """Answers for them, likewise."""
    groups: np.ndarray | None
    """Their groups, (n,), or None."""
    score: float
    """By which it was chosen: `Measure.goodness` on the held-out rows."""
    temperature: float
    """Fitted on the decision values of these rows; 1.0 for heads with probabilities of their own."""

    @property
    def accuracy(self) -> float | None:
        """Share of the held-out rows that were predicted right, where there are classes."""
        return float(np.mean(self.y == self.y_pred)) if self.y.ndim == 1 else None


def build(name: str, params: dict[str, Any], measure: Measure, train: Part, random_state: int) -> BaseEstimator:
    """Return an unfitted head with these parameters, for what a measure judges and a part holds.

    It gets this random state, and balanced classes, where it has such parameters.

    Raises
    ------
    HeadError
        A head that needs tokens, and features without; that cannot weigh samples, and samples with weights; or that
        holds all rows in memory, and features that do not fit there.
    """
    if train.weight is not None and not takes_weights(name, kind=measure.kind):
        able = ", ".join(list_heads(kind=measure.kind, weighted=True))
        raise HeadError(f"head {name!r} cannot weigh samples, and these have weights; choose among {able}")
    if is_partial(train.y) and not takes_unknown(name, kind=measure.kind):
        raise HeadError(f"head {name!r} {NEEDS_ALL_KNOWN}, and some of these are not; choose another head")
    check_streams(name, train, kind=measure.kind)
    if needs_tokens(name) and train.num_tokens == 1:
        raise HeadError(
            f"head {name!r} looks at tokens, and these features have none; extract a tap that keeps them, such as "
            "blocks.11:none"
        )
    estimator = make_head(name, kind=measure.kind, **params)
    known = (last := last_step(estimator)).get_params(deep=False)
    if "random_state" in known:
        last.set_params(random_state=random_state)
    if measure.balanced and "class_weight" in known:
        last.set_params(class_weight="balanced")
    if "num_tokens" in known:
        last.set_params(num_tokens=train.num_tokens)
    return estimator


def check_streams(name: str, train: Part, *, kind: TaskKind) -> None:
    """Raise `HeadError` for a head that holds all rows in memory, and features that do not fit there."""
    if train.on_disk and not streams(name, kind=kind):
        able = ", ".join(list_heads(kind=kind, streaming=True))
        raise HeadError(
            f"head {name!r} {HOLDS_ALL_ROWS}, and these features are too large for it; allow more with "
            f"--memory, or choose among {able}"
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Question:
    """A task whose settings are to be chosen."""

    train: Part
    validation: Part | None
    """Settings are chosen on it; where it is None, by cross-validation inside train."""
    measure: Measure
    random_state: int


def choose(name: str, questions: Sequence[Question]) -> list[Choice]:
    """Choose the setting of a head for each of several tasks.

    Parameters
    ----------
    name : str
    questions : sequence of Question
        Their train parts are the same samples with the same weights, and the same features or others.

    Returns
    -------
    list of Choice
        Of equal settings the surest, or the simplest.

    Raises
    ------
    HeadError
        The head refuses one of them.
    """
    # What is held out from one task is copied once, of several tasks not at all: each holds out all samples.
    trials = [_Trial(name, question, copy=len(questions) == 1) for question in questions]
    weight = questions[0].train.rows_to_fit().weight
    for place, params, estimators in fit_folds_of_tasks([trial.to_fit for trial in trials], weight, name=name):
        trials[place].offer(params, estimators)
    return [trial.choice() for trial in trials]


class _Trial:
    """Settings fitted on train and judged on validation; or without each fold of train, and judged on that.

    Folds divide samples: all views of a sample are on the same side.
    """

    def __init__(self, name: str, question: Question, *, copy: bool) -> None:
        train, measure, self._validation = question.train, question.measure, question.validation
        self._train, self._best = train, _Best(measure)
        self._pairs: list[tuple[np.ndarray, np.ndarray]] = []
        fold = np.full(len(train), -1)
        num_views = train.fitted.shape[1]
        num_rows = len(train) * num_views
        if question.validation is None:
            divide = folds(train.y, train.groups, random_state=question.random_state)
            self._pairs = list(divide.split(train.y, train.y if train.y.ndim == 1 else None, train.groups))
            num_rows = min(len(fitted) for fitted, _ in self._pairs) * num_views
            for number, (_, held_out) in enumerate(self._pairs):
                fold[held_out] = number
            self._held_out = [train.to_judge(held_out, copy=copy) for _, held_out in self._pairs]
        else:
            self._held_out = [question.validation]
        rows = train.rows_to_fit()
        self.to_fit = TaskToFit(
            head=build(name, {}, measure, train, question.random_state),
            grid=head_grid(name, num_rows, kind=measure.kind),
            X=rows.X,
            y=rows.y,
            fold=np.repeat(fold, num_views),
            groups=rows.groups,
        )

    def offer(self, params: dict[str, Any], estimators: list[BaseEstimator]) -> None:
        """Judge a setting, by an estimator for each part that is held out, and keep it if it is the best."""
        held_out = list(zip(estimators, self._held_out, strict=True))
        judged = [_judge(estimator, part, self._best.measure) for estimator, part in held_out]
        whole = _joined(self._train, self._pairs, judged) if self._pairs else judged[0]
        self._best.offer(params, whole, self._judged_part.y, held_out)

    def choice(self) -> Choice:
        """Return the best setting."""
        return _choice("cross-validation" if self._pairs else "validation", self._judged_part, self._best)

    @property
    def _judged_part(self) -> Part:
        return self._train if self._validation is None else self._validation


@dataclass(frozen=True, slots=True, eq=False)
class _Judged:
    """Predictions for held-out samples, and decision values of heads that have no probabilities."""

    y_pred: np.ndarray
    decisions: np.ndarray | None


class _Best:
    """The best setting so far.

    Of settings that do equally well, the one whose probabilities have the least log loss is kept, where a head has
    probabilities of its own: on an easy task all strengths are right, and the strongest is sure of nothing.
    """

    def __init__(self, measure: Measure) -> None:
        self.measure = measure
        self.params: dict[str, Any] = {}
        self.judged: _Judged | None = None
        self.score = -math.inf
        self._held_out: list[tuple[BaseEstimator, Part]] = []
        self._loss: float | None = None

    def offer(
        self, params: dict[str, Any], judged: _Judged, y: np.ndarray, held_out: list[tuple[BaseEstimator, Part]]
    ) -> None:
        """Keep a setting if it does better, on the parts that are held out from its estimators."""
        score, loss = self.measure.goodness(y, judged.y_pred), None
        if score < self.score:
            return
        if score == self.score:
            if self._loss is None:
                self._loss = _log_loss(self._held_out, self.measure)
            loss = _log_loss(held_out, self.measure)
            if loss >= self._loss:
                return
        self.params, self.judged, self.score, self._held_out, self._loss = params, judged, score, held_out, loss


def _log_loss(held_out: list[tuple[BaseEstimator, Part]], measure: Measure) -> float:
    """Return the mean log loss; 0 for heads without probabilities of their own, which are all alike in this."""
    if measure.kind != "classes" or not hasattr(held_out[0][0], "predict_proba"):
        return 0.0
    y = np.concatenate([part.y for _, part in held_out])
    return log_loss(y, np.concatenate([probabilities(*each, 1.0, measure.n_outputs) for each in held_out]))


def _choice(protocol: str, part: Part, best: _Best) -> Choice:
    params, judged, score = best.params, best.judged, best.score
    assert judged is not None, "the grid is empty"
    temperature = 1.0 if judged.decisions is None else temperature_of(judged.decisions, part.y)
    return Choice(
        params=params,
        protocol=protocol,
        y=part.y,
        y_pred=judged.y_pred,
        groups=part.groups,
        score=score,
        temperature=temperature,
    )


def _judge(estimator: BaseEstimator, part: Part, measure: Measure) -> _Judged:
    if measure.kind != "classes" or not needs_temperature(estimator):
        return _Judged(measure.answers(estimator, part, 1.0), None)
    values = decisions(estimator, part, measure.n_outputs)
    if part.several:
        return _Judged(most_probable(values, temperature_of(values, part.y)), values)
    return _Judged(measure.answers(estimator, part, 1.0), values)


def folds(y: np.ndarray, groups: np.ndarray | None = None, *, random_state: int) -> BaseCrossValidator:
    """Return stratified folds, five or as many as the smallest class has samples; plain folds without classes.

    Groups stay together, and count in the place of samples.

    Raises
    ------
    TaskError
        All samples are of one group.
    """
    smallest = smallest_class(y, groups) if y.ndim == 1 else 1
    if groups is None:
        if smallest > 1:
            return StratifiedKFold(min(MAX_FOLDS, smallest), shuffle=True, random_state=random_state)
        return KFold(min(MAX_FOLDS, len(y)), shuffle=True, random_state=random_state)
    if smallest > 1:
        return StratifiedGroupKFold(min(MAX_FOLDS, smallest), shuffle=True, random_state=random_state)
    if (num_groups := len(np.unique(groups))) < 2:
        raise TaskError("all samples to fit on are of one group; settings are chosen on groups that are held out")
    return GroupKFold(min(MAX_FOLDS, num_groups), shuffle=True, random_state=random_state)


def _joined(train: Part, pairs: Sequence[tuple[np.ndarray, np.ndarray]], judged: Sequence[_Judged]) -> _Judged:
    """Put what was said of the folds together, in the order of the samples."""
    first = judged[0].y_pred
    y_pred = np.empty((len(train), *first.shape[1:]), dtype=first.dtype)
    values: np.ndarray | None = None
    for (_, held_out), each in zip(pairs, judged, strict=True):
        y_pred[held_out] = each.y_pred
        if each.decisions is not None:
            if values is None:
                values = np.full((len(train), *each.decisions.shape[1:]), -np.inf)
            values[held_out] = each.decisions
    return _Judged(y_pred, values)
