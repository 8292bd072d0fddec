"""How a table of text is written: what divides columns, what quotes are, and whether rows say types of columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

SAMPLE = 1 << 16
"""Characters in which the delimiter is looked for."""
_DELIMITERS = ",;\t|"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".jp2", ".dcm")
_ORANGE_TYPES = {"c", "continuous", "n", "numeric", "d", "discrete", "categorical", "s", "string", "text", "t", "time"}
_ORANGE_ROLES = {"c", "class", "m", "meta", "i", "ignore", "w", "weight"}


def delimiter_of(sample: str, default: str) -> str:
    """Return what stands between columns: what divides the first rows the most alike, into the most columns."""
    best, most = default, (0.0, 1)
    # The usual one first: of equals the first is taken.
    for mark in (default, *(mark for mark in _DELIMITERS if mark != default)):
        try:
            rows = [row for row in islice(csv.reader(io.StringIO(sample, newline=""), delimiter=mark), 50) if row]
        except csv.Error:
            continue
        if len(sample) == SAMPLE and len(rows) > 1:
            rows.pop()  # it may be cut
        if not rows or len(rows[0]) < 2:
            continue
        alike = sum(len(row) == len(rows[0]) for row in rows) / len(rows)
        if (alike, len(rows[0])) > most:
            best, most = mark, (alike, len(rows[0]))
    if most == (0.0, 1) and _lists_files(sample):
        return " "
    return best


def _lists_files(sample: str) -> bool:
    """Tell whether spaces stand between the columns of a list of images, as in those of ImageNet: a name, a number."""
    lines = [line.split(" ") for line in sample.splitlines()[:50] if line.strip()]
    rows = lines[1:] or lines  # the first may name the columns
    return (
        bool(lines)
        and len({len(row) for row in lines}) == 1
        and any(all(field.lower().endswith(IMAGE_SUFFIXES) for field in column) for column in zip(*rows, strict=True))
        and len(rows[0]) > 1
    )


def comments_above(sample: str) -> tuple[list[str], str]:
    """Return the lines at the start of a table that begin with ``#``, and what comes below them."""
    lines = list(io.StringIO(sample, newline=""))  # as files have lines, and `splitlines` more
    count = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return lines[:count], "".join(lines[count:])


def num_above(beginning: Sequence[str], below: str, delimiter: str, is_known: Callable[[list[str]], bool]) -> int:
    """Return how many of the lines that begin with ``#`` are comments above the table; the next may name its columns.

    Parameters
    ----------
    beginning, below
        As `comments_above` returns them.
    delimiter : str
        Between columns.
    is_known : callable
        Tells whether a row holds a name of a column that is known.
    """

    def first(text: str) -> list[str]:
        return next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])

    try:
        row = first(below.lstrip("\r\n"))
        for number, line in enumerate(beginning):
            fields = first(line)
            # Fewer fields than a row are no names of columns, nor is what stands above such names.
            is_comment = len(fields) < len(row) or (
                is_known([name.strip() for name in row]) and not is_known([name.lstrip("# ") for name in fields])
            )
            if not is_comment:
                return number
        return len(beginning)
    except csv.Error:  # read as it is, which says what is wrong
        return 0


def quotes_are_letters(lines: Iterable[str]) -> bool:
    """Tell whether quotes in a table with tabs are letters: one is left open in its line, and no line needs that.

    Most programs write texts between tabs as they are. Read as quoted, a text that begins with a quote would take the
    rows that follow into it, up to the next quote, without a word. A field that really goes on in the next line leaves
    lines with too few tabs.
    """
    num_tabs, is_open = None, False
    for line in lines:
        if not line.strip("\r\n"):
            continue
        if num_tabs is None:
            num_tabs = line.count("\t")
        if line.count("\t") != num_tabs:
            return False
        if not is_open and '"' in line:
            try:
                next(csv.reader([line], delimiter="\t", strict=True))
            except csv.Error:
                is_open = True
    return is_open and bool(num_tabs)


def says_types(rows: Sequence[Sequence[str]]) -> bool:
    """Tell whether the rows after the names of columns are those of Orange: types of columns, then their roles."""
    if len(rows) < 2:
        return False
    roles = [role for field in rows[1] for role in field.split()]
    return all(field.strip() in _ORANGE_TYPES for field in rows[0]) and all(
        role in _ORANGE_ROLES or "=" in role for role in roles
    )
