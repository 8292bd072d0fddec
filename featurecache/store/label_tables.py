"""Labels read from a CSV or TSV: one sample in a row, with its label and perhaps its split, group and weight."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from featurecache.errors import ReportWarning, TaskError, UnknownNameError
from featurecache.hashing import digest_bytes
from featurecache.specs import TaskKind, task_kind
from featurecache.store.labels import SPLIT_OF, Label, TableLabels
from featurecache.tables import Table, TableError, open_table, to_bytes

# Data frames write 1.0 where a column has empty entries, spreadsheets TRUE.
_YES, _NO = {"1", "1.0", "true", "yes"}, {"0", "0.0", "false", "no"}
# Entries of people and data frames for an empty field.
_BLANK = {"", "nan", "na", "n/a", "<na>", "none", "null"}
# Entries for a label that is not known; -1 is how tables of chest X-rays write "uncertain".
_UNCERTAIN = {"-1", "-1.0", "u", "?", "unknown", "uncertain"}
Reading = Literal["missing", "negative", "positive"]
"""How an entry is read that is neither yes nor no."""
Row = dict[str, str | None]


def labels_from_csv(
    path: str | Path,
    *,
    label_column: str | Sequence[str] = "label",
    kind: TaskKind = "classification",
    text_column: str | None = None,
    group_column: str | None = None,
    weight_column: str | None = None,
    root: str | Path | None = None,
    blank: Reading | None = None,
    uncertain: Reading = "missing",
    separator: str = ";|",
) -> TableLabels:
    """Read labels from a CSV or TSV with a label column and perhaps ``split``.

    A label or number that a table leaves open is unknown, and never taken for a no: it is left out of fitting and
    scores. Samples are named by the column ``path`` or ``id``, unless they are texts of the table itself.

    Parameters
    ----------
    path : path
    label_column : str or sequence of str
        Of kind ``classification``, the column of the class. Of kind ``multilabel``, one column that lists the labels
        that hold (or is empty), or several columns with 1 or 0. Of kind ``regression``, each column holds a number.
    kind : str
    text_column : str, optional
        Column of the texts. A row whose label is empty is skipped there, and an error in all other tables.
    group_column : str, optional
        Samples with the same entry there (a photo, a patient) stay in one split and one fold.
    weight_column : str, optional
        Sample weights in fitting, above 0.
    root : path, optional
        The source of the paths; all sources of the cache when left out.
    blank, uncertain : {"missing", "negative", "positive"}, optional
        How empty entries (NaN, NA, None, null), and -1, u, ? and unknown, are read. An empty list of labels is none
        of them by default.
    separator : str
        Characters between labels in one column.

    Raises
    ------
    TaskError
        No such file, a column is missing, or a row is incomplete.
    """
    columns = (label_column,) if isinstance(label_column, str) else tuple(label_column)
    reader = _RowReader(
        Path(path), task_kind(kind), columns, text_column, group_column, weight_column, blank, uncertain, separator
    )
    return reader.read(None if root is None else Path(root))


@dataclass(slots=True)
class _RowReader:
    """Reads rows of one table, and counts those that hold nothing."""

    path: Path
    kind: TaskKind
    columns: tuple[str, ...]
    text_column: str | None
    group_column: str | None
    weight_column: str | None
    blank: Reading | None
    uncertain: Reading
    separator: str
    num_unknown_rows: int = 0
    """Rows that are left out, because none of their labels or numbers is known."""
    num_without_labels: int = 0
    """Rows whose one list of labels is empty."""

    def read(self, root: Path | None) -> TableLabels:
        """Return the labels of the whole table."""
        try:
            with open_table(self.path, raw=self.text_column is not None) as table:
                if self.kind == "classification" and len(self.columns) > 1:
                    raise TaskError(
                        f"{len(self.columns)} label columns are named, and a sample has one class; name one column, or "
                        "say --kind multilabel or --kind regression"
                    )
                if self.kind != "multilabel" and (self.blank or self.uncertain != "missing"):
                    raise TaskError(
                        f"--blank and --uncertain are for tasks of kind multilabel, not {self.kind}; leave them out"
                    )
                labels = tuple(self._labels(table))
        except TableError as error:
            raise TaskError(f"cannot read labels from {self.path}: {error}") from None
        if not labels:
            nothing = "says nothing of any of its rows" if self.num_unknown_rows else "has a header but no labels"
            raise TaskError(f"{self.path} {nothing}")
        listed = self.kind == "classification" or (self.kind == "multilabel" and len(self.columns) == 1)
        return TableLabels(
            labels=labels,
            origin=self.path.name,
            root=root,
            kind=self.kind,
            names=() if listed else self.columns,
            warnings=tuple(self._warnings(labels)),
        )

    def _labels(self, table: Table) -> Iterator[Label]:
        key_column = self._check_columns(table.columns)
        for number, (line, row) in enumerate(table, start=1):
            key, target = row.get(key_column), self._target(line, row)
            if self.text_column is not None and key is None:
                raise TaskError(f"{self.path} line {line} has fewer fields than the header; put texts in double quotes")
            if target is None:
                continue
            (label, unknown), shown = target, None
            empty = not label and self.kind != "multilabel"
            if self.text_column is not None:
                if empty:  # such a table may hold other labels, for other rows
                    continue
                # The sample id that the bytes of the text have as an input.
                key, shown = digest_bytes(to_bytes(key or "")), f"row {number:09d}"
            elif not (key := (key or "").strip()) or empty:
                column = next(
                    (column_name for column_name in self.columns if not (row.get(column_name) or "").strip()),
                    key_column,
                )
                raise TaskError(
                    f"{self.path} line {line}: the {column if key else key_column} is empty; fill it or drop the line"
                )
            elif key_column == "path":
                key = str(PurePosixPath(key.replace("\\", "/")))
            split, group, weight = self._split(line, row), self._group(line, row), self._weight(line, row)
            yield Label(key, label, split, shown, group, weight, unknown)

    def _check_columns(self, columns: list[str]) -> str:
        """Return the column that names the samples."""
        named = [("--label-column", column) for column in self.columns]
        named += [("--text-column", self.text_column or ""), ("--group-column", self.group_column or "")]
        for option, column in [*named, ("--weight-column", self.weight_column or "")]:
            if column and column not in columns:
                error = UnknownNameError("column", column, columns, advice=f"choose one with {option}")
                raise TaskError(f"{self.path}: {error}")
        for key_column in ("path", "id") if self.text_column is None else (self.text_column,):
            if key_column in columns:
                return key_column
        raise TaskError(
            f"{self.path} needs a column 'path' (relative to the source) or 'id'; it has: {', '.join(columns)}; if one "
            "of them holds the texts themselves, name it with --text-column"
        )

    def _target(self, line: int, row: Row) -> tuple[str, tuple[str, ...]] | None:
        """Return `Label.label` and `Label.unknown` of a row; None where nothing of several is known.

        The first is empty where a row has no class or no number.
        """
        entries = [(row.get(column) or "").strip() for column in self.columns]
        for column, entry in zip(self.columns, entries, strict=True):
            if not entry.isprintable():
                raise TaskError(f"{self.path} line {line}: the {column} is no plain text: {entry!r:.100}")
        if self.kind == "classification":
            return entries[0], ()
        if self.kind == "regression":
            return self._numbers(line, entries)
        if len(self.columns) == 1:
            return self._listed_labels(entries[0])
        holds = {column: self._holds(line, column, entry) for column, entry in zip(self.columns, entries, strict=True)}
        if set(holds.values()) == {None}:
            self.num_unknown_rows += 1
            return None
        unknown = tuple(sorted(column for column, value in holds.items() if value is None))
        return "\n".join(sorted(column for column, value in holds.items() if value)), unknown

    def _numbers(self, line: int, entries: list[str]) -> tuple[str, tuple[str, ...]] | None:
        blank = [entry.lower() in _BLANK or entry == "?" for entry in entries]
        if all(blank):
            if len(entries) == 1:
                return "", ()
            self.num_unknown_rows += 1
            return None
        numbers = [
            math.nan if is_blank else self._number(line, column, entry)
            for column, entry, is_blank in zip(self.columns, entries, blank, strict=True)
        ]
        return "\n".join(map(repr, numbers)), ()

    def _listed_labels(self, entry: str) -> tuple[str, tuple[str, ...]] | None:
        word = entry.lower()
        reading = (self.blank or "negative") if word in _BLANK else self.uncertain if word in _UNCERTAIN else None
        if reading == "missing":
            self.num_unknown_rows += 1
            return None
        if reading is not None:
            self.num_without_labels += self.blank is None
            return "", ()
        names = {name.strip() for name in re.split(f"[{re.escape(self.separator)}]", entry)} - {""}
        return "\n".join(sorted(names)), ()

    def _holds(self, line: int, column: str, entry: str) -> bool | None:
        """Tell whether a label holds; None where that is not known."""
        if (word := entry.lower()) in _YES or word in _NO:
            return word in _YES
        if word in _BLANK or word in _UNCERTAIN:
            reading = (self.blank or "missing") if word in _BLANK else self.uncertain
            return None if reading == "missing" else reading == "positive"
        raise TaskError(f"{self.path} line {line}: the {column} is neither 1 nor 0: {entry!r:.100}")

    def _split(self, line: int, row: Row) -> str | None:
        word = (row.get("split") or "").strip().lower()
        if word and word not in SPLIT_OF:
            raise TaskError(f"{self.path} line {line}: unknown split {word!r}; use train, validation or test")
        return SPLIT_OF[word] if word else None

    def _group(self, line: int, row: Row) -> str | None:
        group = (row.get(self.group_column or "") or "").strip()
        if self.group_column is not None and not group:
            raise TaskError(
                f"{self.path} line {line}: the {self.group_column} is empty; fill it, with a name of its own where "
                "alone"
            )
        return group if self.group_column is not None else None

    def _weight(self, line: int, row: Row) -> float | None:
        if self.weight_column is None:
            return None
        entry = (row.get(self.weight_column) or "").strip()
        if entry and (weight := self._number(line, self.weight_column, entry)) > 0:
            return weight
        wrong = f"must be above 0, not {entry!r:.100}" if entry else "is empty; say 1 where a sample counts as most do"
        raise TaskError(f"{self.path} line {line}: the {self.weight_column} {wrong}; drop the line to leave it out")

    def _number(self, line: int, column: str, entry: str) -> float:
        try:
            number = float(entry)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise TaskError(f"{self.path} line {line}: the {column} is no number: {entry!r:.100}")
        return number

    def _warnings(self, labels: Sequence[Label]) -> Iterator[ReportWarning]:
        of_label = [
            label.label.split("\n").count("nan") if self.kind == "regression" else len(label.unknown)
            for label in labels
        ]
        if self.num_unknown_rows or sum(of_label):
            rows = (
                f"; {self.num_unknown_rows} rows say nothing at all and are left out" if self.num_unknown_rows else ""
            )
            advice = "; --blank negative or --uncertain negative where such a cell means no"
            yield ReportWarning(
                kind="unknown_targets",
                count=sum(of_label) + self.num_unknown_rows,
                text=f"{sum(of_label)} of {len(labels) * len(self.columns)} cells are not known, and have no part in "
                f"fitting and judging{rows}{advice if self.kind == 'multilabel' else ''}",
            )
        if self.num_without_labels:
            yield ReportWarning(
                kind="unknown_targets",
                count=self.num_without_labels,
                text=f"{self.num_without_labels} rows have no label in {self.columns[0]!r}, which is taken for none of "
                "them; --blank missing where that is not known",
            )
        if self.kind != "regression" and len(self.columns) == 1:
            yield from _joined_labels(self.columns[0], self.kind, labels)


def _joined_labels(column: str, kind: TaskKind, labels: Sequence[Label]) -> Iterator[ReportWarning]:
    """Yield a warning where entries seem to name several labels that were taken for one.

    That is where entries split at a separator give fewer names than there are entries: names come again, combined with
    others.
    """
    multilabel = kind == "multilabel"
    entries = {name for label in labels for name in (label.label.split("\n") if multilabel else [label.label]) if name}
    # Names of classes hold spaces and strokes; commas, and other separators of labels, are seldom inside one.
    for separator in (",", "/", "+", "&", " ") if multilabel else ",;|":
        several = sorted(name for name in entries if separator in name.strip(separator))
        names = {piece.strip() for name in entries for piece in name.split(separator)} - {""}
        if len(several) >= 3 and 2 * len(several) >= len(entries) and len(names) < len(entries):
            yield ReportWarning(
                kind="joined_labels",
                count=len(several),
                text=f"{len(entries)} different entries of {column!r} are made of {len(names)} names joined by "
                f"{separator!r}, and each entry is taken for one name; divide them with "
                f"{'' if multilabel else '--kind multilabel '}--separator {separator!r}",
                examples=tuple(several),
            )
            return
