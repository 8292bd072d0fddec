"""Small JSON records on disk: what they are, which edition, and a digest that notices any changed byte.

Records may come from strangers, so reading is bounded and strict: a size limit, no links followed, no duplicate
keys, no NaN, and the digest must be right.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.errors import CorruptError, FormatVersionError, RequestError, shortened
from featurecache.hashing import canonical_json, digest_bytes

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

RECORD_VERSION = 2
"""The greatest that is read. Most records are of version 1; heads and tasks are of version 2 since their kinds have the
field's names, so that a release which knows only the earlier names says that it is too old."""
MAX_RECORD_BYTES = 16 << 20


class PlainValues:
    """A dataclass of plain values, which reports show as it is."""

    __slots__ = ()

    def to_json(self: DataclassInstance) -> dict[str, Any]:
        """Return plain JSON values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def encode_record(kind: str, body: Mapping[str, object], *, version: int = 1) -> bytes:
    """Serialise a record, its digest included.

    Parameters
    ----------
    kind : str
    body : mapping
        Plain JSON values.
    version : int
        The least that a reader must know.
    """
    content = {"format": f"featurecache.{kind}", "version": version, **body}
    digest = digest_bytes(canonical_json(content).encode())
    data = (canonical_json({**content, "digest": digest}) + "\n").encode()
    if len(data) > MAX_RECORD_BYTES:  # it could never be read again
        raise RequestError(
            f"a {kind} record would have {len(data)} bytes, the limit is {MAX_RECORD_BYTES}; use fewer --shard-rows"
        )
    return data


def read_record(path: Path, kind: str) -> dict[str, Any]:
    """Read a record, or say what is wrong with it.

    Raises
    ------
    FormatVersionError
        The record was written by a newer release.
    CorruptError
        Anything else that `encode_record` would not have written.
    """
    content = parse_json(read_small_file(path), path)
    if content.get("format") != f"featurecache.{kind}":
        raise CorruptError(f"{path} is not a featurecache {kind} record; run `featurecache repair`, or restore it")
    version = content.pop("version", None)
    if type(version) is not int or version > RECORD_VERSION:
        raise FormatVersionError(
            f"{path} has {kind} record version {shortened(version)}; this release reads up to {RECORD_VERSION}. "
            "Upgrade featurecache"
        )
    # Over everything else in the record.
    claimed = content.pop("digest", None)
    try:
        digest = digest_bytes(canonical_json({**content, "version": version}).encode())
    except (RecursionError, ValueError) as error:
        raise CorruptError(f"{path} cannot be a record ({shortened(error)}); run `featurecache repair`") from None
    if claimed != digest:
        raise CorruptError(f"{path} does not match its own digest; run `featurecache repair`, or restore it")
    del content["format"]
    return content


def read_small_file(path: Path, *, max_bytes: int = MAX_RECORD_BYTES) -> bytes:
    """Read a regular file of bounded size without following a link."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise CorruptError(f"{path} is a symbolic link; a cache never contains links") from None
        raise
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise CorruptError(f"{path} is not a regular file")
        if status.st_size > max_bytes:
            raise CorruptError(f"{path} has {status.st_size} bytes; a record has at most {max_bytes}")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(status.st_size)
    finally:
        os.close(descriptor)


def parse_json(data: bytes, path: Path) -> dict[str, Any]:
    """Parse one strict JSON object; ``path`` is for the message."""
    try:
        # Python takes NaN, infinities and repeated keys; another reader may not, and would see another record.
        value = json.loads(data.decode(), object_pairs_hook=_unique_keys, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"{path} is not valid JSON ({error}); run `featurecache repair`, or restore it") from None
    if not isinstance(value, dict):
        raise CorruptError(f"{path} holds no JSON object")
    return value


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result


def _finite(text: str) -> float:
    """Return a number; JSON has neither NaN and Infinity, nor what a float cannot hold."""
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"{text} is {'too large' if text[-1].isdigit() else 'not a JSON number'}")
    return number
