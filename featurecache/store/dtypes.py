"""Number types of stored arrays, and how the one that numpy lacks (bfloat16) is written and read."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Names allowed in commit records, and the numpy type of the bytes.
STORED: dict[str, str] = {
    "float16": "<f2",
    "float32": "<f4",
    "bfloat16": "<u2",  # the upper half of a float32; HDF5 and numpy have no such type
    "int8": "|i1",  # per channel; the arrays ``scale`` and ``offset`` give the values
    "uint8": "|u1",
    "uint64": "<u8",
    "int64": "<i8",
    "int32": "<i4",
    "float64": "<f8",
}

# Binary digits of the types that features are kept in, the widest type first.
DIGITS = {"float32": 24, "float16": 11, "bfloat16": 8, "int8": 8}

# The largest number that a type can hold, where float32 holds larger ones.
LARGEST = {"float16": 65504.0, "bfloat16": 3.3895313892515355e38}

# The numpy type of features that are read.
RETURNED = {**STORED, "bfloat16": "<f4", "int8": "<f4"}


def encode(values: Array, dtype: str) -> Array:
    """Convert float32 ``values`` to the bytes of a stored type; out-of-range numbers become infinite."""
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # to nearest, ties to even
        return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype("<u2")
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, STORED[dtype])


def decode(stored: Array, dtype: str) -> Array:
    """Return numbers for stored bytes: bfloat16 as float32, everything else as it is."""
    if dtype == "bfloat16":
        # The lower half of the float32 is zeros: exact, as every bfloat16 is a float32 too.
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored


def quantise(values: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.float32]]:
    """Write float32 ``(n, ...)`` as int8 with a scale and an offset for each channel; rows that are NaN become zeros.

    Channels are the features of vectors, the last axis of tokens, the first axis of maps.

    Returns
    -------
    stored, scale, offset
        ``value = stored * scale + offset``; the last two broadcast against one sample.
    """
    axes = {1: (0,), 2: (0, 1), 3: (0, 2, 3)}.get(values.ndim - 1, (0,))
    good = values[np.isfinite(values.reshape(len(values), -1)).all(axis=1)]
    good = good if len(good) else np.zeros((1, *values.shape[1:]), np.float32)
    low, high = good.min(axis=axes, keepdims=True)[0], good.max(axis=axes, keepdims=True)[0]
    scale = np.maximum((high - low) / 255, np.finfo(np.float32).tiny).astype(np.float32)
    offset = (low + scale * 128).astype(np.float32)  # so that the lowest value is stored as -128
    with np.errstate(invalid="ignore"):
        steps = np.clip(np.rint((values - offset) / scale), -128, 127)
    return np.nan_to_num(steps).astype(np.int8), scale, offset
