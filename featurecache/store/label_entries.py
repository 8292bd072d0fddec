"""What the entries of label columns say: a class, which of several labels hold, or numbers."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from featurecache.errors import TaskError
from featurecache.specs import TaskKind
from featurecache.tables import ListField

# Data frames write 1.0 where a column has empty entries, spreadsheets TRUE.
YES, NO = {"1", "1.0", "true", "yes", "y", "t"}, {"0", "0.0", "false", "no", "n", "f"}
# Entries of people and data frames for an empty field.
BLANK = {"", "nan", "na", "n/a", "<na>", "none", "null"}
# Where a name of a class is expected, only as pandas reads them by default: "none" may well be a class.
NO_CLASS = {"#N/A", "#NA", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null", "-nan", "-NaN", "NaT"}
# Entries for a label that is not known; -1 is how tables of chest X-rays write "uncertain".
UNCERTAIN = {"-1", "-1.0", "u", "?", "unknown", "uncertain"}
Reading = Literal["missing", "negative", "positive"]
"""How an entry is read that is neither yes nor no."""
Target = tuple[str, tuple[str, ...]]
"""`Label.label` and `Label.unknown`."""


@dataclass(slots=True)
class TargetReader:
    """Reads the targets of one table, and counts those that say nothing.

    Attributes
    ----------
    kind : str
    columns : tuple of str
    blank, uncertain : {"missing", "negative", "positive"} or None
        How empty entries and those that say "unknown" are read, of a multilabel task.
    separator : str
        Characters between labels in one column; spaces count only where there is nothing else.
    keep_na : bool
        NA, NaN, None and the like are names of classes.
    decimal_comma : bool
        Decimals may be written with a comma.
    """

    kind: TaskKind
    columns: tuple[str, ...]
    blank: Reading | None
    uncertain: Reading
    separator: str
    keep_na: bool = False
    decimal_comma: bool = False
    num_unknown_rows: int = 0
    """Rows that are left out, because none of their labels or numbers is known."""
    num_without_labels: int = 0
    """Rows whose one list of labels is empty."""

    def read(self, where: str, entries: Sequence[str]) -> Target | None:
        """Return the target of a row; None where nothing is said.

        Parameters
        ----------
        where : str
            The row, for messages.
        entries : sequence of str
            Of the columns, without spaces around.
        """
        for column, entry in zip(self.columns, entries, strict=True):
            if isinstance(entry, ListField) and not (self.kind == "multilabel" and len(self.columns) == 1):
                raise TaskError(f"{where}: the {column} holds several values; say --kind multilabel")
            if not entry.isprintable():
                raise TaskError(f"{where}: the {column} is no plain text: {entry!r:.100}")
        if self.kind == "classification" and len(self.columns) > 1:
            return self._one_of(where, entries)
        if self.kind == "classification":
            is_empty = not entries[0] or (entries[0] in NO_CLASS and not self.keep_na)
            return None if is_empty else (entries[0], ())
        if self.kind == "regression":
            return self._numbers(where, entries)
        if len(self.columns) == 1:
            return self._listed_labels(entries[0])
        holds = {column: self._holds(where, column, entry) for column, entry in zip(self.columns, entries, strict=True)}
        if set(holds.values()) == {None}:
            self.num_unknown_rows += 1
            return None
        unknown = tuple(sorted(column for column, value in holds.items() if value is None))
        return "\n".join(sorted(column for column, value in holds.items() if value)), unknown

    def _one_of(self, where: str, entries: Sequence[str]) -> Target | None:
        """Return the class of a row that has a column for each."""
        if all(entry.lower() in BLANK for entry in entries):
            return None
        holds = [
            column for column, entry in zip(self.columns, entries, strict=True) if self._holds(where, column, entry)
        ]
        if len(holds) == 1:
            return holds[0], ()
        which = f"{holds[0]!r} and {holds[1]!r} are both 1" if holds else f"none of {len(entries)} columns is 1"
        raise TaskError(f"{where}: {which}, and a sample has one class; drop the line, or say --kind multilabel")

    def _numbers(self, where: str, entries: Sequence[str]) -> Target | None:
        blank = [entry.lower() in BLANK or entry == "?" for entry in entries]
        if all(blank):
            self.num_unknown_rows += len(entries) > 1
            return None
        numbers = [
            math.nan if is_blank else number_of(where, column, entry, decimal_comma=self.decimal_comma)
            for column, entry, is_blank in zip(self.columns, entries, blank, strict=True)
        ]
        return "\n".join(map(repr, numbers)), ()

    def _listed_labels(self, entry: str) -> Target | None:
        items = entry.items if isinstance(entry, ListField) else _items_of(entry)
        if items:
            return "\n".join(sorted({item.strip() for item in items} - {""})), ()
        word = entry.lower()
        reading = (self.blank or "negative") if word in BLANK else self.uncertain if word in UNCERTAIN else None
        if reading == "missing":
            self.num_unknown_rows += 1
            return None
        if reading is not None:
            self.num_without_labels += self.blank is None
            return "", ()
        # A comma and a space are a comma: a space of its own may be inside a name.
        marks = self.separator.strip() or self.separator
        names = {name.strip() for name in re.split(f"[{re.escape(marks)}]", entry)} - {""}
        return "\n".join(sorted(names)), ()

    def _holds(self, where: str, column: str, entry: str) -> bool | None:
        """Tell whether a label holds; None where that is not known."""
        if (word := entry.lower()) in YES or word in NO:
            return word in YES
        if word in BLANK or word in UNCERTAIN:
            reading = (self.blank or "missing") if word in BLANK else self.uncertain
            return None if reading == "missing" else reading == "positive"
        raise TaskError(f"{where}: the {column} is neither 1 nor 0: {entry!r:.100}")


def _items_of(entry: str) -> tuple[str, ...]:
    """Return the texts of a list that a program wrote into a cell as it prints it; none of other entries."""
    if not (entry.startswith("[") and entry.endswith("]")):
        return ()
    try:
        found = ast.literal_eval(entry)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return ()
    return tuple(found) if isinstance(found, list) and all(isinstance(item, str) for item in found) else ()


def number_of(where: str, column: str, entry: str, *, decimal_comma: bool = False) -> float:
    """Return the finite number that an entry is.

    Parameters
    ----------
    where, column : str
        For messages.
    entry : str
    decimal_comma : bool
        Decimals may be written with a comma.

    Raises
    ------
    TaskError
        It is none.
    """
    with_comma = re.fullmatch(r"[+-]?\d+,\d+", entry)
    try:
        if "_" in entry:  # which Python takes for a number
            raise ValueError(entry)
        number = float(entry.replace(",", ".") if with_comma and decimal_comma else entry)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        advice = "; decimals are written with a point, or with a comma where ; stands between columns"
        advice = advice if with_comma else ""
        raise TaskError(f"{where}: the {column} is no number: {entry!r:.100}{advice}")
    return number
