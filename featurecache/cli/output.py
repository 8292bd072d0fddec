"""What the verbs print: tables and JSON on stdout, progress on stderr."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from featurecache.errors import OutputFailure, ReportWarning, plain_text
from featurecache.progress import Progress, Silent, bars


def print_json(value: Any) -> None:
    """Print one JSON document."""
    # As it is made: a document of all predictions or rows as one text would be held twice.
    for chunk in json.JSONEncoder(indent=1, allow_nan=False).iterencode(value):
        sys.stdout.write(chunk.replace("\x7f", "\\u007f"))  # the one control character that JSON leaves raw
    print()


def dumped(value: Any) -> str:
    """Return a value as JSON on one line, without the one control character that JSON leaves raw."""
    return json.dumps(value, allow_nan=False).replace("\x7f", "\\u007f")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, numbers: Sequence[str] = ()) -> None:
    """Print a table.

    Parameters
    ----------
    columns
        Titles.
    rows
        Cells of each row; anything that `str` writes.
    numbers
        Titles of columns that are aligned right.
    """
    from rich.console import Console

    table = laid_out(columns, rows, numbers=numbers)
    # In a file or a pipe nothing should be cut to the width of some terminal.
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    with console.capture() as drawn:  # rich ends the process itself where nobody reads any more
        console.print(table)
    sys.stdout.write(drawn.get())


def laid_out(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, numbers: Sequence[str] = ()) -> Any:
    """Return a table of rich, for what `print_table` says."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain_text(str(value))) for value in row))  # never markup: names of files and classes
    return table


def print_line(text: str = "") -> None:
    """Print one line."""
    print(plain_text(text))


def warn(text: str) -> None:
    """Say something on stderr."""
    print(f"featurecache: {plain_text(text)}", file=sys.stderr)


def print_warnings(warnings: Iterable[ReportWarning], *, to_stderr: bool = False) -> None:
    """Print warnings, one line each, where a summary ends."""
    for warning in warnings:
        shown = ", ".join(warning.examples)
        more = ", ..." if warning.count > len(warning.examples) else ""
        line = f"warning: {warning.text}" + (f" ({shown}{more})" if shown else "")
        (warn if to_stderr else print_line)(line)


def report_failures(failures: Sequence[OutputFailure], *, debug: bool) -> int:
    """Print which outputs could not be written, and return the exit status that this makes: 1 where there are any."""
    # On stderr: stdout may be one JSON document, which says it in a field of its own.
    for failure in failures:
        if debug:
            traceback.print_exception(failure.error)
        print(f"featurecache: error: {failure.text}", file=sys.stderr)
    # Not 2: the request was right, and its results are there.
    return int(bool(failures))


@contextmanager
def progress_on_stderr(*, quiet: bool) -> Iterator[Progress]:
    """Draw progress on stderr while the block runs; silent when stderr is no terminal."""
    # A log file of a cluster would be filled with redrawn bars.
    if quiet or not sys.stderr.isatty():
        yield Silent()
        return
    with bars(stderr=True) as drawn:
        yield drawn


def counting(progress: Progress, phase: str) -> Callable[[int, int], None]:
    """Return what draws a phase for somebody who calls it with (done, to do) after each step."""

    def step(done: int, total: int) -> None:
        # The store tells its steps and knows no phases.
        if done == 1:
            progress.start(phase, total)
        progress.advance(1)

    return step
