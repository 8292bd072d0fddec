"""From strong to weak regularisation: every strength and fold, and the strength that does best on held-out rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
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
from featurecache.heads.rows import NO_FOLD, Rows


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
