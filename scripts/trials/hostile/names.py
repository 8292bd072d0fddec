"""Attacks by names and numbers of files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from functools import partial

from trials.hostile.forgery import SET, Attack, Forgery

NAMES = {
    "escape": b"evil\x1b[31m\x07",
    "new line": b"evil\nfeaturecache: all is well",
    "bell and return": b"\rok\x08\x08",
    "no UTF-8": b"\xff\xfe\x80",
    "C1 and bidi": "evil\x9b31m\u202egnp".encode(),
    "longest": b"n" * 250,
    "pattern": b"[!a]*?{}",
    "star": b"*",
    "two stars": b"**",
    "option": b"--help",
    "markup": b"[red]x[link=x][bold",
    "percent": b"..%2F..%2Foutside",
    "zero": b"%00%0a%1b[2J",
    "dots": b"...",
    "space": b" ",
}


def name_attacks(*, quick: bool) -> Iterator[Attack]:
    """Names that steer terminals or patterns, deep trees and thousands of files."""
    places = {
        "a task": ("tasks/parity", b""),
        "a head": ("heads/logistic", b""),
        "a source": ("sources/*", b""),
        "a tap": ("features/*/*=avg", b"=avg"),
        "a dtype": (SET, b""),
        "a fingerprint": ("features/*", b""),
        "a commit": (f"{SET}/commits/*.json", b".json"),
        "a shard": (f"{SET}/shards/*.h5", b".h5"),
        "a samples' commit": ("samples/commits/*.json", b".json"),
        "a task's commit": ("tasks/*/commits/*.json", b".json"),
        "a request": ("requests/*.json", b".json"),
    }
    for place, (pattern, suffix) in places.items():
        for label, name in NAMES.items():
            full = name[: 250 - len(suffix)] + suffix
            must = place in ("a dtype", "a fingerprint", "a shard", "a samples' commit")
            forge = partial(_rename, pattern, full)
            yield Attack("names", f"{place} is named {label}", forge, "structure" if must else None)
            yield Attack("names", f"a copy of {place} is named {label}", partial(_copy_to, pattern, full), None)
    for label, name in NAMES.items():
        yield Attack("names", f"an empty folder at the top is named {label}", partial(_add_folder, name), None)
    number = 1_000 if quick else 5_000
    for label, pattern in {"commits": f"{SET}/commits", "samples' commits": "samples/commits"}.items():
        forge = partial(_many_files, pattern, number)
        yield Attack("names", f"{number} empty {label}", forge)
    yield Attack("names", f"{number} copies of a commit", partial(_many_commits, number))
    yield Attack("names", "200 broken tasks", _broken_tasks)
    for label, pattern in {"features": "features", "sources": "sources", "tasks": "tasks", "heads": "heads"}.items():
        yield Attack("names", f"{number} empty folders in {label}", partial(_many_folders, pattern, number), None)
    for depth in (600, 1500, 10_000):
        yield Attack("names", f"a tree {depth} deep", partial(_deep_tree, "features", depth), None)
        aside = partial(_deep_tree, "quarantine/0001/features", depth)
        yield Attack("names", f"a tree {depth} deep in quarantine", aside, None)


def _rename(pattern: str, name: bytes, forgery: Forgery) -> None:
    path = os.fsencode(forgery.find(pattern))
    os.rename(path, os.path.join(os.path.dirname(path), name))  # noqa: PTH104, PTH118, PTH120 - names are bytes


def _copy_to(pattern: str, name: bytes, forgery: Forgery) -> None:
    path = forgery.find(pattern)
    (shutil.copytree if path.is_dir() else shutil.copy)(path, path.parent / os.fsdecode(name))


def _add_folder(name: bytes, forgery: Forgery) -> None:
    folder = forgery.cache / os.fsdecode(name)
    (folder / "commits").mkdir(parents=True)
    (folder / "commits" / "0.json").write_text("{}")


def _many_files(pattern: str, number: int, forgery: Forgery) -> None:
    folder = forgery.find(pattern)
    for k in range(100, 100 + number):
        (folder / f"{k:012d}.json").touch()


def _many_commits(number: int, forgery: Forgery) -> None:
    path = forgery.find(f"{SET}/commits/*.json")
    data = path.read_bytes()
    for k in range(100, 100 + number):
        (path.parent / f"{k:012d}.json").write_bytes(data)


def _broken_tasks(forgery: Forgery) -> None:
    path = forgery.find("tasks/*/commits/*.json")
    path.write_bytes(path.read_bytes()[:-20])
    for k in range(200):
        shutil.copytree(path.parents[1], path.parents[2] / f"x{k}")


def _many_folders(pattern: str, number: int, forgery: Forgery) -> None:
    folder = forgery.find(pattern)
    for k in range(number):
        (folder / f"x{k}").mkdir()


def _deep_tree(pattern: str, depth: int, forgery: Forgery) -> None:
    here = os.open(forgery.find(pattern), os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
