"""Minimises many similar problems side by side: L-BFGS, preconditioned, that remembers from one penalty to the next.

Three things make the iterations few:

* the first guess at the inverse Hessian is that of ridge regression: in the basis in which the features are
  uncorrelated, ``1 / (curvature * variance + penalty)`` (a bound of the Hessian for the softmax is
  ``1/2 (I - 11'/C) x Gram``: Boehning, "Multinomial logistic regression algorithm", Ann. Inst. Stat. Math. 44, 1992);
* where the penalty changes from one problem to the next, a pair of a step ``s`` and its change of gradient ``y`` stays
  exact when ``y`` gets the change of penalty times ``s``, so what was learned of the curvature is kept (`History`);
* problems that are done leave, and the others go on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from featurecache.heads.solver.history import History
from featurecache.heads.solver.objective import Objective

_SUFFICIENT, _MOST_TRIALS, _FLATTER = 1e-4, 14, 0.9
# Evaluations after which what is left to gain was seen to be a hundred times what a step promises, in proportion.
_EVALUATIONS_PER_PROMISE = 50
# Of features that vary by one each: curvature that is taken for granted.
_LEAST_VARIANCE = 1e-5
# Features; above, finding their axes takes longer than it saves.
_MOST_ROTATED = 4096
_ROWS_FOR_AXES = 20_000
_PAIRS_PER_SCALE = 4


@dataclass(frozen=True)
class Tolerance:
    """When a problem is solved: the next step promises less than a share of the value, or its gradient is nearly gone.

    After many evaluations it must promise less, in proportion. With all of them, ``max_iter``, a problem is
    solved if its next step promises less than ``enough``. ``gradient`` is a share of the largest slope at zero, and for
    intercepts of the value there.
    """

    decrease: float
    gradient: float
    max_iter: int
    enough: float = 0.0


class Preconditioner:
    """The inverse Hessian of ridge regression on standardised features."""

    def __init__(self, objective: Objective, dtype: torch.dtype) -> None:
        self._curvature = objective.loss.curvature
        self._axes: Tensor | None = None
        """(D, D), or (G, D, D) where each group has its own features; None where finding them takes too long."""
        variance = torch.ones(1, objective.num_features, dtype=torch.float64, device=objective.device)
        if objective.num_features <= _MOST_ROTATED:
            variance, axes = torch.linalg.eigh(_gram(objective))
            # A guess need not be exact, and reading the axes is what takes time; but with small problems, where that
            # is nothing, rounding must not lead equal problems another way.
            self._axes = axes.to(dtype)
        variance = variance.view(-1, objective.num_features)
        self._variance_GD = variance.clamp(min=_LEAST_VARIANCE * variance.mean(1, keepdim=True))

    def __call__(self, gradient_GKE: Tensor, penalty_G: Tensor) -> Tensor:
        """Return the inverse times one gradient of each group."""
        dtype, slope_GKD = gradient_GKE.dtype, gradient_GKE[:, :, :-1]
        # Gradients near the optimum may be too small for float32.
        size = slope_GKD.abs().amax((1, 2), keepdim=True).clamp(min=torch.finfo(dtype).tiny)
        slope_GKD = slope_GKD / size
        hessian_GD = self._curvature * self._variance_GD + penalty_G[:, None]
        if self._axes is not None:
            slope_GKD = slope_GKD.to(self._axes.dtype) @ self._axes
        slope_GKD = slope_GKD / hessian_GD.to(slope_GKD.dtype)[:, None]
        if self._axes is not None:
            slope_GKD = slope_GKD @ self._axes.mT
        return torch.cat([slope_GKD.to(dtype) * size, gradient_GKE[:, :, -1:] / self._curvature], 2)


class Minimiser:
    """Solves one problem of each group after the other, each time with other penalties.

    Parameters
    ----------
    objective : Objective
    tolerance : Tolerance
    dtype : torch.dtype
        Of the arithmetic; float32 goes on in float64 where it can go no further.
    """

    def __init__(self, objective: Objective, tolerance: Tolerance, dtype: torch.dtype) -> None:
        self._objective, self._tolerance, self._dtype = objective, tolerance, dtype
        self._precondition = Preconditioner(objective, dtype)
        num_groups, device = objective.num_groups, objective.device
        shape = (num_groups, objective.num_outputs, objective.num_features + 1)
        like: dict[str, Any] = {"dtype": dtype, "device": device}
        self.theta = torch.zeros(shape, **like)
        self._group = torch.arange(num_groups, device=device)
        self._history = History(self.theta)
        self._scale = torch.ones(num_groups, **like)
        self._penalty: Tensor | None = None
        self._before: Tensor | None = None
        self.value = torch.zeros(num_groups, dtype=torch.float64, device=device)
        self.num_iterations = torch.zeros(num_groups, dtype=torch.int64, device=device)
        self.converged = torch.zeros(num_groups, dtype=torch.bool, device=device)
        # Slopes of weights are as large as features are; those of intercepts as a loss is.
        self._at_zero, gradient = objective(self.theta, torch.ones_like(self.value), self._group)
        self._steepest = _largest(gradient[:, :, :-1]).clamp(min=torch.finfo(dtype).tiny)

    def start_at(self, theta_GKE: Tensor) -> None:
        """Begin somewhere else than at zero."""
        self.theta, self._before = theta_GKE.to(self.theta).expand_as(self.theta).clone(), None

    def solve(self, penalty_G: Tensor) -> Tensor:
        """Minimise for these penalties, starting at the last solution; returns (G, K, E)."""
        self._change_penalty(penalty_G)
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
            step = -self._history.direction(gradient, partial(self._guess, penalty_G=penalty_G))
            slope = _dot(gradient, step).double()
            weights, intercept = _largest(gradient[:, :, :-1]), _largest(gradient[:, :, -1:])
            small = (weights <= self._tolerance.gradient * self._steepest) & (
                intercept <= self._tolerance.gradient * self._at_zero
            )
            # The more evaluations it took, the more is left of which a step promises only a part.
            unsure = (self.num_iterations / _EVALUATIONS_PER_PROMISE).clamp(min=1.0)
            promise = unsure * -slope / 2 / value.abs().clamp(min=torch.finfo(torch.float64).tiny)
            self.converged |= (promise <= self._tolerance.decrease) | small
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
            before = theta, gradient
            theta, value, gradient, stuck = self._line_search(theta, value, gradient, step, slope, penalty_G, active)
            exhausted |= stuck
            self._remember(theta - before[0], gradient - before[1], active, penalty_G)
        self.converged |= exhausted | (promise <= self._tolerance.enough)
        self._before, self.theta, self.value = self.theta, theta, value
        return theta

    def _in_float64(self) -> None:
        self._dtype = torch.float64
        self.theta, self._scale = self.theta.double(), self._scale.double()
        self._steepest = self._steepest.double()
        self._before = None if self._before is None else self._before.double()
        self._history.in_float64()

    def _line_search(
        self,
        theta: Tensor,
        value: Tensor,
        gradient: Tensor,
        step: Tensor,
        slope: Tensor,
        penalty_G: Tensor,
        waiting: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Shorten steps until each problem's value falls enough; tell also for which that leads no further."""
        theta, value_now, gradient = theta.clone(), value.clone(), gradient.clone()
        stuck = torch.zeros_like(self.converged)
        length = torch.ones_like(value)
        # Values are sums over many rows in float64, so their errors are less than those of single numbers.
        noise = max(torch.finfo(self._dtype).eps / 10, 1e-15) * value.abs()
        for _ in range(_MOST_TRIALS):
            there = theta[waiting] + length[waiting].to(self._dtype)[:, None, None] * step[waiting]
            value_there, gradient_there = self._objective(there, penalty_G[waiting], self._group[waiting])
            self.num_iterations[waiting] += 1
            bound = value[waiting] + _SUFFICIENT * length[waiting] * slope[waiting] + noise[waiting]
            enough = value_there <= bound
            good = waiting[enough]
            falls = value_there[enough] < value[good] - noise[good]
            flattens = _largest(gradient_there[enough]) < _FLATTER * _largest(gradient[good])
            stuck[good] = ~falls & ~flattens
            theta[good], value_now[good], gradient[good] = there[enough], value_there[enough], gradient_there[enough]
            short = ~enough
            waiting = waiting[short]
            if not len(waiting):
                break
            # The least point of the parabola through what is known.
            was, rise = length[waiting], value_there[short] - value[waiting] - length[waiting] * slope[waiting]
            best = -slope[waiting] * was**2 / (2 * rise.clamp(min=1e-300))
            length[waiting] = torch.where(rise.isfinite(), best, 0.1 * was).clamp(0.1 * was, 0.5 * was)
        stuck[waiting] = True
        return theta, value_now, gradient, stuck

    def _guess(self, gradient: Tensor, penalty_G: Tensor) -> Tensor:
        return self._precondition(gradient, penalty_G) * self._scale[:, None, None]

    def _remember(self, moved: Tensor, changed: Tensor, active: Tensor, penalty_G: Tensor) -> None:
        self._history.remember(moved, changed, active)
        due = active[self._history.count[active] % _PAIRS_PER_SCALE == 1]
        if not len(due):
            return
        along, floor = _dot(moved, changed)[due], torch.finfo(self._dtype).tiny
        curved = _dot(changed, self._precondition(changed, penalty_G))[due]
        fresh = along / curved.clamp(min=floor)
        self._scale[due] = torch.where((along > 0) & (curved > 0) & fresh.isfinite(), fresh, self._scale[due])

    def _change_penalty(self, penalty_G: Tensor) -> None:
        if self._penalty is not None:
            self._history.change_penalty(penalty_G - self._penalty)
        self._penalty = penalty_G


def _largest(values: Tensor) -> Tensor:
    return values.abs().amax((1, 2))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((1, 2))


def _gram(objective: Objective) -> Tensor:
    """Return the mean outer product of standardised features, of some rows from everywhere, (D, D) float64.

    Where each group has features of its own, that of each, (G, D, D).
    """
    gram: Tensor | float = 0.0
    step, total = max(objective.data.num_rows // _ROWS_FOR_AXES, 1), 0
    for block in objective.blocks:
        centred = block.X[..., ::step, :].double() - objective.moments.mean_D
        Z = (centred / objective.moments.scale_D).to(block.X.dtype)
        gram = gram + (Z.mT @ Z).double()
        total += Z.shape[-2]
    assert isinstance(gram, Tensor)
    return gram / total
