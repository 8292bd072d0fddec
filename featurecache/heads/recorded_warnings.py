"""Warnings of one thread, recorded while others warn too: `warnings.catch_warnings` is of the whole process."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from sklearn.exceptions import ConvergenceWarning

_lock = threading.Lock()
_before: list[warnings.catch_warnings[None]] = []
_num_open = 0
_records: dict[int, list[warnings.WarningMessage]] = {}
"""By thread."""


@contextmanager
def warnings_by_thread() -> Iterator[None]:
    """Give each warning to the `recorded_warnings` of its thread, or to whoever was told before where there is none.

    To be entered before threads start that record: what one of them restores when it ends is this then.
    """
    global _num_open
    with _lock:
        _num_open += 1
        if _num_open == 1:
            _before.append(warnings.catch_warnings())
            _before[0].__enter__()
            warnings.simplefilter("always", ConvergenceWarning)
            show = warnings.showwarning

            def show_or_record(message, category, filename, lineno, file=None, line=None):  # type: ignore[no-untyped-def]
                record = _records.get(threading.get_ident())
                if record is None:
                    show(message, category, filename, lineno, file, line)
                else:
                    record.append(warnings.WarningMessage(message, category, filename, lineno, file, line))

            warnings.showwarning = show_or_record
    try:
        yield
    finally:
        with _lock:
            _num_open -= 1
            if _num_open == 0:
                _before.pop().__exit__(None, None, None)


@contextmanager
def recorded_warnings() -> Iterator[list[warnings.WarningMessage]]:
    """Record the warnings of this thread, each `ConvergenceWarning` among them, instead of showing them."""
    thread, found = threading.get_ident(), list[warnings.WarningMessage]()
    with warnings_by_thread():
        outer = _records.get(thread)
        _records[thread] = found
        try:
            yield found
        finally:
            if outer is None:
                del _records[thread]
            else:
                _records[thread] = outer
