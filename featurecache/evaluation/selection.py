"""Choosing one setting from a head's grid, on held-out rows or by cross-validation inside the training rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.model_selection import BaseCrossValidator, KFold, StratifiedKFold

from featurecache.evaluation.parts import Part
from featurecache.heads.fitting import fit_estimator
from featurecache.heads.probability import decision_values, fit_temperature, needs_temperature
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
    X, y = validation
    for params in head_grid(name, len(train[1])):
        estimator = build(name, params, random_state)
        fit_estimator(estimator, *train, name=name)
        y_pred = np.asarray(estimator.predict(X), dtype=np.int64)
        if (correct := int(np.sum(y_pred == y))) > best_correct:
            best, best_correct = (params, estimator, y_pred), correct
    assert best is not None, f"the grid of head {name!r} is empty"
    params, estimator, y_pred = best
    decisions = decision_values(estimator, X, n_classes) if needs_temperature(estimator) else None
    temperature = 1.0 if decisions is None else fit_temperature(decisions, y)
    return Choice(
        params=params,
        protocol="validation",
        y=y,
        y_pred=y_pred,
        temperature=temperature,
    )


def choose_by_cross_validation(name: str, train: Part, n_classes: int, *, random_state: int) -> Choice:
    """Keep the setting whose out-of-fold predictions inside train are the most accurate; of equals the simplest."""
    X, y = train
    pairs = list(folds(y, random_state=random_state).split(X, y))
    grid = head_grid(name, min(len(fitted) for fitted, _ in pairs))
    runs = (_out_of_fold(name, params, train, pairs, n_classes, random_state) for params in grid)
    best = max(zip(grid, runs, strict=True), key=lambda pair: int(np.sum(pair[1][0] == y)))
    params, (y_pred, decisions) = best
    temperature = 1.0 if decisions is None else fit_temperature(decisions, y)
    return Choice(params=params, protocol="cross-validation", y=y, y_pred=y_pred, temperature=temperature)


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
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return out-of-fold predictions (n,) and decision values (n, n_classes), None for heads with probabilities."""
    X, y = train
    y_pred = np.empty(len(y), dtype=np.int64)
    decisions = np.full((len(y), n_classes), -np.inf)
    for estimator, held_out in _fitted_folds(name, params, train, pairs, random_state):
        y_pred[held_out] = estimator.predict(X[held_out])
        if needs_temperature(estimator):
            decisions[held_out] = decision_values(estimator, X[held_out], n_classes)
    return y_pred, decisions if needs_temperature(make_head(name)) else None


def _fitted_folds(
    name: str,
    params: dict[str, Any],
    train: Part,
    pairs: list[tuple[np.ndarray, np.ndarray]],
    random_state: int,
) -> Iterator[tuple[BaseEstimator, np.ndarray]]:
    X, y = train
    for fitted, held_out in pairs:
        # With a class of one row a fold may be left with one class, which most heads refuse to learn from.
        one_class = len(np.unique(y[fitted])) == 1
        estimator = build("majority", {}, random_state) if one_class else build(name, params, random_state)
        fit_estimator(estimator, X[fitted], y[fitted], name=name)
        yield estimator, held_out
