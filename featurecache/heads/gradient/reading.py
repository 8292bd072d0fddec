"""Activations that are read while the layers work on those before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Item = TypeVar("Item")
Read = TypeVar("Read")


class Draw(NamedTuple):
    """Says which augmented view of each input is meant."""

    seed: int
    number: int
    """Of the view: the epoch, so that each shows another one."""


class InputReader(Protocol):
    """Makes the activations of inputs when they are needed, where they are not kept."""

    def __call__(self, places: NDArray[np.int64], draw: Draw | None) -> Tensor:
        """Return (B, ...) float32 on the CPU; without a draw, of the plain inputs."""
        ...


def blocks(places: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """Divide places into blocks of a size; the last may be smaller."""
    return [places[start : start + size] for start in range(0, len(places), size)]


def ahead(read: Callable[[Item], Read], items: Iterable[Item]) -> Iterator[Read]:
    """Yield what is read of each item, in order; the next is read by a thread while the caller has the last."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        coming: Future[Read] | None = None
        for item in items:
            last, coming = coming, thread.submit(read, item)
            if last is not None:
                yield last.result()
        if coming is not None:
            yield coming.result()
