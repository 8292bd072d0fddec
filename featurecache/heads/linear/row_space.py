"""Few rows of many features: problems are solved in the space that the rows span, and their solutions carried back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featurecache.heads.linear.objective import Labelling
from featurecache.heads.linear.solver import Step
from featurecache.heads.rows import NO_FOLD, Moments, Rows


class RowSpace:
    """The space that the rows of a group span: where there are fewer rows than features, all of a solution lies in it.

    The penalty draws weights to zero in all directions in which no row varies, and is the same along any orthonormal
    axes of the others (the representer theorem: Kimeldorf & Wahba, J. Math. Anal. Appl. 33, 1971). So ``Z' = Q R``
    gives each row as many features as there are rows, ``R'``, and weights ``Q a``.

    Attributes
    ----------
    rows : Rows
        Of the group, by their places along the axes.
    members : list of (int, int)
        The places of the tasks, and of their groups, that are fitted on these rows.
    """

    def __init__(self, rows: Rows, kept: NDArray[np.bool_], standard: tuple[Tensor, Tensor]) -> None:
        self._kept, (self._mean_D, self._scale_D) = kept, standard
        self.members: list[tuple[int, int]] = []
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

    @classmethod
    def of_each(cls, rows: Rows, labellings: Sequence[Labelling], *, standardize: bool) -> list[RowSpace]:
        """Return a space for all rows that some groups are fitted on, each once."""
        moments = Moments.of_each(rows, labellings)
        spaces: dict[bytes, RowSpace] = {}
        for place, labelling in enumerate(labellings):
            for group, fold in enumerate(labelling.left_out):
                kept = (labelling.fold != fold) | (labelling.fold == NO_FOLD)
                if (key := kept.tobytes()) not in spaces:
                    _, mean_D, scale_D, _ = moments[place].without(fold)
                    standard = (
                        (mean_D, scale_D) if standardize else (torch.zeros_like(mean_D), torch.ones_like(scale_D))
                    )
                    spaces[key] = cls(rows, kept, standard)
                spaces[key].members.append((place, group))
        return list(spaces.values())

    def labelling(self, labelling: Labelling) -> Labelling:
        """Return what a task says of these rows, of which nothing is left out."""
        return replace(labelling, y=labelling.y[self._kept], fold=self.rows.fold, left_out=[NO_FOLD])

    def within(self, theta_GEK: Tensor) -> Tensor:
        """Return what of a solution lies in the space."""
        theta = theta_GEK.to(self._axes_DR)
        return torch.cat([self._axes_DR.T @ theta[:, :-1], theta[:, -1:]], 1)

    def outside(self, step: Step) -> Step:
        """Return the solution of one group for features as they come."""
        weights_DK = self._axes_DR @ step.weights_GDK[0]
        raw_DK = weights_DK / self._scale_D[:, None]
        theta_EK = torch.cat([weights_DK, step.theta_GEK[0, -1:].to(weights_DK)])
        intercept_K = step.intercept_GK[0] - self._mean_D @ raw_DK
        return replace(step, weights_GDK=raw_DK[None], intercept_GK=intercept_K[None], theta_GEK=theta_EK[None])
