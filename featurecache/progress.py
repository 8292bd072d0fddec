"""What a long run reports while it goes on, and who draws it: the command line, or a notebook by itself."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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


@contextmanager
def listening(progress: Progress | None = None) -> Iterator[Progress]:
    """Give who listens: the caller's own, or bars while the block runs, or nobody.

    Parameters
    ----------
    progress : Progress, optional
    """
    # Not imported to be asked: whoever runs in a notebook or a shell of IPython has it already.
    ipython = sys.modules.get("IPython")
    in_notebook = ipython is not None and ipython.get_ipython() is not None
    if progress is not None:
        yield progress
    elif _verbosity == "progress" or (_verbosity == "auto" and in_notebook):
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


@dataclass
class _Drawn:
    """Draws with rich's bars; a phase is a task of theirs."""

    bars: Any
    task: Any = None
    num_bad: int = 0

    def start(self, phase: str, total: int) -> None:
        # A bar without a total moves to and fro; one of 0 steps would be done at once.
        self.task = self.bars.add_task(phase, total=total or None, rate="", bad="", status="")
        self.num_bad = 0

    def advance(self, count: int, *, bad: int = 0) -> None:
        self.num_bad += bad
        # rich gives no task by its number.
        task = next(task for task in self.bars.tasks if task.id == self.task)
        rate = f"{task.speed:.0f}/s" if task.speed else ""
        self.bars.update(self.task, advance=count, rate=rate, bad=f"{self.num_bad} bad" if self.num_bad else "")

    def say(self, text: str) -> None:
        # What is said before the first phase has no bar to stand at.
        if self.task is not None:
            self.bars.update(self.task, status=plain_text(text))

    def note(self, text: str) -> None:
        # Not as markup: a note may name files, and brackets in a name would be taken for a style.
        self.bars.console.print(plain_text(text), markup=False, highlight=False)
