"""The C of a path that does best on rows that are held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from featurecache.devices import exact_float32
from featurecache.heads.fold_blocks import NO_FOLD, FoldBlocks
from featurecache.heads.solver.classifier import class_of_margins
from featurecache.heads.solver.objective import LinearProblem
from featurecache.heads.solver.path import LinearPath, Solutions


@dataclass
class PathSearch:
    """How the values of C did on rows that were held out.

    Attributes
    ----------
    C : float
        The best; of equals the one with the strongest regularisation.
    accuracy : list of float
        Of each C; of several labels, the mean over them.
    margins : ndarray (n_samples, K) float64
        Of the best C, for each row by the problem that left it out, without rows that are never left out.
    theta_GKE : Tensor
        Solutions of the best C.
    num_iterations : list of int
        Evaluations of the objective for each C, by the group that needed most.
    """

    C: float
    accuracy: list[float] = field(default_factory=list)
    margins: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 1)))
    theta_GKE: Tensor | None = None
    num_iterations: list[int] = field(default_factory=list)
    converged: bool = True


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
    best, highest = PathSearch(Cs[0]), -1.0
    held_out = data.fold != NO_FOLD
    weight = None if data.weight is None else data.weight[held_out]
    accuracy, num_iterations, converged = [], [], True
    for solutions in path.solve(data, problem, Cs):
        with exact_float32(data.device):
            margins = held_out_margins(solutions, data, problem.left_out)
        y = data.y[held_out]
        correct = class_of_margins(margins) == y if y.ndim == 1 else ((margins > 0) == y).mean(axis=1)
        accuracy.append(float(np.average(correct, weights=weight)))
        num_iterations.append(int(solutions.num_iterations.max()))
        converged = converged and bool(solutions.converged.all())
        if accuracy[-1] > highest:
            best, highest = PathSearch(solutions.C, margins=margins, theta_GKE=solutions.theta_GKE), accuracy[-1]
    best.accuracy, best.num_iterations, best.converged = accuracy, num_iterations, converged
    return best


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
