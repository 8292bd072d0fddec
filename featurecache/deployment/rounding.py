"""Rounding to the digits of half-precision types within a network."""

from __future__ import annotations

from torch import Tensor

# Binary digits after the first, and the least number that has all of them.
_DIGITS = {"float16": (10, 2.0**-14), "bfloat16": (7, 2.0**-126)}


def round_as(x: Tensor, dtype: str) -> Tensor:
    """Round float32 numbers as the cache stores them; of other types than the two with half precision, not at all.

    By arithmetic, because OpenVINO takes a conversion there and back for nothing; and by arithmetic that does no harm
    where a runtime computes all of it in half precision.
    """
    if dtype not in _DIGITS:
        return x
    digits, least = _DIGITS[dtype]
    step = 2.0 ** (x.abs().clamp(min=least).log2().floor() - digits)
    return (x / step).round() * step
