"""How a table of text is written: what divides columns, what quotes are, and whether rows say types of columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from itertools import islice

SAMPLE = 1 << 16
"""Characters in which the delimiter is looked for."""
_DELIMITERS = ",;\t|"
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
    return best


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
