"""How many threads the arithmetic of heads uses: one, where more would only wait for each other, or all."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits

from featurecache.machine import num_cores


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread, in BLAS, OpenMP and torch, as far as they are loaded.

    Once torch was told a number of threads, as extraction does, its matrix products keep to that and no longer ask
    OpenMP, which is all that threadpoolctl can limit.
    """
    # Not imported: where nobody has, there is nothing to limit.
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 1
    try:
        if torch:
            torch.set_num_threads(1)
        with threadpool_limits(1):
            yield
    finally:
        if torch:
            torch.set_num_threads(before)


@contextmanager
def all_threads() -> Iterator[None]:
    """Let torch compute on all cores, also within `one_thread`."""
    import torch

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(num_cores())
        yield
    finally:
        torch.set_num_threads(before)
