"""Compiled networks, kept in the user's cache folder: to convert and compile one takes seconds, to read it a tenth.

Only networks of installed libraries are kept, which their fingerprint and the versions of the libraries tell apart; the
code of others may change under its name. What is read here was written by the same user, and is compared with the
reference on the first batch like anything that was compiled just now.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from featurecache.atomic import is_partial, publish_bytes
from featurecache.backbones.backbone import Backbone
from featurecache.backbones.taps import Tap
from featurecache.hashing import digest_json
from featurecache.machine import num_cores
from featurecache.versions import installed_versions

FOLDER_VARIABLE = "FEATURECACHE_COMPILED"
"""Environment variable that names another folder; where it is empty, nothing is kept."""
_CODE_OF_OTHERS = ("python:", "hub:", "module:", "file:")
# The oldest go beyond either. A network for each of a dozen combinations of taps is much.
_MOST_FILES, _MOST_BYTES = 20, 2 << 30


def folder() -> Path | None:
    """Return the folder of compiled networks, which need not be there yet; None where none is wanted."""
    if (named := os.environ.get(FOLDER_VARIABLE)) is not None:
        return Path(named) if named else None
    if platform.system() == "Windows":
        base = os.environ.get("LOCALAPPDATA", "~")
    elif platform.system() == "Darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    with suppress(RuntimeError):  # a user without a home
        return Path(base).expanduser() / "featurecache" / "compiled"
    return None


def path_of(
    backbone: Backbone, taps: Sequence[Tap], example: np.ndarray, lengths: Sequence[int], *, processor: str
) -> Path | None:
    """Return where a compiled network is kept, if it is there; None where it may not be kept.

    Parameters
    ----------
    backbone, taps
        What it computes.
    example : ndarray
        A batch of the shape and type that it is compiled for.
    lengths : sequence of int
        See `Runtime.lengths`.
    processor : str
        What it is compiled for.
    """
    where = folder()
    if where is None or backbone.name.startswith(_CODE_OF_OTHERS):
        return None
    compiled = {
        "fingerprint": backbone.identity.fingerprint,
        "taps": [tap.name for tap in taps],
        "input": [str(example.dtype), list(example.shape), list(lengths)],
        "processor": [processor, num_cores()],
        "versions": installed_versions(),
    }
    return where / f"{digest_json('compiled', 1, compiled)}.blob"


def read(path: Path) -> bytes | None:
    """Return a compiled network; None where there is none that this user has written."""
    with suppress(OSError), path.open("rb") as file:
        found = os.fstat(file.fileno())
        # Another user who may write here could have it compute anything.
        if not hasattr(os, "getuid") or (found.st_uid == os.getuid() and not found.st_mode & 0o022):
            data = file.read()
            os.utime(path)  # the oldest are those that were used last long ago
            return data
    return None


def keep(path: Path, data: bytes) -> None:
    """Keep a compiled network, and let the oldest go; a folder that cannot be written keeps nothing."""
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        publish_bytes(path, data)
        path.chmod(0o600)
        files = [file for file in path.parent.glob("*.blob") if not is_partial(file)]
        total = 0
        for number, file in enumerate(sorted(files, key=lambda file: -file.stat().st_mtime)):
            total += file.stat().st_size
            if number >= _MOST_FILES or total > _MOST_BYTES:
                file.unlink(missing_ok=True)
