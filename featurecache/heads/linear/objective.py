"""The objective of a family of linear problems on the same rows, and its gradient, in one pass over the rows.

Problem p is of a task, leaves out one fold and has a strength of its own::

    f_p = 1/S sum_i s_i loss(y_i, W_p' z_i + b_p) + strength_p/2 |W_p|^2,   S = sum_i s_i,   z = (x - mean) / scale

over the rows i that are not in the fold; mean and scale are those of these rows. That is scikit-learn's objective
divided by ``C * S``, with ``strength = 1 / (C * S)``.

All tasks on the same rows share the products with the features, and the vectors of the solver; a task with fewer
outputs than another has weights there that stay zero. Where tasks divide the rows alike, the blocks of a fold are
skipped by the problems that leave it out; where each has folds of its own, such rows count nothing instead.

Problems may be on features of several kinds, such as taps, of as many numbers each. They share no product, as that
with a block-diagonal matrix is the products with its blocks; all else they share, which is most of the work where rows
are few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featurecache.heads.linear.losses import Loss
from featurecache.heads.rows import NO_FOLD, Block, Moments, Rows

ClassWeight = Literal["balanced"] | NDArray[np.float64] | None

# T sets of features, P problems, G groups (of problems of one task on one set that leave out the same fold),
# D features, E = D + 1 (the last one is the intercept), K outputs, C classes, n rows of a block, Q lines of a product:
# the outputs of several problems


@dataclass(frozen=True, eq=False)
class Labelling:
    """What one task says of the rows, and which of them its problems leave out.

    Attributes
    ----------
    y, fold, num_classes
        As in `Rows`.
    loss : Loss
    left_out : sequence of int
        The fold that each group leaves out.
    sets : sequence of int
        Which set of features each group is fitted on; the first where it is left out.
    class_weight : "balanced", ndarray (n_classes,) or None
        Balanced: all classes of a group have the same total weight.
    """

    y: NDArray[np.int64]
    fold: NDArray[np.int64]
    num_classes: int
    loss: Loss
    left_out: Sequence[int]
    sets: Sequence[int] = ()
    class_weight: ClassWeight = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "sets", list(self.sets) or [0] * len(self.left_out))

    @property
    def num_outputs(self) -> int:
        """Margins of each row."""
        return self.loss.num_outputs(self.num_classes)


class Objective:
    """Value and gradient of problems, each of a group.

    Parameters
    ----------
    rows : sequence of Rows
        Of each set of features: the same number of rows, equally weighed and divided, of as many features. What their
        own labels are does not matter.
    labellings : sequence of Labelling
        Of the tasks; their groups are numbered one task after the other.
    standardize : bool
        Without it, features are taken as they are.

    Attributes
    ----------
    num_features : int
    weight_G, mean_GD, scale_GD : Tensor of float64
        Of the rows of each group.
    mean_TD, scale_TD : Tensor of float64
        Of all rows.
    set_G : Tensor of int64
    spans : list of slice
        The groups of each task.
    """

    def __init__(self, rows: Sequence[Rows], labellings: Sequence[Labelling], *, standardize: bool = True) -> None:
        self.rows, self.num_features, self.device = rows, rows[0].num_features, rows[0].device
        moments = [Moments.of_each(each, labellings) for each in rows]
        self.tasks = [
            _Problems(rows[0], labelling, [of_set[place] for of_set in moments])
            for place, labelling in enumerate(labellings)
        ]
        self.num_outputs = max(each.num_outputs for each in labellings)
        self.weight_G = torch.cat([task.weight_G for task in self.tasks])
        self.mean_GD, self.scale_GD = (
            torch.cat([getattr(task, name) for task in self.tasks]) for name in ("mean_GD", "scale_GD")
        )
        of_all = [first.without(NO_FOLD) for first, *_ in moments]
        self.mean_TD, self.scale_TD = (torch.stack([each[place] for each in of_all]) for place in (1, 2))
        self.set_G = torch.tensor([each for labelling in labellings for each in labelling.sets], device=self.device)
        if not standardize:
            for name in ("mean_GD", "mean_TD"):
                setattr(self, name, torch.zeros_like(getattr(self, name)))
            for name in ("scale_GD", "scale_TD"):
                setattr(self, name, torch.ones_like(getattr(self, name)))
        ends = np.cumsum([len(each.left_out) for each in labellings]).tolist()
        self.spans = [slice(end - len(each.left_out), end) for each, end in zip(labellings, ends, strict=True)]
        curvature = [torch.full_like(task.weight_G, task.labelling.loss.curvature) for task in self.tasks]
        self.curvature_G = torch.cat(curvature)

    @property
    def num_groups(self) -> int:
        """How many groups there are."""
        return len(self.weight_G)

    def __call__(self, theta_PKE: Tensor, strength_P: Tensor, group_P: Tensor) -> tuple[Tensor, Tensor]:
        """Return values (P,) float64 and gradients like ``theta_PKE``, in whose type everything is computed.

        Groups are in increasing order.
        """
        dtype, weights, intercept = theta_PKE.dtype, theta_PKE[:, :, :-1], theta_PKE[:, :, -1]
        scale = self.scale_GD[group_P].to(dtype)[:, None]
        offset = (self.mean_GD / self.scale_GD)[group_P].to(dtype)[:, None]
        raw_PKD = weights / scale
        constant_PK = intercept - (weights * offset).sum(2)
        looks = {fold: _Look(self._pieces(fold, group_P), raw_PKD, constant_PK) for fold in self.rows[0].folds}
        for blocks in zip(*(each.blocks() for each in self.rows), strict=True):
            looks[blocks[0].fold].take(blocks)
        value_P = torch.zeros(len(theta_PKE), dtype=torch.float64, device=theta_PKE.device)
        slope_PKD, total_PK = torch.zeros_like(raw_PKD), torch.zeros_like(constant_PK)
        for look in looks.values():
            look.add_to(value_P, slope_PKD, total_PK)
        weight_P = self.weight_G[group_P]
        per_weight = (1.0 / weight_P).to(dtype)[:, None, None]
        total_PK1 = total_PK[:, :, None]
        slope_PKD = (slope_PKD / scale - offset * total_PK1) * per_weight
        gradient_PKE = torch.cat([slope_PKD + strength_P.to(dtype)[:, None, None] * weights, total_PK1 * per_weight], 2)
        penalty = strength_P / 2 * (weights.double() ** 2).sum((1, 2))
        return value_P / weight_P + penalty, gradient_PKE

    def raw(self, theta_GKE: Tensor, place: int) -> tuple[Tensor, Tensor]:
        """Return the weights (G, K, D) and intercepts (G, K) of a task for features that are not standardised.

        All are float64; ``theta_GKE`` is of all groups.
        """
        task, span = self.tasks[place], self.spans[place]
        theta = theta_GKE[span, : task.labelling.num_outputs].double()
        raw_GKD = theta[:, :, :-1] / self.scale_GD[span][:, None]
        intercept_GK = theta[:, :, -1] - (raw_GKD * self.mean_GD[span][:, None]).sum(2)
        if task.labelling.num_outputs > 1:
            intercept_GK = intercept_GK + _minus_infinity(task.lacking_GC, intercept_GK.dtype)
        return raw_GKD, intercept_GK

    def _pieces(self, fold: int, group_P: Tensor) -> list[_Piece]:
        """Return the problems that are fitted on the rows of a fold, by task."""
        pieces, start = [], 0
        for task, span in zip(self.tasks, self.spans, strict=True):
            mine = (group_P >= span.start) & (group_P < span.stop)
            if task.divides_like_rows and fold != NO_FOLD:
                mine = mine & (task.left_out_G[(group_P - span.start).clamp(0, len(task.left_out_G) - 1)] != fold)
            members_M = torch.nonzero(mine)[:, 0]
            if len(members_M):
                stop = start + len(members_M) * task.labelling.num_outputs
                pieces.append(_Piece(task, members_M, group_P[members_M] - span.start, slice(start, stop)))
                start = stop
        return pieces


class _Problems:
    """Those of one task: its labelling, and what its groups know of their rows by the moments of each set."""

    def __init__(self, rows: Rows, labelling: Labelling, moments: Sequence[Moments]) -> None:
        self.labelling = labelling
        self._y, self._fold = (torch.from_numpy(each).to(rows.device) for each in (labelling.y, labelling.fold))
        groups = zip(labelling.sets, labelling.left_out, strict=True)
        known = [moments[of_set].without(fold) for of_set, fold in groups]
        self.weight_G, self.mean_GD, self.scale_GD, counts_GC = (torch.stack(each) for each in zip(*known, strict=True))
        self.divides_like_rows = np.array_equal(labelling.fold, rows.fold)
        self.left_out_G = torch.tensor(labelling.left_out, device=rows.device)
        self.lacking_GC = counts_GC <= 0
        """Classes without rows: they get no margin, so no probability."""
        if labelling.y.ndim == 2:
            self.lacking_GC = torch.zeros_like(self.lacking_GC)
        self._class_weight_GC = self._class_weights(counts_GC)
        self._weighs_classes = not bool((self._class_weight_GC == 1.0).all())

    def _class_weights(self, counts_GC: Tensor) -> Tensor:
        given = self.labelling.class_weight
        if given is None:
            return torch.ones_like(counts_GC)
        if isinstance(given, str):
            present = (~self.lacking_GC).sum(1, keepdim=True)
            alike = self.weight_G[:, None] / (present * counts_GC.clamp(min=1e-300))
            return torch.where(self.lacking_GC, 0.0, alike)
        return torch.from_numpy(given).to(counts_GC).expand_as(counts_GC)

    def weighted(self, block: Block, margins_MKn: Tensor, group_M: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of some of its problems (M,) and the slopes (M, K, n) of a block; margins are consumed."""
        dtype, labelling = margins_MKn.dtype, self.labelling
        y_n = self._y[block.places_n]
        if margins_MKn.shape[1] > 1 and bool(self.lacking_GC.any()):
            margins_MKn = margins_MKn.add_(_minus_infinity(self.lacking_GC[group_M], dtype)[:, :, None])
        loss_Mn, slope_MKn = labelling.loss(margins_MKn, y_n)
        if not self.divides_like_rows:
            fold_n, left_out_M1 = self._fold[block.places_n], self.left_out_G[group_M][:, None]
            out_Mn = (fold_n == left_out_M1) & (left_out_M1 != NO_FOLD)
            loss_Mn = torch.where(out_Mn, 0.0, loss_Mn)
            slope_MKn = slope_MKn.masked_fill_(out_Mn[:, None], 0.0)
        factors = []
        if self._weighs_classes and y_n.ndim == 1:  # several labels have no weights of their own
            factors.append(self._class_weight_GC[group_M].to(dtype)[:, y_n])
        if block.weight_n is not None:
            factors.append(block.weight_n.to(dtype)[None])
        for weight_Mn in factors:
            loss_Mn = loss_Mn * weight_Mn
            slope_MKn = slope_MKn.mul_(weight_Mn[:, None])
        return loss_Mn.double().sum(1), slope_MKn


@dataclass(frozen=True, eq=False)
class _Piece:
    """Problems of one task, and which lines of a product are their outputs."""

    task: _Problems
    members_M: Tensor
    group_M: Tensor
    """Among those of the task."""
    lines: slice

    def lines_by_set(self) -> list[tuple[int, slice]]:
        """Return which lines are products with which set of features."""
        sets, start, found = self.task.labelling.sets, self.lines.start, []
        if len(set(sets)) == 1:
            return [(sets[0], self.lines)]
        for of_set, members in groupby(sets[group] for group in self.group_M.tolist()):
            stop = start + len(list(members)) * self.task.labelling.num_outputs
            found.append((of_set, slice(start, stop)))
            start = stop
        return found


class _Look:
    """The products of all blocks of a fold with all problems that are fitted on it.

    Outputs stand before rows: with few of them such products are three times as fast as the others on a CPU.
    """

    def __init__(self, pieces: list[_Piece], raw_PKD: Tensor, constant_PK: Tensor) -> None:
        self._pieces = pieces
        if not pieces:
            return
        self._raw_QD = torch.cat([self._of(piece, raw_PKD).flatten(0, 1) for piece in pieces])
        self._constant_Q1 = torch.cat([self._of(piece, constant_PK).flatten() for piece in pieces])[:, None]
        self._slope_QD, self._total_Q = torch.zeros_like(self._raw_QD), torch.zeros_like(self._constant_Q1[:, 0])
        self._lines: list[tuple[int, slice]] = []
        for of_set, lines in (each for piece in pieces for each in piece.lines_by_set()):
            if self._lines and self._lines[-1][0] == of_set:
                lines = slice(self._lines.pop()[1].start, lines.stop)
            self._lines.append((of_set, lines))
        self._values = [
            torch.zeros(len(piece.members_M), dtype=torch.float64, device=raw_PKD.device) for piece in pieces
        ]

    def take(self, blocks: Sequence[Block]) -> None:
        """Add the part of some rows, by their block of each set."""
        if not self._pieces:
            return
        block, dtype = blocks[0], self._raw_QD.dtype
        products = [
            torch.addmm(self._constant_Q1[lines], self._raw_QD[lines], blocks[of_set].X_nD.to(dtype).T)
            for of_set, lines in self._lines
        ]
        margins_Qn = products[0] if len(products) == 1 else torch.cat(products)
        slope_Qn = margins_Qn
        for piece, value in zip(self._pieces, self._values, strict=True):
            margins_MKn = margins_Qn[piece.lines].unflatten(0, (len(piece.members_M), -1))
            loss_M, slope_MKn = piece.task.weighted(block, margins_MKn, piece.group_M)
            value += loss_M
            if len(self._pieces) == 1:
                slope_Qn = slope_MKn.flatten(0, 1)
            else:
                slope_Qn[piece.lines] = slope_MKn.flatten(0, 1)
        for of_set, lines in self._lines:
            self._slope_QD[lines].addmm_(slope_Qn[lines], blocks[of_set].X_nD.to(dtype))
        self._total_Q += slope_Qn.sum(1)

    def add_to(self, value_P: Tensor, slope_PKD: Tensor, total_PK: Tensor) -> None:
        """Add what all blocks came to."""
        for piece, value in zip(self._pieces, self._values if self._pieces else [], strict=True):
            members, num_outputs = piece.members_M, piece.task.labelling.num_outputs
            value_P[members] += value
            slope_PKD[members, :num_outputs] += self._slope_QD[piece.lines].unflatten(0, (len(members), num_outputs))
            total_PK[members, :num_outputs] += self._total_Q[piece.lines].view(len(members), num_outputs)

    @staticmethod
    def _of(piece: _Piece, of_problems: Tensor) -> Tensor:
        return of_problems[piece.members_M, : piece.task.labelling.num_outputs]


def _minus_infinity(lacking_QC: Tensor, dtype: torch.dtype) -> Tensor:
    # Far enough below any margin, and finite: a loss must not meet infinity minus infinity.
    return torch.where(lacking_QC, -1e30, 0.0).to(dtype)
