"""What is known of the curvature of many problems: a first guess at each inverse Hessian, and L-BFGS beyond it.

The two loops over the pairs of a step ``s`` and its change of gradient ``y`` (Nocedal & Wright, "Numerical
Optimization", 2nd ed., algorithm 7.4) are two triangular systems in the products ``s_i'y_j``, which are kept: all pairs
of all problems take part in four products of a matrix and a vector. With pairs from the oldest to the newest, the first
loop is ``sum_{j >= i} s_i'y_j a_j = s_i'g``, ``q = g - Y a``, and the second, with ``r`` what the first guess at the
inverse Hessian makes of ``q``, ``sum_{j <= i} y_i's_j c_j = s_i'y_i a_i - y_i'r``; the result is ``r + S c``.

Each problem has pairs of its own, so that what one does never depends on the others.

The first guess is the inverse Hessian of ridge regression: in the basis in which the features are uncorrelated,
``1 / (curvature * variance + penalty)`` (a bound of the Hessian for the softmax is ``1/2 (I - 11'/C) x Gram``:
Boehning, "Multinomial logistic regression algorithm", Ann. Inst. Stat. Math. 44, 1992).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from featurecache.heads.solver.objective import Objective

# Pairs of each problem, and bytes of them.
_MOST, _LEAST, _BYTES = 30, 8, 64 << 20
# Of features that vary by one each: curvature that is taken for granted.
_LEAST_VARIANCE = 1e-5
# Features; above, finding their axes takes longer than it saves.
_MOST_ROTATED = 4096
_ROWS_FOR_AXES = 20_000

# G groups, N numbers of a solution, H entries for pairs, U of them in use


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


class History:
    """The last pairs of each group.

    Parameters
    ----------
    like : Tensor (G, K, E)
        Solutions; the last of E is the intercept, which has no penalty.
    """

    def __init__(self, like: Tensor) -> None:
        num_groups, self._shape = len(like), like.shape[1:]
        self._penalty_G: Tensor | None = None
        size = like[0].numel()
        one = 2 * size * like.element_size()
        self._most = max(min(_BYTES // one, _MOST), _LEAST)
        self._moved = torch.zeros(num_groups, self._most, size, dtype=like.dtype, device=like.device)
        self._changed = torch.zeros_like(self._moved)
        self._product = torch.zeros(num_groups, self._most, self._most, dtype=torch.float64, device=like.device)
        self._usable = torch.zeros(num_groups, self._most, dtype=torch.bool, device=like.device)
        self.count = torch.zeros(num_groups, dtype=torch.int64, device=like.device)
        """Pairs that each group has ever had."""
        self._used = 0

    def remember(self, moved: Tensor, changed: Tensor, groups: Tensor) -> None:
        """Add a pair of each of some groups.

        Parameters
        ----------
        moved, changed : Tensor (G, K, E)
            Step and change of gradient of all groups.
        groups : Tensor of int64
            Those whose pair is added.
        """
        index = self.count[groups] % self._most
        self._moved[groups, index] = moved[groups].flatten(1)
        self._changed[groups, index] = changed[groups].flatten(1)
        self.count[groups] += 1
        used = self._used = min(int(self.count.max()), self._most)
        self._product[groups, :used, index] = _along(self._moved[:, :used], changed)[groups]
        self._product[groups, index, :used] = _along(self._changed[:, :used], moved)[groups]
        # A pair says something of the curvature where ``s'y`` is more than what rounding leaves of ``y'y``.
        square, known = (changed[groups].flatten(1) ** 2).sum(1), torch.finfo(self._changed.dtype)
        least = known.eps**1.5 * square.double().clamp(min=known.tiny)
        self._usable[groups, index] = self._product[groups, index, index] > least

    def change_penalty(self, penalty_G: Tensor) -> None:
        """Go on with another penalty, and keep pairs exact: ``y`` gets the change of the penalty times ``s``."""
        before, self._penalty_G = self._penalty_G, penalty_G
        if before is None:
            return
        change_G, used = penalty_G - before, self._used
        moved, changed = self._moved[:, :used], self._changed[:, :used]
        weights_of_moved, weights_of_changed = (pairs.unflatten(2, self._shape)[..., :-1] for pairs in (moved, changed))
        weights_of_changed += change_G.to(changed)[:, None, None, None] * weights_of_moved
        product = torch.bmm(moved, changed.mT).double()
        self._product[:, :used, :used] = product
        square, known = (changed * changed).sum(2), torch.finfo(changed.dtype)
        least = known.eps**1.5 * square.double().clamp(min=known.tiny)
        self._usable[:, :used] = torch.diagonal(product, dim1=1, dim2=2) > least

    def direction(self, gradient: Tensor, first_guess: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the inverse Hessian times a gradient of each group, by its pairs and a first guess at it."""
        if gradient.dtype != self._moved.dtype:  # the products too: they had been computed in float32
            self._moved, self._changed = self._moved.to(gradient), self._changed.to(gradient)
            self._product = torch.bmm(self._moved, self._changed.mT)
        if not (used := self._used):
            return first_guess(gradient)
        moved, changed = self._moved[:, :used], self._changed[:, :used]
        # Oldest first. A group without so many pairs has others that are not usable wherever they stand.
        indices = torch.arange(used, device=self.count.device)
        order = torch.where(self.count[:, None] > used, (self.count[:, None] + indices) % used, indices)
        product = self._product[:, :used, :used]
        product = product.gather(1, order[:, :, None].expand_as(product))
        product = product.gather(2, order[:, None, :].expand_as(product))
        usable = self._usable[:, :used].gather(1, order)
        both = usable[:, :, None] & usable[:, None, :]
        own = torch.diagonal(product, dim1=1, dim2=2)
        system = torch.where(both, product, 0.0) + torch.diag_embed((~usable).double())

        right = torch.where(usable, _along(moved, gradient).gather(1, order), 0.0)
        share = torch.linalg.solve_triangular(system, right[:, :, None], upper=True)[:, :, 0]
        # Back to where the pairs stand: so the products need no copy of them in order.
        share_GU = torch.zeros_like(share).scatter_(1, order, share).to(changed.dtype)
        step = first_guess(gradient - torch.bmm(share_GU[:, None], changed)[:, 0].view_as(gradient))
        right = torch.where(usable, own * share - _along(changed, step).gather(1, order), 0.0)
        share = torch.linalg.solve_triangular(system.mT, right[:, :, None], upper=False)[:, :, 0]
        share_GU = torch.zeros_like(share).scatter_(1, order, share).to(moved.dtype)
        return step + torch.bmm(share_GU[:, None], moved)[:, 0].view_as(gradient)


def _along(pairs: Tensor, vector: Tensor) -> Tensor:
    """Return the products of the pairs of each group (G, U, N) with its vector (G, K, E): (G, U) float64."""
    # This way round it is five times as fast as the other on a CPU.
    return torch.bmm(vector.flatten(1)[:, None], pairs.mT)[:, 0].double()


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
