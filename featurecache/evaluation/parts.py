"""The rows a head is trained and judged on: checked once, before any fitting.

A sample may have several rows to be fitted on (its views), and several to be judged on. They are kept by sample, so
that no division into parts or folds can separate them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from featurecache.errors import HeadError, TaskError
from featurecache.heads.fitting import check_features

LabelledRows = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Part:
    """Samples of one part of a task."""

    y: np.ndarray
    """Class index of each sample, (n_samples,); labels or numbers, (n_samples, n_outputs)."""
    fitted: np.ndarray
    """What heads are fitted on, (n_samples, n_views, n_features); plain features are one view."""
    judged: np.ndarray
    """What heads are judged on, (n_samples, n_views, n_features): the plain features, or several views."""
    groups: np.ndarray | None = None
    """Samples with the same number stay on one side of every division, (n_samples,) int; None: each is by itself."""
    num_tokens: int = 1
    """Tokens whose features stand side by side in a row."""

    def __len__(self) -> int:
        return len(self.y)

    @property
    def several(self) -> bool:
        """Tell whether a sample is judged on more than one view."""
        return self.judged.shape[1] > 1

    def rows_to_fit(self) -> LabelledRows:
        """Return every view as a row, (n_samples * n_views, n_features), with the label of its sample."""
        return _flat(self.fitted), np.repeat(self.y, self.fitted.shape[1], axis=0)

    def take(self, places: np.ndarray) -> Part:
        """Return some of the samples, with all that belongs to them."""
        groups = None if self.groups is None else self.groups[places]
        return replace(self, y=self.y[places], fitted=self.fitted[places], judged=self.judged[places], groups=groups)

    def with_samples_of(self, other: Part) -> Part:
        """Return the samples of both parts."""
        return replace(
            self,
            y=np.concatenate([self.y, other.y]),
            fitted=np.concatenate([self.fitted, other.fitted]),
            judged=np.concatenate([self.judged, other.judged]),
            groups=None if self.groups is None or other.groups is None else np.concatenate([self.groups, other.groups]),
        )

    def joined(self, other: Part) -> LabelledRows:
        """Return the rows to fit of two parts."""
        (X, y), (X_more, y_more) = self.rows_to_fit(), other.rows_to_fit()
        return np.concatenate([X, X_more]), np.concatenate([y, y_more])


Split = Mapping[str, LabelledRows | Part]
"""``{"train": (X, y), "validation": (X, y), "test": (X, y)}``; validation or test may be absent."""

PART_NAMES = ("train", "validation", "test")


def check_parts(parts: Split, check: Callable[[str, np.ndarray], np.ndarray]) -> dict[str, Part]:
    """Return the parts as contiguous float arrays and what is said of them, or say what is wrong with them.

    Parameters
    ----------
    parts : mapping
        Part name to ``(X, y)``: X (n_samples, n_features), y (n_samples,) class indices; or to a `Part`. An absent part
        may also be None.
    check : callable
        Takes the name of a part and its labels, and returns the labels as heads take them, or raises `TaskError`.

    Raises
    ------
    TaskError
        No training rows, nothing to judge a head on, or labels that ``check`` refuses.
    HeadError
        Features that are not finite, not two-dimensional, or of different width in different parts.
    """
    given = {name: part for name, part in parts.items() if part is not None}
    if unknown := [name for name in given if name not in PART_NAMES]:
        raise TaskError(f"unknown part {unknown[0]!r}; known: {', '.join(PART_NAMES)}")
    if "train" not in given:
        raise TaskError("there is no train part; mark some rows of the task as train")
    checked = {name: _check_part(name, given[name], check) for name in PART_NAMES if name in given}
    if len(checked) == 1:
        raise TaskError(
            "only train rows are given, nothing to judge a head on; add a validation or test split to the task"
        )
    widths = {name: part.judged.shape[2] for name, part in checked.items()}
    if len({*widths.values(), *(part.fitted.shape[2] for part in checked.values())}) > 1:
        raise HeadError(f"features per row differ between parts ({widths}); take all parts from one tap")
    return checked


def _check_part(name: str, given: LabelledRows | Part, check: Callable[[str, np.ndarray], np.ndarray]) -> Part:
    if isinstance(given, Part):
        X, y = _flat(given.judged), given.y
    else:
        X, y = given
    num_judged = given.judged.shape[1] if isinstance(given, Part) else 1
    y = np.asarray(y)
    if y.ndim not in (1, 2) or len(y) * num_judged != len(X):
        raise TaskError(f"{name} has {len(X)} rows but labels of shape {y.shape}; give one label per row")
    if len(y) == 0:
        raise TaskError(f"the {name} part has no rows; label some rows of it or leave the part out")
    y = check(name, y)
    judged = check_features(X, name).reshape(len(y), num_judged, -1)
    fitted = judged
    if isinstance(given, Part) and given.fitted is not given.judged:
        fitted = check_features(_flat(given.fitted), name).reshape(len(y), given.fitted.shape[1], -1)
    checked = Part(y=y, fitted=fitted, judged=judged)
    if isinstance(given, Part):
        return replace(checked, groups=given.groups, num_tokens=given.num_tokens)
    return checked


def smallest_class(y: np.ndarray, groups: np.ndarray | None) -> int:
    """Return how many samples, or groups, the class has that has the fewest."""
    if groups is None:
        return int(np.unique(y, return_counts=True)[1].min())
    return min(len(np.unique(groups[y == label])) for label in np.unique(y))


def _flat(views: np.ndarray) -> np.ndarray:
    return views.reshape(-1, views.shape[2])
