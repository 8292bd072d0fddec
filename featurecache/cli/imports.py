"""Imports of heavy libraries by a verb, without looking for garbage among what they make."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collection() -> Iterator[None]:
    """Import without garbage collection, and leave what was imported out of all later ones.

    PyTorch and scikit-learn make 200,000 objects that all stay. Looking through them again and again took a ninth of
    the seconds of their import, and as they end with the process, a quarter.
    """
    was_enabled, num_modules = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        # Garbage of the caller would stay too, so only where there is something to gain.
        if len(sys.modules) > num_modules:
            gc.freeze()
        if was_enabled:
            gc.enable()
