"""Few rows of many features: problems are solved in the space that the rows span, and their solutions carried back."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from featurecache.heads.fold_blocks import NO_FOLD, Block, FoldBlocks


class RowSpaces:
    """The space that rows span, for each group: with fewer rows than features, all of a solution lies in it.

    The penalty draws weights to zero in all directions in which no row varies, and is the same along any orthonormal
    axes of the others (the representer theorem: Kimeldorf & Wahba, J. Math. Anal. Appl. 33, 1971). So ``Z' = Q R``
    gives each row as many features as there are rows, ``R'``, and weights ``Q a``. Rows that a group leaves out are
    among them, so that the spaces of all groups are alike; they are standardised by those that it is fitted on.

    Parameters
    ----------
    data : FoldBlocks
    mean_GD, scale_GD : Tensor of float64
        By which features are standardised for each group.

    Attributes
    ----------
    blocks : list of Block
        All rows by their coordinates along the axes of each group, float64.
    """

    def __init__(self, data: FoldBlocks, mean_GD: Tensor, scale_GD: Tensor) -> None:
        X = torch.from_numpy(np.asarray(data.X[:], np.float64)).to(data.device)
        self._mean_GD, self._scale_GD = mean_GD, scale_GD
        found = [torch.linalg.qr(((X - mean) / scale).T) for mean, scale in zip(mean_GD, scale_GD, strict=True)]
        self._axes_GDR = torch.stack([axes for axes, _ in found])
        rows_GnR = torch.stack([upper.T for _, upper in found]).contiguous()
        weight = None if data.weight is None else torch.from_numpy(data.weight).to(rows_GnR)
        self.blocks = [Block(NO_FOLD, rows_GnR, weight, torch.arange(data.num_rows, device=data.device))]

    def inside(self, theta_GKE: Tensor) -> Tensor:
        """Return what of solutions lies in the spaces."""
        theta = theta_GKE.to(self._axes_GDR)
        return torch.cat([theta[:, :, :-1] @ self._axes_GDR, theta[:, :, -1:]], 2)

    def outside(self, weights_GKR: Tensor, intercept_GK: Tensor, theta_GKE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return weights, intercepts and ``theta`` for all features.

        Parameters
        ----------
        weights_GKR, intercept_GK, theta_GKE : Tensor
            Solutions in the spaces.
        """
        weights_GKD = weights_GKR @ self._axes_GDR.mT
        raw_GKD = weights_GKD / self._scale_GD[:, None]
        theta = torch.cat([weights_GKD, theta_GKE[:, :, -1:].to(weights_GKD)], 2)
        return raw_GKD, intercept_GK - (raw_GKD * self._mean_GD[:, None]).sum(2), theta
