"""Features as stacked models are trained on them: standardised for each fold, of few rows in the space of the rows.

Axes: F folds, n rows, B batch, D features, R axes of the space of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featurecache.devices import copied_to
from featurecache.heads.checks import has_few_rows
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
    raw : list of RawFeatures
        How features as they come become those of each fold.
    """

    def __init__(self, rows: FoldBlocks, mean_FD: Tensor, scale_FD: Tensor) -> None:
        self.width, self.square = rows.num_features, float(rows.num_features)
        self._rows = rows
        # In float64, as the scales of features may be many orders apart.
        moments = zip(mean_FD.double(), scale_FD.double(), strict=True)
        self.raw = [RawFeatures(mean_D, scale_D, None) for mean_D, scale_D in moments]
        self._mean_F1D, self._scale_F1D = (moment.unsqueeze(1).to(rows.dtype) for moment in (mean_FD, scale_FD))

    def read(self, indices: NDArray[np.int64]) -> Tensor:
        """Return some rows for each fold (F, B, width); indices are in increasing order."""
        X = np.asarray(self._rows.X[indices])
        # Writable, which memory maps are not: torch has no tensors that are read only.
        X_BD = copied_to(torch.from_numpy(np.require(X, requirements=["C", "W"])), self._rows.device).to(
            self._rows.dtype
        )
        return (X_BD - self._mean_F1D) / self._scale_F1D


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
        axes_F = []
        # One fold after the other: each is a copy of all rows.
        for weight_n, (mean_D, scale_D, _) in zip(weight_Fn, self.raw, strict=True):
            standardised = weight_n.sqrt()[:, None] * (X - mean_D) / scale_D
            _, values, axes_RD = torch.linalg.svd(standardised, full_matrices=False)
            axes_RD = axes_RD[values > _LEAST_VALUE * values[:1]]
            # Each with its greatest number above zero: the decomposition leaves its sign open.
            axes_F.append(axes_RD * axes_RD.gather(1, axes_RD.abs().argmax(1, keepdim=True)).sign())
        self.width = max(1, *map(len, axes_F))
        generator = torch.Generator().manual_seed(seed)
        turn_RR, _ = torch.linalg.qr(torch.randn(self.width, self.width, generator=generator, dtype=torch.float64))
        stretch = math.sqrt(rows.num_features / self.width)
        self.square = rows.num_features * stretch**2
        turn_RR = stretch * turn_RR.to(X)
        axes_FDR = [axes_RD.T @ turn_RR[: len(axes_RD)] for axes_RD in axes_F]
        self.raw = [raw._replace(axes_DR=axes_DR) for raw, axes_DR in zip(self.raw, axes_FDR, strict=True)]
        rows_FnR = [(X - raw.mean_D) / raw.scale_D @ axes_DR for raw, axes_DR in zip(self.raw, axes_FDR, strict=True)]
        self._rows_FnR = torch.stack(rows_FnR).to(rows.dtype)

    def read(self, indices: NDArray[np.int64]) -> Tensor:
        """See `FoldFeatures.read`.

        Parameters
        ----------
        indices
            As there.
        """
        return self._rows_FnR[:, torch.from_numpy(indices).to(self._rows.device)]


def features_of_folds(
    rows: FoldBlocks,
    means: Sequence[Tensor],
    scales: Sequence[Tensor],
    seen_Fn: NDArray[np.bool_],
    *,
    num_tokens: int,
    any_axes: bool,
    seed: int,
) -> FoldFeatures:
    """Return features as the models of each fold are trained on them.

    Parameters
    ----------
    rows : FoldBlocks
    means, scales : sequence of Tensor (D,)
        Of the rows that each fold is fitted on.
    seen_Fn : ndarray of bool
        Which rows these are.
    num_tokens : int
        Tokens in a row, which are standardised alike.
    any_axes : bool
        Models may take features along other axes than their own: those of the space of few rows.
    seed : int
        See `RowSpaceFeatures`.
    """
    if num_tokens > 1:
        pairs = (_moments_of_a_token(*pair, num_tokens) for pair in zip(means, scales, strict=True))
        means, scales = zip(*pairs, strict=True)
    mean_FD, scale_FD = torch.stack(tuple(means)), torch.stack(tuple(scales))
    # A row of weight two is two rows.
    weight, count = rows.weight, len(rows.y)
    count = count if weight is None else max(np.count_nonzero(weight), math.ceil(weight.sum()))
    if any_axes and has_few_rows(count, rows.num_features):
        return RowSpaceFeatures(rows, mean_FD, scale_FD, seen_Fn, seed)
    return FoldFeatures(rows, mean_FD, scale_FD)


def _moments_of_a_token(mean: Tensor, scale: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    """Return mean and scale of the features of a token, whichever it is, repeated for each token.

    A feature that does not vary at a token has the scale one there, which is nothing of its own.
    """
    means_TD, scales_TD = mean.view(num_tokens, -1), scale.view(num_tokens, -1)
    mean_D = means_TD.mean(0)
    scale_D = (scales_TD.square() + (means_TD - mean_D).square()).mean(0).sqrt()
    return mean_D.repeat(num_tokens), scale_D.repeat(num_tokens)
