"""Commit records: what a published shard holds, where in the file, and how to notice that a byte changed."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta, Struct

from featurecache.errors import CorruptError, shortened
from featurecache.records import read_record
from featurecache.store.dtypes import STORED

# A block is checked on its first use: a single row costs the checksum of a megabyte at most.
BLOCK_BYTES = 1 << 20
# Products of two such numbers of a stranger still fit into what Python and numpy compute with.
Size = Annotated[int, Meta(ge=0, lt=1 << 62)]
Length = Annotated[int, Meta(ge=1, lt=1 << 62)]
Name = Annotated[str, Meta(pattern=r"^[^\W\d]\w{0,63}\Z")]


class ArrayRecord(Struct, frozen=True, kw_only=True):
    """Where one array lies in its shard, and the CRC-32 of each block of its bytes."""

    dtype: str
    shape: Annotated[tuple[Length, ...], Meta(max_length=8)]
    offset: Size
    crc32: tuple[Size, ...]
    block_bytes: Length

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array."""
        return prod(self.shape) * np.dtype(STORED[self.dtype]).itemsize


class ShardRecord(Struct, frozen=True, kw_only=True):
    """A finished shard file: its digest, size and arrays."""

    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    size: Size
    arrays: dict[Name, ArrayRecord]


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


def read_commit(path: Path) -> Commit:
    """Read a commit record and check that its numbers are possible."""
    record = read_record(path, "commit")
    try:
        shard = msgspec.convert(record, ShardRecord)
        for array in shard.arrays.values():
            if array.dtype not in STORED or array.offset + array.nbytes > shard.size:
                raise ValueError("an array does not fit its file")
            if len(array.crc32) != -(-array.nbytes // array.block_bytes):
                raise ValueError("wrong number of block checksums")
        if not isinstance(record["body"], dict):
            raise ValueError("it has no body")
        return Commit(key=path.stem, shard=shard, body=record["body"])
    except (KeyError, ValueError) as error:  # of which msgspec.ValidationError is one
        raise CorruptError(
            f"{path} is not a possible commit record ({shortened(error)}); run `featurecache repair`"
        ) from None
