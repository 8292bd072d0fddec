"""Growing gradient-boosted trees by LightGBM, and reading what it grew into plain arrays; the one place that loads it.

Axes: R rounds, O outputs, N nodes of a tree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from featurecache.errors import MissingExtraError, first_line
from featurecache.heads.checks import alike_columns, known_cells

PACKAGE, EXTRA = "lightgbm", "trees"
"""What grows trees, and the extra that brings it."""

_FIXED = {
    # One thread and one order of sums: the same trees on every machine, whatever runs beside.
    "num_threads": 1,
    "deterministic": True,
    "force_col_wise": True,
    # Features are dense, finite numbers, and smooth enough for few bins.
    "enable_bundle": False,
    "use_missing": False,
    "max_bin": 63,
    "min_data_in_bin": 1,
    "verbosity": -1,
}


class _Tree(NamedTuple):
    """One tree as LightGBM writes it: negative children are leaves, ``~leaf``."""

    feature: NDArray[np.int32]
    threshold: NDArray[np.float64]
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    leaf_value: NDArray[np.float64]


_NOTHING = _Tree(*(np.zeros(0, np.int32), np.zeros(0), *2 * (np.zeros(0, np.int32),)), np.zeros(1))


def grown(
    X: NDArray[Any],
    y: NDArray[Any],
    weight: NDArray[np.float64] | None,
    held_out: NDArray[np.bool_],
    settings: dict[str, Any],
    patience: int,
) -> tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.int32], NDArray[np.float64]]:
    """Grow a booster for each column of ``y`` on the rows that are not held out.

    Returns
    -------
    (feature, threshold, children, value)
        The trees of all outputs, as the attributes of `BoostedTrees`.

    Raises
    ------
    MissingExtraError
        LightGBM is not installed.
    ValueError
        LightGBM refuses the rows or the settings.
    """
    if find_spec(PACKAGE) is None:
        raise MissingExtraError(PACKAGE, EXTRA)
    import lightgbm

    settings = {**_FIXED, **settings}

    def rows(which: NDArray[np.bool_], reference: Any = None) -> Any:
        of_each = None if weight is None else weight[which]
        return lightgbm.Dataset(X if which.all() else X[which], weight=of_each, reference=reference, params=settings)

    trees: dict[int, list[list[_Tree]]] = {}
    try:
        for column, fitted, judged in _datasets(y, held_out, rows):
            stop: list[Any] = [lightgbm.early_stopping(patience, verbose=False)] if judged else []
            booster = lightgbm.train(settings, fitted, valid_sets=judged, callbacks=stop)
            # Without early stopping there is no best iteration, and all are written.
            grown = _read_trees(booster.model_to_string(num_iteration=booster.best_iteration))
            num_outputs = booster.num_model_per_iteration()
            trees[column] = [grown[output::num_outputs] for output in range(num_outputs)]
    except lightgbm.basic.LightGBMError as error:
        raise ValueError(f"LightGBM refuses: {first_line(error)}") from error
    return _as_arrays([each for column in range(y.shape[1]) for each in trees.get(column, [[_NOTHING]])])


def _datasets(
    y: NDArray[Any], held_out: NDArray[np.bool_], rows: Callable[..., Any]
) -> Iterator[tuple[int, Any, list[Any]]]:
    """Yield columns, each with what it is grown on and what it stops by; one that is known for no row is left out.

    Features are sorted into bins once for all columns that are known for the same rows.
    """
    for columns, known in alike_columns(known_cells(y)):
        kept, judged_by = known & ~held_out, known & held_out
        if not kept.any():
            continue
        fitted = rows(kept)
        judged = [rows(judged_by, fitted)] if judged_by.any() else []
        for column in columns.tolist():
            fitted.set_label(y[kept, column])
            for each in judged:
                each.set_label(y[judged_by, column])
            yield column, fitted, judged


def _read_trees(text: str) -> list[_Tree]:
    """Read the model text that a booster has just written."""
    names = ("split_feature", "threshold", "left_child", "right_child", "leaf_value")
    types = (np.int32, np.float64, np.int32, np.int32, np.float64)
    trees = []
    for block in text.split("\nTree=")[1:]:
        fields = dict(line.split("=", 1) for line in block.split("\n\n")[0].splitlines()[1:])
        trees.append(_Tree(*(np.array(fields.get(n, "").split(), t) for n, t in zip(names, types, strict=True))))
    return trees


def _as_arrays(
    trees: Sequence[Sequence[_Tree]],
) -> tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.int32], NDArray[np.float64]]:
    """Put the trees of each output (O, R) side by side, as the arrays of `_TreeEstimator`.

    Leaves stand behind the splits. A booster that ended before others says nothing in the rounds that follow.
    """
    num_splits = max(len(tree.feature) for each in trees for tree in each)
    shape = (max(map(len, trees)), len(trees), 2 * num_splits + 1)
    feature, threshold, value = np.zeros(shape, np.int32), np.zeros(shape), np.zeros(shape)
    children = np.empty((*shape, 2), np.int32)
    children[:] = np.arange(shape[2])[:, None]
    for output, each in enumerate(trees):
        for number, tree in enumerate(each):
            splits, at = len(tree.feature), (number, output)
            feature[at][:splits], threshold[at][:splits] = tree.feature, tree.threshold
            for side, child in enumerate((tree.left, tree.right)):
                children[at][:splits, side] = np.where(child < 0, num_splits + ~child, child)
            first_leaf = num_splits if splits else 0  # a tree without splits is a leaf at the root
            value[at][first_leaf : first_leaf + len(tree.leaf_value)] = tree.leaf_value
    return feature, threshold, children, value
