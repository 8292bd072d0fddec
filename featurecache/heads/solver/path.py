"""From strong to weak regularisation: many similar problems, every C and fold of a head, minimised side by side.

Three things make the iterations few:

* the first guess at the inverse Hessian is that of ridge regression (`Preconditioner`);
* where the penalty changes from one problem to the next, a pair of a step ``s`` and its change of gradient ``y`` stays
  exact when ``y`` gets the change of penalty times ``s``, so what was learned of the curvature is kept (`History`);
* problems that are done leave, and the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featurecache.devices import exact_float32
from featurecache.heads.checks import has_few_rows, is_small
from featurecache.heads.fold_blocks import NO_FOLD, FoldBlocks, Moments
from featurecache.heads.solver.curvature import History, Preconditioner
from featurecache.heads.solver.newton import NewtonMinimiser
from featurecache.heads.solver.objective import GroupMoments, LinearProblem, Objective
from featurecache.heads.solver.row_space import RowSpaces

# Numbers in all rows: with fewer, leaving out the rows of a fold saves less than a product for each fold takes.
_FOLD_BLOCKS_FROM = 1_000_000
_SUFFICIENT, _MOST_TRIALS, _FLATTER = 1e-4, 14, 0.9
# Times the noise of a value: a step that promises more is expected to show.
_CLEAR = 100.0
# Evaluations after which what is left to gain was seen to be a hundred times what a step promises, in proportion.
_EVALUATIONS_PER_PROMISE = 50
_PAIRS_PER_SCALE = 4


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
        Most passes over the rows for one C.
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
            Of one group: solve small problems to the last digits, so that equal problems give equal solutions however
            they are put.

        Yields
        ------
        Solutions
        """
        # Each solution by itself: who takes them computes between them as before.
        with exact_float32(data.device):
            objective, spaces = self._objective(data, problem)
            if start is not None and spaces is not None:
                start = spaces.inside(start)
            minimise = self._minimiser(objective, start, precise=precise)
        for C in Cs:
            with exact_float32(data.device):
                theta, num_iterations, converged = minimise(1.0 / (C * objective.moments.weight_G))
                weights, intercept = objective.raw(theta)
                if spaces is not None:
                    weights, intercept, theta = spaces.outside(weights, intercept, theta)
            yield Solutions(C, weights, intercept, num_iterations, converged, theta)

    def _objective(self, data: FoldBlocks, problem: LinearProblem) -> tuple[Objective, RowSpaces | None]:
        """Return what is minimised, and the spaces that it is minimised in where rows are few."""
        num_rows, num_features = data.num_rows, data.num_features
        of_folds = Moments.of(data)
        of_groups = zip(*(of_folds.without(fold) for fold in problem.left_out), strict=True)
        weight_G, mean_GD, scale_GD, counts_GC = map(torch.stack, of_groups)
        _, mean_D, scale_D, _ = of_folds.without(NO_FOLD)
        moments = GroupMoments(weight_G, mean_GD, scale_GD, counts_GC, mean_D, scale_D)
        moments = moments if self.standardize else moments.unscaled(num_features)
        if has_few_rows(num_rows, num_features):
            # Standardised on the way into the spaces, whose axes are mixtures of features.
            spaces = RowSpaces(data, moments.mean_GD, moments.scale_GD)
            blocks, moments = spaces.blocks, moments.unscaled(spaces.blocks[0].X.shape[-1])
            return Objective(data, problem, moments, blocks), spaces
        if num_rows * num_features <= _FOLD_BLOCKS_FROM and data.folds != [NO_FOLD]:
            # The same rows, in blocks that do not heed folds.
            return Objective(data, problem, moments, replace(data, fold=np.full(num_rows, NO_FOLD))), None
        return Objective(data, problem, moments, data), None

    def _minimiser(
        self, objective: Objective, start: Tensor | None, *, precise: bool
    ) -> Callable[[Tensor], tuple[Tensor, NDArray[np.int64], NDArray[np.bool_]]]:
        """Return what minimises for a penalty, and returns solutions, passes over the rows, and which converged."""
        data = objective.data
        small = is_small(data.num_rows, data.num_features)
        if precise and small:
            return partial(NewtonMinimiser(objective, self.max_iter, self.tol / 100).solve, start=start)
        # What a quasi-Newton step promises was seen to be up to ten times less than what is left to gain, and on 1,280
        # features, from one C to the next, thirty times where regularisation is weak: enough to choose by, but not to
        # end with.
        share = 100 if precise else 10
        tolerance = Tolerance(decrease=self.tol / share, gradient=self.tol / share / 10, max_iter=self.max_iter)
        return Minimiser(objective, tolerance, torch.float64 if small else data.dtype, start).solve


@dataclass(frozen=True)
class Tolerance:
    """When a problem is solved: the next step promises less than a share of the value, or its gradient is nearly gone.

    After many evaluations it must promise less, in proportion; with all of them, ``max_iter``, it is given up.
    ``gradient`` is a share of the largest slope at zero, and for intercepts of the value there.
    """

    decrease: float
    gradient: float
    max_iter: int


class LineSearch:
    """Steps of all groups at once, shortened for each until its value falls enough.

    Parameters
    ----------
    theta, value, gradient : Tensor
        Where the steps begin.
    step : Tensor (G, K, E)
    slope : Tensor (G,) of float64
        Of the value along each step.
    active : Tensor of int64
        The groups that take one.

    Attributes
    ----------
    theta, value, gradient : Tensor
        Where the steps end.
    length_G : Tensor
        Of the steps, as a share.
    waiting : Tensor of int64
        The groups whose value has not fallen enough so far.
    stuck : Tensor of bool
        Groups that got no further: as good as the arithmetic allows.
    """

    def __init__(
        self, theta: Tensor, value: Tensor, gradient: Tensor, step: Tensor, slope: Tensor, active: Tensor
    ) -> None:
        self.theta, self.value, self.gradient, self.waiting = theta.clone(), value.clone(), gradient.clone(), active
        self.length_G, self.stuck = torch.ones_like(value), torch.zeros_like(value, dtype=torch.bool)
        self.stuck[active] = True
        self._before, self._step, self._slope = value, step, slope
        # Values are sums over many rows in float64, so their errors are less than those of single numbers.
        self._noise = max(torch.finfo(theta.dtype).eps / 10, 1e-15) * value.abs()

    def points(self) -> Tensor:
        """Return where the values of those that wait are needed next."""
        waiting = self.waiting
        # Of those that wait, ``theta`` is still where their steps begin.
        length = self.length_G[waiting].to(self.theta.dtype)[:, None, None]
        return self.theta[waiting] + length * self._step[waiting]

    def take(self, points: Tensor, values: Tensor, gradients: Tensor) -> None:
        """End the steps that made the value fall enough, and shorten the others.

        Parameters
        ----------
        points, values, gradients : Tensor
            Of the groups that wait.
        """
        waiting, before, length, noise = self.waiting, self._before, self.length_G, self._noise
        promise = length[waiting] * self._slope[waiting]
        # A step that promises far more than noise, and leads where the value is the same, went past the least point. It
        # is no sign of the limits of the arithmetic, after which everything would go on in float64, three times slower.
        is_clear = -promise > _CLEAR * noise[waiting]
        allowed = torch.where(is_clear, -noise[waiting], noise[waiting])
        enough = values <= before[waiting] + _SUFFICIENT * promise + allowed
        good = waiting[enough]
        falls = values[enough] < before[good] - noise[good]
        flattens = _largest(gradients[enough]) < _FLATTER * _largest(self.gradient[good])
        self.stuck[good] = ~falls & ~flattens
        self.theta[good], self.value[good], self.gradient[good] = points[enough], values[enough], gradients[enough]
        self.waiting = waiting = waiting[~enough]
        if len(waiting):
            # The least point of the parabola through what is known.
            was, promise = length[waiting], promise[~enough]
            rise = values[~enough] - before[waiting] - promise
            best = -promise * was / (2 * rise.clamp(min=1e-300))
            # A value that is no number says nothing of where the least point is.
            length[waiting] = torch.where(rise.isfinite(), best, 0.1 * was).clamp(0.1 * was, 0.5 * was)


class Minimiser:
    """Solves one problem of each group after the other, each time with other penalties.

    Parameters
    ----------
    objective : Objective
    tolerance : Tolerance
    dtype : torch.dtype
        Of the arithmetic; float32 goes on in float64 where it can go no further.
    start : Tensor (G, K, E), optional
        Where to begin; at zero when left out.
    """

    def __init__(
        self, objective: Objective, tolerance: Tolerance, dtype: torch.dtype, start: Tensor | None = None
    ) -> None:
        self._objective, self._tolerance, self._dtype = objective, tolerance, dtype
        self._precondition = Preconditioner(objective, dtype)
        num_groups, device = objective.num_groups, objective.device
        shape = (num_groups, objective.num_outputs, objective.num_features + 1)
        zero = torch.zeros(shape, dtype=dtype, device=device)
        self.theta = zero if start is None else start.to(zero).expand_as(zero).clone()
        self._before: Tensor | None = None
        self._group = torch.arange(num_groups, device=device)
        self._history = History(zero)
        self._scale = torch.ones(num_groups, dtype=dtype, device=device)
        self.value = torch.zeros(num_groups, dtype=torch.float64, device=device)
        self.num_iterations = torch.zeros(num_groups, dtype=torch.int64, device=device)
        self.converged = torch.zeros(num_groups, dtype=torch.bool, device=device)
        # Slopes of weights are as large as features are; those of intercepts as a loss is.
        self._at_zero, gradient = objective(zero, torch.ones_like(self.value), self._group)
        self._steepest = _largest(gradient[:, :, :-1]).clamp(min=torch.finfo(dtype).tiny)

    def solve(self, penalty_G: Tensor) -> tuple[Tensor, NDArray[np.int64], NDArray[np.bool_]]:
        """Minimise for these penalties from the last solutions; return (G, K, E), evaluations (G,), what converged."""
        self._history.change_penalty(penalty_G)
        self.num_iterations.zero_()
        self.converged.zero_()
        exhausted = torch.zeros_like(self.converged)
        """Problems whose value does not fall any more: as good as the arithmetic allows."""
        theta = self.theta
        value, gradient = self._objective(theta, penalty_G, self._group)
        if self._before is not None:  # further on in the direction in which solutions went, if that is better
            further = 2 * theta - self._before
            value_there, gradient_there = self._objective(further, penalty_G, self._group)
            better = value_there < value
            theta = torch.where(better[:, None, None], further, theta)
            gradient = torch.where(better[:, None, None], gradient_there, gradient)
            value = torch.where(better, value_there, value)
        while True:
            step = -self._history.direction(
                gradient, lambda slopes: self._precondition(slopes, penalty_G) * self._scale[:, None, None]
            )
            slope = (gradient * step).sum((1, 2)).double()
            self._mark_converged(value, gradient, slope)
            exceeded = self.num_iterations >= self._tolerance.max_iter
            active = torch.nonzero(~self.converged & ~exhausted & ~exceeded)[:, 0]
            if not len(active):
                if self._dtype == torch.float64 or bool((self.converged | exceeded).all()):
                    break
                self._in_float64()
                exhausted.zero_()
                theta = theta.double()
                value, gradient = self._objective(theta, penalty_G, self._group)
                continue
            search = LineSearch(theta, value, gradient, step, slope, active)
            for _ in range(_MOST_TRIALS):
                waiting, points = search.waiting, search.points()
                search.take(points, *self._objective(points, penalty_G[waiting], self._group[waiting]))
                self.num_iterations[waiting] += 1
                if not len(search.waiting):
                    break
            self._remember(search.theta - theta, search.gradient - gradient, active, penalty_G)
            theta, value, gradient = search.theta, search.value, search.gradient
            exhausted |= search.stuck
        self.converged |= exhausted
        self._before, self.theta, self.value = self.theta, theta, value
        return theta, self.num_iterations.cpu().numpy().copy(), self.converged.cpu().numpy().copy()

    def _mark_converged(self, value: Tensor, gradient: Tensor, slope: Tensor) -> None:
        """Take note of what has converged: its next step promises too small a share of its value."""
        weights, intercept = _largest(gradient[:, :, :-1]), _largest(gradient[:, :, -1:])
        small = (weights <= self._tolerance.gradient * self._steepest) & (
            intercept <= self._tolerance.gradient * self._at_zero
        )
        # The more evaluations it took, the more is left of which a step promises only a part.
        unsure = (self.num_iterations / _EVALUATIONS_PER_PROMISE).clamp(min=1.0)
        promise = unsure * -slope / 2 / value.abs().clamp(min=torch.finfo(torch.float64).tiny)
        self.converged |= (promise <= self._tolerance.decrease) | small

    def _in_float64(self) -> None:
        self._dtype = torch.float64
        self.theta, self._scale = self.theta.double(), self._scale.double()
        self._steepest = self._steepest.double()
        self._before = None if self._before is None else self._before.double()

    def _remember(self, moved: Tensor, changed: Tensor, active: Tensor, penalty_G: Tensor) -> None:
        """Add steps and their changes of gradient to the history, and now and then rescale the first guess by them."""
        self._history.remember(moved, changed, active)
        due = active[self._history.count[active] % _PAIRS_PER_SCALE == 1]
        if not len(due):
            return
        along, floor = (moved * changed).sum((1, 2))[due], torch.finfo(self._dtype).tiny
        curved = (changed * self._precondition(changed, penalty_G)).sum((1, 2))[due]
        fresh = along / curved.clamp(min=floor)
        self._scale[due] = torch.where((along > 0) & (curved > 0) & fresh.isfinite(), fresh, self._scale[due])


def _largest(values: Tensor) -> Tensor:
    return values.abs().amax((1, 2))
