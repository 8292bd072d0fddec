"""The C of a path that does best on rows that are held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featurecache.devices import exact_float32
from featurecache.heads.fold_blocks import NO_FOLD, FoldBlocks
from featurecache.heads.solver.classifier import class_of_margins
from featurecache.heads.solver.objective import LinearProblem
from featurecache.heads.solver.path import LinearPath, Solutions


@dataclass(frozen=True, eq=False)
class PathSearch:
    """How the values of C did on rows that were held out.

    Attributes
    ----------
    best : Solutions
        Of the best C; of equals the one with the strongest regularisation.
    accuracy : list of float
        Of each C; of several labels, the mean over them.
    margins : ndarray (n_samples, K) float64
        Of the best C, for each row by the problem that left it out, without rows that are never left out.
    converged : bool
        All solutions of all values did.
    """

    best: Solutions
    accuracy: list[float]
    margins: NDArray[np.float64]
    converged: bool


def search_path(path: LinearPath, data: FoldBlocks, problem: LinearProblem, Cs: Sequence[float]) -> PathSearch:
    """Find the C that predicts most rows right when they are held out.

    Parameters
    ----------
    path : LinearPath
    data : FoldBlocks
    problem : LinearProblem
        Leaves out every fold but `NO_FOLD`.
    Cs : sequence of float
        Increasing.
    """
    held_out = data.fold != NO_FOLD
    weight, y = None if data.weight is None else data.weight[held_out], data.y[held_out]
    accuracy, converged, best = list[float](), True, None
    for solutions in path.solve(data, problem, Cs):
        with exact_float32(data.device):
            margins = held_out_margins(solutions, data, problem.left_out)
        correct = class_of_margins(margins) == y if y.ndim == 1 else ((margins > 0) == y).mean(axis=1)
        accuracy.append(float(np.average(correct, weights=weight)))
        converged = converged and bool(solutions.converged.all())
        if accuracy[-1] > max(accuracy[:-1], default=-1.0):
            best = solutions, margins
    assert best is not None, "there are values of C"
    return PathSearch(best[0], accuracy, best[1], converged)


def held_out_margins(solutions: Solutions, data: FoldBlocks, left_out: Sequence[int]) -> NDArray[np.float64]:
    """Return margins (n, K) of the rows that some problem leaves out, in their order.

    Parameters
    ----------
    solutions : Solutions
    data : FoldBlocks
    left_out : sequence of int
        The fold that each group leaves out.
    """
    margins = np.full((data.num_rows, solutions.intercept_GK.shape[1]), np.nan)
    for block in data:
        if block.fold != NO_FOLD:
            group = left_out.index(block.fold)
            weights = solutions.weights_GKD[group].to(data.dtype)
            values = (block.X @ weights.T).double() + solutions.intercept_GK[group]
            margins[block.index_n.cpu().numpy()] = values.cpu().numpy()
    return margins[data.fold != NO_FOLD]
