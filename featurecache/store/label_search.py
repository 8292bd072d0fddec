"""Which column of a table names the samples of a source, told by what stands in it and not by what it is called."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from featurecache.errors import TaskError
from featurecache.store.label_matching import is_sample_id, loose_forms, match_names, name_of
from featurecache.store.labels import Label
from featurecache.tables import Row, Table, first_line_is_row, sample_columns
from featurecache.wording import counted, some_of

MOST_ROWS = 10_000
MOST_FIELDS = 1_000_000
"""Looked at: of a table with very many columns fewer rows."""
_FIRST = 1000
_MOST_NAMED = 20


@dataclass(frozen=True, slots=True)
class ColumnMatch:
    """How far the entries of a column are names of samples.

    Attributes
    ----------
    column : str
    num_rows, num_matched : int
        Rows looked at, and those whose entry names a sample.
    num_names : int
        Samples that are named, each counted once.
    is_apart : bool
        No entry stands in two rows.
    problem : str
        Why the column names no samples although entries match.
    """

    column: str
    num_rows: int
    num_matched: int
    num_names: int
    is_apart: bool
    problem: str = ""

    def __str__(self) -> str:
        return f"{self.column!r} {self.problem or f'{self.num_matched:,}'}"


def match_columns(columns: Mapping[str, Sequence[str]], names: Iterable[str]) -> list[ColumnMatch]:
    """Match the entries of columns to the names of a source, by the rules for names in a table of labels.

    Parameters
    ----------
    columns : mapping of str to sequence of str
        The entries by column, one for each row.
    names : iterable of str
        Of the source; gone through once, and only those that an entry may mean are held.
    """
    entries_of = {column: [name_of(entry) if entry.strip() else "" for entry in columns[column]] for column in columns}
    wanted = {form for entries in entries_of.values() for entry in set(entries) - {""} for form in loose_forms(entry)}
    able = [name for name in names if not wanted.isdisjoint(loose_forms(name))]
    matches = []
    for column, entries in entries_of.items():
        distinct = dict.fromkeys(entry for entry in entries if entry)
        try:
            paths, problem = match_names(distinct, able).paths, ""
        except TaskError:
            paths, problem = {}, "fits several each"
        is_apart = len(distinct) == sum(map(bool, entries))
        # Ages of 1 to 90 fit files of such names; what names samples by numbers gives each its own.
        if paths and not is_apart and all(entry.isdigit() for entry in distinct):
            problem = "repeats numbers"
        num_matched = sum(entry in paths for entry in entries)
        matches.append(ColumnMatch(column, len(entries), num_matched, len(set(paths.values())), is_apart, problem))
    return matches


def chosen_column(matches: Sequence[ColumnMatch], num_names: int) -> str | None:
    """Return the one column that names samples: in all rows, or in half of them, or half of the samples.

    Parameters
    ----------
    matches : sequence of ColumnMatch
    num_names : int
        Samples of the source.
    """
    able = [match for match in matches if match.num_matched and not match.problem]
    whole = [match for match in able if match.num_matched == match.num_rows]
    # A table that lists more than the source holds has most of its rows for other samples.
    most = [match for match in able if 2 * match.num_matched >= match.num_rows or 2 * match.num_names >= num_names]
    for found in (whole, most):
        # What stands in one row each names samples rather than what repeats.
        found = found if len(found) < 2 else [match for match in found if match.is_apart]
        if found:
            return found[0].column if len(found) == 1 else None
    return None


def search_key_column(columns: Sequence[str], rows: Sequence[Row], names: Sequence[str]) -> tuple[str | None, str]:
    """Return the column whose entries name the samples of a source, if it is one, and what was tried.

    Parameters
    ----------
    columns : sequence of str
        That may name samples.
    rows : sequence of mapping
        The first ones of the table, without empty ones.
    names : sequence of str
        Of the source.
    """
    entries = {column: [row.get(column) or "" for row in rows] for column in columns}
    matches = match_columns(entries, names)
    # The nearest first, where not all are named.
    shown = some_of([str(match) for match in sorted(matches, key=lambda match: -match.num_matched)], _MOST_NAMED)
    tried = f"of {counted(len(rows), 'row')} so many name samples of the source: {shown}"
    return chosen_column(matches, len(names)), tried


def begins_with_row(table: Table, names: Sequence[str] | None) -> bool:
    """Tell whether a table of text has no header: its first line names a file, or a sample as those below do.

    Parameters
    ----------
    table : Table
        As it was opened, with a header.
    names : sequence of str, optional
        Of the source.
    """
    columns = table.columns
    # Data frames without names of columns are written with their numbers in the first line.
    is_known = bool(sample_columns(columns)) or columns == list(map(str, range(len(columns))))
    if table.format is None or names is None or is_known or first_line_is_row(columns):
        return table.format is not None and first_line_is_row(columns)
    forms = {form: column for column in columns if column for form in loose_forms(name_of(column))}
    able = {forms[form] for name in names for form in loose_forms(name) if form in forms}
    if not able:
        return False
    rows = [row for _, row in islice(table, _FIRST)]
    entries = {column: [row.get(column) or "" for row in rows] for column in able}
    below = match_columns(entries, names)
    whole = match_columns({column: [column, *fields] for column, fields in entries.items()}, names)
    return any(
        found.num_matched == match.num_matched + 1 and found.is_apart and 2 * match.num_matched >= match.num_rows > 0
        for match, found in zip(below, whole, strict=True)
    )


def names_some(labels: Sequence[Label], names: Sequence[str]) -> bool:
    """Tell whether labels may be of samples of a source at all; where not, no rule of matching finds one.

    Parameters
    ----------
    labels : sequence of Label
    names : sequence of str
        Of the source.
    """
    if any(is_sample_id(label.key) for label in labels):
        return True
    # Nearly always the first ones tell.
    for some in (labels[:_FIRST], labels[_FIRST:]):
        wanted = {form for label in some for form in loose_forms(label.key)}
        if wanted and any(not wanted.isdisjoint(loose_forms(name)) for name in names):
            return True
    return False
