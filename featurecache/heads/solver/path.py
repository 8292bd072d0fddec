"""From strong to weak regularisation: every C and fold, and the C that does best on held-out rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featurecache.heads.checks import has_few_rows, is_small
from featurecache.heads.fold_blocks import NO_FOLD, FoldBlocks, Moments
from featurecache.heads.solver.classifier import class_of_margins
from featurecache.heads.solver.minimiser import Minimiser, Tolerance
from featurecache.heads.solver.objective import GroupMoments, LinearProblem, Objective
from featurecache.heads.solver.row_space import RowSpaces

# Numbers in all rows: with fewer, leaving out the rows of a fold saves less than a product for each fold takes.
_FOLD_BLOCKS_FROM = 1_000_000


@dataclass(frozen=True, eq=False)
class Solutions:
    """Solutions for one C, one of each group.

    Attributes
    ----------
    C : float
        As in scikit-learn: the weight of the data against the penalty.
    weights_GKD, intercept_GK : Tensor of float64
        For features as they come, not standardised.
    num_iterations : ndarray (n_groups,)
        Evaluations of the objective.
    converged : ndarray (n_groups,) of bool
    theta_GKE : Tensor
        For standardised features, the intercept last.
    """

    C: float
    weights_GKD: Tensor
    intercept_GK: Tensor
    num_iterations: NDArray[np.int64]
    converged: NDArray[np.bool_]
    theta_GKE: Tensor


@dataclass(frozen=True, kw_only=True)
class LinearPath:
    """How linear problems are solved.

    Attributes
    ----------
    standardize : bool
    tol : float
        Largest difference of an objective from its least value, relative, as far as it can be told.
    max_iter : int
        Evaluations of the objective for one C.
    """

    standardize: bool = True
    tol: float = 1e-4
    max_iter: int = 1000

    def solve(
        self,
        data: FoldBlocks,
        problem: LinearProblem,
        Cs: Iterable[float],
        *,
        start: Tensor | None = None,
        precise: bool = False,
    ) -> Iterator[Solutions]:
        """Solve for one C after the other, from the strongest regularisation to the weakest.

        Parameters
        ----------
        data : FoldBlocks
        problem : LinearProblem
        Cs : iterable of float
            Increasing.
        start : Tensor (G, K, E), optional
            `Solutions.theta_GKE` of a similar problem.
        precise : bool
            Solve small problems to the last digits, so that equal problems give equal solutions however they are put.

        Yields
        ------
        Solutions
        """
        num_rows, num_features = data.num_rows, data.num_features
        small, of_folds = is_small(num_rows, num_features), Moments.of(data)
        of_groups = zip(*(of_folds.without(fold) for fold in problem.left_out), strict=True)
        moments = GroupMoments(*map(torch.stack, of_groups), *of_folds.without(NO_FOLD)[1:3])
        moments = moments if self.standardize else moments.unscaled(num_features)
        spaces = None
        if has_few_rows(num_rows, num_features):
            # Rows are standardised on their way into the spaces, where all axes are to stay alike.
            spaces = RowSpaces(data, moments.mean_GD, moments.scale_GD)
            blocks, moments = spaces.blocks, moments.unscaled(spaces.blocks[0].X.shape[-1])
            objective = Objective(data, problem, moments, blocks)
        else:
            small_enough = num_rows * num_features <= _FOLD_BLOCKS_FROM
            objective = Objective(data, problem, moments, data.without_folds() if small_enough else data)
        dtype = torch.float64 if small else data.dtype
        minimiser = Minimiser(objective, self._tolerance(precise=precise, small=small), dtype)
        if start is not None:
            minimiser.start_at(start if spaces is None else spaces.inside(start))
        for C in Cs:
            theta = minimiser.solve(1.0 / (C * moments.weight_G))
            weights, intercept = objective.raw(theta)
            if spaces is not None:
                weights, intercept, theta = spaces.outside(weights, intercept, theta)
            num_iterations, converged = minimiser.num_iterations.cpu().numpy(), minimiser.converged.cpu().numpy()
            yield Solutions(C, weights, intercept, num_iterations.copy(), converged.copy(), theta)

    def _tolerance(self, *, precise: bool, small: bool) -> Tolerance:
        if precise and small:
            return Tolerance(decrease=1e-22, gradient=1e-12, max_iter=self.max_iter, enough=self.tol / 100)
        # What a quasi-Newton step promises was seen to be up to ten times less than what is left to gain, and on 1,280
        # features, from one C to the next, thirty times where regularisation is weak: enough to choose by, but not to
        # end with.
        share = 100 if precise else 10
        return Tolerance(decrease=self.tol / share, gradient=self.tol / share / 10, max_iter=self.max_iter)


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
        margins, y = held_out_margins(solutions, data, problem.left_out), data.y[held_out]
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
