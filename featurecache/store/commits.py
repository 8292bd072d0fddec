"""Commit records: what a published shard holds, where in the file, and how to notice that a byte changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from featurecache.errors import CorruptError, FeatureCacheError
from featurecache.records import encode_record, read_record
from featurecache.store.dtypes import STORED

BLOCK_BYTES = 1 << 20
_MAX_DIMENSIONS = 8
_MOST = 1 << 62


@dataclass(frozen=True, kw_only=True, slots=True)
class ArrayRecord:
    """Where one array lies in its shard, and the CRC-32 of each block of its bytes."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    crc32: tuple[int, ...]
    block_bytes: int = BLOCK_BYTES

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array."""
        return prod(self.shape) * np.dtype(STORED[self.dtype]).itemsize


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardRecord:
    """A finished shard file: its digest, size and arrays."""

    sha256: str
    size: int
    arrays: dict[str, ArrayRecord]


@dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    """A published shard: ``key`` orders the commits of a folder, ``body`` is what its owner recorded."""

    key: str
    shard: ShardRecord
    body: dict[str, Any]

    @property
    def file_name(self) -> str:
        """Name of the shard file; derived, never read from the record."""
        return f"{self.key}-{self.shard.sha256[:16]}.h5"


def encode_commit(shard: ShardRecord, body: Mapping[str, Any], *, version: int = 1) -> bytes:
    """Serialise a commit record.

    Parameters
    ----------
    shard : ShardRecord
    body : mapping
        What the owner of the folder records.
    version : int
        Of the record.
    """
    arrays = {
        name: {
            "dtype": array.dtype,
            "shape": list(array.shape),
            "offset": array.offset,
            "block_bytes": array.block_bytes,
            "crc32": list(array.crc32),
        }
        for name, array in shard.arrays.items()
    }
    content = {"sha256": shard.sha256, "size": shard.size, "arrays": arrays, "body": dict(body)}
    return encode_record("commit", content, version=version)


def read_commit(path: Path) -> Commit:
    """Read a commit record and check that its numbers are possible."""
    record = read_record(path, "commit")
    try:
        arrays = {_plain(name): _array_record(item, record["size"]) for name, item in record["arrays"].items()}
        shard = ShardRecord(sha256=_hex(record["sha256"]), size=record["size"], arrays=arrays)
        return Commit(key=path.stem, shard=shard, body=record["body"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, FeatureCacheError):
            raise
        raise CorruptError(f"{path} is not a possible commit record ({error!r}); run `featurecache repair`") from None


def _array_record(item: dict[str, Any], size: int) -> ArrayRecord:
    array = ArrayRecord(
        dtype=item["dtype"],
        shape=tuple(item["shape"]),
        offset=item["offset"],
        crc32=tuple(item["crc32"]),
        block_bytes=item["block_bytes"],
    )
    numbers = (*array.shape, array.offset, array.block_bytes, size, *array.crc32)
    if array.dtype not in STORED or not all(type(n) is int and 0 <= n < _MOST for n in numbers) or 0 in array.shape:
        raise ValueError("impossible array")
    if len(array.shape) > _MAX_DIMENSIONS or array.offset + array.nbytes > size or array.block_bytes < 1:
        raise ValueError("an array does not fit its file")
    if len(array.crc32) != -(-array.nbytes // array.block_bytes):
        raise ValueError("wrong number of block checksums")
    return array


def _plain(name: str) -> str:
    if not name.isidentifier() or len(name) > 64:
        raise ValueError("a name that no array has")
    return name


def _hex(text: str) -> str:
    if len(text) != 64 or set(text) - set("0123456789abcdef"):
        raise ValueError("not a SHA-256")
    return text
