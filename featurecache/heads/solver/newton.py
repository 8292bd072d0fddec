"""Small problems to the last digits: Newton's method, each step by conjugate gradients as far as it pays.

A quasi-Newton path finds which C is best in few passes over the rows, but its last digits come slowly: of 140 rows and
ten classes at weak regularisation they took 600 passes. Products with second derivatives cost less than a pass, and
each step squares what is left (truncated Newton: Nocedal & Wright, Numerical Optimization, 2006, algorithm 7.1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featurecache.heads.solver.curvature import Preconditioner
from featurecache.heads.solver.objective import Objective, Second

# What the gradient may have left, as a share of the slopes at zero; what a step may promise, as a share of the value.
_GRADIENT, _DECREASE = 1e-12, 1e-22
_SUFFICIENT, _MOST_HALVINGS, _FLATTER = 1e-4, 40, 0.9
# Of a value: below the one it may be rounding, below the other it is.
_ROUNDING, _NOISE = 1e-9, 1e-15
# A step leaves at most this share of the gradient, and less the nearer the end is, as far as rounding leaves anything.
_ROUGHEST, _FINEST = 0.1, 1e-4

# Products that blocks of the Hessian save, and what the calls of one product cost beside its arithmetic.
_PRODUCTS_SAVED, _OPERATIONS_OF_CALLS = 30, 5e6
_LEAST_CURVATURE = 1e-12
# What is added to the blocks, of their largest number: with next to no penalty rounding could make them indefinite.
_JITTER = 1e-13

Linear = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class NewtonMinimiser:
    """Solves a problem of one group in float64.

    Parameters
    ----------
    objective : Objective
        Of one group.
    max_iter : int
        Most passes over the rows, for values and for products with second derivatives.
    enough : float
        After so many, the problem is solved if its next step promises less than this share of its value.
    """

    objective: Objective
    max_iter: int
    enough: float

    def solve(
        self, penalty_G: Tensor, start: Tensor | None = None
    ) -> tuple[Tensor, NDArray[np.int64], NDArray[np.bool_]]:
        """Minimise, and return the solution (1, K, E), passes (1,) and whether it converged (1,).

        Parameters
        ----------
        penalty_G : Tensor (1,)
        start : Tensor (1, K, E), optional
            Where to begin; at zero when left out.
        """
        objective, group = self.objective, torch.zeros(1, dtype=torch.int64, device=self.objective.device)
        zero = torch.zeros(1, objective.num_outputs, objective.num_features + 1, dtype=torch.float64).to(penalty_G)
        at_zero, slopes = objective(zero, torch.ones_like(penalty_G), group)
        # Slopes of weights are as large as features are; those of intercepts as a loss is.
        small = _GRADIENT * torch.cat([slopes[:, :, :-1].abs().max().expand(objective.num_features), at_zero])
        preconditioner = None if _is_cheap(objective) else Preconditioner(objective, torch.float64)
        theta = zero if start is None else start.to(zero)
        value, gradient = objective(theta, penalty_G, group)
        passes, promise, is_stuck = 1, np.inf, False
        while not bool((gradient.abs() <= small).all()):
            if is_stuck or promise <= _DECREASE or passes >= self.max_iter - 1:
                break
            hessian = objective.hessian(theta, penalty_G, group)
            step, num_products = _newton_step(
                hessian,
                gradient,
                _inverse_of_blocks(hessian.seconds, *hessian.blocks())
                if preconditioner is None
                else partial(preconditioner, penalty_G=penalty_G),
                roughest=float((gradient.norm() / slopes.norm()).sqrt().clamp(_FINEST, _ROUGHEST)),
                most=self.max_iter - passes - 1,
            )
            passes += num_products
            slope = float((gradient * step).sum())
            promise = -slope / 2 / max(abs(float(value)), np.finfo(float).tiny)
            is_stuck, magnitude = True, abs(float(value))
            for length in 0.5 ** np.arange(_MOST_HALVINGS):
                there = theta + length * step
                value_there, gradient_there = objective(there, penalty_G, group)
                passes += 1
                gain = float(value - value_there)
                # Near the end differences of values are rounding, and slopes tell (Hager & Zhang 2005, equation 4.1).
                is_less = gain >= -_SUFFICIENT * length * slope
                is_flat = gain >= -_ROUNDING * magnitude and float((gradient_there * step).sum()) <= -0.9 * slope
                if is_less or is_flat:
                    flatter = float(gradient_there.abs().max() / gradient.abs().max())
                    is_stuck = gain <= _NOISE * magnitude and flatter > _FLATTER
                    break
            if not is_stuck:
                theta, value, gradient = there, value_there, gradient_there
        converged = passes < self.max_iter - 1 or promise <= self.enough
        return theta, np.array([passes]), np.array([converged])


def _is_cheap(objective: Objective) -> bool:
    """Tell whether the blocks of the Hessian cost less than the products that they save."""
    num_rows, D, K = objective.data.num_rows, objective.num_features, objective.num_outputs
    return K * D**2 * (num_rows + D / 3) <= _PRODUCTS_SAVED * (4 * num_rows * D * K + _OPERATIONS_OF_CALLS)


def _inverse_of_blocks(seconds: Sequence[Second], weights_KDD: Tensor, intercept_K: Tensor) -> Linear:
    """Return the product with the inverse of what the outputs share nothing of: all of it, but for several classes."""
    diagonal = torch.diagonal(weights_KDD, dim1=1, dim2=2)
    diagonal += _JITTER * diagonal.amax(1, keepdim=True)
    factor_KDD = torch.linalg.cholesky(weights_KDD)
    if any(second.shared_MKn is not None for second in seconds):
        # One number for all: so intercepts of several classes keep their sum, which nothing else determines.
        intercept_K = intercept_K.mean().expand_as(intercept_K)
    intercept_K = intercept_K.clamp(min=_LEAST_CURVATURE)

    def product(residual: Tensor) -> Tensor:
        weights = torch.cholesky_solve(residual[0, :, :-1, None], factor_KDD)[None, :, :, 0]
        return torch.cat([weights, residual[:, :, -1:] / intercept_K[:, None]], 2)

    return product


def _newton_step(
    hessian: Linear, gradient: Tensor, precondition: Linear, *, roughest: float, most: int
) -> tuple[Tensor, int]:
    """Return a step towards the least value of the quadratic model, and the products that it took.

    Parameters
    ----------
    hessian, precondition : callable
        Product with the second derivatives, and with something near their inverse.
    gradient : Tensor (1, K, E)
    roughest : float
        Share of the gradient that may be left.
    most : int
        Products.
    """
    step, residual = torch.zeros_like(gradient), -gradient
    towards = preconditioned = precondition(residual)
    along, enough = (residual * preconditioned).sum(), roughest * gradient.norm()
    num_products = 0
    while num_products < most:
        num_products += 1
        curved = hessian(towards)
        curvature = (towards * curved).sum()
        if curvature <= 0:  # of rounding: a convex problem has none below zero
            break
        length = along / curvature
        step, residual = step + length * towards, residual - length * curved
        if residual.norm() <= enough:
            break
        preconditioned = precondition(residual)
        before, along = along, (residual * preconditioned).sum()
        towards = preconditioned + along / before * towards
    return step, num_products
