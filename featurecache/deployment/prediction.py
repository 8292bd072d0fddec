"""What is predicted for one input."""

from __future__ import annotations

from dataclasses import dataclass, field

from featurecache.records import PlainValues


@dataclass(frozen=True)
class Prediction(PlainValues):
    """The prediction for one input; a bad input has a status and a reason instead.

    Attributes
    ----------
    label : str or None
        The class; or the labels that hold, with ``;`` between them.
    probability : float or None
        Of the class.
    probabilities : dict
        Of each class, or of each label by itself.
    numbers : dict
        By name, where the head predicts numbers.
    p_value : float or None
        The share of samples like those that the head was fitted on that would be at least as unlike them; None where
        that was not asked for.
    is_outlier : bool or None
        That share is at most what was asked for.
    """

    path: str
    label: str | None
    probability: float | None
    probabilities: dict[str, float]
    status: str = "ok"
    reason: str = ""
    numbers: dict[str, float] = field(default_factory=dict)
    p_value: float | None = None
    is_outlier: bool | None = None
