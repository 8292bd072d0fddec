"""The best of a head's settings, on held-out rows or by cross-validation inside the training rows.

A setting is chosen by the log loss of its probabilities, among those whose accuracy on the same rows, or another metric
in its place, is within chance of the best (two standard errors of the paired difference): on few rows accuracy takes
few values, and what it prefers is mostly chance; log loss says of every row how right its probabilities are (Gneiting &
Raftery, "Strictly proper scoring rules, prediction, and estimation", JASA 102, 2007). With many rows the standard error
is small, and accuracy decides.

Probabilities are calibrated first, for each setting by a temperature of its own: how sure a head is, a temperature can
mend, and how well it tells classes apart it cannot. Of logistic regressions whose log loss is within half a standard
error of the least, the one that is regularised least is taken: five rows of each class often tell none apart, and then
strong regularisation costs accuracy.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

from featurecache.errors import TaskError
from featurecache.evaluation.comparison import is_within_chance
from featurecache.evaluation.measure import Measure
from featurecache.evaluation.metrics import balanced_weights
from featurecache.evaluation.split_data import SplitData, class_sizes
from featurecache.heads.head import HeadMixin, NamedHead, Setting
from featurecache.heads.probability import (
    calibrated,
    decision_values,
    fit_temperature,
    has_decisions,
    needs_temperature,
)

MAX_FOLDS = 5
_REPEATED_BELOW = 200
"""Samples. With more, other folds would hardly give another choice."""
_MAX_REPEATS = 4
_SLOW_HEAD = 20.0
"""`Head.relative_seconds` from which folds are not repeated."""
_OF_ACCURACY, _OF_LOSS = 2.0, 0.5
"""Standard errors within which settings are as good as the best."""
_SAME_LOSS = 1e-4
"""Nats: so far from the least log loss a temperature may be when its search ends."""
_LEAST_PROBABILITY = 1e-9
"""One certain mistake would cost infinity, and hide all others."""


@dataclass(slots=True, eq=False)
class _Candidate:
    """How one setting did on the rows that were held out."""

    params: Setting
    weakness: int = 0
    """How weakly it is regularised, by the order in which values were offered; 0 where that is not asked."""
    y_pred: list[np.ndarray] = field(default_factory=list)
    """Of each repeat."""
    gain: float = 0.0
    """The metric, times `Measure.sign`; the mean over the repeats."""
    rows: np.ndarray = field(default_factory=lambda: np.zeros(1, np.float32))
    """What each sample adds to it, (n_samples,) float32, also the mean over the repeats."""
    decisions: list[np.ndarray] = field(default_factory=list)
    """Of each repeat until they are all there, (n_samples, n_views, n_classes); none without classes or
    probabilities."""
    temperature: float = 1.0
    loss: float = 0.0
    """Log loss of the probabilities, calibrated with this temperature; the mean over the repeats."""
    losses: np.ndarray | None = None
    """Of each sample, (n_samples,) float32; None without classes or probabilities."""
    proba: np.ndarray | None = None
    """Calibrated, of the first repeat, (n_samples, n_classes) float64, where `Measure.keeps_proba`."""


class Selection:
    """The best of some settings, which are offered one after the other.

    Folds divide samples: all views of a sample are on the same side. Where samples are few, they are divided into folds
    several times.

    Parameters
    ----------
    head : NamedHead
    train : SplitData
    validation : SplitData, optional
        Settings are chosen on it; by cross-validation inside ``train`` when left out.
    measure : Measure
    random_state : int
        Of the folds.

    Attributes
    ----------
    folds : list of ndarray of int (n_samples,)
        Of the samples of train, for each repeat; -1 for samples that are never held out.
    index : ndarray of int64
        Which samples settings are chosen by: of train, or of validation.
    data : SplitData
        These samples.
    protocol : str
        ``validation`` or ``cross-validation``.
    num_fitted : int
        Samples that the smallest fit of a setting has.
    is_informed : bool
        False where no sample that is held out is of a class that is fitted meanwhile: one setting is as wrong as the
        other then.
    """

    def __init__(
        self, head: NamedHead, train: SplitData, validation: SplitData | None, measure: Measure, random_state: int
    ) -> None:
        self.head, self.measure, self.random_state = head, measure, random_state
        self._candidates: dict[int, _Candidate] = {}
        self._near_one = head.calibrated_by_grid
        # Of others the weakest regularisation may be none at all, as ridge regression's is where rows are few.
        self._regularization: str | None = head.estimator.regularization if self._near_one else None
        self._from_strong_to_weak: dict[object, int] = {}
        if validation is not None:
            # -1 is never held out, as scikit-learn has it in `PredefinedSplit`.
            self.folds, self.data = [np.full(len(train), -1)], validation
            self.index, self.protocol = np.arange(len(validation)), "validation"
            self._held_out, self.is_informed, self.num_fitted = [[(self.index, validation)]], True, len(train)
            return
        self.protocol = "cross-validation"
        self.folds = repeated_folds(head, train, random_state)
        first = self.folds[0]
        self.index = np.flatnonzero(first >= 0)
        self.num_fitted = len(first) - int(np.bincount(first[self.index]).max(initial=0))
        self.is_informed = train.y.ndim == 2 or len(known_classes(train.y, first)) > 0
        self.data = train if len(self.index) == len(train) else train.take(self.index, for_evaluation=True)
        measure.check_defined("train rows that folds hold out", self.data.y)
        self._held_out = []
        for fold in self.folds:
            of_folds = [np.flatnonzero(fold == number) for number in np.unique(fold[self.index])]
            pairs = [(np.searchsorted(self.index, rows), train.take(rows, for_evaluation=True)) for rows in of_folds]
            self._held_out.append(pairs)

    def offer(self, repeat: int, number: int, params: Setting, estimators: Sequence[BaseEstimator]) -> None:
        """Take in how a setting does.

        Parameters
        ----------
        repeat : int
            Of the folds.
        number : int
            Of the setting.
        params : dict
        estimators : sequence
            Fitted with it, one for each fold.
        """
        held_out = self._held_out[repeat]
        predicted = [self._predict(estimator, data) for estimator, (_, data) in zip(estimators, held_out, strict=True)]
        order = np.argsort(np.concatenate([index for index, _ in held_out]))
        found = [decisions for _, decisions in predicted if decisions is not None]
        if repeat == 0:
            weakness = 0
            if self._regularization is not None:
                # Grids go from strong to weak regularisation: a value is as weak as it comes late.
                value = params.get(self._regularization)
                weakness = self._from_strong_to_weak.setdefault(value, len(self._from_strong_to_weak))
            self._candidates[number] = _Candidate(dict(params), weakness)
        candidate = self._candidates[number]
        candidate.y_pred.append(np.concatenate([y_pred for y_pred, _ in predicted])[order])
        if found:
            candidate.decisions.append(np.concatenate(found)[order])
        if repeat == len(self.folds) - 1:
            self._complete(candidate)
            self._drop_worse(number)

    def choose(self) -> Chosen:
        """Return the best setting; of equals the one that was offered first."""
        assert self._candidates, "the grid is empty"
        candidates = [self._candidates[number] for number in sorted(self._candidates)]
        top = max(candidates, key=lambda candidate: (candidate.gain, -candidate.loss))
        # Of log loss itself, the least is taken.
        if top.losses is not None and self.measure.metric != "log_loss":
            able = [
                candidate
                for candidate in candidates
                if is_within_chance(top.rows - candidate.rows, self.data.groups, standard_errors=_OF_ACCURACY)
            ]
            least = min(candidate.loss for candidate in able)
            top = next(candidate for candidate in able if candidate.loss <= least + _SAME_LOSS)
            if self._regularization is not None:
                alike = [candidate for candidate in able if self._is_as_likely(candidate, top)]
                top = min(alike, key=lambda candidate: (-candidate.weakness, candidate.loss))
        y_pred, loss = top.y_pred[0], None if top.losses is None else top.loss
        score = self.measure.score(self.data.y, self.measure.outputs(y_pred, top.proba))
        return Chosen(top.params, score, y_pred, top.proba, top.temperature, loss)

    def _predict(self, estimator: BaseEstimator, data: SplitData) -> tuple[np.ndarray, np.ndarray | None]:
        measure = self.measure
        if measure.kind != "classification" or not has_decisions(estimator):
            return measure.predict(estimator, data, 1.0), None
        decisions = data.per_view(lambda rows: decision_values(estimator, rows, measure.n_outputs))
        if data.eval_views.shape[1] > 1:
            temperature = fit_temperature(decisions, data.y) if needs_temperature(estimator) else 1.0
            return calibrated(decisions, temperature).argmax(axis=1), decisions
        # What others have written may predict another class than the most probable one, as scikit-learn's SVC does.
        own = isinstance(estimator, HeadMixin)
        return decisions[:, 0].argmax(axis=1) if own else measure.predict(estimator, data, 1.0), decisions

    def _complete(self, candidate: _Candidate) -> None:
        """Find its metric, and of classes its temperature and its log loss, from all repeats."""
        measure, y, outputs = self.measure, self.data.y, candidate.y_pred
        if candidate.decisions:
            weight = balanced_weights(y) if measure.balanced else None
            # Repeats are of the same samples, as views are.
            together = np.concatenate(candidate.decisions, axis=1)
            candidate.temperature = fit_temperature(together, y, weight, near_one=self._near_one)
            probabilities = [calibrated(decisions, candidate.temperature) for decisions in candidate.decisions]
            outputs = probabilities if measure.reads_proba else outputs
            candidate.proba = probabilities[0] if measure.keeps_proba else None
            of_label = [proba[np.arange(len(y)), y] for proba in probabilities]
            losses = -np.log(np.maximum(of_label, _LEAST_PROBABILITY)).mean(axis=0)
            candidate.loss = float(np.average(losses, weights=weight))
            candidate.losses = np.asarray(losses if weight is None else losses * weight, np.float32)
        for repeat, read in enumerate(outputs):
            rows = np.asarray(measure.row_scores(y, read), np.float32)
            candidate.gain += (measure.sign * measure.score(y, read) - candidate.gain) / (repeat + 1)
            candidate.rows = candidate.rows + (rows - candidate.rows) / (repeat + 1)
        # Only the first repeat is shown and compared with other heads; the others would fill the memory.
        candidate.y_pred, candidate.decisions = candidate.y_pred[:1], []

    def _drop_worse(self, number: int) -> None:
        """Forget settings that cannot be chosen any more: hundreds of them on many rows would fill the memory."""
        newest = self._candidates[number]
        earlier = [(key, kept) for key, kept in self._candidates.items() if key < number]
        if any(self._is_better(kept, newest) for _, kept in earlier):
            del self._candidates[number]
            return
        for key, kept in earlier:
            if newest.loss < kept.loss - _SAME_LOSS and self._is_better(newest, kept):
                del self._candidates[key]

    def _is_better(self, one: _Candidate, other: _Candidate) -> bool:
        """Tell whether the other need not be kept while the one is."""
        if one.gain < other.gain or one.loss > other.loss + _SAME_LOSS:
            return False
        return one.weakness >= other.weakness or not self._is_as_likely(other, one)

    def _is_as_likely(self, candidate: _Candidate, top: _Candidate) -> bool:
        """Tell whether its log loss is within half a standard error of that of the top."""
        if candidate.losses is None or top.losses is None:
            return True
        return is_within_chance(candidate.losses - top.losses, self.data.groups, standard_errors=_OF_LOSS)


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """A setting, and how it did on the samples by which it was chosen.

    Attributes
    ----------
    params : dict
    score : float
        `Measure.score` of what the metric reads of these.
    y_pred : ndarray
        Predictions of the first repeat, fitted on other samples: (n,) class indices, or (n, n_outputs).
    proba : ndarray or None
        Likewise, calibrated probabilities (n, n_classes) float64, where `Measure.keeps_proba`.
    temperature : float
        That calibrates its probabilities; 1.0 where it has none.
    log_loss : float or None
        Of the calibrated probabilities of classes.
    """

    params: Setting
    score: float
    y_pred: np.ndarray
    proba: np.ndarray | None
    temperature: float
    log_loss: float | None


def repeated_folds(head: NamedHead, train: SplitData, random_state: int) -> list[np.ndarray]:
    """Return the folds of the samples of train; several, where these are few, have classes, and the head is quick.

    Parameters
    ----------
    head : NamedHead
    train : SplitData
    random_state : int
    """
    count = 1
    if train.y.ndim == 1 and head.relative_seconds < _SLOW_HEAD:
        count = min(-(-_REPEATED_BELOW // len(train)), _MAX_REPEATS)
    found = [fold_numbers(train.y, train.groups, random_state=random_state + 1_000 * repeat) for repeat in range(count)]
    # Groups may fall otherwise: only what is held out in all repeats is chosen by.
    always = np.all([fold >= 0 for fold in found], axis=0)
    return [np.where(always, fold, -1) for fold in found]


def fold_numbers(y: np.ndarray, groups: np.ndarray | None = None, *, random_state: int) -> np.ndarray:
    """Return the fold of each sample, (n_samples,) int64: five stratified folds; plain ones without classes.

    Groups stay together. A class that would have all its samples in one fold is never held out, -1: the head that is
    evaluated on them would not know it. Classes of one sample each leave nothing else to hold out than such; then they
    are held out all the same.

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
    num_units = len(y) if groups is None else len(np.unique(groups))
    if num_units < 2:
        raise TaskError("all samples to fit on are of one group; settings are chosen on groups that are held out")
    largest = int(class_sizes(y, groups).max()) if y.ndim == 1 else 1
    count = min(MAX_FOLDS, largest if largest > 1 else num_units)
    if groups is None:
        kind = StratifiedKFold if largest > 1 else KFold
        splitter = kind(count, shuffle=True, random_state=random_state)
    else:
        grouped = StratifiedGroupKFold if largest > 1 else GroupKFold
        splitter = grouped(count, shuffle=True, random_state=random_state)
    fold = np.full(len(y), -1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        for number, (_, held_out) in enumerate(splitter.split(y, y if y.ndim == 1 else None, groups)):
            fold[held_out] = number
    if y.ndim == 1 and (known := known_classes(y, fold)):
        never = ~np.isin(y, known)
        if groups is not None:  # what is always fitted must not be of a group that is held out
            never = np.isin(groups, groups[never])
        if not never.all():
            fold[never] = -1
    return np.asarray(np.unique(fold, return_inverse=True)[1] - int((fold < 0).any()))


def known_classes(y: np.ndarray, fold: np.ndarray) -> list[int]:
    """Return the classes that have samples which are held out while others of them are fitted."""
    held_out = fold >= 0
    return [label for label in np.unique(y[held_out]) if len(np.unique(fold[held_out & (y == label)])) > 1]
