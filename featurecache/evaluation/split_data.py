"""The rows a head is trained and evaluated on: checked once, before any fitting.

A sample may have several rows to be fitted on (its views), and several to be evaluated on. They are kept by sample, so
that no resampling into splits or folds can separate them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from featurecache.errors import HeadError, TaskError
from featurecache.evaluation.memory_budget import MemoryBudget
from featurecache.heads.fitting import check_features
from featurecache.heads.gradient.datasets import InputDataset
from featurecache.wording import counted

SamplesAndTargets = tuple[np.ndarray, np.ndarray]
Views = np.ndarray | InputDataset
"""(n_samples, n_views, n_features): an array, a file, or inputs that are decoded when they are read."""
_BLOCK_BYTES = 256 << 20
"""Of rows that are evaluated at a time."""


class FitRows(NamedTuple):
    """What an estimator is fitted on."""

    X: Any
    """(n_rows, n_features): an array, or an `InputDataset`."""
    y: np.ndarray
    """Class index of each row, (n_rows,); labels or numbers, (n_rows, n_outputs)."""
    weight: np.ndarray | None
    """(n_rows,), or None: all count alike."""
    groups: np.ndarray | None
    """(n_rows,): rows with the same number are of one group, or are views of one sample; None: each is by itself."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SplitData:
    """Samples of one split of a task."""

    y: np.ndarray
    """Class index of each sample, (n_samples,); labels or numbers, (n_samples, n_outputs)."""
    fit_views: Views
    """What heads are fitted on, (n_samples, n_views, n_features); plain features are one view."""
    eval_views: Views
    """What heads are evaluated on, (n_samples, n_views, n_features): the plain features, or several views."""
    groups: np.ndarray | None = None
    """Samples with the same number stay on one side of every resampling, (n_samples,) int; None: each is by itself."""
    weight: np.ndarray | None = None
    """How much each sample counts in fitting, (n_samples,) float64; None: all count alike."""
    num_tokens: int = 1
    """Tokens whose features stand side by side in a row."""
    on_disk: bool = False
    """Features are read from a file as they are needed, because memory would not hold them."""
    indices: np.ndarray | None = None
    """Where the samples are in ``eval_views``, (n_samples,) int64, where that holds others too: for evaluation only."""

    def __len__(self) -> int:
        return len(self.y)

    def fit_rows(self) -> FitRows:
        """Return every view as a row, with the label and the weight of its sample."""
        num_views = self.fit_views.shape[1]
        weight = None if self.weight is None else np.repeat(self.weight, num_views)
        # Views of a sample are as one group: a head that holds rows out to stop by must not hold out a copy.
        groups = np.arange(len(self)) if self.groups is None and num_views > 1 else self.groups
        if groups is not None:
            groups = np.repeat(groups, num_views)
        return FitRows(_flat(self.fit_views), np.repeat(self.y, num_views, axis=0), weight, groups)

    def per_view(self, predict: Callable[[Any], np.ndarray]) -> np.ndarray:
        """Return what a function of rows predicts for each view of each sample, (n_samples, n_views, n_outputs)."""
        # Features on disk come block by block; what is predicted from them fits into memory.
        num_samples = max(_BLOCK_BYTES // (self.eval_views[:1].nbytes or 1), 1)
        found = []
        for start in range(0, len(self), num_samples):
            some = slice(start, start + num_samples)
            found.append(predict(_flat(self.eval_views[some if self.indices is None else self.indices[some]])))
        whole = found[0] if len(found) == 1 else np.concatenate(found)
        return whole.reshape(len(self), self.eval_views.shape[1], -1)

    def in_memory(self) -> SplitData:
        """Return the same with plain arrays, unless it is on disk.

        Another process is handed memory maps, by which heads know a disk.
        """
        if self.on_disk:
            return self
        # `numpy.asarray` of a map is a plain array of the same memory.
        eval_views = np.asarray(self.eval_views)
        fit_views = eval_views if self.fit_views is self.eval_views else np.asarray(self.fit_views)
        return replace(self, eval_views=eval_views, fit_views=fit_views)

    def take(
        self, indices: np.ndarray, budget: MemoryBudget | None = None, *, for_evaluation: bool = False
    ) -> SplitData:
        """Return some of the samples, with all that belongs to them; in memory, or within a budget.

        Parameters
        ----------
        indices : ndarray of int
        budget : MemoryBudget, optional
        for_evaluation : bool
            Nothing is fitted on them, and features on disk stay where they are.

        Raises
        ------
        RequestError
            Neither memory nor disk would hold them.
        """
        groups, weight = (None if values is None else values[indices] for values in (self.groups, self.weight))
        taken = replace(self, y=self.y[indices], groups=groups, weight=weight)
        if for_evaluation and self.on_disk:
            # A copy of what lies on disk would not fit into memory.
            return replace(taken, indices=indices)
        eval_views = _taken(self.eval_views, indices, budget)
        fit_views = eval_views if self.fit_views is self.eval_views else _taken(self.fit_views, indices, budget)
        on_disk = budget is not None and any(isinstance(views, np.memmap) for views in (eval_views, fit_views))
        return replace(taken, fit_views=fit_views, eval_views=eval_views, on_disk=on_disk)

    def with_samples_of(self, other: SplitData) -> SplitData:
        """Return the samples of both splits."""
        eval_views = _concatenated(self.eval_views, other.eval_views)
        return replace(
            self,
            y=np.concatenate([self.y, other.y]),
            fit_views=eval_views
            if self.fit_views is self.eval_views
            else _concatenated(self.fit_views, other.fit_views),
            eval_views=eval_views,
            groups=None if self.groups is None or other.groups is None else np.concatenate([self.groups, other.groups]),
            weight=None if self.weight is None or other.weight is None else np.concatenate([self.weight, other.weight]),
        )


Splits = Mapping[str, SamplesAndTargets | SplitData]
"""``{"train": (X, y), "validation": (X, y), "test": (X, y)}``; validation or test may be absent."""

SPLIT_NAMES = ("train", "validation", "test")


def check_splits(splits: Splits, check: Callable[[str, np.ndarray], np.ndarray]) -> dict[str, SplitData]:
    """Return the splits as contiguous float arrays and targets, or say what is wrong with them.

    Parameters
    ----------
    splits : mapping
        Split name to ``(X, y)``: X (n_samples, n_features), y (n_samples,) class indices; or to a `SplitData`. An
        absent split may also be None.
    check : callable
        Takes the name of a split and its labels, and returns the labels as heads take them, or raises `TaskError`.

    Raises
    ------
    TaskError
        No training rows, nothing to evaluate a head on, or labels that ``check`` refuses.
    HeadError
        Features that are not finite, not two-dimensional, or of different width in different splits.
    """
    given = {name: data for name, data in splits.items() if data is not None}
    # A misspelt split would otherwise not be used, without a word.
    if unknown := [name for name in given if name not in SPLIT_NAMES]:
        raise TaskError(f"unknown split {unknown[0]!r}; known: {', '.join(SPLIT_NAMES)}")
    if "train" not in given:
        raise TaskError("there is no train split; mark some rows of the task as train")
    checked = {name: _check_split(name, given[name], check) for name in SPLIT_NAMES if name in given}
    if len(checked) == 1:
        raise TaskError(
            "only train rows are given, nothing to evaluate a head on; add a validation or test split to the task"
        )
    # Taps of different width were mixed up: better said here than by a product of matrices.
    widths = {name: data.eval_views.shape[2] for name, data in checked.items()}
    if len({*widths.values(), *(data.fit_views.shape[2] for data in checked.values())}) > 1:
        raise HeadError(f"features per row differ between splits ({widths}); take all splits from one tap")
    return checked


def _check_split(
    name: str, given: SamplesAndTargets | SplitData, check: Callable[[str, np.ndarray], np.ndarray]
) -> SplitData:
    if isinstance(given, SplitData):
        X, y = _flat(given.eval_views), given.y
    else:
        X, y = given
    num_eval_views = given.eval_views.shape[1] if isinstance(given, SplitData) else 1
    y = np.asarray(y)
    if y.ndim not in (1, 2) or len(y) * num_eval_views != len(X):
        raise TaskError(f"{name} has {counted(len(X), 'row')} but labels of shape {y.shape}; give one label per row")
    if len(y) == 0:
        raise TaskError(f"the {name} split has no rows; label some rows of it or leave the split out")
    y = check(name, y)
    if not isinstance(given, SplitData):
        views = check_features(given[0], name)[:, None]
        return SplitData(y=y, fit_views=views, eval_views=views)
    eval_views = _check_views(given.eval_views, name)
    fit_views = eval_views if given.fit_views is given.eval_views else _check_views(given.fit_views, name)
    return replace(given, y=y, fit_views=fit_views, eval_views=eval_views)


def _check_views(views: Views, name: str) -> Views:
    """Return checked features, or raise `HeadError`."""
    # Inputs are checked where they are decoded: to check them here would decode all of them.
    if isinstance(views, InputDataset):
        return views
    rows = views.reshape(views.shape[0] * views.shape[1], views.shape[2])
    return check_features(rows, name).reshape(views.shape)


def class_sizes(y: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """Return how many samples, or groups, each class has that occurs, (n_classes,) int64."""
    if groups is None:
        return np.unique(y, return_counts=True)[1]
    return np.array([len(np.unique(groups[y == label])) for label in np.unique(y)])


def _taken(features: Views, indices: np.ndarray, budget: MemoryBudget | None) -> Views:
    """Return the features of some samples; with a budget, some at a time are read into it."""
    if isinstance(features, InputDataset):
        return features[indices]
    if budget is None:
        return np.asarray(features[indices])
    out = budget.empty((len(indices), *features.shape[1:]))
    step = max(_BLOCK_BYTES // (out[:1].nbytes or 1), 1)
    for start in range(0, len(indices), step):
        out[start : start + step] = features[indices[start : start + step]]
    return out


def _concatenated(first: Views, second: Views) -> Views:
    """Return the samples of two arrays; where they lie one after the other in one array or file, without a copy."""
    if isinstance(first, InputDataset) or isinstance(second, InputDataset):
        assert isinstance(first, InputDataset)
        assert isinstance(second, InputDataset)
        return first.with_samples_of(second)
    whole = first.base
    if (
        isinstance(whole, np.ndarray)
        and whole is second.base
        and first.shape[1:] == second.shape[1:]
        and all(data.flags.c_contiguous and data.dtype == whole.dtype for data in (whole, first, second))
    ):
        # Where the numbers of each begin among those of the whole; a view of an array does not say it otherwise.
        begin = whole.__array_interface__["data"][0]
        start, middle = ((data.__array_interface__["data"][0] - begin) // whole.itemsize for data in (first, second))
        if middle == start + first.size:
            return whole.reshape(-1)[start : middle + second.size].reshape(-1, *first.shape[1:])
    if isinstance(first, np.memmap) and isinstance(second, np.memmap):
        return _concatenated_in_file(first, second)
    return np.concatenate([first, second])


def _concatenated_in_file(first: np.memmap, second: np.memmap) -> np.ndarray:
    """Do what `_concatenated` does for splits that came to another process: each is a map of its own there."""
    start, middle = _offset_in_file(first), _offset_in_file(second)
    alike = first.filename == second.filename and first.shape[1:] == second.shape[1:] and first.dtype == second.dtype
    contiguous = first.flags.c_contiguous and second.flags.c_contiguous
    if not (alike and contiguous and first.filename and middle == start + first.nbytes):
        return np.concatenate([first, second])
    shape = (len(first) + len(second), *first.shape[1:])
    return np.memmap(first.filename, first.dtype, "r+", offset=start, shape=shape)


def _offset_in_file(data: np.memmap) -> int:
    """Return at which byte of its file a part of a map begins; its ``offset`` is that of the map."""
    whole = data
    while isinstance(whole.base, np.memmap):
        whole = whole.base
    return int(whole.offset) + data.__array_interface__["data"][0] - whole.__array_interface__["data"][0]


def _flat(views: Views) -> Views:
    return views if isinstance(views, InputDataset) else views.reshape(views.shape[0] * views.shape[1], views.shape[2])
