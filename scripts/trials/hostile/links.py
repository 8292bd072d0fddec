"""Attacks by links, pipes, sockets and devices."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from trials.hostile.forgery import KINDS, Attack, Forgery


def link_attacks() -> Iterator[Attack]:
    """Something else in place of every kind of file and folder."""
    for kind, pattern in KINDS.items():
        for way, replace in WAYS.items():
            must = way not in ("empty", "nothing", "another kind") or (way != "nothing" and kind in NEEDED)
            yield Attack("links", f"{kind}: {way}", partial(_replace, pattern, replace), "structure" if must else None)


NEEDED = ("FORMAT.json", "shards", "a shard", "a commit", "a spec", "a samples' commit", "a samples' shard")
"""What a cache cannot be without; whether there should be a task or a head, only people know."""


def _replace(pattern: str, replace: Callable[[Path, Path], None], forgery: Forgery) -> None:
    replace(forgery.find(pattern), forgery.outside)


def _moved(path: Path, outside: Path, *, relative: bool = False) -> None:
    target = outside / f"moved-{path.name}"
    path.rename(target)
    path.symlink_to(os.path.relpath(target, path.parent) if relative else target)


def _removed(path: Path) -> Path:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    return path


def _as_other(path: Path, outside: Path) -> None:
    if path.is_dir():
        _removed(path).write_text("a file")
    else:
        _removed(path).mkdir()


def _as_empty(path: Path, outside: Path) -> None:
    if path.is_dir():
        _removed(path).mkdir()
    else:
        path.write_bytes(b"")


WAYS: dict[str, Callable[[Path, Path], Any]] = {
    "link to where it was moved": _moved,
    "relative link to where it was moved": partial(_moved, relative=True),
    "link to a secret file": lambda path, outside: _removed(path).symlink_to(outside / "secret.txt"),
    "relative link to a secret file": lambda path, outside: _removed(path).symlink_to(
        os.path.relpath(outside / "secret.txt", path.parent)
    ),
    "link to a secret folder": lambda path, outside: _removed(path).symlink_to(outside / "secret"),
    "link to /dev/zero": lambda path, outside: _removed(path).symlink_to("/dev/zero"),
    "link to itself": lambda path, outside: _removed(path).symlink_to(path.name),
    "link to nothing": lambda path, outside: _removed(path).symlink_to("nothing-there"),
    "link to the cache": lambda path, outside: _removed(path).symlink_to(outside.parent / "a.cache"),
    "pipe": lambda path, outside: os.mkfifo(_removed(path)),
    "socket": lambda path, outside: os.mknod(_removed(path), stat.S_IFSOCK | 0o600),
    "device": lambda path, outside: os.mknod(_removed(path), stat.S_IFCHR | 0o600, os.makedev(1, 5)),
    "another kind": _as_other,
    "empty": _as_empty,
    "nothing": lambda path, outside: _removed(path),
}
