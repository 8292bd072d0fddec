"""Labels as people have them: folder names, or a table of paths (or ids, or the inputs themselves) and labels."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from featurecache.errors import ReportWarning, TaskError, UnknownNameError
from featurecache.hashing import digest_bytes
from featurecache.specs import TaskKind, task_kind
from featurecache.tables import Table, TableError, open_table, to_bytes

SPLITS = ("train", "validation", "test")
_YES, _NO = {"1", "1.0", "true", "yes"}, {"0", "0.0", "false", "no"}
_BLANK = {"", "nan", "na", "n/a", "<na>", "none", "null"}
"""Cells that say nothing, as people and data frames write them."""
_UNCERTAIN = {"-1", "-1.0", "u", "?", "unknown", "uncertain"}
"""Cells that say that it is not known; -1 is how tables of chest X-rays write "uncertain"."""
_OTHER_SEPARATORS = (",", "/", "+", "&", " ")
Reading = Literal["missing", "negative", "positive"]
"""What a cell is taken for that says neither yes nor no."""
_SPLIT_OF = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}


@dataclass(frozen=True, slots=True)
class Label:
    """What somebody says of one input: ``key`` is a path relative to its source, or a sample id (hex)."""

    key: str
    label: str
    split: str | None = None
    shown: str | None = None
    """What people call the input, where the key is not for them."""
    group: str | None = None
    """What it has in common with others that must not be on the other side of a division: a photo, a patient."""
    weight: float | None = None
    """How much it counts in fitting."""
    unknown: tuple[str, ...] = ()
    """Of several labels, those of which it is not known whether they hold."""

    @property
    def name(self) -> str:
        """What people call the input."""
        return self.shown or self.key


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderLabels:
    """The class of a file is its folder; a folder named train, val or test above it is its split."""

    root: Path | None = None
    """The source whose files are labelled; ``None`` means every source of the cache."""

    def of(self, paths: Iterable[str]) -> list[Label]:
        """Label the paths; a file that lies in no class folder gets no label."""
        return [label for path in paths if (label := label_of_path(path)) is not None]

    @property
    def origin(self) -> str:
        """Where the labels came from, in words."""
        return "folders"


@dataclass(frozen=True, kw_only=True, slots=True)
class TableLabels:
    """Labels listed one by one.

    Attributes
    ----------
    kind : str
        Of classes, `Label.label` is the name; of labels, the names of those that hold, one on each line; of numbers,
        the numbers, one on each line, ``nan`` where one is not known.
    names : tuple of str
        Of the numbers, or of labels that have columns of their own.
    warnings : tuple of ReportWarning
        What is doubtful about the table.
    """

    labels: tuple[Label, ...]
    origin: str
    root: Path | None = None
    kind: TaskKind = "classification"
    names: tuple[str, ...] = ()
    warnings: tuple[ReportWarning, ...] = ()


def labels_from_folders(root: str | Path | None = None) -> FolderLabels:
    """Take the folder of each file as its class.

    Parameters
    ----------
    root : path, optional
        The source that was extracted; all sources of the cache when left out.
    """
    return FolderLabels(root=None if root is None else Path(root))


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

    Of kind ``classification``, the column names the class. Of kind ``multilabel``, one column names all labels that
    hold, with ``;`` or ``|`` between them, or is empty; or each of several columns is a label, with 1 or 0. Of kind
    ``regression``, each column holds a number.

    What a table does not say is not known, and never taken for a no: of several labels or numbers, those cells have no
    part in fitting and judging. ``blank`` says otherwise for empty cells (and NaN, NA, None, null), which in a column
    that names all labels are taken for none of them; ``uncertain`` for -1, u, ? and unknown. ``separator`` holds the
    characters that stand between labels in one column.

    With ``group_column``, inputs that have the same entry there (a photo, a patient) stay on one side of every
    division. With ``weight_column``, they count in fitting as much as the number there says.

    What is labelled is named by the column ``path`` or ``id``, or stands in ``text_column``. A row whose label is empty
    is an error, but where texts stand in the table, which may hold other labels beside this one: there it is no label.

    Raises
    ------
    TaskError
        No such file, a column is missing, or a row is incomplete.
    """
    path, kind = Path(path), task_kind(kind)
    try:
        with open_table(path, raw=text_column is not None) as table:
            columns = (label_column,) if isinstance(label_column, str) else tuple(label_column)
            if kind == "classification" and len(columns) > 1:
                raise TaskError(
                    f"{len(columns)} label columns are named, and a sample has one class; name one column, or say "
                    "--kind multilabel or --kind regression"
                )
            if kind != "multilabel" and (blank or uncertain != "missing"):
                raise TaskError(f"--blank and --uncertain are for tasks of kind multilabel, not {kind}; leave them out")
            said = _Said(path, kind, columns, group_column, weight_column, blank, uncertain, separator)
            key_column = _check_columns(said, table.columns, text_column)
            if text_column is None:
                rows = (_label_of_row(said, line, row, key_column) for line, row in table)
                labels = tuple(label for label in rows if label is not None)
            else:
                labels = tuple(_labels_of_texts(table, text_column, said))
    except TableError as error:
        raise TaskError(f"cannot read labels from {path}: {error}") from None
    if not labels:
        nothing = "says nothing of any of its rows" if said.num_silent else "has a header but no labels"
        raise TaskError(f"{path} {nothing}")
    named = () if kind == "classification" or (kind == "multilabel" and len(columns) == 1) else columns
    return TableLabels(
        labels=labels,
        origin=path.name,
        root=None if root is None else Path(root),
        kind=kind,
        names=named,
        warnings=tuple(said.warnings(labels)),
    )


def label_of_path(path: str) -> Label | None:
    """Return the label and split that the folders of a relative path say."""
    folders = PurePosixPath(path).parts[:-1]
    if not folders or (len(folders) > 0 and _SPLIT_OF.get(folders[-1].lower())):
        return None  # directly in the root, or in a split folder: no class
    splits = [split for folder in folders[:-1] if (split := _SPLIT_OF.get(folder.lower()))]
    return Label(key=path, label=folders[-1], split=splits[-1] if splits else None)


def _check_columns(said: _Said, columns: list[str], text_column: str | None) -> str:
    others = {
        "--text-column": text_column,
        "--group-column": said.group_column,
        "--weight-column": said.weight_column,
    }
    wanted = [("--label-column", column) for column in said.columns] + list(others.items())
    for option, column in wanted:
        if column and column not in columns:
            error = UnknownNameError("column", column, columns, advice=f"choose one with {option}")
            raise TaskError(f"{said.path}: {error}")
    for key_column in ("path", "id") if text_column is None else (text_column,):
        if key_column in columns:
            return key_column
    raise TaskError(
        f"{said.path} needs a column 'path' (relative to the source) or 'id'; it has: {', '.join(columns)}; if one of "
        "them holds the texts themselves, name it with --text-column"
    )


@dataclass(slots=True)
class _Said:
    """Where a table says what of a sample."""

    path: Path
    kind: TaskKind
    columns: tuple[str, ...]
    group_column: str | None = None
    weight_column: str | None = None
    blank: Reading | None = None
    uncertain: Reading = "missing"
    separator: str = ";|"
    num_silent: int = 0
    """Rows that were left out, because they say nothing of several labels or numbers."""
    num_without_labels: int = 0
    """Rows whose one cell for all labels is empty."""

    def of(self, line: int, row: dict[str, str | None]) -> tuple[str, tuple[str, ...]] | None:
        """Return what a row says and which labels it does not know, as `Label` keeps it.

        The first is empty where a row names no class or has no number. None for a row that knows nothing of several.

        Raises
        ------
        TaskError
            What is no class, label or number.
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
            return self._tags(entries[0])
        holds = {column: self._holds(line, column, entry) for column, entry in zip(self.columns, entries, strict=True)}
        if set(holds.values()) == {None}:
            self.num_silent += 1
            return None
        unknown = tuple(sorted(column for column, each in holds.items() if each is None))
        return "\n".join(sorted(column for column, each in holds.items() if each)), unknown

    def _numbers(self, line: int, entries: list[str]) -> tuple[str, tuple[str, ...]] | None:
        blank = [entry.lower() in _BLANK or entry == "?" for entry in entries]
        if all(blank):
            if len(entries) == 1:
                return "", ()
            self.num_silent += 1
            return None
        numbers = [
            math.nan if is_blank else self._number(line, column, entry)
            for column, entry, is_blank in zip(self.columns, entries, blank, strict=True)
        ]
        return "\n".join(map(repr, numbers)), ()

    def _tags(self, entry: str) -> tuple[str, tuple[str, ...]] | None:
        """Return the labels that one cell names; an empty one names none, unless it was said that it is unknown."""
        word = entry.lower()
        reading = (self.blank or "negative") if word in _BLANK else self.uncertain if word in _UNCERTAIN else None
        if reading == "missing":
            self.num_silent += 1
            return None
        if reading is not None:
            self.num_without_labels += self.blank is None
            return "", ()
        names = {name.strip() for name in re.split(f"[{re.escape(self.separator)}]", entry)} - {""}
        return "\n".join(sorted(names)), ()

    def _num_unknown(self, label: Label) -> int:
        return label.label.split("\n").count("nan") if self.kind == "regression" else len(label.unknown)

    def warnings(self, labels: Sequence[Label]) -> Iterator[ReportWarning]:
        """Yield what is doubtful about the table, once all rows have been read."""
        count, total = sum(self._num_unknown(label) for label in labels), len(labels) * len(self.columns)
        if self.num_silent or count:
            rows = f"; {self.num_silent} rows say nothing at all and are left out" if self.num_silent else ""
            advice = (
                "; --blank negative or --uncertain negative where such a cell means no"
                if self.kind == "multilabel"
                else ""
            )
            yield ReportWarning(
                kind="unknown_targets",
                count=count + self.num_silent,
                text=f"{count} of {total} cells are not known, and have no part in fitting and judging{rows}{advice}",
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

    def beside(self, line: int, row: dict[str, str | None]) -> dict[str, Any]:
        """Return what a row says beside the label: the split, the group and the weight, as `Label` takes them.

        Raises
        ------
        TaskError
            An unknown split, no group, or what is no weight.
        """
        return {
            "split": _split_of_row(self.path, line, row),
            "group": self._group(line, row),
            "weight": self._weight(line, row),
        }

    def _group(self, line: int, row: dict[str, str | None]) -> str | None:
        if self.group_column is None:
            return None
        if group := (row.get(self.group_column) or "").strip():
            return group
        raise TaskError(
            f"{self.path} line {line}: the {self.group_column} is empty; fill it, with a name of its own where alone"
        )

    def _weight(self, line: int, row: dict[str, str | None]) -> float | None:
        if self.weight_column is None:
            return None
        entry = (row.get(self.weight_column) or "").strip()
        weight = self._number(line, self.weight_column, entry)
        if weight is not None and weight > 0:
            return weight
        wrong = f"must be above 0, not {entry!r:.100}" if entry else "is empty; say 1 where a sample counts as most do"
        raise TaskError(f"{self.path} line {line}: the {self.weight_column} {wrong}; drop the line to leave it out")

    def _number(self, line: int, column: str, entry: str) -> float | None:
        try:
            number = float(entry) if entry else None
        except ValueError:
            number = math.nan
        if number is not None and not math.isfinite(number):
            raise TaskError(f"{self.path} line {line}: the {column} is no number: {entry!r:.100}")
        return number

    def _holds(self, line: int, column: str, entry: str) -> bool | None:
        """Tell whether a label holds; None where that is not known."""
        if (word := entry.lower()) in _YES or word in _NO:
            return word in _YES
        if word in _BLANK or word in _UNCERTAIN:
            reading = (self.blank or "missing") if word in _BLANK else self.uncertain
            return None if reading == "missing" else reading == "positive"
        raise TaskError(f"{self.path} line {line}: the {column} is neither 1 nor 0: {entry!r:.100}")


def _joined_labels(column: str, kind: TaskKind, labels: Sequence[Label]) -> Iterator[ReportWarning]:
    """Yield a warning where one cell seems to name several labels that were taken for one.

    That is where divided cells give fewer names than there are whole ones: names come again in other company.
    """
    whole = {
        name
        for label in labels
        for name in (label.label.split("\n") if kind == "multilabel" else [label.label])
        if name
    }
    # Names of classes hold spaces and strokes; commas, and what stands between labels, are seldom part of one.
    for separator in _OTHER_SEPARATORS if kind == "multilabel" else ",;|":
        several = sorted(name for name in whole if separator in name.strip(separator))
        pieces = {piece.strip() for name in whole for piece in name.split(separator)} - {""}
        if len(several) >= 3 and 2 * len(several) >= len(whole) and len(pieces) < len(whole):
            means = (
                f"--separator {separator!r}" if kind == "multilabel" else f"--kind multilabel --separator {separator!r}"
            )
            yield ReportWarning(
                kind="joined_labels",
                count=len(several),
                text=f"{len(whole)} different entries of {column!r} are made of {len(pieces)} names joined by "
                f"{separator!r}, and each entry is taken for one name; divide them with {means}",
                examples=tuple(several),
            )
            return


def _labels_of_texts(table: Table, text_column: str, said: _Said) -> Iterator[Label]:
    """Label texts by what they are: the key is the sample id that their bytes have as inputs."""
    for number, (line, row) in enumerate(table, start=1):
        text, found = row.get(text_column), said.of(line, row)
        if text is None:
            raise TaskError(f"{table.path} line {line} has fewer fields than the header; put texts in double quotes")
        if found is not None and (found[0] or said.kind == "multilabel"):
            beside = said.beside(line, row)
            yield Label(digest_bytes(to_bytes(text)), found[0], unknown=found[1], shown=f"row {number:09d}", **beside)


def _split_of_row(path: Path, line: int, row: dict[str, str | None]) -> str | None:
    word = (row.get("split") or "").strip().lower()
    if word and word not in _SPLIT_OF:
        raise TaskError(f"{path} line {line}: unknown split {word!r}; use train, validation or test")
    return _SPLIT_OF[word] if word else None


def _label_of_row(said: _Said, line: int, row: dict[str, str | None], key_column: str) -> Label | None:
    path = said.path
    if (found := said.of(line, row)) is None:
        return None
    (label, unknown), key = found, (row.get(key_column) or "").strip()
    if not key or not (label or said.kind == "multilabel"):
        empty = next((column for column in said.columns if not (row.get(column) or "").strip()), key_column)
        raise TaskError(f"{path} line {line}: the {empty if key else key_column} is empty; fill it or drop the line")
    if key_column == "path":
        key = str(PurePosixPath(key.replace("\\", "/")))
    return Label(key=key, label=label, unknown=unknown, **said.beside(line, row))
