"""Labels as people have them: folder names, or a table of paths (or ids) and labels."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from featurecache.errors import TaskError, UnknownNameError

SPLITS = ("train", "validation", "test")
_SPLIT_OF = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}


@dataclass(frozen=True, slots=True)
class Label:
    """What somebody says of one input: ``key`` is a path relative to its source, or a sample id (hex)."""

    key: str
    label: str
    split: str | None = None


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
    """Labels listed one by one."""

    labels: tuple[Label, ...]
    origin: str
    root: Path | None = None


def labels_from_folders(root: str | Path | None = None) -> FolderLabels:
    """Take the folder of each file as its class.

    Parameters
    ----------
    root : path, optional
        The source that was extracted; all sources of the cache when left out.
    """
    return FolderLabels(root=None if root is None else Path(root))


def labels_from_csv(path: str | Path, *, label_column: str = "label", root: str | Path | None = None) -> TableLabels:
    """Read labels from a CSV with the columns ``path`` or ``id``, a label column and perhaps ``split``.

    Raises
    ------
    TaskError
        No such file, a column is missing, or a row is incomplete.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or [])
            key_column = _check_columns(path, columns, label_column)
            labels = tuple(_label_of_row(path, reader.line_num, row, key_column, label_column) for row in reader)
    except UnicodeDecodeError:
        raise TaskError(f"cannot read labels from {path}: it is not UTF-8 text; save it as CSV UTF-8") from None
    except (OSError, csv.Error) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise TaskError(f"cannot read labels from {path}: {why}") from None
    if not labels:
        raise TaskError(f"{path} has a header but no labels")
    return TableLabels(labels=labels, origin=path.name, root=None if root is None else Path(root))


def label_of_path(path: str) -> Label | None:
    """Return the label and split that the folders of a relative path say."""
    folders = PurePosixPath(path).parts[:-1]
    if not folders or (len(folders) > 0 and _SPLIT_OF.get(folders[-1].lower())):
        return None  # directly in the root, or in a split folder: no class
    splits = [split for folder in folders[:-1] if (split := _SPLIT_OF.get(folder.lower()))]
    return Label(key=path, label=folders[-1], split=splits[-1] if splits else None)


def _check_columns(path: Path, columns: list[str], label_column: str) -> str:
    if len(columns) == 1 and any(mark in columns[0] for mark in ";\t"):
        raise TaskError(f"{path}: the columns must be separated by commas, the first line is {columns[0]!r}")
    if label_column not in columns:
        error = UnknownNameError("column", label_column, columns, advice="choose one with --label-column")
        raise TaskError(f"{path}: {error}")
    for key_column in ("path", "id"):
        if key_column in columns:
            return key_column
    raise TaskError(f"{path} needs a column 'path' (relative to the source) or 'id'; it has: {', '.join(columns)}")


def _label_of_row(path: Path, line: int, row: dict[str, str | None], key_column: str, label_column: str) -> Label:
    key, label = (row.get(key_column) or "").strip(), (row.get(label_column) or "").strip()
    if not key or not label:
        raise TaskError(
            f"{path} line {line}: the {key_column if not key else label_column} is empty; fill it or drop the line"
        )
    word = (row.get("split") or "").strip().lower()
    if word and word not in _SPLIT_OF:
        raise TaskError(f"{path} line {line}: unknown split {word!r}; use train, validation or test")
    if key_column == "path":
        key = str(PurePosixPath(key.replace("\\", "/")))
    return Label(key=key, label=label, split=_SPLIT_OF[word] if word else None)
