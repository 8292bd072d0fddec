"""What is kept of trainings: the results of searches, and what each training chose."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta, Struct, field
from numpy.typing import NDArray

from featurecache.store.schemas import ID, MANY, Arrays, Count, Number, Schema, Text


class ArrayBody(Struct, frozen=True):
    """An array within a record: small, so that the record stays one."""

    dtype: Literal["<i8", "<f8"]
    shape: Annotated[list[Count], Meta(min_length=1, max_length=2)]
    data: bytes

    @classmethod
    def of(cls, values: NDArray[Any]) -> ArrayBody:
        """Return the record of an array."""
        # Two types for all arrays, little-endian on every machine.
        dtype: Literal["<i8", "<f8"] = "<i8" if values.dtype.kind in "iu" else "<f8"
        return cls(dtype, list(values.shape), np.ascontiguousarray(values, dtype).tobytes())

    def read(self) -> NDArray[Any]:
        """Return the array; raises `ValueError` where the bytes are not those of its shape."""
        # Copied, as an array on bytes cannot be written to.
        return np.frombuffer(self.data, self.dtype).reshape(self.shape).copy()


Value = bool | int | float | Text | None
Scores = dict[Text, float | None]
"""Scores and the bounds of their intervals, by name."""


class HistoryBody(Struct, frozen=True, kw_only=True):
    """What a training chose.

    Attributes
    ----------
    time : str
        When it ended: ISO 8601, UTC.
    kind, classes : str, list of str
        Of the task.
    counts : dict
        Samples with a target in each split.
    head, params : str, dict
        The chosen head and its setting.
    backbone, tap, dtype, views, fingerprint, evaluated_on
        The features that it is on; whether it was evaluated on ``plain`` ones or ``views``.
    protocol, chosen_by : str
        How the setting was chosen, and by which score.
    selection_score : float
        Of the chosen head.
    reported : str
        The split that ``figures`` are of.
    primary : str
        The first of the scores.
    scores : dict
        Scores and their bounds.
    n_fitted : int
        Samples that the head was fitted on.
    num_heads : int
        How many heads on how many features were compared.
    """

    time: Text
    kind: Text
    classes: list[Text]
    counts: dict[Text, Count]
    head: Text
    params: dict[Text, Value]
    backbone: Text
    tap: Text
    dtype: Text
    views: Count | None
    fingerprint: Text
    evaluated_on: Text = field(name="judged_on")  # records keep the names that they have had
    protocol: Text
    chosen_by: Text
    selection_score: float
    reported: Text
    primary: Text
    scores: Scores = field(name="figures")
    n_fitted: Count
    num_heads: Count


class SearchBody(Struct, frozen=True, kw_only=True):
    """The result of a search, but for the fitted estimator; see `featurecache.evaluation.trained_head.HeadResult`."""

    head: Text
    params: dict[Text, Value]
    protocol: Text
    selection_accuracy: float | None
    selection_score: float
    selection_log_loss: float | None
    balanced: bool
    validation: Scores
    test: Scores | None
    reported: Text
    temperature: float
    converged: bool
    n_train: Count
    seconds: Number
    selection_index: ArrayBody
    selection_pred: ArrayBody
    selection_proba: ArrayBody | None = None
    y_pred: ArrayBody
    proba: ArrayBody


class ProbeBody(Struct, frozen=True, kw_only=True):
    """What a linear probe predicts; see `featurecache.advice.probe.Probe`."""

    out_of_fold: ArrayBody
    in_sample: ArrayBody
    penalty: Number


_HISTORY: Arrays = {
    "id": ID,
    "target": (("float64",), ("n", "outputs")),
    "predicted": (("float64",), ("n", "outputs")),
    "reported": (("uint8",), ("n",)),
}
HISTORY = Schema("training", _HISTORY, HistoryBody, most_rows=MANY)
