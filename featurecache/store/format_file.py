"""``FORMAT.json``: which format a cache has, and what a reader must know to read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from featurecache.atomic import publish_bytes, publish_once
from featurecache.errors import CorruptError, FormatVersionError, StoreError, shortened
from featurecache.hashing import canonical_json
from featurecache.records import parse_json, read_small_file

# The second number grows with what an old release may ignore, the first with what it must not.
FORMAT_NAME = "featurecache"
FORMAT_VERSION = (1, 0)
UNITS = "units"
"""Where a source is listed by its units: to earlier releases such a cache would hold none of its samples."""
_KNOWN = (UNITS,)


def read_format(path: Path) -> dict[str, Any]:
    """Return what a cache says of its format.

    Parameters
    ----------
    path : Path
        Folder of the cache.

    Raises
    ------
    StoreError
        There is no cache there.
    FormatVersionError
        It was written in a newer format.
    CorruptError
        The file is damaged.
    """
    marker = path / "FORMAT.json"
    try:
        data = read_small_file(marker, max_bytes=1 << 20)
    except FileNotFoundError:
        raise StoreError(f"{path} is not a featurecache cache (it has no FORMAT.json); name another folder") from None
    try:
        content = parse_json(data, marker)
    except CorruptError:
        raise CorruptError(f"{marker} is damaged; restore it from a copy of this or any other cache") from None
    _check(content, path)
    return content


def write_format(path: Path) -> None:
    """Say what the format of a new cache is, unless another process has."""
    marker = {"format": FORMAT_NAME, "version": list(FORMAT_VERSION), "required": [], "optional": []}
    publish_once(path / "FORMAT.json", _encoded(marker))


def require(path: Path, name: str) -> None:
    """Have releases that do not know something refuse a cache from now on.

    Parameters
    ----------
    path : Path
        Folder of the cache.
    name : str
        What they would have to know.
    """
    content = read_format(path)
    if name not in content.get("required", []):
        publish_bytes(
            path / "FORMAT.json", _encoded({**content, "required": sorted([*content.get("required", []), name])})
        )


def _encoded(marker: dict[str, Any]) -> bytes:
    return (canonical_json(marker) + "\n").encode()


def _check(marker: dict[str, Any], path: Path) -> None:
    if marker.get("format") != FORMAT_NAME:
        raise StoreError(
            f"{path} is not a featurecache cache (FORMAT.json says {shortened(repr(marker.get('format')))}); "
            "name another folder"
        )
    version, required = marker.get("version"), marker.get("required", [])
    # A name alone would be a list of letters.
    unknown = [name for name in required if name not in _KNOWN] if isinstance(required, list) else required
    if not isinstance(version, list) or not version or version[0] != FORMAT_VERSION[0] or unknown:
        raise FormatVersionError(
            f"{path} has cache format {shortened(version)} requiring {shortened(unknown)}; this release "
            f"reads {list(FORMAT_VERSION)}. Upgrade featurecache"
        )
