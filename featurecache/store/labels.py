"""Labels as people have them: folder names, or a table of paths (or ids, or the inputs themselves) and labels."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from featurecache.errors import TaskError, UnknownNameError
from featurecache.hashing import digest_bytes
from featurecache.specs import TaskKind
from featurecache.tables import Table, TableError, open_table, to_bytes

SPLITS = ("train", "validation", "test")
_YES, _NO = {"1", "1.0", "true", "yes"}, {"0", "0.0", "-1", "false", "no", ""}
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
        the numbers, one on each line.
    names : tuple of str
        Of the numbers, or of labels that have columns of their own.
    """

    labels: tuple[Label, ...]
    origin: str
    root: Path | None = None
    kind: TaskKind = "classes"
    names: tuple[str, ...] = ()


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
    kind: TaskKind = "classes",
    text_column: str | None = None,
    group_column: str | None = None,
    weight_column: str | None = None,
    root: str | Path | None = None,
) -> TableLabels:
    """Read labels from a CSV or TSV with a label column and perhaps ``split``.

    Of kind ``classes``, the column names the class. Of kind ``labels``, one column names all labels that hold, with
    ``;`` or ``|`` between them, or is empty; or each of several columns is a label, with 1 or 0. Of kind ``numbers``,
    each column holds a number.

    With ``group_column``, inputs that have the same entry there (a photo, a patient) stay on one side of every
    division. With ``weight_column``, they count in fitting as much as the number there says.

    What is labelled is named by the column ``path`` or ``id``, or stands in ``text_column``. A row whose label is empty
    is an error, but where texts stand in the table, which may hold other labels beside this one: there it is no label.

    Raises
    ------
    TaskError
        No such file, a column is missing, or a row is incomplete.
    """
    path = Path(path)
    try:
        with open_table(path, raw=text_column is not None) as table:
            columns = (label_column,) if isinstance(label_column, str) else tuple(label_column)
            if kind == "classes" and len(columns) > 1:
                raise TaskError(
                    f"{len(columns)} label columns are named, and a sample has one class; name one column, or say "
                    "--kind labels or --kind numbers"
                )
            said = _Said(path, kind, columns, group_column, weight_column)
            key_column = _check_columns(said, table.columns, text_column)
            if text_column is None:
                labels = tuple(_label_of_row(said, line, row, key_column) for line, row in table)
            else:
                labels = tuple(_labels_of_texts(table, text_column, said))
    except TableError as error:
        raise TaskError(f"cannot read labels from {path}: {error}") from None
    if not labels:
        raise TaskError(f"{path} has a header but no labels")
    named = () if kind == "classes" or (kind == "labels" and len(columns) == 1) else columns
    return TableLabels(
        labels=labels, origin=path.name, root=None if root is None else Path(root), kind=kind, names=named
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


@dataclass(frozen=True, slots=True)
class _Said:
    """Where a table says what of a sample."""

    path: Path
    kind: TaskKind
    columns: tuple[str, ...]
    group_column: str | None = None
    weight_column: str | None = None

    def of(self, line: int, row: dict[str, str | None]) -> str:
        """Return what a row says, as `TableLabels` keeps it; empty where a row names no class or lacks a number.

        Raises
        ------
        TaskError
            What is no class, label or number.
        """
        entries = [(row.get(column) or "").strip() for column in self.columns]
        for column, entry in zip(self.columns, entries, strict=True):
            if not entry.isprintable():
                raise TaskError(f"{self.path} line {line}: the {column} is no plain text: {entry!r:.100}")
        if self.kind == "classes":
            return entries[0]
        if self.kind == "numbers":
            numbers = [self._number(line, *each) for each in zip(self.columns, entries, strict=True)]
            return "" if None in numbers else "\n".join(map(repr, numbers))
        if len(self.columns) == 1:
            names = {name.strip() for name in re.split("[;|]", entries[0])} - {""}
        else:
            holds = [self._holds(line, *each) for each in zip(self.columns, entries, strict=True)]
            names = {column for column, each in zip(self.columns, holds, strict=True) if each}
        return "\n".join(sorted(names))

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

    def _holds(self, line: int, column: str, entry: str) -> bool:
        if (word := entry.lower()) in _YES or word in _NO:
            return word in _YES
        raise TaskError(f"{self.path} line {line}: the {column} is neither 1 nor 0: {entry!r:.100}")


def _labels_of_texts(table: Table, text_column: str, said: _Said) -> Iterator[Label]:
    """Label texts by what they are: the key is the sample id that their bytes have as inputs."""
    for number, (line, row) in enumerate(table, start=1):
        text, label = row.get(text_column), said.of(line, row)
        if text is None:
            raise TaskError(f"{table.path} line {line} has fewer fields than the header; put texts in double quotes")
        if label or said.kind == "labels":
            beside = said.beside(line, row)
            yield Label(digest_bytes(to_bytes(text)), label, shown=f"row {number:09d}", **beside)


def _split_of_row(path: Path, line: int, row: dict[str, str | None]) -> str | None:
    word = (row.get("split") or "").strip().lower()
    if word and word not in _SPLIT_OF:
        raise TaskError(f"{path} line {line}: unknown split {word!r}; use train, validation or test")
    return _SPLIT_OF[word] if word else None


def _label_of_row(said: _Said, line: int, row: dict[str, str | None], key_column: str) -> Label:
    path = said.path
    key, label = (row.get(key_column) or "").strip(), said.of(line, row)
    if not key or not (label or said.kind == "labels"):
        empty = next((column for column in said.columns if not (row.get(column) or "").strip()), key_column)
        raise TaskError(f"{path} line {line}: the {empty if key else key_column} is empty; fill it or drop the line")
    if key_column == "path":
        key = str(PurePosixPath(key.replace("\\", "/")))
    return Label(key=key, label=label, **said.beside(line, row))
