"""What layers are trained on: samples that are read by the batch, from an array, a file, or their inputs.

Axes: B batch.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Item = TypeVar("Item")
Read = TypeVar("Read")
Selected = slice | NDArray[np.int64] | NDArray[np.bool_]


class Draw(NamedTuple):
    """Which random view of each input is read."""

    seed: int
    number: int
    """Of the view: the epoch, so that each shows another one."""


@dataclass(eq=False, repr=False)
class Dataset(ABC):
    """Samples that are read when they are needed.

    Parameters
    ----------
    indices : ndarray of int64 (n_samples,)
        Of the samples among all that could be read.
    """

    indices: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, selected: Selected) -> Self:
        subset = copy.copy(self)
        subset.indices = self.indices[selected]
        return subset

    @abstractmethod
    def read(self, selected: NDArray[np.int64], draw: Draw | None = None) -> Tensor:
        """Return some of the samples as (B, ...) float32 on the CPU.

        Parameters
        ----------
        selected : ndarray of int64 (B,)
            Indices of samples of this data set.
        draw : Draw, optional
            Read a random view of each; the plain samples when left out.
        """


class ActivationDataset(Dataset):
    """Activations that are there.

    Parameters
    ----------
    rows : ndarray of float (n_samples, n_features)
        Flattened; a ``numpy.memmap`` is read by the batch.
    shape : tuple of int
        Of one sample.
    """

    def __init__(self, rows: NDArray[Any], shape: tuple[int, ...]) -> None:
        super().__init__(np.arange(len(rows)))
        self._rows, self._shape = rows, shape

    def read(self, selected: NDArray[np.int64], draw: Draw | None = None) -> Tensor:
        """See `Dataset.read`."""
        import torch

        if draw is not None:
            raise ValueError("augment='views' shows another view of each input in every epoch; train on inputs")
        # Never the caller's own array: layers may write into what they are given.
        values = np.array(self._rows[self.indices[selected]], np.float32, order="C")
        return torch.from_numpy(values).view(len(values), *self._shape)


@dataclass(eq=False, repr=False)
class InputDataset(Dataset):
    """Inputs that are decoded whenever they are read; stands where a search has an array of features.

    Parameters
    ----------
    indices : ndarray of int64 (n_samples,)
        Of the samples among all inputs.
    sample_shape : tuple of int
        Of one decoded input.
    identity : str
        Digest of all inputs.
    """

    sample_shape: tuple[int, ...]
    identity: str = ""
    nbytes: ClassVar[int] = 0
    """Nothing is held in memory."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Samples, views of each, and numbers of a view, as of an array of features."""
        return len(self), 1, math.prod(self.sample_shape)

    @property
    def size(self) -> int:
        """Numbers of all samples."""
        return math.prod(self.shape)

    def with_samples_of(self, other: Self) -> Self:
        """Return the samples of both."""
        joined = copy.copy(self)
        joined.indices = np.concatenate([self.indices, other.indices])
        return joined


def read_ahead(read: Callable[[Item], Read], items: Iterable[Item]) -> Iterator[Read]:
    """Yield what is read of each item, in order; the next is read by a thread while the caller has the last.

    One ahead, no more: a batch of whole activations may take a hundred megabytes.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        coming: Future[Read] | None = None
        for item in items:
            last, coming = coming, thread.submit(read, item)
            if last is not None:
                yield last.result()
        if coming is not None:
            yield coming.result()
