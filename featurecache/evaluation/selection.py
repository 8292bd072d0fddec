"""The best of a head's settings, on held-out rows or by cross-validation inside the training rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax
from sklearn.base import BaseEstimator
from sklearn.model_selection import BaseCrossValidator, GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

from featurecache.errors import TaskError
from featurecache.evaluation.calibration import log_loss
from featurecache.evaluation.measure import Measure
from featurecache.evaluation.prediction import per_view, split_proba, temperature_of
from featurecache.evaluation.split_data import SplitData, smallest_class
from featurecache.heads.head import Setting
from featurecache.heads.probability import decision_values, needs_temperature

MAX_FOLDS = 5


@dataclass(frozen=True, slots=True, eq=False)
class _Predictions:
    """Predictions for held-out samples, and decision values of heads that have no probabilities."""

    y_pred: np.ndarray
    decisions: np.ndarray | None


class Selection:
    """The best setting so far; settings are offered one after the other.

    Folds divide samples: all views of a sample are on the same side. Of settings that score equally, the one whose
    probabilities have the least log loss is kept, where a head has probabilities of its own: on an easy task every C
    is right, and the smallest is sure of nothing.

    Parameters
    ----------
    train : SplitData
    validation : SplitData, optional
        Settings are chosen on it; by cross-validation inside ``train`` when left out.
    measure : Measure
    random_state : int
        Of the folds.

    Attributes
    ----------
    fold : ndarray of int (n_samples,)
        Of the samples of train; -1 for all where there is a validation split.
    data : SplitData
        The samples by which settings are chosen.
    params : dict
        The best setting.
    score : float
        `Measure.score` of it.
    """

    def __init__(self, train: SplitData, validation: SplitData | None, measure: Measure, random_state: int) -> None:
        self.data, self._measure = train if validation is None else validation, measure
        # -1 is never held out, as scikit-learn has it in `PredefinedSplit`.
        self.fold = np.full(len(train), -1)
        self._pairs: list[tuple[np.ndarray, np.ndarray]] = []
        self._held_out = [self.data]
        if validation is None:
            splitter = folds(train.y, train.groups, random_state=random_state)
            self._pairs = list(splitter.split(train.y, train.y if train.y.ndim == 1 else None, train.groups))
            for number, (_, held_out) in enumerate(self._pairs):
                self.fold[held_out] = number
            self._held_out = [train.for_evaluation(held_out) for _, held_out in self._pairs]
        self.params: Setting = {}
        self.score = -math.inf
        self._best: _Predictions | None = None
        self._estimators: Sequence[BaseEstimator] = ()
        self._loss: float | None = None

    @property
    def protocol(self) -> str:
        """``validation`` or ``cross-validation``."""
        return "cross-validation" if self._pairs else "validation"

    @property
    def num_fitted(self) -> int:
        """Samples that the smallest fit of a setting has."""
        return min((len(fitted) for fitted, _ in self._pairs), default=len(self.fold))

    def offer(self, params: Setting, estimators: Sequence[BaseEstimator]) -> None:
        """Keep a setting if it is the best.

        Parameters
        ----------
        params : dict
        estimators : sequence
            Fitted with it, one for each fold.
        """
        found = [self._predict(*pair) for pair in zip(estimators, self._held_out, strict=True)]
        predictions = _in_order(self._pairs, found) if self._pairs else found[0]
        score, loss = self._measure.score(self.data.y, predictions.y_pred), None
        if score < self.score:
            return
        if score == self.score:
            self._loss = self._log_loss(self._estimators) if self._loss is None else self._loss
            loss = self._log_loss(estimators)
            if loss >= self._loss:
                return
        self.params, self.score, self._best = params, score, predictions
        self._estimators, self._loss = estimators, loss

    @property
    def y_pred(self) -> np.ndarray:
        """Predictions of the best setting, fitted on other samples: (n,) class indices, or (n, n_outputs)."""
        assert self._best is not None, "the grid is empty"
        return self._best.y_pred

    @property
    def accuracy(self) -> float | None:
        """Share of the samples that were predicted right, where there are classes."""
        return float(np.mean(self.data.y == self.y_pred)) if self.data.y.ndim == 1 else None

    def temperature(self) -> float:
        """Fit the temperature to the decision values; 1.0 for heads with probabilities of their own."""
        decisions = None if self._best is None else self._best.decisions
        return 1.0 if decisions is None else temperature_of(decisions, self.data.y)

    def _predict(self, estimator: BaseEstimator, data: SplitData) -> _Predictions:
        if self._measure.kind != "classification" or not needs_temperature(estimator):
            return _Predictions(self._measure.predict(estimator, data, 1.0), None)
        values = per_view(data, lambda rows: decision_values(estimator, rows, self._measure.n_outputs))
        if data.has_several_views:
            proba = softmax(values / temperature_of(values, data.y), axis=2).mean(axis=1)
            return _Predictions(proba.argmax(axis=1), values)
        return _Predictions(self._measure.predict(estimator, data, 1.0), values)

    def _log_loss(self, estimators: Sequence[BaseEstimator]) -> float:
        """Return the mean log loss; 0 for heads without probabilities of their own, which are all alike in this."""
        if self._measure.kind != "classification" or not hasattr(estimators[0], "predict_proba"):
            return 0.0
        y = np.concatenate([data.y for data in self._held_out])
        pairs = zip(estimators, self._held_out, strict=True)
        return log_loss(y, np.concatenate([split_proba(*pair, 1.0, self._measure.n_outputs) for pair in pairs]))


def folds(y: np.ndarray, groups: np.ndarray | None = None, *, random_state: int) -> BaseCrossValidator:
    """Return stratified folds, five or as many as the smallest class has samples; plain folds without classes.

    Groups stay together, and count as one sample each.

    Parameters
    ----------
    y : ndarray (n_samples,), or (n_samples, n_outputs)
    groups : ndarray of int (n_samples,), optional
    random_state : int

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


def _in_order(pairs: Sequence[tuple[np.ndarray, np.ndarray]], found: Sequence[_Predictions]) -> _Predictions:
    """Put the predictions of the folds together, in the order of the samples."""
    # Folds come in their own order; scores and comparisons are by sample.
    held_out = np.concatenate([indices for _, indices in pairs])
    order = np.argsort(held_out)
    y_pred = np.concatenate([fold_predictions.y_pred for fold_predictions in found])[order]
    if any(fold_predictions.decisions is None for fold_predictions in found):
        if all(fold_predictions.decisions is None for fold_predictions in found):
            return _Predictions(y_pred, None)
        width = next(
            fold_predictions.decisions.shape[1:] for fold_predictions in found if fold_predictions.decisions is not None
        )
        # A fold without which one class is left has a head of another kind, which has no decision values.
        decisions = [
            np.full((len(fold_predictions.y_pred), *width), -np.inf)
            if fold_predictions.decisions is None
            else fold_predictions.decisions
            for fold_predictions in found
        ]
        return _Predictions(y_pred, np.concatenate(decisions)[order])
    return _Predictions(
        y_pred,
        np.concatenate(
            [fold_predictions.decisions for fold_predictions in found if fold_predictions.decisions is not None]
        )[order],
    )
