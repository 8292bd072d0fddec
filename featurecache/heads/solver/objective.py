"""The objective of many linear problems on the same rows, and its gradient, in one pass over the rows.

Problem p leaves out one fold and has its own regularisation::

    f_p = 1/S sum_i s_i loss(y_i, W_p' z_i + b_p) + penalty_p/2 |W_p|^2,   S = sum_i s_i,   z = (x - mean) / scale

over the rows i that are not in the fold; mean and scale are those of these rows. That is scikit-learn's objective
divided by ``C * S``, with ``penalty = 1 / (C * S)``.

All problems share the products with the features. Where there are few rows, each group has features of its own
instead (see `RowSpaces`), which is one more batch axis of the same products.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, Self

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import softplus

from featurecache.heads.fold_blocks import NO_FOLD, Block, FoldBlocks

ClassWeight = Literal["balanced"] | NDArray | None

# P problems, G groups (of problems that leave out the same fold), M problems that see a block, D features, E = D + 1
# (the last one is the intercept), K outputs, C classes, n rows of a block


class Loss(Protocol):
    """A loss that is convex in the margins."""

    curvature: float
    """A typical second derivative, for a first guess at the step."""
    shares_margin: bool
    """Two classes have one margin; else there is one for each class or label."""

    def __call__(self, margins_MKn: Tensor, y_n: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of each problem in each row (M, n), and its slope (M, K, n); ``margins_MKn`` is consumed."""

    def second(self, margins_MKn: Tensor, y_n: Tensor) -> Second:
        """Return the second derivatives in each row; ``margins_MKn`` is consumed."""


class Second(NamedTuple):
    """Second derivatives of a loss in the margins of each row."""

    own_MKn: Tensor
    """Of each margin by itself."""
    shared_MKn: Tensor | None = None
    """Probabilities of several classes: two margins have minus the product of theirs."""

    def change(self, change_MKn: Tensor) -> Tensor:
        """Return how slopes change where margins change; ``change_MKn`` is consumed."""
        if (share := self.shared_MKn) is None:
            return change_MKn.mul_(self.own_MKn)
        weighted = change_MKn.mul_(share)
        return weighted - share * weighted.sum(1, keepdim=True)


class Softmax:
    """Multinomial logistic regression: the negative log of the label's probability."""

    curvature = 0.05
    shares_margin = True

    def __call__(self, margins_MKn: Tensor, y_n: Tensor) -> tuple[Tensor, Tensor]:
        """See `Loss`."""
        num_problems, num_outputs, n = margins_MKn.shape
        if num_outputs == 1:
            sign = 2.0 * y_n.to(margins_MKn.dtype) - 1.0
            signed = margins_MKn * sign
            return softplus(-signed)[:, 0], torch.sigmoid(-signed).mul_(-sign)
        label = y_n.expand(num_problems, 1, n)
        log_total = torch.logsumexp(margins_MKn, 1, keepdim=True)
        loss = log_total - margins_MKn.gather(1, label)
        slope = margins_MKn.sub_(log_total).exp_()
        slope.scatter_add_(1, label, torch.full_like(slope[:, :1], -1.0))
        return loss[:, 0], slope

    def second(self, margins_MKn: Tensor, y_n: Tensor) -> Second:
        """See `Loss`."""
        several = margins_MKn.shape[1] > 1
        share = margins_MKn.softmax(1) if several else margins_MKn.sigmoid_()
        return Second(share * (1.0 - share), share if several else None)


class Sigmoids:
    """Logistic regression of each label by itself, several of which may hold; ``y_n`` is (n, K): 0, 1, or not known.

    A label that is not known, below 0, has no loss: it is fitted on the rows where it is.
    """

    curvature = 0.1
    shares_margin = False

    def __call__(self, margins_MKn: Tensor, y_n: Tensor) -> tuple[Tensor, Tensor]:
        """See `Loss`."""
        sign = (2.0 * y_n.to(margins_MKn.dtype) - 1.0).T
        unknown_Kn = y_n.T < 0
        signed = margins_MKn.mul_(sign)
        loss_MKn, slope_MKn = softplus(-signed), torch.sigmoid(-signed).mul_(-sign)
        if bool(unknown_Kn.any()):
            loss_MKn, slope_MKn = (array.masked_fill_(unknown_Kn, 0.0) for array in (loss_MKn, slope_MKn))
        return loss_MKn.sum(1), slope_MKn

    def second(self, margins_MKn: Tensor, y_n: Tensor) -> Second:
        """See `Loss`."""
        probability = margins_MKn.sigmoid_()
        return Second((probability * (1.0 - probability)).masked_fill_(y_n.T < 0, 0.0))


class SquaredHinge:
    """Support vector machine, one class against the rest: the square of what a margin lacks to one."""

    curvature = 1.0
    shares_margin = True

    def __call__(self, margins_MKn: Tensor, y_n: Tensor) -> tuple[Tensor, Tensor]:
        """See `Loss`."""
        sign = self._sign(margins_MKn, y_n)
        lack = (1.0 - margins_MKn.mul_(sign)).clamp_(min=0.0)
        return (lack * lack).sum(1), (-2.0 * sign) * lack

    def second(self, margins_MKn: Tensor, y_n: Tensor) -> Second:
        """See `Loss`; where a margin is 1 there is none, and that of its left is as good (Keerthi & DeCoste 2005)."""
        return Second(2.0 * (margins_MKn.mul_(self._sign(margins_MKn, y_n)) < 1.0).to(margins_MKn.dtype))

    @staticmethod
    def _sign(margins_MKn: Tensor, y_n: Tensor) -> Tensor:
        num_outputs = margins_MKn.shape[1]
        positive = y_n == (torch.arange(num_outputs, device=y_n.device)[:, None] if num_outputs > 1 else 1)
        return 2.0 * positive.to(margins_MKn.dtype) - 1.0


@dataclass(frozen=True, eq=False)
class LinearProblem:
    """What is minimised for each group.

    Attributes
    ----------
    loss : Loss
    left_out : sequence of int
        The fold that each group leaves out.
    class_weight : "balanced", ndarray (n_classes,) or None
        Balanced: all classes of a group have the same total weight.
    """

    loss: Loss
    left_out: Sequence[int]
    class_weight: ClassWeight = None


class GroupMoments(NamedTuple):
    """Moments of the rows that each group is fitted on, float64: its features are standardised by them."""

    weight_G: Tensor
    mean_GD: Tensor
    scale_GD: Tensor
    counts_GC: Tensor
    """Weight of each class, or of each label; the sum of each number."""
    mean_D: Tensor
    """Of all rows, as the scale."""
    scale_D: Tensor

    def unscaled(self, num_features: int) -> Self:
        """Return moments that leave so many features as they are."""
        zeros_GD = self.weight_G.new_zeros(len(self.weight_G), num_features)
        return self._replace(mean_GD=zeros_GD, scale_GD=zeros_GD + 1, mean_D=zeros_GD[0], scale_D=zeros_GD[0] + 1)


class Part(NamedTuple):
    """A block of rows, and the problems that see it."""

    block: Block
    X: Tensor
    """In the type of the arithmetic; (n, D), or (M, n, D) where each group has features of its own."""
    M: slice | Tensor
    """Indices of the problems."""
    group_M: Tensor
    left_out_M: Tensor


class Objective:
    """Value and gradient of problems, each of a group.

    Parameters
    ----------
    data : FoldBlocks
        Targets, folds and weights of the rows.
    problem : LinearProblem
    moments : GroupMoments
        Of the features in ``blocks``, which are standardised by them.
    blocks : sequence of Block, or FoldBlocks
        What is multiplied: the data's own blocks, by fold or not, or features of each group. Read in each pass.

    Attributes
    ----------
    num_groups, num_features, num_outputs : int
    scale_and_offset : tuple of Tensor (G, D)
        Of standardised features: what they are divided by, and what is subtracted then.
    """

    def __init__(
        self, data: FoldBlocks, problem: LinearProblem, moments: GroupMoments, blocks: Iterable[Block]
    ) -> None:
        self.data, self.loss, self.moments, self.blocks, self.device = data, problem.loss, moments, blocks, data.device
        self.num_groups, self.num_features = moments.mean_GD.shape
        self.num_outputs = 1 if problem.loss.shares_margin and data.num_classes <= 2 else data.num_classes
        self._y, self._fold = (torch.from_numpy(array).to(data.device) for array in (data.y, data.fold))
        self._left_out_G = torch.tensor(problem.left_out, device=data.device)
        self.scale_and_offset = moments.scale_GD, moments.mean_GD / moments.scale_GD
        # Classes without rows get no margin, so no probability; labels by themselves are never lacking.
        self._lacking_GC = (moments.counts_GC <= 0) & (data.y.ndim == 1)
        self._class_weight_GC = _class_weights(problem.class_weight, moments, self._lacking_GC)

    def __call__(self, theta_PKE: Tensor, penalty_P: Tensor, group_P: Tensor) -> tuple[Tensor, Tensor]:
        """Return values (P,) float64 and gradients like ``theta_PKE``, in whose type everything is computed."""
        value_P = torch.zeros(len(theta_PKE), dtype=torch.float64, device=theta_PKE.device)
        gradient = _Gradient(self, theta_PKE, group_P)
        for part, margins_MKn in self.margins(theta_PKE, group_P):
            self._lower_lacking(part, margins_MKn)
            loss_Mn, slope_MKn = self.loss(margins_MKn, self._y[part.block.index_n])
            value_P[part.M] += self.weighted(part, loss_Mn).double().sum(1)
            gradient.add(part, self.weighted(part, slope_MKn))
        penalty = penalty_P / 2 * (theta_PKE[:, :, :-1].double() ** 2).sum((1, 2))
        return value_P / self.moments.weight_G[group_P] + penalty, gradient.with_penalty(penalty_P)

    def hessian(self, theta_PKE: Tensor, penalty_P: Tensor, group_P: Tensor) -> Hessian:
        """Return the second derivatives at ``theta_PKE``."""
        seconds = []
        for part, margins_MKn in self.margins(theta_PKE, group_P):
            self._lower_lacking(part, margins_MKn)
            seconds.append(self.loss.second(margins_MKn, self._y[part.block.index_n]))
        return Hessian(self, seconds, penalty_P, group_P)

    def margins(self, theta_PKE: Tensor, group_P: Tensor) -> Iterator[tuple[Part, Tensor]]:
        """Yield each block that is seen, and the margins (M, K, n) there."""
        scale, offset = (array[group_P].to(theta_PKE.dtype)[:, None] for array in self.scale_and_offset)
        raw_PKD = theta_PKE[:, :, :-1] / scale
        constant_PK1 = (theta_PKE[:, :, -1] - (theta_PKE[:, :, :-1] * offset).sum(2))[:, :, None]
        left_out_P = self._left_out_G[group_P]
        for block in self.blocks:
            seen = torch.nonzero((left_out_P != block.fold) | (left_out_P == NO_FOLD))[:, 0]
            if not len(seen):
                continue
            # A slice where all problems see the block: nothing is copied then.
            M: slice | Tensor = slice(None) if len(seen) == len(group_P) else seen
            group_M, raw_MKD, X = group_P[M], raw_PKD[M], block.X.to(theta_PKE.dtype)
            if X.ndim == 2:  # one product of all outputs of all problems; outputs stand first, three times as fast
                product = torch.addmm(constant_PK1[M].flatten(0, 1), raw_MKD.flatten(0, 1), X.T)
                margins_MKn = product.unflatten(0, raw_MKD.shape[:2])
            else:
                X = X if len(group_M) == len(X) else X[group_M]
                margins_MKn = torch.baddbmm(constant_PK1[M], raw_MKD, X.mT)
            yield Part(block, X, M, group_M, left_out_P[M]), margins_MKn

    def _lower_lacking(self, part: Part, margins_MKn: Tensor) -> None:
        """Put classes without rows far enough below any margin, and finite: a loss must not meet inf - inf."""
        if self.num_outputs > 1 and bool(self._lacking_GC.any()):
            margins_MKn -= (1e30 * self._lacking_GC[part.group_M].to(margins_MKn.dtype))[:, :, None]

    def raw(self, theta_GKE: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights (G, K, D) and intercepts (G, K), float64, for features that are not standardised."""
        theta = theta_GKE.double()
        raw_GKD = theta[:, :, :-1] / self.moments.scale_GD[:, None]
        intercept_GK = theta[:, :, -1] - (raw_GKD * self.moments.mean_GD[:, None]).sum(2)
        if self.num_outputs > 1:
            intercept_GK = intercept_GK - 1e30 * self._lacking_GC.double()
        return raw_GKD, intercept_GK

    def weighted(self, part: Part, values: Tensor) -> Tensor:
        """Return losses (M, n) or slopes (M, K, n) times what each row counts; they are consumed."""
        block = part.block
        spread = (slice(None), None) if values.ndim == 3 else (slice(None),)
        if block.fold == NO_FOLD and bool((part.left_out_M != NO_FOLD).any()):  # blocks that do not heed folds
            fold_n, left_out_M1 = self._fold[block.index_n], part.left_out_M[:, None]
            out_Mn = (fold_n == left_out_M1) & (left_out_M1 != NO_FOLD)
            # Not a product with zero: what a problem loses on a row that it must not see may be infinite.
            values = values.masked_fill_(out_Mn[spread], 0.0)
        if self._class_weight_GC is not None and self._y.ndim == 1:  # several labels have no weights of their own
            weight_Mn = self._class_weight_GC[part.group_M].to(values.dtype)[:, self._y[block.index_n]]
            values = values.mul_(weight_Mn[spread])
        if block.weight_n is not None:
            values = values.mul_(block.weight_n.to(values.dtype))
        return values


class _Gradient:
    """What slopes along the margins of blocks are along ``theta``.

    Parameters
    ----------
    objective : Objective
    theta_PKE : Tensor
    group_P : Tensor
    """

    def __init__(self, objective: Objective, theta_PKE: Tensor, group_P: Tensor) -> None:
        self._objective, self._theta_PKE, self._group_P = objective, theta_PKE, group_P
        self._slope_PKD = torch.zeros_like(theta_PKE[:, :, :-1])
        self._total_PK1 = torch.zeros_like(theta_PKE[:, :, -1:])

    def add(self, part: Part, slope_MKn: Tensor) -> None:
        """Add the slopes of a block."""
        self._total_PK1[part.M] += slope_MKn.sum(2, keepdim=True)
        if part.X.ndim == 2:
            self._slope_PKD[part.M] += (slope_MKn.flatten(0, 1) @ part.X).unflatten(0, slope_MKn.shape[:2])
        else:
            self._slope_PKD[part.M] += slope_MKn @ part.X

    def with_penalty(self, penalty_P: Tensor) -> Tensor:
        """Return all of them, with the penalty's."""
        theta_PKE, objective, group_P = self._theta_PKE, self._objective, self._group_P
        scale, offset = (array[group_P].to(theta_PKE.dtype)[:, None] for array in objective.scale_and_offset)
        share = (1.0 / objective.moments.weight_G[group_P]).to(theta_PKE.dtype)[:, None, None]
        of_penalty = penalty_P.to(theta_PKE.dtype)[:, None, None] * theta_PKE[:, :, :-1]
        slope_PKD = (self._slope_PKD / scale - offset * self._total_PK1) * share + of_penalty
        return torch.cat([slope_PKD, self._total_PK1 * share], 2)


@dataclass(frozen=True, eq=False)
class Hessian:
    """Second derivatives of problems at a point; see `Objective.hessian`."""

    objective: Objective
    seconds: Sequence[Second]
    """Of each block."""
    penalty_P: Tensor
    group_P: Tensor

    def __call__(self, direction_PKE: Tensor) -> Tensor:
        """Return the product with a direction."""
        gradient = _Gradient(self.objective, direction_PKE, self.group_P)
        margins = self.objective.margins(direction_PKE, self.group_P)
        for second, (part, change_MKn) in zip(self.seconds, margins, strict=True):
            gradient.add(part, self.objective.weighted(part, second.change(change_MKn)))
        return gradient.with_penalty(self.penalty_P)

    def blocks(self) -> tuple[Tensor, Tensor]:
        """Return those of the weights of each output (K, D, D) and of its intercept (K,), where there is one group."""
        objective, moments = self.objective, self.objective.moments
        shape = (objective.num_outputs, objective.num_features)
        weights_KDD, intercept_K = (
            torch.zeros(*shape, shape[1]).to(self.penalty_P),
            torch.zeros(shape[0]).to(self.penalty_P),
        )
        nowhere = weights_KDD.new_zeros(1, shape[0], shape[1] + 1)
        for second, (part, _) in zip(self.seconds, objective.margins(nowhere, self.group_P), strict=True):
            own_Kn = objective.weighted(part, second.own_MKn.clone())[0]
            Z = ((part.X if part.X.ndim == 2 else part.X[0]) - moments.mean_GD[0]) / moments.scale_GD[0]
            weights_KDD += (own_Kn[:, None] * Z.T) @ Z
            intercept_K += own_Kn.sum(1)
        weights_KDD /= moments.weight_G[0]
        torch.diagonal(weights_KDD, dim1=1, dim2=2).add_(self.penalty_P)
        return weights_KDD, intercept_K / moments.weight_G[0]


def _class_weights(given: ClassWeight, moments: GroupMoments, lacking_GC: Tensor) -> Tensor | None:
    """Return the weight of each class in each group; None: all count alike."""
    if given is None:
        return None
    if isinstance(given, str):
        present = (~lacking_GC).sum(1, keepdim=True)
        alike = moments.weight_G[:, None] / (present * moments.counts_GC.clamp(min=1e-300))
        # A class without rows has no weight to share, whatever the division by nearly nothing made of it.
        return torch.where(lacking_GC, 0.0, alike)
    return torch.from_numpy(given).to(moments.counts_GC).expand_as(moments.counts_GC)
