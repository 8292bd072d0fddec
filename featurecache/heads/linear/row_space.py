"""Few rows of many features: problems are solved in the space that the rows span, and their solutions carried back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from featurecache.heads.linear.objective import Labelling
from featurecache.heads.rows import NO_FOLD, Moments, Rows


class RowSpace:
    """The space that rows span: where there are fewer rows than features, all of a solution lies in it.

    The penalty draws weights to zero in all directions in which no row varies, and is the same along any orthonormal
    axes of the others (the representer theorem: Kimeldorf & Wahba, J. Math. Anal. Appl. 33, 1971). So ``Z' = Q R``
    gives each row as many features as there are rows, ``R'``, and weights ``Q a``. Rows that a problem leaves out are
    among them, so that all spaces of so many rows are alike; they are standardised by those that it is fitted on.

    Parameters
    ----------
    rows : Rows
    mean_D, scale_D : Tensor of float64
        By which features are standardised.

    Attributes
    ----------
    rows : Rows
        By their places along the axes, float64; without folds.
    """

    def __init__(self, rows: Rows, mean_D: Tensor, scale_D: Tensor) -> None:
        self._mean_D, self._scale_D = mean_D, scale_D
        X = torch.from_numpy(np.asarray(rows.X[:], np.float64)).to(rows.device)
        self._axes_DR, upper_RN = torch.linalg.qr(((X - mean_D) / scale_D).T)
        self.rows = replace(rows.undivided(), X=upper_RN.T.contiguous().cpu().numpy(), dtype=torch.float64)

    @classmethod
    def of_each(
        cls, rows: Sequence[Rows], labellings: Sequence[Labelling], *, standardize: bool
    ) -> tuple[list[RowSpace], list[Labelling]]:
        """Return a space for each way in which features are standardised, and the labellings of the sets these are."""
        moments = [Moments.of_each(each, labellings) for each in rows]
        spaces: list[RowSpace] = []
        known: dict[tuple[int, bytes], int] = {}

        def place(task: int, of_set: int, fold: int) -> int:
            said = labellings[task]
            kept = (said.fold != fold) | (said.fold == NO_FOLD)
            if (key := (of_set, kept.tobytes() if standardize else b"")) not in known:
                known[key] = len(spaces)
                _, mean_D, scale_D, _ = moments[of_set][task].without(fold)
                standard = (mean_D, scale_D) if standardize else (torch.zeros_like(mean_D), torch.ones_like(scale_D))
                spaces.append(cls(rows[of_set], *standard))
            return known[key]

        within = [
            replace(said, sets=[place(task, *group) for group in zip(said.sets, said.left_out, strict=True)])
            for task, said in enumerate(labellings)
        ]
        return spaces, within

    def within(self, theta_KE: Tensor) -> Tensor:
        """Return what of a solution lies in the space."""
        theta = theta_KE.to(self._axes_DR)
        return torch.cat([theta[:, :-1] @ self._axes_DR, theta[:, -1:]], 1)

    def outside(self, weights_KR: Tensor, intercept_K: Tensor, theta_KE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return a solution for features as they come, and for standardised ones, (K, D + 1)."""
        weights_KD = weights_KR @ self._axes_DR.T
        raw_KD = weights_KD / self._scale_D
        theta = torch.cat([weights_KD, theta_KE[:, -1:].to(weights_KD)], 1)
        return raw_KD, intercept_K - raw_KD @ self._mean_D, theta
