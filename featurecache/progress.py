"""What a long run reports while it goes on, and who draws it: the command line, or a notebook by itself."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Literal, ParamSpec, Protocol, TypeVar

from featurecache.errors import RequestError, plain_text

Verbosity = Literal["auto", "silent", "progress"]
_verbosity: Verbosity = "auto"
P = ParamSpec("P")
R = TypeVar("R")


class Progress(Protocol):
    """Listens to a run; the command line draws it."""

    def start(self, phase: str, total: int) -> None:
        """Begin a phase of ``total`` steps."""

    def advance(self, count: int, *, bad: int = 0) -> None:
        """Report finished steps, and how many of them were bad inputs."""

    def say(self, text: str) -> None:
        """Tell what the run is waiting for, or has decided, in a few words."""

    def note(self, text: str) -> None:
        """Tell what should stay readable while the run goes on, in a sentence."""


class Silent:
    """Listens and says nothing."""

    def start(self, phase: str, total: int) -> None:
        """Ignore."""

    def advance(self, count: int, *, bad: int = 0) -> None:
        """Ignore."""

    def say(self, text: str) -> None:
        """Ignore."""

    def note(self, text: str) -> None:
        """Ignore."""


def set_verbosity(verbosity: Verbosity) -> None:
    """Say whether functions draw their progress.

    Parameters
    ----------
    verbosity : {"auto", "silent", "progress"}
        ``auto``, the default, draws it in notebooks and IPython, and nowhere else.

    Raises
    ------
    RequestError
        Another word.
    """
    global _verbosity
    if verbosity not in ("auto", "silent", "progress"):
        raise RequestError(f"verbosity is auto, silent or progress; got {verbosity!r}")
    _verbosity = verbosity


def in_notebook() -> bool:
    """Tell whether this program is a notebook or IPython; neither is imported for that."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None


@contextmanager
def listening(progress: Progress | None = None) -> Iterator[Progress]:
    """Give who listens: the caller's own, or bars while the block runs, or nobody.

    Parameters
    ----------
    progress : Progress, optional
    """
    if progress is not None:
        yield progress
    elif _verbosity == "progress" or (_verbosity == "auto" and in_notebook()):
        with bars() as drawn:
            yield drawn
    else:
        yield Silent()


def shows_progress(function: Callable[P, R]) -> Callable[P, R]:
    """Have a function draw its progress where nobody else listens; its argument ``progress`` is passed by name."""

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        given: Any = kwargs.get("progress")
        with listening(given) as progress:
            kwargs["progress"] = progress
            return function(*args, **kwargs)

    return wrapper


@contextmanager
def bars(*, stderr: bool = False) -> Iterator[Progress]:
    """Draw progress as bars of rich while the block runs.

    Parameters
    ----------
    stderr : bool
        There, and not where the results go.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
        TextColumn("[red]{task.fields[bad]}"),
    )
    with Bars(*columns, console=Console(stderr=True) if stderr else None) as drawn:
        yield _Drawn(drawn)


class _Drawn:
    def __init__(self, drawn: Any) -> None:
        self._bars: Any = drawn
        self._task: Any = None
        self._bad = 0

    def start(self, phase: str, total: int) -> None:
        self._task = self._bars.add_task(phase, total=total or None, rate="", bad="", status="")
        self._bad = 0

    def advance(self, count: int, *, bad: int = 0) -> None:
        self._bad += bad
        # rich gives no task by its number.
        task = next(task for task in self._bars.tasks if task.id == self._task)
        rate = f"{task.speed:.0f}/s" if task.speed else ""
        self._bars.update(self._task, advance=count, rate=rate, bad=f"{self._bad} bad" if self._bad else "")

    def say(self, text: str) -> None:
        if self._task is not None:
            self._bars.update(self._task, status=plain_text(text))

    def note(self, text: str) -> None:
        self._bars.console.print(plain_text(text), markup=False, highlight=False)
