"""Canonical digests: of settings (as JSON), of files and of samples. Nothing here hashes a pickle or a path."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.files import blocks_of, open_regular

if TYPE_CHECKING:
    import numpy as np

_BLOCK = 1 << 20


def canonical_json(value: Any) -> str:
    """Serialise ``value`` so that equal settings give equal text."""
    # Without NaN, which is no JSON, and in ASCII: no encoding can change the bytes that are digested.
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def digest_json(kind: str, version: int, value: Mapping[str, object]) -> str:
    """SHA-256 (hex) of a setting.

    Parameters
    ----------
    kind, version
        What it is, and the edition of its meaning; both are digested too.
    value : mapping
        Plain JSON values.
    """
    return hashlib.sha256(canonical_json({"kind": kind, "version": version, **value}).encode()).hexdigest()


def digest_bytes(data: bytes) -> str:
    """SHA-256 (hex) of ``data``: the id of a sample is this digest of its bytes."""
    return hashlib.sha256(data).hexdigest()


def digest_file(path: Path, *, max_bytes: int | None = None) -> str:
    """SHA-256 (hex) of a file's bytes, read in blocks; a larger file is refused, as by `files.open_regular`."""
    hasher = hashlib.sha256()
    with open_regular(path, max_bytes=max_bytes) as (file, status):
        for block in blocks_of(file, status, block_bytes=_BLOCK):
            hasher.update(block)
    return hasher.hexdigest()


def digest_arrays(text: str, arrays: Iterable[np.ndarray]) -> str:
    """SHA-256 (hex) of a text and of arrays by content, read in blocks."""
    hasher = hashlib.sha256(text.encode())
    for array in arrays:
        # Arrays of other shapes may have the same bytes.
        hasher.update(f"\n{array.dtype.str} {array.shape}\n".encode())
        step = max(_BLOCK // (array[:1].nbytes or 1), 1)
        for start in range(0, len(array), step):
            hasher.update(array[start : start + step].tobytes())
    return hasher.hexdigest()
