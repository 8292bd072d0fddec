"""The rows a head is trained and judged on: checked once, before any fitting."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from featurecache.errors import HeadError, TaskError
from featurecache.heads.fitting import check_features

Part = tuple[np.ndarray, np.ndarray]
Split = Mapping[str, Part]
"""``{"train": (X, y), "validation": (X, y), "test": (X, y)}``; validation or test may be absent."""

PART_NAMES = ("train", "validation", "test")


def check_parts(parts: Split, n_classes: int) -> dict[str, Part]:
    """Return the parts as contiguous float arrays and int64 class indices, or say what is wrong with them.

    Parameters
    ----------
    parts : mapping
        Part name to ``(X, y)``: X (n_samples, n_features), y (n_samples,) class indices. An absent part may also be
        None.
    n_classes : int

    Raises
    ------
    TaskError
        No training rows, only one class in them, nothing to judge a head on, or labels that are not class indices.
    HeadError
        Features that are not finite, not two-dimensional, or of different width in different parts.
    """
    given = {name: part for name, part in parts.items() if part is not None}
    if unknown := [name for name in given if name not in PART_NAMES]:
        raise TaskError(f"unknown part {unknown[0]!r}; known: {', '.join(PART_NAMES)}")
    if "train" not in given:
        raise TaskError("there is no train part; mark some rows of the task as train")
    checked = {name: _check_part(name, *given[name], n_classes) for name in PART_NAMES if name in given}
    if len(checked) == 1:
        raise TaskError(
            "only train rows are given, nothing to judge a head on; add a validation or test split to the task"
        )
    _check_classes(checked["train"][1])
    widths = {name: X.shape[1] for name, (X, _) in checked.items()}
    if len(set(widths.values())) > 1:
        raise HeadError(f"features per row differ between parts ({widths}); take all parts from one tap")
    return checked


def _check_part(name: str, X: np.ndarray, y: np.ndarray, n_classes: int) -> Part:
    y = np.asarray(y)
    if y.ndim != 1 or len(y) != len(X):
        raise TaskError(f"{name} has {len(X)} rows but labels of shape {y.shape}; give one label per row")
    if len(y) == 0:
        raise TaskError(f"the {name} part has no rows; label some rows of it or leave the part out")
    if y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= n_classes:
        raise TaskError(f"{name} labels are not class indices in 0..{n_classes - 1}; encode labels as class indices")
    return check_features(X, name), y.astype(np.int64)


def _check_classes(y: np.ndarray) -> None:
    if len(classes := np.unique(y)) < 2:
        raise TaskError(
            f"all {len(y)} train rows are of class {int(classes[0])}; a head needs rows of two classes or more"
        )
