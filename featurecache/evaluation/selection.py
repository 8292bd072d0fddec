"""Choosing one setting from a head's grid, on held-out rows or by cross-validation inside the training rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.metrics import recall_score
from sklearn.model_selection import BaseCrossValidator, GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

from featurecache.errors import HeadError, TaskError
from featurecache.evaluation.judging import decisions, most_probable, predictions, temperature_of
from featurecache.evaluation.parts import Part, smallest_class
from featurecache.heads.fitting import fit_folds
from featurecache.heads.probability import needs_temperature
from featurecache.heads.registry import head_grid, last_step, make_head, needs_tokens

MAX_FOLDS = 5


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Choice:
    """The chosen setting and what it predicted for rows it was not trained on."""

    params: dict[str, Any]
    protocol: str
    """"validation" or "cross-validation"."""
    y: np.ndarray
    """Labels of the held-out rows, (n,) int64."""
    y_pred: np.ndarray
    """Predictions for them, (n,) int64."""
    groups: np.ndarray | None
    """Their groups, (n,), or None."""
    score: float
    """By which it was chosen: accuracy on the held-out rows, or balanced accuracy."""
    temperature: float
    """Fitted on the decision values of these rows; 1.0 for heads with probabilities of their own."""

    @property
    def accuracy(self) -> float:
        """Share of the held-out rows that were predicted right."""
        return float(np.mean(self.y == self.y_pred))


def build(
    name: str, params: dict[str, Any], random_state: int, *, balanced: bool = False, num_tokens: int = 1
) -> BaseEstimator:
    """Return an unfitted head with these parameters, and this random state and balanced classes where it has such.

    Raises
    ------
    HeadError
        A head that needs tokens, and features without.
    """
    if needs_tokens(name) and num_tokens == 1:
        raise HeadError(
            f"head {name!r} looks at tokens, and these features have none; extract a tap that keeps them, such as "
            "blocks.11:none"
        )
    estimator = make_head(name, **params)
    known = (last := last_step(estimator)).get_params(deep=False)
    if "random_state" in known:
        last.set_params(random_state=random_state)
    if balanced and "class_weight" in known:
        last.set_params(class_weight="balanced")
    if "num_tokens" in known:
        last.set_params(num_tokens=num_tokens)
    return estimator


def choose_on_validation(
    name: str, train: Part, validation: Part, n_classes: int, *, random_state: int, balanced: bool = False
) -> Choice:
    """Fit each setting on train, keep the one most accurate on validation; of equals the simplest."""
    best, best_score = None, -1.0
    X, y = train.rows_to_fit()
    never = np.full(len(y), -1)
    grid = head_grid(name, len(y))
    head = build(name, {}, random_state, balanced=balanced, num_tokens=train.num_tokens)
    for params, (estimator,) in fit_folds(head, grid, X, y, never, name=name):
        judged = _judge(estimator, validation, n_classes)
        if (score := share_right(validation.y, judged.y_pred, balanced=balanced)) > best_score:
            best, best_score = (params, judged), score
    assert best is not None, f"the grid of head {name!r} is empty"
    return _choice(best[0], "validation", validation, best[1], best_score)


def choose_by_cross_validation(
    name: str, train: Part, n_classes: int, *, random_state: int, balanced: bool = False
) -> Choice:
    """Keep the setting whose out-of-fold predictions inside train are the most accurate; of equals the simplest.

    The folds divide samples: all views of a sample are on the same side.
    """
    divide = folds(train.y, train.groups, random_state=random_state)
    pairs = list(divide.split(train.y, train.y, train.groups))
    num_views = train.fitted.shape[1]
    grid = head_grid(name, min(len(fitted) for fitted, _ in pairs) * num_views)
    fold = np.empty(len(train), dtype=np.int64)
    for number, (_, held_out) in enumerate(pairs):
        fold[held_out] = number
    X, y = train.rows_to_fit()
    parts = [train.take(held_out) for _, held_out in pairs]
    best, best_score = None, -1.0
    head = build(name, {}, random_state, balanced=balanced, num_tokens=train.num_tokens)
    fitted = fit_folds(head, grid, X, y, np.repeat(fold, num_views), name=name)
    for params, estimators in fitted:
        judged = _joined(train, pairs, [_judge(*each, n_classes) for each in zip(estimators, parts, strict=True)])
        if (score := share_right(train.y, judged.y_pred, balanced=balanced)) > best_score:
            best, best_score = (params, judged), score
    assert best is not None, f"the grid of head {name!r} is empty"
    return _choice(best[0], "cross-validation", train, best[1], best_score)


def share_right(y: np.ndarray, y_pred: np.ndarray, *, balanced: bool) -> float:
    """Return accuracy, or balanced accuracy: what settings are compared by."""
    if balanced:
        return float(recall_score(y, y_pred, labels=np.unique(y), average="macro", zero_division=0.0))
    return float(np.mean(y == y_pred))


@dataclass(frozen=True, slots=True, eq=False)
class _Judged:
    """Predictions for held-out samples, and decision values of heads that have no probabilities."""

    y_pred: np.ndarray
    decisions: np.ndarray | None


def _choice(params: dict[str, Any], protocol: str, part: Part, judged: _Judged, score: float) -> Choice:
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


def _judge(estimator: BaseEstimator, part: Part, n_classes: int) -> _Judged:
    if not needs_temperature(estimator):
        return _Judged(predictions(estimator, part, 1.0, n_classes), None)
    values = decisions(estimator, part, n_classes)
    if part.several:
        return _Judged(most_probable(values, temperature_of(values, part.y)), values)
    return _Judged(predictions(estimator, part, 1.0, n_classes), values)


def folds(y: np.ndarray, groups: np.ndarray | None = None, *, random_state: int) -> BaseCrossValidator:
    """Return stratified folds, five or as many as the smallest class has samples; plain folds when that is one.

    Groups stay together, and count in the place of samples.

    Raises
    ------
    TaskError
        All samples are of one group.
    """
    smallest = smallest_class(y, groups)
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
    y_pred = np.empty(len(train), dtype=np.int64)
    values: np.ndarray | None = None
    for (_, held_out), each in zip(pairs, judged, strict=True):
        y_pred[held_out] = each.y_pred
        if each.decisions is not None:
            if values is None:
                values = np.full((len(train), *each.decisions.shape[1:]), -np.inf)
            values[held_out] = each.decisions
    return _Judged(y_pred, values)
