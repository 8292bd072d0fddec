"""What every process takes that is started to help this one: a quiet begin, and an end with its starter."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from featurecache.stopping import uninterrupted

# Windows has no masks of signals.
_SIGNALS = (signal.SIGINT, signal.SIGTERM) if hasattr(signal, "pthread_sigmask") else ()


@contextmanager
def starting_processes() -> Iterator[None]:
    """Start processes by ``spawn`` in this block: undisturbed by signals, and without the main module.

    Ctrl-C goes to all processes of a terminal, and one that is left without what it begins with prints a traceback; so
    signals are blocked in it until it calls `hear_signals`.
    """
    with uninterrupted(), _no_main_module(), _signals_blocked():
        yield


def hear_signals() -> None:
    """Let signals in that were blocked when this process started."""
    if _SIGNALS:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def end_with_starter() -> None:
    """Have a thread send SIGTERM to this process once its starter is gone, also one that was killed."""

    def watch() -> None:
        starter = multiprocessing.parent_process()
        assert starter is not None
        starter.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="starter", daemon=True).start()


@contextmanager
def _no_main_module() -> Iterator[None]:
    """Hide the main module while a process starts.

    It would be imported there: a script without ``if __name__ == "__main__"`` would run once more in each worker, and
    nothing of it is needed.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _signals_blocked() -> Iterator[None]:
    if not _SIGNALS:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
