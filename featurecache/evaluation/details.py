"""Where a head was right and wrong: each class, label or number by itself, and what is mistaken for what."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from featurecache.evaluation.calibration import Calibration
from featurecache.evaluation.scores import OutputScores
from featurecache.specs import TASK_NOUN, TaskKind


@dataclass(frozen=True, slots=True, eq=False)
class Details:
    """Where a head was right and wrong.

    Attributes
    ----------
    per_output : list of OutputScores
        Of each class, label or number.
    calibration : Calibration or None
        Of classes.
    confusion : ndarray of int64 (n_classes, n_classes), or None
        Of classes: rows are true, columns predicted.
    """

    per_output: list[OutputScores]
    calibration: Calibration | None = None
    confusion: np.ndarray | None = None

    def to_json(self, kind: TaskKind) -> dict[str, object]:
        """Return plain JSON values, for a task of a kind."""
        # Keys of a report are the words for this kind of task: per_class, per_label, per_number.
        values: dict[str, object] = {f"per_{TASK_NOUN[kind]}": self.per_output}
        if self.calibration is not None and self.confusion is not None:
            values |= {"calibration": self.calibration.to_json(), "confusion": self.confusion.tolist()}
        return values
