"""What a verb writes beside what it prints: a file that cannot be written must not cost the results."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from typing import TypeVar

from featurecache.errors import plain_text, shortened

Written = TypeVar("Written")


class Outputs:
    """Writes one output after the other, and reports those that failed when the results have been printed.

    Attributes
    ----------
    failures : list of str
        One line for each output that could not be written.
    """

    def __init__(self, *, debug: bool = False) -> None:
        self.failures: list[str] = []
        self._debug = debug

    def write(self, what: str, write: Callable[[], Written]) -> Written | None:
        """Return what ``write`` returns; None, and a failure by the name ``what``, where it raises."""
        try:
            return write()
        # Drawing and formatting run other people's code, and hours of fits stand behind it: whatever it raises.
        except Exception as error:
            if self._debug:
                traceback.print_exception(error)
            reason = shortened(error, 1000) or type(error).__name__
            self.failures.append(plain_text(reason if reason.startswith(what) else f"{what}: {reason}"))
            return None

    def report(self) -> int:
        """Print the failures, and return the exit status that they make: 1 where there are any."""
        for failure in self.failures:
            print(f"featurecache: error: {failure}", file=sys.stderr)
        return int(bool(self.failures))
