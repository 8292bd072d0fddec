"""The rows a head is trained and judged on: checked once, before any fitting.

A sample may have several rows to be fitted on (its views), and several to be judged on. They are kept by sample, so
that no division into parts or folds can separate them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from featurecache.errors import HeadError, TaskError
from featurecache.evaluation.staging import Staging
from featurecache.heads.fitting import check_features

LabelledRows = tuple[np.ndarray, np.ndarray]
_BLOCK_BYTES = 256 << 20
"""Of rows that are judged at a time."""


class RowsToFit(NamedTuple):
    """What an estimator is fitted on."""

    X: np.ndarray
    """(n_rows, n_features)."""
    y: np.ndarray
    """Class index of each row, (n_rows,); labels or numbers, (n_rows, n_outputs)."""
    weight: np.ndarray | None
    """(n_rows,), or None: all count alike."""
    groups: np.ndarray | None
    """(n_rows,): rows with the same number are of one group, or are views of one sample; None: each is by itself."""


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
    weight: np.ndarray | None = None
    """How much each sample counts in fitting, (n_samples,) float64; None: all count alike."""
    num_tokens: int = 1
    """Tokens whose features stand side by side in a row."""
    on_disk: bool = False
    """Features are read from a file as they are needed, because memory would not hold them."""
    places: np.ndarray | None = None
    """Where the samples are in ``judged``, (n_samples,) int64, where that holds others too: then for judging only."""

    def __len__(self) -> int:
        return len(self.y)

    @property
    def several(self) -> bool:
        """Tell whether a sample is judged on more than one view."""
        return self.judged.shape[1] > 1

    def rows_to_fit(self) -> RowsToFit:
        """Return every view as a row, with the label and the weight of its sample."""
        num_views = self.fitted.shape[1]
        weight = None if self.weight is None else np.repeat(self.weight, num_views)
        groups = np.arange(len(self)) if self.groups is None and num_views > 1 else self.groups
        if groups is not None:
            groups = np.repeat(groups, num_views)
        return RowsToFit(_flat(self.fitted), np.repeat(self.y, num_views, axis=0), weight, groups)

    def rows_to_judge(self) -> Iterator[np.ndarray]:
        """Yield what samples are judged on, (n_rows, n_features), every view a row, some samples at a time."""
        num_samples = max(_BLOCK_BYTES // (self.judged[:1].nbytes or 1), 1)
        for start in range(0, len(self), num_samples):
            some = slice(start, start + num_samples)
            yield _flat(self.judged[some if self.places is None else self.places[some]])

    def in_memory(self) -> Part:
        """Return the same with plain arrays: another process is handed memory maps, by which heads know a disk."""
        judged = np.asarray(self.judged)
        fitted = judged if self.fitted is self.judged else np.asarray(self.fitted)
        return replace(self, judged=judged, fitted=fitted, on_disk=False)

    def take(self, places: np.ndarray, room: Staging | None = None) -> Part:
        """Return some of the samples, with all that belongs to them; in memory, or where a room has a place for them.

        Raises
        ------
        RequestError
            There is none.
        """
        judged = _taken(self.judged, places, room)
        fitted = judged if self.fitted is self.judged else _taken(self.fitted, places, room)
        on_disk = room is not None and any(isinstance(each, np.memmap) for each in (judged, fitted))
        return replace(self._of(places), fitted=fitted, judged=judged, on_disk=on_disk)

    def to_judge(self, places: np.ndarray, *, copy: bool = True) -> Part:
        """Return some of the samples for judging; on disk, or without a copy, their features stay where they are."""
        return self.take(places) if copy and not self.on_disk else replace(self._of(places), places=places)

    def without_features(self) -> Part:
        """Return the samples, and what is said of them, with as many views as they have, of no features."""
        fitted, judged = (np.empty((len(self), each.shape[1], 0), np.float32) for each in (self.fitted, self.judged))
        return replace(self, fitted=fitted, judged=judged, on_disk=False)

    def with_samples_of(self, other: Part) -> Part:
        """Return the samples of both parts."""
        judged = _joined(self.judged, other.judged)
        return replace(
            self,
            y=np.concatenate([self.y, other.y]),
            fitted=judged if self.fitted is self.judged else _joined(self.fitted, other.fitted),
            judged=judged,
            groups=None if self.groups is None or other.groups is None else np.concatenate([self.groups, other.groups]),
            weight=None if self.weight is None or other.weight is None else np.concatenate([self.weight, other.weight]),
        )

    def _of(self, places: np.ndarray) -> Part:
        groups, weight = (None if each is None else each[places] for each in (self.groups, self.weight))
        return replace(self, y=self.y[places], groups=groups, weight=weight)


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
    return (
        replace(given, y=y, fitted=fitted, judged=judged)
        if isinstance(given, Part)
        else Part(y=y, fitted=fitted, judged=judged)
    )


def smallest_class(y: np.ndarray, groups: np.ndarray | None) -> int:
    """Return how many samples, or groups, the class has that has the fewest."""
    if groups is None:
        return int(np.unique(y, return_counts=True)[1].min())
    return min(len(np.unique(groups[y == label])) for label in np.unique(y))


def _taken(features: np.ndarray, places: np.ndarray, room: Staging | None) -> np.ndarray:
    """Return the features of some samples; with a room, some at a time are read into it."""
    if room is None:
        return np.asarray(features[places])
    out = room.empty((len(places), *features.shape[1:]))
    step = max(_BLOCK_BYTES // (out[:1].nbytes or 1), 1)
    for start in range(0, len(places), step):
        out[start : start + step] = features[places[start : start + step]]
    return out


def _joined(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the samples of two arrays; where they lie one after the other in one array or file, without a copy."""
    whole = first.base
    if isinstance(whole, np.ndarray) and whole is second.base and first.shape[1:] == second.shape[1:]:
        start, middle = _place_in(whole, first), _place_in(whole, second)
        if start is not None and middle == start + first.size:
            return whole.reshape(-1)[start : middle + second.size].reshape(-1, *first.shape[1:])
    if isinstance(first, np.memmap) and isinstance(second, np.memmap):
        return _joined_in_file(first, second)
    return np.concatenate([first, second])


def _joined_in_file(first: np.memmap, second: np.memmap) -> np.ndarray:
    """Do what `_joined` does for parts that came to another process: each is a map of its own there."""
    start, middle = _offset_in_file(first), _offset_in_file(second)
    alike = first.filename == second.filename and first.shape[1:] == second.shape[1:] and first.dtype == second.dtype
    contiguous = first.flags.c_contiguous and second.flags.c_contiguous
    if not (alike and contiguous and first.filename and middle == start + first.nbytes):
        return np.concatenate([first, second])
    shape = (len(first) + len(second), *first.shape[1:])
    return np.memmap(first.filename, first.dtype, "r+", offset=start, shape=shape)


def _offset_in_file(part: np.memmap) -> int:
    """Return at which byte of its file a part of a map begins; its ``offset`` is that of the map."""
    whole = part
    while isinstance(whole.base, np.memmap):
        whole = whole.base
    return int(whole.offset) + part.__array_interface__["data"][0] - whole.__array_interface__["data"][0]


def _place_in(whole: np.ndarray, part: np.ndarray) -> int | None:
    """Return where the numbers of a part begin in an array that holds them one after the other."""
    if not (whole.flags.c_contiguous and part.flags.c_contiguous and whole.dtype == part.dtype):
        return None
    return (part.__array_interface__["data"][0] - whole.__array_interface__["data"][0]) // whole.itemsize


def _flat(views: np.ndarray) -> np.ndarray:
    return views.reshape(views.shape[0] * views.shape[1], views.shape[2])
