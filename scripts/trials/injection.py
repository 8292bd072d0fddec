"""A layer between a process and its file system: counts calls and kills the process, or fails them, at the n-th.

Calls on other folders than the watched one are left alone. What libhdf5 does inside is one call from here.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KILLS = ("kill before", "kill during", "kill after")
FAULTS = ("ENOSPC", "ENOSPC for good", "EIO", "EDQUOT", "short", "short, then ENOSPC for good")
_WRITES = {"write", "pwrite"}
_NEEDS_SPACE = {"create", "write", "pwrite", "posix_fallocate", "mkdir", "link", "h5py create", "h5py dataset"}
_BY_PATH = ("mkdir", "unlink", "replace", "rename", "link", "rmdir")
_BY_DESCRIPTOR = ("fsync", "posix_fallocate", "pwrite", "write", "ftruncate")


@dataclass
class Injection:
    """What to do, at which call, below which folder."""

    root: Path
    action: str = "trace"
    at: int = 0
    """Number of the call, from 1."""
    trace: list[str] = field(default_factory=list)
    _full: bool = False

    def install(self) -> None:
        """Put the layer in place, for the rest of this process's life."""
        for name in _BY_PATH:
            setattr(os, name, self._wrapped(name, getattr(os, name), by_path=True))
        for name in _BY_DESCRIPTOR:
            setattr(os, name, self._wrapped(name, getattr(os, name), by_path=False))
        self._wrap_open()
        self._wrap_files()
        self._wrap_h5py()

    def call(self, name: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Make one call, or do to it what is planned."""
        self.trace.append(name)
        now = len(self.trace) == self.at
        if self._full and name in _NEEDS_SPACE:
            raise _error(errno.ENOSPC)
        if not now or self.action == "trace":
            return function(*args, **options)
        if self.action.startswith("kill"):
            return self._kill(name, function, *args, **options)
        return self._fail(name, function, *args, **options)

    def _kill(self, name: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        if self.action == "kill during" and name in _WRITES:
            _half(name, function, *args, **options)
        elif self.action == "kill after":
            with suppress(OSError):  # a folder that exists already, a temporary that has moved
                function(*args, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    def _fail(self, name: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        if self.action.startswith("short"):
            self._full = self.action != "short"
            return _half(name, function, *args, **options)
        if name in ("close", "h5py close"):
            function(*args, **options)  # an error of close comes after the descriptor is gone
        self._full = self.action == "ENOSPC for good"
        raise _error(getattr(errno, self.action.split()[0]))

    def _watched(self, path: Any) -> bool:
        try:
            return os.fspath(path).startswith(str(self.root))
        except TypeError:
            return False

    def _wrapped(self, name: str, function: Callable[..., Any], *, by_path: bool) -> Callable[..., Any]:
        def wrapper(target: Any, *args: Any, **options: Any) -> Any:
            watched = self._watched(target) if by_path else target > 2
            if not watched:
                return function(target, *args, **options)
            return self.call(name, function, target, *args, **options)

        return wrapper

    def _wrap_open(self) -> None:
        real = os.open

        def wrapper(path: Any, flags: int, *args: Any, **options: Any) -> int:
            if not self._watched(path):
                return real(path, flags, *args, **options)
            name = "create" if flags & os.O_CREAT else "open"
            return self.call(name, real, path, flags, *args, **options)

        os.open = wrapper

    def _wrap_files(self) -> None:
        injection, real = self, io.open

        class RawFile(io.FileIO):
            def write(self, data: Any) -> int:
                return injection.call("write", super().write, data)

            def close(self) -> None:
                if self.closed:
                    return super().close()
                return injection.call("close", super().close)

        def wrapper(file: Any, mode: str = "r", buffering: int = -1, *args: Any, **options: Any) -> Any:
            if not (set(mode) & set("wxa+") and self._watched(file)):
                return real(file, mode, buffering, *args, **options)
            raw = self.call("create", RawFile, file, mode.replace("b", ""))
            if buffering == 0:
                return raw
            assert "+" not in mode, "no code of ours does that"
            buffered = io.BufferedWriter(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, *args, **options)

        io.open = builtins.open = wrapper

    def _wrap_h5py(self) -> None:
        import h5py

        injection = self

        class File(h5py.File):
            def __init__(self, name: Any, mode: str = "r", **options: Any) -> None:
                injection.call("h5py create", super().__init__, name, mode, **options)

            def close(self) -> None:
                if self.id.valid:
                    injection.call("h5py close", super().close)

        h5py.File = File
        h5py.h5d.create = _caller(self, "h5py dataset", h5py.h5d.create)


def fits(action: str, name: str) -> bool:
    """Tell whether an action makes sense at a call of this name."""
    if action == "kill during" or action.startswith("short"):
        return name in _WRITES
    if action in ("ENOSPC", "ENOSPC for good", "EDQUOT"):
        return name not in ("open", "unlink")  # which need no space
    return True


def _caller(injection: Injection, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **options: injection.call(name, function, *args, **options)


def _half(name: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Write the first half of the data (at least one byte)."""
    place = 0 if len(args) == 1 else 1  # a file object's write has no descriptor
    data = memoryview(args[place]).cast("B")
    return function(*args[:place], data[: max(len(data) // 2, 1)], *args[place + 1 :], **options)


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
