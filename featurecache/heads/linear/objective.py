"""The objective of a family of linear problems on the same rows, and its gradient, in one pass over the rows.

Problem p leaves out one fold and has a strength of its own::

    f_p = 1/S sum_i s_i loss(y_i, W_p' z_i + b_p) + strength_p/2 |W_p|^2,   S = sum_i s_i,   z = (x - mean) / scale

over the rows i that are not in the fold; mean and scale are those of these rows. That is scikit-learn's objective
divided by ``C * S``, with ``strength = 1 / (C * S)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featurecache.heads.linear.losses import Loss
from featurecache.heads.rows import NO_FOLD, Block, Moments, Rows

ClassWeight = Literal["balanced"] | NDArray[np.float64] | None

# P problems, G groups (of problems that leave out the same fold), D features, E = D + 1 (the last one is the
# intercept), K outputs, C classes


@dataclass(frozen=True, eq=False)
class Statistics:
    """What a group knows of its rows."""

    weight_G: Tensor
    mean_GD: Tensor
    scale_GD: Tensor
    class_weight_GC: Tensor
    lacking_GC: Tensor
    """Classes without rows: they get no margin, so no probability."""


class Objective:
    """Value and gradient of problems, each of a group.

    Parameters
    ----------
    rows : Rows
    loss : Loss
    left_out : sequence of int
        The fold that each group leaves out.
    class_weight : "balanced", ndarray (n_classes,) or None
        Balanced: all classes of a group have the same total weight.
    standardize : bool
        Without it, features are taken as they are.
    """

    def __init__(
        self,
        rows: Rows,
        loss: Loss,
        left_out: Sequence[int],
        *,
        class_weight: ClassWeight = None,
        standardize: bool = True,
    ) -> None:
        self.rows, self.loss, self.left_out = rows, loss, list(left_out)
        self.num_outputs = loss.num_outputs(rows.num_classes)
        self.statistics = _statistics(rows, self.left_out, class_weight, standardize=standardize)

    @property
    def num_groups(self) -> int:
        """How many groups there are."""
        return len(self.left_out)

    def __call__(self, theta_PEK: Tensor, strength_P: Tensor, group_P: Tensor) -> tuple[Tensor, Tensor]:
        """Return values (P,) float64 and gradients like ``theta_PEK``, in whose type everything is computed."""
        known, dtype = self.statistics, theta_PEK.dtype
        num_problems, num_weights, num_outputs = theta_PEK.shape
        weights, intercept = theta_PEK[:, :-1], theta_PEK[:, -1]
        scale = known.scale_GD[group_P].to(dtype)
        offset = (known.mean_GD / known.scale_GD)[group_P].to(dtype)
        raw_PDK = weights / scale[:, :, None]
        constant_PK = intercept - torch.einsum("pd,pdk->pk", offset, weights)
        value_P = torch.zeros(num_problems, dtype=torch.float64, device=theta_PEK.device)
        slope_PDK = torch.zeros_like(raw_PDK)
        total_PK = torch.zeros_like(constant_PK)
        by_fold: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        for fold in self.rows.folds:
            members = self._fitted_on(fold, group_P)
            raw_DQ = raw_PDK[members].permute(1, 0, 2).reshape(num_weights - 1, -1).contiguous()
            by_fold[fold] = members, raw_DQ, constant_PK[members].reshape(-1)
        for block in self.rows.blocks():
            members, raw_DQ, constant_Q = by_fold[block.fold]
            if len(members):
                X_nD = block.X_nD.to(dtype)
                margins = torch.addmm(constant_Q, X_nD, raw_DQ).view(len(X_nD), len(members), num_outputs)
                value, slope_nQK = self._weighted(block, margins, group_P[members])
                value_P[members] += value
                slope_nQ = slope_nQK.reshape(len(X_nD), -1)
                gradient = (X_nD.T @ slope_nQ).view(-1, len(members), num_outputs)
                slope_PDK[members] += gradient.permute(1, 0, 2)
                total_PK[members] += slope_nQK.sum(0)
        weight_P = known.weight_G[group_P]
        strength = strength_P.to(dtype)[:, None, None]
        per_weight = (1.0 / weight_P).to(dtype)[:, None, None]
        slope_PDK = slope_PDK / scale[:, :, None] - offset[:, :, None] * total_PK[:, None, :]
        gradient_PEK = torch.cat([slope_PDK * per_weight + strength * weights, total_PK[:, None] * per_weight], 1)
        penalty = strength_P / 2 * (weights.double() ** 2).sum((1, 2))
        return value_P / weight_P + penalty, gradient_PEK

    def raw(self, theta_PEK: Tensor, group_P: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights (P, D, K) and intercepts (P, K) for features that are not standardised, float64."""
        known, theta = self.statistics, theta_PEK.double()
        raw_PDK = theta[:, :-1] / known.scale_GD[group_P][:, :, None]
        intercept_PK = theta[:, -1] - torch.einsum("pd,pdk->pk", known.mean_GD[group_P], raw_PDK)
        if self.num_outputs > 1:
            intercept_PK = intercept_PK + _minus_infinity(known.lacking_GC[group_P], intercept_PK.dtype)
        return raw_PDK, intercept_PK

    def _fitted_on(self, fold: int, group_P: Tensor) -> Tensor:
        """Return the problems that are fitted on the rows of a fold."""
        kept = torch.tensor([fold in (each, NO_FOLD) and fold != NO_FOLD for each in self.left_out])
        return torch.nonzero(~kept.to(group_P.device)[group_P])[:, 0]

    def _weighted(self, block: Block, margins_nQK: Tensor, group_Q: Tensor) -> tuple[Tensor, Tensor]:
        known, dtype = self.statistics, margins_nQK.dtype
        if margins_nQK.shape[2] > 1 and bool(known.lacking_GC.any()):
            margins_nQK = margins_nQK + _minus_infinity(known.lacking_GC[group_Q], dtype)
        loss_nQ, slope_nQK = self.loss(margins_nQK, block.y_n)
        if block.y_n.ndim == 2:  # labels: they have no weights of their own
            weight_nQ = torch.ones_like(loss_nQ)
        else:
            weight_nQ = known.class_weight_GC[group_Q].to(dtype).T[block.y_n]
        if block.weight_n is not None:
            weight_nQ = weight_nQ * block.weight_n.to(dtype)[:, None]
        elif bool((known.class_weight_GC == 1.0).all()):
            return loss_nQ.double().sum(0), slope_nQK
        return (loss_nQ * weight_nQ).double().sum(0), slope_nQK.mul_(weight_nQ[:, :, None])


def _minus_infinity(lacking_QC: Tensor, dtype: torch.dtype) -> Tensor:
    # Far enough below any margin, and finite: a loss must not meet infinity minus infinity.
    return torch.where(lacking_QC, -1e30, 0.0).to(dtype)


def _statistics(rows: Rows, left_out: Sequence[int], class_weight: ClassWeight, *, standardize: bool) -> Statistics:
    moments = Moments.of(rows)
    weight, mean, scale, counts = (torch.stack(each) for each in zip(*map(moments.without, left_out), strict=True))
    if not standardize:
        mean, scale = torch.zeros_like(mean), torch.ones_like(scale)
    lacking = counts <= 0 if rows.y.ndim == 1 else torch.zeros_like(counts, dtype=torch.bool)
    if class_weight is None:
        table = torch.ones_like(counts)
    elif isinstance(class_weight, str):
        present = (~lacking).sum(1, keepdim=True)
        table = torch.where(lacking, 0.0, weight[:, None] / (present * counts.clamp(min=1e-300)))
    else:
        table = torch.from_numpy(class_weight).to(counts).expand_as(counts)
    return Statistics(weight, mean, scale, table, lacking)
