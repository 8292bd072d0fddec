"""Choosing one setting from a head's grid, on held-out rows or by cross-validation inside the training rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.model_selection import BaseCrossValidator, KFold, StratifiedKFold

from featurecache.evaluation.judging import decisions, most_probable, predictions, temperature_of
from featurecache.evaluation.parts import Part
from featurecache.heads.fitting import fit_estimator
from featurecache.heads.probability import needs_temperature
from featurecache.heads.registry import head_grid, last_step, make_head

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
    temperature: float
    """Fitted on the decision values of these rows; 1.0 for heads with probabilities of their own."""

    @property
    def accuracy(self) -> float:
        """Share of the held-out rows that were predicted right."""
        return float(np.mean(self.y == self.y_pred))


def build(name: str, params: dict[str, Any], random_state: int) -> BaseEstimator:
    """Return an unfitted head with these parameters and, where it has one, this random state."""
    estimator = make_head(name, **params)
    if "random_state" in (last := last_step(estimator)).get_params(deep=False):
        last.set_params(random_state=random_state)
    return estimator


def choose_on_validation(name: str, train: Part, validation: Part, n_classes: int, *, random_state: int) -> Choice:
    """Fit each setting on train, keep the one most accurate on validation; of equals the simplest."""
    best, best_correct = None, -1
    X, y = train.rows_to_fit()
    for params in head_grid(name, len(y)):
        estimator = build(name, params, random_state)
        fit_estimator(estimator, X, y, name=name)
        judged = _judge(estimator, validation, n_classes)
        if (correct := int(np.sum(judged.y_pred == validation.y))) > best_correct:
            best, best_correct = (params, judged), correct
    assert best is not None, f"the grid of head {name!r} is empty"
    params, judged = best
    return _choice(params, "validation", validation.y, judged)


def choose_by_cross_validation(name: str, train: Part, n_classes: int, *, random_state: int) -> Choice:
    """Keep the setting whose out-of-fold predictions inside train are the most accurate; of equals the simplest.

    The folds divide samples: all views of a sample are on the same side.
    """
    pairs = list(folds(train.y, random_state=random_state).split(train.y, train.y))
    grid = head_grid(name, min(len(fitted) for fitted, _ in pairs) * train.fitted.shape[1])
    runs = (_out_of_fold(name, params, train, pairs, n_classes, random_state) for params in grid)
    params, judged = max(zip(grid, runs, strict=True), key=lambda pair: int(np.sum(pair[1].y_pred == train.y)))
    return _choice(params, "cross-validation", train.y, judged)


@dataclass(frozen=True, slots=True, eq=False)
class _Judged:
    """Predictions for held-out samples, and decision values of heads that have no probabilities."""

    y_pred: np.ndarray
    decisions: np.ndarray | None


def _choice(params: dict[str, Any], protocol: str, y: np.ndarray, judged: _Judged) -> Choice:
    temperature = 1.0 if judged.decisions is None else temperature_of(judged.decisions, y)
    return Choice(params=params, protocol=protocol, y=y, y_pred=judged.y_pred, temperature=temperature)


def _judge(estimator: BaseEstimator, part: Part, n_classes: int) -> _Judged:
    if not needs_temperature(estimator):
        return _Judged(predictions(estimator, part, 1.0, n_classes), None)
    values = decisions(estimator, part, n_classes)
    if part.several:
        return _Judged(most_probable(values, temperature_of(values, part.y)), values)
    return _Judged(predictions(estimator, part, 1.0, n_classes), values)


def folds(y: np.ndarray, *, random_state: int) -> BaseCrossValidator:
    """Return stratified folds, five or as many as the smallest class has rows; plain folds when that is one row."""
    smallest = int(np.unique(y, return_counts=True)[1].min())
    if smallest > 1:
        return StratifiedKFold(min(MAX_FOLDS, smallest), shuffle=True, random_state=random_state)
    return KFold(min(MAX_FOLDS, len(y)), shuffle=True, random_state=random_state)


def _out_of_fold(
    name: str,
    params: dict[str, Any],
    train: Part,
    pairs: list[tuple[np.ndarray, np.ndarray]],
    n_classes: int,
    random_state: int,
) -> _Judged:
    """Return out-of-fold predictions and decision values for every sample of train."""
    y_pred = np.empty(len(train), dtype=np.int64)
    values = np.full((*train.judged.shape[:2], n_classes), -np.inf)
    for estimator, held_out in _fitted_folds(name, params, train, pairs, random_state):
        judged = _judge(estimator, train.take(held_out), n_classes)
        y_pred[held_out] = judged.y_pred
        if judged.decisions is not None:
            values[held_out] = judged.decisions
    return _Judged(y_pred, values if needs_temperature(make_head(name)) else None)


def _fitted_folds(
    name: str,
    params: dict[str, Any],
    train: Part,
    pairs: list[tuple[np.ndarray, np.ndarray]],
    random_state: int,
) -> Iterator[tuple[BaseEstimator, np.ndarray]]:
    for fitted, held_out in pairs:
        X, y = train.take(fitted).rows_to_fit()
        # With a class of one row a fold may be left with one class, which most heads refuse to learn from.
        one_class = len(np.unique(y)) == 1
        estimator = build("majority", {}, random_state) if one_class else build(name, params, random_state)
        fit_estimator(estimator, X, y, name=name)
        yield estimator, held_out
