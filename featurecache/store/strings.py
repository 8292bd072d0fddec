"""Columns of text as two plain arrays: all bytes end to end, and where each entry starts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from featurecache.store.dtypes import Array


def pack(texts: Sequence[str]) -> dict[str, tuple[str, Array]]:
    """Return the arrays ``text`` and ``text_start`` of a column (paths keep bytes that are no valid UTF-8)."""
    encoded = [os.fsencode(text) for text in texts]
    starts = np.zeros(len(encoded) + 1, "<u8")
    np.cumsum([len(item) for item in encoded], out=starts[1:])
    blob = b"".join(encoded) or b"\0"  # HDF5 gives an empty array no place in the file
    return {"text": ("uint8", np.frombuffer(blob, np.uint8)), "text_start": ("uint64", starts)}


def unpack(text: Array, starts: NDArray[np.uint64]) -> list[str]:
    """Return all entries of a column."""
    data, places = text.tobytes(), starts.tolist()
    return [os.fsdecode(data[a:b]) for a, b in pairwise(places)]


def entry(text: Array, starts: NDArray[np.uint64], index: int) -> str:
    """Return one entry of a column."""
    return os.fsdecode(text[int(starts[index]) : int(starts[index + 1])].tobytes())
