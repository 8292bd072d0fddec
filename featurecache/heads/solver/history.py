"""What the solver remembers of the curvature of each problem: L-BFGS for many problems at once.

The two loops over the pairs of a step ``s`` and its change of gradient ``y`` (Nocedal & Wright, "Numerical
Optimization", 2nd ed., algorithm 7.4) are two triangular systems in the products ``s_i'y_j``, which are kept: all pairs
of all problems take part in four products of a matrix and a vector. With pairs from the oldest to the newest, the first
loop is ``sum_{j >= i} s_i'y_j a_j = s_i'g``, ``q = g - Y a``, and the second, with ``r`` what the first guess at the
inverse Hessian makes of ``q``, ``sum_{j <= i} y_i's_j c_j = s_i'y_i a_i - y_i'r``; the result is ``r + S c``.

Each problem has pairs of its own, so that what one does never depends on the others.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Pairs of each problem, and bytes of them.
_MOST, _LEAST, _BYTES = 30, 8, 64 << 20

# G groups, N numbers of a solution, H entries for pairs, U of them in use


class History:
    """The last pairs of each group.

    Parameters
    ----------
    like : Tensor (G, K, E)
        Solutions; the last of E is the intercept, which has no penalty.
    """

    def __init__(self, like: Tensor) -> None:
        num_groups, self._shape = len(like), like.shape[1:]
        size = like[0].numel()
        one = 2 * size * like.element_size()
        self._most = max(min(_BYTES // one, _MOST), _LEAST)
        self._moved = torch.zeros(num_groups, self._most, size, dtype=like.dtype, device=like.device)
        self._changed = torch.zeros_like(self._moved)
        self._product = torch.zeros(num_groups, self._most, self._most, dtype=torch.float64, device=like.device)
        self._usable = torch.zeros(num_groups, self._most, dtype=torch.bool, device=like.device)
        self.count = torch.zeros(num_groups, dtype=torch.int64, device=like.device)
        """Pairs that each group has ever had."""

    @property
    def _used(self) -> int:
        return min(int(self.count.max()), self._most)

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
        used = self._used
        self._product[groups, :used, index] = _along(self._moved[:, :used], changed)[groups]
        self._product[groups, index, :used] = _along(self._changed[:, :used], moved)[groups]
        square = (changed[groups].flatten(1) ** 2).sum(1)
        self._usable[groups, index] = self._is_usable(self._product[groups, index, index], square)

    def change_penalty(self, change_G: Tensor) -> None:
        """Keep pairs exact where the penalty changes by so much: ``y`` gets that times ``s``."""
        used = self._used
        moved, changed = self._moved[:, :used], self._changed[:, :used]
        weights_of_moved, weights_of_changed = (pairs.unflatten(2, self._shape)[..., :-1] for pairs in (moved, changed))
        weights_of_changed += change_G.to(changed)[:, None, None, None] * weights_of_moved
        product = torch.bmm(moved, changed.mT).double()
        self._product[:, :used, :used] = product
        own = torch.diagonal(product, dim1=1, dim2=2)
        self._usable[:, :used] = self._is_usable(own, (changed * changed).sum(2))

    def in_float64(self) -> None:
        """Go on in float64."""
        self._moved, self._changed = self._moved.double(), self._changed.double()
        self._product = torch.bmm(self._moved, self._changed.mT)

    def direction(self, gradient: Tensor, first_guess: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the inverse Hessian times a gradient of each group, by its pairs and a first guess at it."""
        if not (used := self._used):
            return first_guess(gradient)
        moved, changed = self._moved[:, :used], self._changed[:, :used]
        order = self._oldest_first(used)
        product = self._product[:, :used, :used]
        product = product.gather(1, order[:, :, None].expand_as(product))
        product = product.gather(2, order[:, None, :].expand_as(product))
        usable = self._usable[:, :used].gather(1, order)
        both = usable[:, :, None] & usable[:, None, :]
        own = torch.diagonal(product, dim1=1, dim2=2)
        system = torch.where(both, product, 0.0) + torch.diag_embed((~usable).double())

        def along(pairs: Tensor, vector: Tensor) -> Tensor:
            """Return the product of each pair's part with a vector, oldest first."""
            return torch.where(usable, _along(pairs, vector).gather(1, order), 0.0)

        def combined(pairs: Tensor, share: Tensor) -> Tensor:
            back = torch.zeros_like(share).scatter_(1, order, share).to(pairs.dtype)
            return torch.bmm(back[:, None], pairs)[:, 0].view_as(gradient)

        share = torch.linalg.solve_triangular(system, along(moved, gradient)[:, :, None], upper=True)[:, :, 0]
        step = first_guess(gradient - combined(changed, share))
        right = torch.where(usable, own, 0.0) * share - along(changed, step)
        share = torch.linalg.solve_triangular(system.mT, right[:, :, None], upper=False)[:, :, 0]
        return step + combined(moved, share)

    def _oldest_first(self, used: int) -> Tensor:
        """Return the indices of each group's pairs; those that have no pair yet are not usable wherever they stand."""
        indices = torch.arange(used, device=self.count.device)
        return torch.where(self.count[:, None] > used, (self.count[:, None] + indices) % used, indices)

    def _is_usable(self, own: Tensor, square: Tensor) -> Tensor:
        """Tell which pairs say something of the curvature, by ``s'y`` and ``y'y``."""
        known = torch.finfo(self._changed.dtype)
        return own > known.eps**1.5 * square.double().clamp(min=known.tiny)


def _along(pairs: Tensor, vector: Tensor) -> Tensor:
    """Return the products of the pairs of each group (G, U, N) with its vector (G, K, E): (G, U) float64."""
    # This way round it is five times as fast as the other on a CPU.
    return torch.bmm(vector.flatten(1)[:, None], pairs.mT)[:, 0].double()
