"""Features in blocks of rows: from an array in memory, or from anything that is read as it is needed.

Folds are divided once: each block holds rows of one fold only, so that the problems that leave a fold out skip it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featurecache.heads.preparation import shrunk_variance

_BLOCK_BYTES = 24 << 20
NO_FOLD = -1
"""The fold of rows that no problem leaves out; a problem that leaves out this one leaves out nothing."""


class Readable(Protocol):
    """Rows that are read as they are needed."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n_samples, n_features)."""
        ...

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> NDArray[Any]:
        """Return some of the rows, real numbers; places are in increasing order."""
        ...


class Block(NamedTuple):
    """Rows of one fold."""

    fold: int
    X_nD: Tensor
    weight_n: Tensor | None
    places_n: Tensor
    """Which rows they are, int64."""


@dataclass(eq=False)
class Rows:
    """Labelled rows, divided into folds.

    Parameters
    ----------
    X : ndarray or Readable of shape (n_samples, n_features)
        An array stays in memory, sorted by fold; anything else is read once for each look at the rows.
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

    def blocks(self) -> Iterator[Block]:
        """Hand out all rows, each once."""
        in_memory = isinstance(self.X, np.ndarray) and not isinstance(self.X, np.memmap)
        yield from self._in_memory if in_memory else self._read()

    def undivided(self) -> Rows:
        """Return the same rows without folds."""
        return self if self.folds == [NO_FOLD] else replace(self, fold=np.full(self.num_rows, NO_FOLD))

    def places_by_fold(self) -> dict[int, NDArray[np.int64]]:
        """Return the places of the rows of each fold, in the order in which blocks hand them out."""
        return {fold: np.flatnonzero(self.fold == fold) for fold in self.folds}

    @cached_property
    def _in_memory(self) -> list[Block]:
        blocks = []
        assert isinstance(self.X, np.ndarray)
        for fold, rows in self.places_by_fold().items():
            for start in range(0, len(rows), self._block_rows):
                part = rows[start : start + self._block_rows]
                blocks.append(self._block(fold, self.X[part], part))
        return blocks

    def _read(self) -> Iterator[Block]:
        for start in range(0, self.num_rows, self._block_rows):
            X = np.asarray(self.X[start : start + self._block_rows])
            folds = self.fold[start : start + self._block_rows]
            for fold in np.unique(folds):
                places = np.flatnonzero(folds == fold)
                yield self._block(int(fold), X if len(places) == len(X) else X[places], start + places)

    def _block(self, fold: int, X: NDArray[Any], rows: NDArray[np.int64]) -> Block:
        weight = None if self.weight is None else self._tensor(self.weight[rows])
        return Block(fold, self._tensor(X), weight, torch.from_numpy(rows).to(self.device))

    def _tensor(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.require(values, requirements=["C", "W"])).to(self.device, self.dtype)


class Divided(Protocol):
    """What is said of all rows, and how they are divided: `Rows`, or what else has these."""

    @property
    def y(self) -> NDArray[Any]:
        """(n_samples,) or (n_samples, n_outputs), as in `Rows`."""
        ...

    @property
    def fold(self) -> NDArray[np.int64]:
        """As in `Rows`."""
        ...

    @property
    def num_classes(self) -> int:
        """As in `Rows`."""
        ...


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
    def of(cls, rows: Rows) -> Moments:
        """Look at all rows once."""
        return cls.of_each(rows, [rows])[0]

    @classmethod
    def of_each(cls, rows: Rows, ways: Sequence[Divided]) -> list[Moments]:
        """Look at all rows once, for several ways to divide them and several things that are said of them."""
        like: dict[str, Any] = {"dtype": torch.float64, "device": rows.device}
        folds = [[int(fold) for fold in np.unique(way.fold)] for way in ways]
        # The folds of all ways stand side by side.
        ends = np.cumsum([len(each) for each in folds])
        spans = [slice(end - len(each), end) for each, end in zip(folds, ends.tolist(), strict=True)]
        weight, total, square = (
            torch.zeros(int(ends[-1]), *size, **like) for size in ((), *2 * ((rows.num_features,),))
        )
        counts = [torch.zeros(len(each), way.num_classes, **like) for each, way in zip(folds, ways, strict=True)]
        said = [torch.from_numpy(way.y).to(rows.device) for way in ways]
        share_NF = [_memberships(way.fold, each).to(rows.device) for way, each in zip(ways, folds, strict=True)]
        shift: Tensor | None = None
        for block in rows.blocks():
            X = block.X_nD.double()
            if shift is None:
                shift = X.mean(0)
            X = X - shift
            share_nF = torch.cat([share[block.places_n] for share in share_NF], 1).double()
            if block.weight_n is not None:
                share_nF *= block.weight_n.double()[:, None]
            weight += share_nF.sum(0)
            total += share_nF.T @ X
            square += share_nF.T @ X.square_()
            for y, span, count in zip(said, spans, counts, strict=True):
                y_n = y[block.places_n]
                if y_n.ndim == 1:
                    count.T.index_add_(0, y_n, share_nF[:, span])
                else:
                    count += share_nF[:, span].T @ y_n.double()
        assert shift is not None
        if not bool(total.isfinite().all() and square.isfinite().all()):
            raise ValueError("Input X contains NaN or infinity, or values too large to be squared")
        return [
            cls(each, weight[span], total[span], square[span], count, shift, rows.prior_rows)
            for each, span, count in zip(folds, spans, counts, strict=True)
        ]

    def without(self, fold: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return total weight, mean (D,), scale (D,) and weight of each class (C,) of all folds but one.

        The scale of a feature that does not vary is one, as in scikit-learn's ``StandardScaler``.
        """
        kept = torch.tensor([each != fold or each == NO_FOLD for each in self.folds], device=self.weight_F.device)
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


def _memberships(fold: NDArray[np.int64], folds: list[int]) -> Tensor:
    """Return which of some folds each row is in, (n_samples, F) bool."""
    return torch.from_numpy(fold[:, None] == np.array(folds))
