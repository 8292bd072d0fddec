"""Features as stacked models are trained on them: standardised for each fold, of few rows in the space of the rows.

Axes: F folds, n rows, B batch, D features, R axes of the space of the rows.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featurecache.heads.fold_blocks import FoldBlocks
from featurecache.heads.gradient.stacked import RawFeatures

_LEAST_VALUE = 1e-8
"""Of a singular value, as part of the greatest: less is rounding, and no direction in which rows differ."""


class FoldFeatures:
    """Features that are read by the batch.

    Parameters
    ----------
    rows : FoldBlocks
    mean_FD, scale_FD : Tensor
        By which each fold standardises them.

    Attributes
    ----------
    width : int
        Of a row.
    square : float
        Mean of its squared length.
    """

    def __init__(self, rows: FoldBlocks, mean_FD: Tensor, scale_FD: Tensor) -> None:
        self.width, self.square = rows.num_features, float(rows.num_features)
        self._rows, self._mean_FD, self._scale_FD = rows, mean_FD, scale_FD
        self._mean_F1D, self._scale_F1D = (moment.unsqueeze(1).to(rows.dtype) for moment in (mean_FD, scale_FD))

    def read(self, indices: NDArray[np.int64]) -> Tensor:
        """Return some rows for each fold (F, B, width); indices are in increasing order."""
        X = np.asarray(self._rows.X[indices])
        # Writable, which memory maps are not: torch has no tensors that are read only.
        X_BD = torch.from_numpy(np.require(X, requirements=["C", "W"])).to(self._rows.device, self._rows.dtype)
        return (X_BD - self._mean_F1D) / self._scale_F1D

    def raw(self, fold: int) -> RawFeatures:
        """Return how features as they come become those of a fold."""
        # In float64, as the scales of features may be many orders apart.
        return RawFeatures(self._mean_FD[fold].double(), self._scale_FD[fold].double(), None)


class RowSpaceFeatures(FoldFeatures):
    """Features of few rows, by their coordinates in the space that the rows span: a step takes so much less time.

    AdamW takes steps of one length along each axis, and so depends on the axes. Along those of single rows a model
    learns rows by heart; the principal axes, turned at random, are all alike, as features are. Rows are stretched, as
    with fewer axes a step of one length would change less of what a model says.

    Parameters
    ----------
    rows, mean_FD, scale_FD
        As for `FoldFeatures`.
    seen_Fn : ndarray of bool
        Which rows each fold is fitted on: the space is that of these.
    seed : int
        Of the turn.
    """

    def __init__(
        self, rows: FoldBlocks, mean_FD: Tensor, scale_FD: Tensor, seen_Fn: NDArray[np.bool_], seed: int
    ) -> None:
        super().__init__(rows, mean_FD, scale_FD)
        X = torch.from_numpy(np.asarray(rows.X[:], np.float64)).to(rows.device)
        # A row of weight two is two rows, and one of weight zero none.
        weight_Fn = torch.from_numpy(seen_Fn if rows.weight is None else seen_Fn * rows.weight).to(X)
        moments = list(zip(mean_FD.double(), scale_FD.double(), strict=True))
        # One fold after the other: each is a copy of all rows.
        axes_F = [
            _principal_axes(weight_n.sqrt()[:, None] * (X - mean_D) / scale_D)
            for weight_n, (mean_D, scale_D) in zip(weight_Fn, moments, strict=True)
        ]
        self.width = max(1, *map(len, axes_F))
        generator = torch.Generator().manual_seed(seed)
        turn_RR, _ = torch.linalg.qr(torch.randn(self.width, self.width, generator=generator, dtype=torch.float64))
        stretch = math.sqrt(rows.num_features / self.width)
        self.square = rows.num_features * stretch**2
        turn_RR = stretch * turn_RR.to(X)
        self._axes_FDR = [axes.T @ turn_RR[: len(axes)] for axes in axes_F]
        self._rows_FnR = torch.stack(
            [
                (X - mean_D) / scale_D @ axes_DR
                for axes_DR, (mean_D, scale_D) in zip(self._axes_FDR, moments, strict=True)
            ]
        ).to(rows.dtype)

    def read(self, indices: NDArray[np.int64]) -> Tensor:
        """See `FoldFeatures.read`.

        Parameters
        ----------
        indices
            As there.
        """
        return self._rows_FnR[:, torch.from_numpy(indices).to(self._rows.device)]

    def raw(self, fold: int) -> RawFeatures:
        """See `FoldFeatures.raw`.

        Parameters
        ----------
        fold
            As there.
        """
        return super().raw(fold)._replace(axes_DR=self._axes_FDR[fold])


def _principal_axes(rows_nD: Tensor) -> Tensor:
    """Return orthonormal axes (R, D) of the space of the rows, each with its greatest number above zero."""
    _, values, axes = torch.linalg.svd(rows_nD, full_matrices=False)
    axes = axes[values > _LEAST_VALUE * values[:1]]
    return axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
