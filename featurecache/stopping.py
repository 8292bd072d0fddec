"""Ctrl-C, SIGTERM and SIGHUP end a command cleanly, within seconds, whatever it is doing.

The signal becomes an exception in the main thread, so that everything is put in order on the way out. A thread that the
signal wakes up (not the interpreter, which waits while compiled code runs) sees to it that this does not take for ever:
after `GRACE_SECONDS` it ends the other processes, removes the temporary files of this one, and then the process itself.

Libraries do not touch signals: only the command line enters `stops_cleanly`.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

GRACE_SECONDS = 3.0
"""From the signal until everything that is left is ended by force."""
# Windows has no SIGHUP.
_SIGNALS = tuple(int(number) for number in signal.Signals if number.name in ("SIGINT", "SIGTERM", "SIGHUP"))
# Noted names of which it is asked which are still there; one by one would cost a call for each file.
_MANY = 1024
_TRACKERS_SILENCE = "ignore:resource_tracker:UserWarning"
"""Of the process in which Python notes what others must not leave behind: it tells about what it removes, on stderr,
after the processes that were killed and long after we said that the command was stopped."""

_temporary: set[Path] = set()
_lock = threading.Lock()


class Stopped(KeyboardInterrupt):
    """A signal asked the process to end."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


class _State:
    """What one command knows of its end."""

    def __init__(self, *, is_active: bool) -> None:
        self.is_active = is_active
        self.number: int | None = None
        """The signal that came first."""
        self.exit_message: Callable[[], str] = lambda: "stopped"
        self.is_printed = False
        self.must_end = False
        self.is_held = False
        """A signal waits: see `uninterrupted`."""
        self.has_ended = threading.Event()
        self.handlers_before: dict[int, Any] = {}


_state = _State(is_active=False)


def temporary(path: Path) -> Path:
    """Note a file or folder that must not outlive this process, and return it."""
    with _lock:
        if len(_temporary) >= _MANY:  # nobody has to say that one has been renamed or removed
            _temporary.difference_update([known for known in _temporary if not os.path.lexists(known)])
        _temporary.add(path)
    if _state.must_end:
        raise Stopped(_state.number or signal.SIGTERM)
    return path


def forget(path: Path) -> None:
    """Take a path back that `temporary` noted, because its name may be somebody else's from now on."""
    with _lock:
        _temporary.discard(path)


def set_exit_message(message: Callable[[], str]) -> None:
    """Set the line that is printed when a signal ends this command."""
    _state.exit_message = message


def put_in_order(error: KeyboardInterrupt) -> int:
    """Leave neither processes nor temporary files behind, and say that the command was stopped.

    Returns
    -------
    int
        The exit status of a process that a signal ended: 128 and its number, as shells count.
    """
    # First: the processes that it started may still write temporary files.
    for number in _descendants(os.getpid()):
        with suppress(OSError):
            os.kill(number, signal.SIGKILL)
    remove_temporary()
    if not _state.is_printed:
        _state.is_printed = True
        # Not `print`: the thread that holds the lock of the stream may be the one that hangs.
        with suppress(OSError, ValueError):
            shown = "\x1b[?25h" if os.isatty(2) else ""  # a progress bar that was cut off hides the cursor
            os.write(2, f"{shown}featurecache: {_state.exit_message()}\n".encode(errors="backslashreplace"))
    return 128 + (error.number if isinstance(error, Stopped) else signal.SIGINT)


@contextmanager
def stops_cleanly() -> Iterator[None]:
    """Turn signals into `Stopped` while the block runs; outside of the main thread, and inside another, do nothing.

    A signal may come while the block is entered or left, so `Stopped` is to be caught around it.
    """
    global _state
    if _state.is_active or threading.current_thread() is not threading.main_thread():
        yield
        return
    if _TRACKERS_SILENCE not in sys.warnoptions:
        sys.warnoptions.append(_TRACKERS_SILENCE)  # goes to processes that this one starts; its own filters are made
    state = _state = _State(is_active=True)
    mine = [n for n in _SIGNALS if signal.getsignal(n) in (signal.SIG_DFL, signal.default_int_handler)]
    waked, waker = os.pipe()
    # A full pipe must not hold up the handler of a signal.
    os.set_blocking(waker, False)
    watchdog = threading.Thread(target=_watch, args=(waked, mine, state), name="stopping", daemon=True)
    watchdog.start()
    woken_before = signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    try:
        for number in mine:
            state.handlers_before[number] = signal.signal(number, _raise_once)
        yield
    finally:
        state.is_active = False  # from here on a signal raises nothing
        state.has_ended.set()
        for number, handler in state.handlers_before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(woken_before)
        os.close(waker)  # the watchdog reads the end of the pipe
        # It holds the other end of the pipe.
        watchdog.join()
        os.close(waked)


def _raise_once(number: int, _frame: object) -> None:
    """Raise in the main thread, once: a second signal must not break what puts things in order after the first."""
    if _state.is_active and _state.number is None:
        _state.number = number
        if not _state.is_held:
            raise Stopped(number)


def _forget_signals() -> None:
    """Give a process that was forked off the signals as they were, whichever library forked it.

    It shares the pipe of the watchdog: a signal that ends such a process would end this command, too.
    """
    if _state.is_active:
        _state.is_active = False
        signal.set_wakeup_fd(-1)
        for number, handler in _state.handlers_before.items():
            signal.signal(number, handler)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_signals)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let a signal wait for the end of the block, for what must not be left half done: it should take moments."""
    state = _state
    state.is_held = True
    try:
        yield
    finally:
        state.is_held = False
    if state.is_active and state.number is not None:
        raise Stopped(state.number)


def _watch(waked: int, numbers: list[int], state: _State) -> None:
    """Wait for a signal, then for the main thread; end the process if that takes too long."""
    while byte := os.read(waked, 1):
        number = byte[0]
        if number in numbers and not state.has_ended.wait(GRACE_SECONDS):
            # Whoever still notes a temporary file is stopped there: nobody would remove it.
            _state.number, _state.must_end = _state.number or number, True
            try:
                put_in_order(Stopped(number))
            finally:
                os._exit(128 + number)


def remove_temporary() -> None:
    """Remove the files and folders that must not outlive this process, those of joblib among them."""
    with _lock:
        left = list(_temporary)
    folders = {Path(tempfile.gettempdir()), Path("/dev/shm")}
    left += [path for folder in folders for path in folder.glob(f"joblib_memmapping_folder_{os.getpid()}_*")]
    for path in left:
        with suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _descendants(number: int) -> list[int]:
    """Return the processes below one; where there is no /proc, those that multiprocessing knows.

    Those that only clean up after others are left out: they end by themselves.
    """
    if not Path("/proc/self/stat").exists():
        processes = sys.modules.get("multiprocessing")
        return [] if processes is None else [child.pid for child in processes.active_children()]
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if b"resource_tracker" not in (folder / "cmdline").read_bytes():
                children.setdefault(parent, []).append(int(folder.name))
    found = list(children.get(number, []))
    for child in found:
        found += children.get(child, [])
    return found
