"""From which probability on a class or a label is predicted, chosen on predictions for samples that were not fitted on.

Candidates are all ways in which a threshold can divide the samples; the threshold itself lies halfway between the two
probabilities that it divides, so that rounding on another machine moves no sample across it. As in scikit-learn's
`FixedThresholdClassifier`, a sample is positive whose probability is at least the threshold.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from featurecache.errors import RequestError

_NAMES = "default, f1, recall=R, precision=P or cost=FN:FP"
_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"
FEW_POSITIVES = 20
"""With fewer, one positive sample more or less moves recall by more than 5 points."""


@dataclass(frozen=True, slots=True)
class ThresholdRule:
    """What a threshold is chosen for.

    Attributes
    ----------
    name : str
    target : float
        The recall or precision to reach.
    of_missed, of_false_alarm : float
        What a missed positive costs, and what a false alarm.
    """

    name: Literal["f1", "recall", "precision", "cost"]
    target: float = 0.0
    of_missed: float = 1.0
    of_false_alarm: float = 1.0

    def __str__(self) -> str:
        if self.name == "cost":
            return f"cost={self.of_missed:g}:{self.of_false_alarm:g}"
        return self.name if self.name == "f1" else f"{self.name}={self.target:g}"


def threshold_rule(text: str | None) -> ThresholdRule | None:
    """Return the rule of a text: ``f1``, ``recall=0.95``, ``precision=0.9``, ``cost=5:1``; None of ``default``.

    Raises
    ------
    RequestError
        It is none.
    """
    if text is None or text == "default":
        return None
    if text == "f1":
        return ThresholdRule("f1")
    if found := re.fullmatch(rf"cost={_NUMBER}:{_NUMBER}", text):
        missed, alarm = map(float, found.groups())
        if missed > 0 and alarm > 0:
            return ThresholdRule("cost", of_missed=missed, of_false_alarm=alarm)
    for name in ("recall", "precision"):
        if (found := re.fullmatch(rf"{name}={_NUMBER}", text)) and 0 < (target := float(found[1])) <= 1:
            return ThresholdRule("recall" if name == "recall" else "precision", target)
    raise RequestError(
        f"threshold {text!r} is none of {_NAMES}; R and P are above 0 and at most 1, FN and FP are what a missed "
        "positive and a false alarm cost"
    )


def choose_threshold(rule: ThresholdRule, holds: np.ndarray, proba: np.ndarray) -> tuple[float, bool]:
    """Return the best threshold, and whether it reaches the target.

    Parameters
    ----------
    rule : ThresholdRule
        ``f1``: the greatest F1. ``recall``: the greatest precision with that recall at least; ``precision``: the
        greatest recall with that precision at least, or the greatest precision where none reaches it. ``cost``: the
        least cost. Of equals, the one nearest to one half.
    holds : ndarray of bool (n,)
        Which samples are positive.
    proba : ndarray (n,)
        Of being positive, by a fit that has not seen the sample.

    Returns
    -------
    (threshold, is_reached)
        One half, and False, where no sample is positive.
    """
    if not holds.any():
        return 0.5, False
    order = np.argsort(-proba, kind="stable")
    found, ends = proba[order], np.append(np.flatnonzero(np.diff(proba[order])), len(proba) - 1)
    # The first candidate names none, the last all.
    hits = np.append(0, np.cumsum(holds[order])[ends])
    named, num_positive = np.append(0, ends + 1), int(holds.sum())
    thresholds = _between(found[ends])
    recall, precision = hits / num_positive, hits / np.maximum(named, 1)
    reached = np.ones(len(named), bool)
    match rule.name:
        case "f1":
            keys = [2 * hits / (named + num_positive)]
        case "cost":
            keys = [-(rule.of_missed * (num_positive - hits) + rule.of_false_alarm * (named - hits))]
        case "recall":
            # Quotients may round to a little below a target that is reached.
            reached, keys = recall >= rule.target - 1e-12, [precision, recall]
        case "precision":
            reached, keys = (precision >= rule.target - 1e-12) & (hits > 0), [recall, precision]
    if not reached.any():
        keys = [precision, recall]
    able = np.flatnonzero(reached) if reached.any() else np.arange(1, len(named))
    # The last key of `lexsort` counts most.
    best = able[np.lexsort([np.abs(thresholds[able] - 0.5), *(-key[able] for key in reversed(keys))])[0]]
    return float(thresholds[best]), bool(reached.any())


def _between(found: np.ndarray) -> np.ndarray:
    """Return the threshold above all of some falling probabilities, between each two, and below all of them."""
    lower = np.append(found[1:], 0.0)
    middle = lower + (found - lower) / 2
    # Of two numbers that are neighbours, the middle is one of them.
    middle = np.where(middle > lower, middle, found)
    middle[-1] = found[-1] / 2
    above = found[0] + (1 - found[0]) / 2
    # A probability of one leaves no number between it and one.
    return np.append(above if above > found[0] else np.nextafter(max(found[0], 1.0), 2.0), middle)


@dataclass(frozen=True, slots=True)
class Thresholds:
    """From which probability on a class or labels are predicted.

    Attributes
    ----------
    rule : str
        By which they were chosen.
    values : tuple of float
        One for the positive of two classes, or for each label.
    positive : int or None
        Index of the positive class; None of labels.
    num_positive : tuple of int
        Positive samples by which each was chosen.
    is_reached : tuple of bool
        Which reach the target of the rule on these.
    """

    rule: str
    values: tuple[float, ...]
    positive: int | None
    num_positive: tuple[int, ...]
    is_reached: tuple[bool, ...]

    def predict(self, proba: np.ndarray) -> np.ndarray:
        """Return class indices (n,), or which labels hold (n, n_labels) bool, for probabilities (n, n_outputs)."""
        if self.positive is None:
            return np.asarray(proba >= np.array(self.values))
        return np.where(proba[:, self.positive] >= self.values[0], self.positive, 1 - self.positive)

    def decide(self, proba: np.ndarray) -> np.ndarray:
        """Return class indices (n,), or probabilities of labels, moved in their order so that those that hold are above
        one half.
        """
        if self.positive is not None:
            return self.predict(proba)
        threshold = np.array(self.values)
        # At a threshold of 0, or of 1 and more, one of the two sides is empty: only nothing must be divided by zero.
        above = 1 - (1 - proba) / np.maximum(1 - threshold, 1e-12) / 2
        below = proba / np.maximum(threshold, 1e-12) / 2
        return np.where(proba >= threshold, np.clip(above, np.nextafter(0.5, 1), 1), np.clip(below, 0, 0.5))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "rule": self.rule,
            "values": list(self.values),
            "positive": self.positive,
            "num_positive": list(self.num_positive),
            "is_reached": list(self.is_reached),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any], n_outputs: int) -> Thresholds:
        """Return the thresholds that `to_json` gave these values.

        Raises
        ------
        ValueError, TypeError, KeyError
            They are of nothing that predicts so many classes or labels.
        """
        positive, found = values["positive"], tuple(map(float, values["values"]))
        fits = len(found) == n_outputs if positive is None else (n_outputs, len(found)) == (2, 1) and positive in (0, 1)
        if not fits or not all(0 <= threshold <= 2 for threshold in found):
            raise ValueError("its thresholds are not those of its classes")
        return cls(
            rule=str(values["rule"])[:100],
            values=found,
            positive=positive,
            num_positive=tuple(map(int, values["num_positive"])),
            is_reached=tuple(map(bool, values["is_reached"])),
        )


def choose_thresholds(rule: ThresholdRule, y: np.ndarray, proba: np.ndarray, positive: int) -> Thresholds:
    """Return the best threshold of two classes, or of each label.

    Parameters
    ----------
    rule : ThresholdRule
    y : ndarray (n,) of class indices, or (n, n_labels) of 1, 0 and -1 where it is not known
    proba : ndarray (n, n_outputs)
        By fits that have not seen the samples.
    positive : int
        Index of the positive class; of no meaning for labels.
    """
    if y.ndim == 1:
        columns = [(y == positive, proba[:, positive])]
    else:
        columns = [(y[y[:, k] >= 0, k] == 1, proba[y[:, k] >= 0, k]) for k in range(y.shape[1])]
    found = [choose_threshold(rule, holds, scores) for holds, scores in columns]
    return Thresholds(
        rule=str(rule),
        values=tuple(threshold for threshold, _ in found),
        positive=positive if y.ndim == 1 else None,
        num_positive=tuple(int(holds.sum()) for holds, _ in columns),
        is_reached=tuple(is_reached for _, is_reached in found),
    )
