"""Features in blocks of rows: from an array in memory, or from anything that is read as it is needed.

Each block holds rows of one fold only, so that the problems that leave that fold out skip it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featurecache.devices import copied_to, free_device_memory
from featurecache.heads.preparation import shrunk_variance

_log = logging.getLogger(__name__)

_BLOCK_BYTES = 24 << 20
# Of the free memory, for the rows. Gradients of all folds and classes, and torch's fragments, take the rest.
_SHARE_OF_DEVICE = 0.5
# The fold of rows that no problem leaves out; a problem that leaves out this one leaves out nothing.
NO_FOLD = -1


class Readable(Protocol):
    """Rows that are read as they are needed."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n_samples, n_features)."""

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> NDArray[Any]:
        """Return some of the rows, real numbers; indices are in increasing order."""


class Block(NamedTuple):
    """Rows of one fold."""

    fold: int
    X: Tensor
    """(n, n_features); or (n_groups, n, n_features), other features for each group of problems."""
    weight_n: Tensor | None
    index_n: Tensor
    """Which rows they are, int64."""


@dataclass(eq=False)
class FoldBlocks:
    """Rows with targets, in blocks by fold.

    Parameters
    ----------
    X : ndarray or Readable of shape (n_samples, n_features)
        An array stays in memory, sorted by fold, on a GPU if that has the memory; anything else is read once for each
        pass over the rows.
    y : ndarray of int64 (n_samples,), or (n_samples, n_outputs)
        Class indices; or several labels, 0 or 1, or several numbers.
    fold : ndarray of int64 (n_samples,)
        `NO_FOLD` for rows that every problem is fitted on.
    weight : ndarray (n_samples,) or None
    group : ndarray (n_samples,) or None
        Rows with the same number are drawn together where some are held out to stop by.
    dtype, device
        Of the blocks.
    num_classes : int
        Or labels, or numbers; 0: as many as ``y`` has.
    prior_rows : float
        See `shrunk_variance`.
    """

    X: NDArray[Any] | Readable
    y: NDArray[Any]
    fold: NDArray[np.int64]
    weight: NDArray[np.float64] | None = None
    group: NDArray[np.int64] | None = None
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    num_classes: int = 0
    prior_rows: float = 0.0

    def __post_init__(self) -> None:
        self.num_rows, self.num_features = (int(size) for size in self.X.shape)
        if not self.num_classes:
            self.num_classes = int(self.y.max()) + 1 if self.y.ndim == 1 else self.y.shape[1]
        self.folds = [int(fold) for fold in np.unique(self.fold)]
        self._block_rows = max(_BLOCK_BYTES // (self.num_features * self.dtype.itemsize), 64)

    def __iter__(self) -> Iterator[Block]:
        """Hand out all rows, each once."""
        if not isinstance(self.X, np.ndarray) or isinstance(self.X, np.memmap):
            return self._read()
        return iter(self._held) if self._fits else self._sorted_by_fold()

    @cached_property
    def _held(self) -> list[Block]:
        return list(self._sorted_by_fold())

    @cached_property
    def _fits(self) -> bool:
        """Whether a GPU holds all rows; else each pass over them copies them once more."""
        needed = self.num_rows * self.num_features * self.dtype.itemsize
        free = free_device_memory(self.device)
        if free is None or needed <= _SHARE_OF_DEVICE * free:
            return True
        _log.warning(
            "%s has %.1f GB of memory free, and the features of a head take %.1f GB: they are copied block by block in "
            "each pass; --device cpu may be faster",
            self.device,
            free / 1e9,
            needed / 1e9,
        )
        return False

    def _sorted_by_fold(self) -> Iterator[Block]:
        assert isinstance(self.X, np.ndarray)
        for fold in self.folds:
            rows = np.flatnonzero(self.fold == fold)
            for start in range(0, len(rows), self._block_rows):
                some = rows[start : start + self._block_rows]
                yield self._block(fold, self.X[some], some)

    def _read(self) -> Iterator[Block]:
        for start in range(0, self.num_rows, self._block_rows):
            X = np.asarray(self.X[start : start + self._block_rows])
            # Rows are read in their order, where neighbours may be of several folds.
            folds = self.fold[start : start + self._block_rows]
            for fold in np.unique(folds):
                index = np.flatnonzero(folds == fold)
                yield self._block(int(fold), X if len(index) == len(X) else X[index], start + index)

    def _block(self, fold: int, X: NDArray[Any], rows: NDArray[np.int64]) -> Block:
        # Torch warns of arrays that cannot be written, as rows of a memory map are.
        X_nD = copied_to(torch.from_numpy(np.require(X, requirements=["C", "W"])), self.device).to(self.dtype)
        index_n, weight_n = copied_to(torch.from_numpy(rows), self.device), None
        if self.weight is not None:
            weight_n = copied_to(torch.from_numpy(self.weight[rows]), self.device).to(self.dtype)
        return Block(fold, X_nD, weight_n, index_n)


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over each fold, in float64: what standardising and class weights need for any set of folds."""

    folds: list[int]
    weight_F: Tensor
    """Total weight of each fold."""
    sum_FD: Tensor
    square_FD: Tensor
    counts_FC: Tensor
    """Weight of each class, or of each label; the sum of each number."""
    shift_D: Tensor
    """Taken off before squares are summed, so that nothing is lost where means are large."""
    prior_rows: float = 0.0
    """See `shrunk_variance`."""

    @classmethod
    def of(cls, data: FoldBlocks) -> Moments:
        """Compute the sums in one pass over the rows."""
        sizes: tuple[tuple[int, ...], ...] = ((), (data.num_features,), (data.num_features,), (data.num_classes,))
        weight, total, square, counts = (
            torch.zeros(len(data.folds), *size, dtype=torch.float64, device=data.device) for size in sizes
        )
        y, shift = torch.from_numpy(data.y).to(data.device), None
        for block in data:
            X, fold = block.X.double(), data.folds.index(block.fold)
            shift = X.mean(0) if shift is None else shift
            X = X - shift
            share_n = X.new_ones(len(X)) if block.weight_n is None else block.weight_n.double()
            weight[fold] += share_n.sum()
            total[fold] += share_n @ X
            square[fold] += share_n @ X.square_()
            y_n = y[block.index_n]
            if y_n.ndim == 1:
                counts[fold].index_add_(0, y_n, share_n)
            else:
                counts[fold] += share_n @ y_n.double()
        assert shift is not None
        if not bool(total.isfinite().all() and square.isfinite().all()):
            raise ValueError("Input X contains NaN or infinity, or values too large to be squared")
        return cls(data.folds, weight, total, square, counts, shift, data.prior_rows)

    def without(self, fold: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return total weight, mean (D,), scale (D,) and weight of each class (C,) of all folds but one.

        The scale of a feature that does not vary is one, as in scikit-learn's ``StandardScaler``.
        """
        kept = torch.tensor([number != fold or number == NO_FOLD for number in self.folds], device=self.weight_F.device)
        weight = self.weight_F[kept].sum()
        mean = self.sum_FD[kept].sum(0) / weight
        variance = (self.square_FD[kept].sum(0) / weight - mean * mean).clamp(min=0.0)
        centre = mean + self.shift_D
        # A feature may vary in the fold that is left out alone: what rounding leaves of it elsewhere is no variance.
        spread = self.square_FD[kept].sum(0) / weight
        flat = variance <= torch.maximum((1e-9 * centre) ** 2, 1e-14 * spread)
        variance = shrunk_variance(variance, ~flat, float(weight), self.prior_rows)
        scale = torch.where(flat, torch.ones_like(variance), variance.sqrt())
        return weight, centre, scale, self.counts_FC[kept].sum(0)
