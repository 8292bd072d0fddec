"""A model of a file system that keeps only what was synced, made from the calls of a run.

Recorded below one folder are: the names that appear, move and go (`mkdir`, `open`, `link`, `rename`, `unlink`,
`rmdir`, and two names that change places), the bytes of a file whenever it is given a name or synced, and every
`fsync`, with the line of the package that asked for it. Writes are not recorded one by one: a file that was not synced
has, after a crash, no bytes, zeros, half of its bytes, or all of them.

What an `fsync` keeps is what POSIX promises and no more: of a file its bytes, of a folder the names in it. Neither
keeps the name of the file or folder itself.
"""

from __future__ import annotations

import builtins
import hashlib
import io
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Change = tuple[int, str, int | None]
"""A folder, a name in it, and what the name means from now on."""
Site = tuple[str, int]
"""File and line of the package."""
_HELPERS = ("fsync_file", "fsync_directory")


@dataclass(frozen=True)
class Op:
    """One call: names that change together, bytes of a file, or a sync of a node."""

    changes: tuple[Change, ...] = ()
    node: int = -1
    data: bytes | None = None
    site: Site | None = None
    is_sync: bool = False
    makes_folder: bool = False


@dataclass
class Recording:
    """Calls below a folder, in order, and where each phase of the run ended."""

    root: Path
    ops: list[Op] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    folders: dict[int, dict[str, int]] = field(default_factory=lambda: {0: {}})
    """What is there now: the names in each folder."""
    _num_nodes: int = 1
    _contents: dict[int, bytes] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def mark(self) -> None:
        """End a phase."""
        self.ends.append(len(self.ops))

    def overwrite(self, path: Path, data: bytes) -> None:
        """Change a file as a failing disk would: at once, and durably."""
        path.write_bytes(data)
        node = self._node(path)
        self._note_bytes(path, node)
        self.ops.append(Op(node=node, is_sync=True))

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Record the calls of this process while the block runs."""
        import featurecache.atomic as atomic

        before = {name: getattr(os, name) for name in (*_CALLS, "fsync", "open")}
        opened, exchange = io.open, atomic._exchange
        for name in _CALLS:
            setattr(os, name, self._wrapped(name, before[name]))
        os.fsync = self._fsync(before["fsync"])  # type: ignore[assignment]
        os.open = self._os_open(before["open"])  # type: ignore[assignment]
        io.open = builtins.open = self._open(opened)  # type: ignore[assignment]
        atomic._exchange = self._wrapped("exchange", exchange)  # type: ignore[assignment]
        try:
            yield
        finally:
            for name, function in before.items():
                setattr(os, name, function)
            io.open = builtins.open = opened
            atomic._exchange = exchange

    def _wrapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **options: Any) -> Any:
            count = 1 if name in ("mkdir", "unlink", "rmdir") else 2
            paths = [path for each in args[:count] if (path := self._below(each, options)) is not None]
            if len(paths) < count or not (name == "mkdir" or os.path.lexists(paths[0])):
                return function(*args, **options)
            with self._lock:
                nodes = [self._node(path) for path in paths[: {"mkdir": 0, "exchange": 2}.get(name, 1)]]
                if nodes and paths[0].is_file():
                    self._note_bytes(paths[0], nodes[0])
                result = function(*args, **options)
                if name != "exchange" or result:
                    self._change(name, paths, nodes)
                return result

        return wrapper

    def _change(self, name: str, paths: list[Path], nodes: list[int]) -> None:
        if name == "mkdir":
            self._add(paths[0], is_folder=True)
        elif name in ("unlink", "rmdir"):
            self._apply([(*self._place(paths[0]), None)])
        elif name == "link":
            self._apply([(*self._place(paths[1]), nodes[0])])
        elif name == "exchange":
            self._apply([(*self._place(paths[0]), nodes[1]), (*self._place(paths[1]), nodes[0])])
        else:
            self._apply([(*self._place(paths[0]), None), (*self._place(paths[1]), nodes[0])])

    def _fsync(self, function: Callable[[int], None]) -> Callable[[int], None]:
        def wrapper(descriptor: int) -> None:
            function(descriptor)
            path = self._below(Path(f"/proc/self/fd/{descriptor}").readlink(), {})
            if path is None:
                return
            with self._lock:
                node = self._node(path)
                if path.is_file():
                    self._note_bytes(path, node)
                self.ops.append(Op(node=node, is_sync=True, site=_site()))

        return wrapper

    def _os_open(self, function: Callable[..., int]) -> Callable[..., int]:
        def wrapper(path: Any, flags: int, *args: Any, **options: Any) -> int:
            descriptor = function(path, flags, *args, **options)
            if flags & os.O_CREAT and (below := self._below(path, options)) is not None:
                with self._lock:
                    self._node(below)
            return descriptor

        return wrapper

    def _open(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            opened = function(file, mode, *args, **options)
            if set(mode) & set("wxa+") and (path := self._below(file, {})) is not None:
                with self._lock:
                    self._node(path)
            return opened

        return wrapper

    def _below(self, path: Any, options: dict[str, Any]) -> Path | None:
        """Return a path as one below the folder that is watched, if it is."""
        if not isinstance(path, str | os.PathLike):
            return None
        if (folder := options.get("dir_fd", options.get("src_dir_fd"))) is not None:
            path = Path(f"/proc/self/fd/{folder}").readlink() / path
        found = Path(path).absolute()
        return found if self.root in (found, *found.parents) else None

    def _node(self, path: Path) -> int:
        """Return the node of a path; what other libraries made without our seeing it has appeared by now."""
        node = 0
        for place, name in enumerate(parts := path.relative_to(self.root).parts):
            if name not in self.folders[node]:
                part = self.root.joinpath(*parts[: place + 1])
                self._add(part, is_folder=part.is_dir())
            node = self.folders[node][name]
        return node

    def _place(self, path: Path) -> tuple[int, str]:
        return self._node(path.parent), path.name

    def _add(self, path: Path, *, is_folder: bool) -> None:
        folder, name = self._place(path)
        node, self._num_nodes = self._num_nodes, self._num_nodes + 1
        if is_folder:
            self.folders[node] = {}
        self._apply([(folder, name, node)], makes_folder=is_folder)

    def _apply(self, changes: list[Change], *, makes_folder: bool = False) -> None:
        self.ops.append(Op(changes=tuple(changes), makes_folder=makes_folder))
        apply_changes(self.folders, changes)

    def _note_bytes(self, path: Path, node: int) -> None:
        data = path.read_bytes()
        if self._contents.get(node) != data:
            self._contents[node] = data
            self.ops.append(Op(node=node, data=data))


_CALLS = ("mkdir", "unlink", "rmdir", "link", "rename", "replace")


def apply_changes(folders: dict[int, dict[str, int]], changes: list[Change] | tuple[Change, ...]) -> None:
    """Let names in folders mean what they mean from now on."""
    for folder, name, node in changes:
        names = folders.setdefault(folder, {})
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


def _site() -> Site:
    """The line of the package that asked for a sync."""
    frame = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if "featurecache" in path.parts and "trials" not in path.parts and frame.f_code.co_name not in _HELPERS:
            start = len(path.parts) - 1 - path.parts[::-1].index("featurecache")
            return "/".join(path.parts[start:]), frame.f_lineno
        frame = frame.f_back  # type: ignore[assignment]
    raise AssertionError("nobody asked for this sync")


# Crashes


@dataclass(frozen=True)
class Synced:
    """What must survive a crash after so many calls, unless the syncs of a line are taken out."""

    ops: list[Op]
    cut: int
    without: Site | None = None

    def until(self) -> dict[int, int]:
        """Return of each node the last call that synced it."""
        return {
            op.node: index
            for index, op in enumerate(self.ops[: self.cut])
            if op.is_sync and (op.site is None or op.site != self.without)
        }


@dataclass(frozen=True)
class Tree:
    """What a crash left: names in folders, and bytes of files."""

    folders: dict[int, dict[str, int]]
    contents: dict[int, bytes]

    def files(self, node: int = 0, prefix: str = "") -> Iterator[tuple[str, bytes | None]]:
        """Yield paths with their bytes, None for a folder; a folder whose name was lost is gone with all in it."""
        for name, child in sorted(self.folders.get(node, {}).items()):
            path = f"{prefix}{name}"
            if child in self.folders:
                yield path, None
                yield from self.files(child, f"{path}/")
            else:
                yield path, self.contents.get(child, b"")

    def digest(self) -> str:
        """Equal for equal trees."""
        hasher = hashlib.sha256()
        for path, data in self.files():
            hasher.update(f"{path}\n{'folder' if data is None else hashlib.sha256(data).hexdigest()}\n".encode())
        return hasher.hexdigest()

    def write(self, place: Path) -> None:
        """Make it."""
        place.mkdir(parents=True)
        for path, data in self.files():
            if data is None:
                (place / path).mkdir()
            else:
                (place / path).write_bytes(data)


KEEPS = ("nothing", "names", "bytes", "some", "first")
"""What survives of what was not synced: nothing, all names, all bytes, some of each (without order), or the first names
(in order, as a journal keeps them) with some bytes."""


def crash(ops: list[Op], cut: int, keeps: str, rng: random.Random) -> Tree:
    """Return what a crash after some calls may leave."""
    until = Synced(ops, cut).until()
    first = rng.randint(0, cut)
    keep_names: Callable[[int], bool] = {
        "nothing": lambda _: False,
        "names": lambda _: True,
        "bytes": lambda _: False,
        "some": lambda _: rng.random() < 0.5,
        "first": lambda index: index < first,
    }[keeps]
    states = {"nothing": ("none",), "names": ("none", "zeros"), "bytes": ("all",)}.get(keeps, _STATES)
    return _tree(ops, cut, until, keep_names, lambda _: rng.choice(states))


def crash_without(ops: list[Op], cut: int, site: Site) -> Tree:
    """Return what a crash may leave when the syncs of a line are taken out: only what they would have kept is lost."""
    until, without = Synced(ops, cut).until(), Synced(ops, cut, site).until()
    unsafe = {node for node, index in until.items() if without.get(node, -1) < index}

    def keep(index: int) -> bool:
        return not any(
            folder in unsafe and without.get(folder, -1) < index < until[folder] for folder, _, _ in ops[index].changes
        )

    return _tree(ops, cut, without, keep, lambda node: "none" if node in unsafe else "all")


_STATES = ("none", "zeros", "half", "all")


def _tree(
    ops: list[Op], cut: int, until: dict[int, int], keep: Callable[[int], bool], state: Callable[[int], str]
) -> Tree:
    """Apply the calls that survive.

    The two halves of a move between folders survive or go together, unless one of the folders was synced since.
    """
    folders: dict[int, dict[str, int]] = {0: {}}
    synced: dict[int, bytes] = {}
    last: dict[int, bytes] = {}
    for index, op in enumerate(ops[:cut]):
        if op.changes:
            kept = keep(index)
            apply_changes(folders, [change for change in op.changes if kept or index < until.get(change[0], -1)])
        elif op.data is not None:
            last[op.node] = op.data
            if index < until.get(op.node, -1):
                synced[op.node] = op.data
    for op in ops[:cut]:
        if op.makes_folder:  # also where nothing in it was kept
            folders.setdefault(op.changes[0][2] or 0, {})
    contents = {
        node: data if synced.get(node) == data else _survived(data, synced.get(node), state(node))
        for node, data in last.items()
    }
    return Tree(folders, contents)


def _survived(data: bytes, synced: bytes | None, state: str) -> bytes:
    if state == "all":
        return data
    if synced is not None:
        return synced
    return {"none": b"", "zeros": bytes(len(data)), "half": data[: len(data) // 2]}[state]
