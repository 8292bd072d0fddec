"""From strong to weak regularisation: every strength and fold, and the strength that does best on held-out rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featurecache.heads.checks import is_small
from featurecache.heads.linear.classifier import named
from featurecache.heads.linear.losses import Loss
from featurecache.heads.linear.objective import Objective
from featurecache.heads.linear.solver import Minimiser, Tolerance
from featurecache.heads.rows import NO_FOLD, Moments, Rows


@dataclass(frozen=True, eq=False)
class Step:
    """Solutions for one strength.

    Attributes
    ----------
    C : float
        As in scikit-learn: the weight of the data against the penalty.
    weights_GDK, intercept_GK : Tensor of float64
        For features as they come, not standardised; one of each group.
    values : ndarray (n_groups,)
        The objectives, divided by ``C`` and the total weight of the rows.
    num_iterations : ndarray (n_groups,)
        Looks at the rows.
    converged : bool
    """

    C: float
    weights_GDK: Tensor
    intercept_GK: Tensor
    values: NDArray[np.float64]
    num_iterations: NDArray[np.int64]
    converged: bool
    theta_GEK: Tensor


@dataclass(frozen=True, kw_only=True)
class LinearFamily:
    """How a family of linear heads is fitted; the rows come later.

    Attributes
    ----------
    loss : Loss
    class_weight : "balanced", ndarray (n_classes,) or None
        Balanced: all classes have the same total weight.
    standardize : bool
    tol : float
        Largest difference of an objective from its least value, relative, as far as it can be told.
    max_iter : int
        Looks at the rows for one strength.
    """

    loss: Loss
    class_weight: Literal["balanced"] | NDArray[np.float64] | None = None
    standardize: bool = True
    tol: float = 1e-4
    max_iter: int = 1000

    def solve(
        self,
        rows: Rows,
        Cs: Sequence[float],
        left_out: Sequence[int],
        *,
        start: Tensor | None = None,
        to_the_end: bool = False,
    ) -> Iterator[Step]:
        """Solve for one strength after the other, from the strongest regularisation to the weakest.

        Parameters
        ----------
        rows : Rows
        Cs : sequence of float
            Increasing.
        left_out : sequence of int
            The fold that each group leaves out.
        start : Tensor (G, E, K), optional
            `Step.theta_GEK` of a similar problem.
        to_the_end : bool
            Solve small problems to the last digits, so that equal problems give equal solutions however they are put.
        """
        # With more rows, looking at all folds at once saves more than a smaller space does.
        if is_small(rows.num_rows, rows.num_features) and 2 * rows.num_rows <= rows.num_features:
            return self._in_row_space(rows, Cs, left_out, start, to_the_end)
        return self._solve(rows, Cs, left_out, start, to_the_end)

    def _in_row_space(
        self, rows: Rows, Cs: Sequence[float], left_out: Sequence[int], start: Tensor | None, to_the_end: bool
    ) -> Iterator[Step]:
        """Solve each group where its few rows vary, and carry the solutions back."""
        moments = Moments.of(rows)
        spaces = [RowSpace(rows, moments, fold, standardize=self.standardize) for fold in left_out]
        alone = replace(self, standardize=False)
        starts = [None if start is None else space.within(start[k : k + 1]) for k, space in enumerate(spaces)]
        solvers = [
            alone._solve(space.rows, Cs, [NO_FOLD], own, to_the_end) for space, own in zip(spaces, starts, strict=True)
        ]
        for steps in zip(*solvers, strict=True):
            solved = [space.outside(step) for space, step in zip(spaces, steps, strict=True)]
            weights, intercepts, thetas = (torch.stack(each) for each in zip(*solved, strict=True))
            yield Step(
                steps[0].C,
                weights,
                intercepts,
                np.concatenate([step.values for step in steps]),
                np.concatenate([step.num_iterations for step in steps]),
                all(step.converged for step in steps),
                thetas,
            )

    def _solve(
        self, rows: Rows, Cs: Sequence[float], left_out: Sequence[int], start: Tensor | None, to_the_end: bool
    ) -> Iterator[Step]:
        objective = Objective(rows, self.loss, left_out, class_weight=self.class_weight, standardize=self.standardize)
        small = is_small(rows.num_rows, rows.num_features)
        minimiser = Minimiser(objective, self._tolerance(small and to_the_end), torch.float64 if small else rows.dtype)
        if start is not None:
            minimiser.start_at(start)
        group = torch.arange(objective.num_groups, device=rows.device)
        for C in Cs:
            strength = 1.0 / (C * objective.statistics.weight_G)
            theta = minimiser.solve(strength)
            num_iterations = minimiser.num_iterations.clone()
            if not bool(minimiser.converged.all()) and theta.dtype != torch.float64:
                minimiser.in_float64()
                theta = minimiser.solve(strength)
                num_iterations += minimiser.num_iterations
            yield Step(
                C,
                *objective.raw(theta, group),
                minimiser.value.cpu().numpy(),
                num_iterations.cpu().numpy(),
                bool((minimiser.converged | minimiser.exhausted).all()),
                theta,
            )

    def _tolerance(self, to_the_end: bool) -> Tolerance:
        if to_the_end:
            return Tolerance(decrease=1e-22, gradient=1e-12, max_iter=self.max_iter)
        # What a quasi-Newton step promises was seen to be up to ten times less than what is left to gain.
        return Tolerance(decrease=self.tol / 10, gradient=self.tol / 100, max_iter=self.max_iter)


class RowSpace:
    """The space that the rows of a group span: where there are fewer rows than features, all of a solution lies in it.

    The penalty draws weights to zero in all directions in which no row varies, and is the same along any orthonormal
    axes of the others (the representer theorem: Kimeldorf & Wahba, J. Math. Anal. Appl. 33, 1971). So ``Z' = Q R``
    gives each row as many features as there are rows, ``R'``, and weights ``Q a``.

    Attributes
    ----------
    rows : Rows
        Of the group, by their places along the axes.
    """

    def __init__(self, rows: Rows, moments: Moments, fold: int, *, standardize: bool) -> None:
        kept = (rows.fold != fold) | (rows.fold == NO_FOLD)
        _, mean_D, scale_D, _ = moments.without(fold)
        self._mean_D = mean_D if standardize else torch.zeros_like(mean_D)
        self._scale_D = scale_D if standardize else torch.ones_like(scale_D)
        X = torch.from_numpy(np.asarray(rows.X[np.flatnonzero(kept)], np.float64)).to(rows.device)
        self._axes_DR, upper_RN = torch.linalg.qr(((X - self._mean_D) / self._scale_D).T)
        self.rows = Rows(
            upper_RN.T.contiguous().cpu().numpy(),
            rows.y[kept],
            np.full(int(kept.sum()), NO_FOLD),
            None if rows.weight is None else rows.weight[kept],
            dtype=torch.float64,
            device=rows.device,
            num_classes=rows.num_classes,
        )

    def within(self, theta_GEK: Tensor) -> Tensor:
        """Return what of a solution lies in the space."""
        theta = theta_GEK.to(self._axes_DR)
        return torch.cat([self._axes_DR.T @ theta[:, :-1], theta[:, -1:]], 1)

    def outside(self, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """Return weights (D, K) and intercepts (K,) for features as they come, and the solution (E, K)."""
        weights_DK = self._axes_DR @ step.weights_GDK[0]
        raw_DK = weights_DK / self._scale_D[:, None]
        theta_EK = torch.cat([weights_DK, step.theta_GEK[0, -1:].to(weights_DK)])
        return raw_DK, step.intercept_GK[0] - self._mean_D @ raw_DK, theta_EK


@dataclass
class Search:
    """How the strengths did on rows that were held out.

    Attributes
    ----------
    C : float
        The best; of equals the one with the strongest regularisation.
    accuracy : list of float
        Of each strength; of several labels, the mean over them.
    margins : ndarray (n_samples, K) float64
        Of the best strength, for each row by the problem that left it out; NaN for rows that are never left out.
    theta_GEK : Tensor
        Solutions of the best strength.
    num_iterations : list of int
        Looks at all rows, for each strength, by the group that needed most.
    """

    C: float
    accuracy: list[float] = field(default_factory=list)
    margins: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 1)))
    theta_GEK: Tensor | None = None
    num_iterations: list[int] = field(default_factory=list)
    converged: bool = True


def search(family: LinearFamily, rows: Rows, Cs: Sequence[float]) -> Search:
    """Find the strength that names most rows right when they are held out.

    Parameters
    ----------
    family : LinearFamily
    rows : Rows
        Every fold but `NO_FOLD` is held out once.
    Cs : sequence of float
        Increasing.
    """
    left_out = [fold for fold in rows.folds if fold != NO_FOLD]
    best, most = Search(Cs[0]), -1.0
    held_out = rows.fold != NO_FOLD
    weight = None if rows.weight is None else rows.weight[held_out]
    accuracy, num_iterations, converged = [], [], True
    for step in family.solve(rows, Cs, left_out):
        margins, y = held_out_margins(step, rows, left_out)
        right = named(margins) == y if y.ndim == 1 else ((margins > 0) == y).mean(axis=1)
        accuracy.append(float(np.average(right, weights=weight)))
        num_iterations.append(int(step.num_iterations.max()))
        converged = converged and step.converged
        if accuracy[-1] > most:
            best, most = Search(step.C, margins=margins, theta_GEK=step.theta_GEK), accuracy[-1]
    best.accuracy, best.num_iterations, best.converged = accuracy, num_iterations, converged
    return best


def held_out_margins(step: Step, rows: Rows, left_out: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """Return margins (n, K), and labels (n,) or (n, K), of the rows that some problem leaves out, in their order."""
    margins = np.full((rows.num_rows, step.intercept_GK.shape[1]), np.nan)
    places = rows.places_by_fold()
    taken = dict.fromkeys(rows.folds, 0)
    for block in rows.blocks():
        here = places[block.fold][taken[block.fold] :][: len(block.y_n)]
        taken[block.fold] += len(here)
        if block.fold != NO_FOLD:
            group = left_out.index(block.fold)
            weights = step.weights_GDK[group].to(rows.dtype)
            values = (block.X_nD @ weights).double() + step.intercept_GK[group]
            margins[here] = values.cpu().numpy()
    held_out = rows.fold != NO_FOLD
    return margins[held_out], rows.y[held_out]
