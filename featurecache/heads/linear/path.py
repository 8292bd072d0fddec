"""From strong to weak regularisation: every strength and fold, and the strength that does best on held-out rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featurecache.heads.checks import is_small
from featurecache.heads.linear.classifier import named
from featurecache.heads.linear.objective import Labelling, Objective
from featurecache.heads.linear.row_space import RowSpace
from featurecache.heads.linear.solver import Minimiser, Step, Tolerance
from featurecache.heads.rows import NO_FOLD, Rows

_WORTH_DIVIDING = 1_000_000
"""Numbers in all rows: with fewer, leaving out the rows of a fold saves less than a look at each fold takes."""


class _Asked(NamedTuple):
    """What `LinearFamily.solve` is asked for; see there."""

    rows: Sequence[Rows]
    labellings: Sequence[Labelling]
    C_of_groups: Sequence[NDArray[np.float64]]
    """Of each group, for each step."""
    starts: Sequence[Tensor | None]
    to_the_end: bool


@dataclass(frozen=True, kw_only=True)
class LinearFamily:
    """How families of linear heads are fitted; rows and tasks come later.

    Attributes
    ----------
    standardize : bool
    tol : float
        Largest difference of an objective from its least value, relative, as far as it can be told.
    max_iter : int
        Looks at the rows for one strength.
    """

    standardize: bool = True
    tol: float = 1e-4
    max_iter: int = 1000

    def solve(
        self,
        rows: Sequence[Rows],
        labellings: Sequence[Labelling],
        Cs: Iterable[float | NDArray[np.float64]],
        *,
        starts: Sequence[Tensor | None] | None = None,
        to_the_end: bool = False,
    ) -> Iterator[list[Step]]:
        """Solve for one strength after the other, from the strongest regularisation to the weakest.

        Parameters
        ----------
        rows : sequence of Rows
            Of each set of features; see `Objective`.
        labellings : sequence of Labelling
            Of tasks that are solved side by side.
        Cs : sequence of float, or of one float for each group of each task
            Increasing.
        starts : sequence of Tensor (G, K, E) or None, optional
            For each task the `Step.theta_GKE` of a similar problem.
        to_the_end : bool
            Solve small problems to the last digits, so that equal problems give equal solutions however they are put.

        Yields
        ------
        list of Step
            Of each task.
        """
        num_groups = sum(len(each.left_out) for each in labellings)
        asked = _Asked(
            rows,
            labellings,
            [np.broadcast_to(C, num_groups) for C in Cs],
            starts or [None] * len(labellings),
            to_the_end,
        )
        # With more rows, one set of features for all folds saves more than a smaller space does.
        num_rows, num_features = rows[0].num_rows, rows[0].num_features
        few = is_small(num_rows, num_features) and 2 * num_rows <= num_features
        return self._in_row_space(asked) if few else self._solve(asked)

    def _in_row_space(self, asked: _Asked) -> Iterator[list[Step]]:
        """Solve the problems where their few rows vary, and carry the solutions back."""
        spaces, labellings = RowSpace.of_each(asked.rows, asked.labellings, standardize=self.standardize)
        of_tasks = [[spaces[place] for place in labelling.sets] for labelling in labellings]
        starts = [
            None if start is None else torch.stack([a.within(b) for a, b in zip(mine, start, strict=True)])
            for mine, start in zip(of_tasks, asked.starts, strict=True)
        ]
        inner = asked._replace(rows=[space.rows for space in spaces], labellings=labellings, starts=starts)
        for steps in replace(self, standardize=False)._solve(inner):
            yield [_outside(*each) for each in zip(of_tasks, steps, strict=True)]

    def _solve(self, asked: _Asked) -> Iterator[list[Step]]:
        rows, labellings = asked.rows, asked.labellings
        num_rows, num_features = rows[0].num_rows, rows[0].num_features
        if num_rows * num_features <= _WORTH_DIVIDING:
            rows = [each.undivided() for each in rows]
        objective = Objective(rows, labellings, standardize=self.standardize)
        small = is_small(num_rows, num_features)
        tolerance = self._tolerance(asked.to_the_end, small)
        minimiser = Minimiser(objective, tolerance, torch.float64 if small else rows[0].dtype)
        for span, start in zip(objective.spans, asked.starts, strict=True):
            if start is not None:
                minimiser.start_at(start, span)
        for C_G in asked.C_of_groups:
            strength_G = 1.0 / (torch.tensor(C_G).to(objective.weight_G) * objective.weight_G)
            theta = minimiser.solve(strength_G)
            yield [
                Step(
                    C_G[span],
                    *objective.raw(theta, place),
                    minimiser.value[span].cpu().numpy(),
                    minimiser.num_iterations[span].cpu().numpy(),
                    minimiser.converged[span].cpu().numpy(),
                    theta[span, : labelling.num_outputs],
                )
                for place, (span, labelling) in enumerate(zip(objective.spans, labellings, strict=True))
            ]

    def _tolerance(self, to_the_end: bool, small: bool) -> Tolerance:
        if to_the_end and small:
            return Tolerance(decrease=1e-22, gradient=1e-12, max_iter=self.max_iter, enough=self.tol / 100)
        # What a quasi-Newton step promises was seen to be up to ten times less than what is left to gain, and on 1,280
        # features, from one strength to the next, thirty times where regularisation is weak: enough to choose by, but
        # not to end with.
        share = 100 if to_the_end else 10
        return Tolerance(decrease=self.tol / share, gradient=self.tol / share / 10, max_iter=self.max_iter)


def _outside(spaces: Sequence[RowSpace], step: Step) -> Step:
    """Return a task's solutions, each from the space of its group."""
    each = [
        space.outside(*solution)
        for space, *solution in zip(spaces, step.weights_GKD, step.intercept_GK, step.theta_GKE, strict=True)
    ]
    weights_GKD, intercept_GK, theta_GKE = (torch.stack(values) for values in zip(*each, strict=True))
    return replace(step, weights_GKD=weights_GKD, intercept_GK=intercept_GK, theta_GKE=theta_GKE)


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
    theta_GKE : Tensor
        Solutions of the best strength.
    num_iterations : list of int
        Looks at all rows, for each strength, by the group that needed most.
    """

    C: float
    accuracy: list[float] = field(default_factory=list)
    margins: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 1)))
    theta_GKE: Tensor | None = None
    num_iterations: list[int] = field(default_factory=list)
    converged: bool = True


def search(family: LinearFamily, rows: Rows, labelling: Labelling, Cs: Sequence[float]) -> Search:
    """Find the strength that names most rows right when they are held out.

    Parameters
    ----------
    family : LinearFamily
    rows : Rows
        With labels and folds of the labelling.
    labelling : Labelling
        Leaves out every fold but `NO_FOLD`.
    Cs : sequence of float
        Increasing.
    """
    best, most = Search(Cs[0]), -1.0
    held_out = rows.fold != NO_FOLD
    weight = None if rows.weight is None else rows.weight[held_out]
    accuracy, num_iterations, converged = [], [], True
    for C, (step,) in zip(Cs, family.solve([rows], [labelling], Cs), strict=True):
        margins, y = held_out_margins(step, rows, labelling.left_out)
        right = named(margins) == y if y.ndim == 1 else ((margins > 0) == y).mean(axis=1)
        accuracy.append(float(np.average(right, weights=weight)))
        num_iterations.append(int(step.num_iterations.max()))
        converged = converged and bool(step.converged.all())
        if accuracy[-1] > most:
            best, most = Search(C, margins=margins, theta_GKE=step.theta_GKE), accuracy[-1]
    best.accuracy, best.num_iterations, best.converged = accuracy, num_iterations, converged
    return best


def held_out_margins(step: Step, rows: Rows, left_out: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """Return margins (n, K), and labels (n,) or (n, K), of the rows that some problem leaves out, in their order."""
    margins = np.full((rows.num_rows, step.intercept_GK.shape[1]), np.nan)
    for block in rows.blocks():
        if block.fold != NO_FOLD:
            group = left_out.index(block.fold)
            weights = step.weights_GKD[group].to(rows.dtype)
            values = (block.X_nD @ weights.T).double() + step.intercept_GK[group]
            margins[block.places_n.cpu().numpy()] = values.cpu().numpy()
    held_out = rows.fold != NO_FOLD
    return margins[held_out], rows.y[held_out]
