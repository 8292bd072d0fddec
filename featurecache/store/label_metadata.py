"""Tables of labels beside the samples: in a folder of the source, or one in the folder of each split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from featurecache.errors import TaskError
from featurecache.store.label_folders import label_of_path
from featurecache.store.labels import SPLIT_OF, TableLabels

_SUFFIXES = (".csv", ".jsonl", ".parquet")
"""Of the tables that Hugging Face calls ``metadata``."""


def are_labels_beside(folder: str | Path, names: Iterable[str]) -> bool:
    """Tell whether tables beside the samples are to say their labels: there are some, and folders say no classes.

    Parameters
    ----------
    folder : str or Path
    names : iterable of str
        Of the samples in it.
    """
    classes = {label.label for label in map(label_of_path, names) if label is not None}
    return len(classes) < 2 and any(map(_is_metadata, Path(folder).rglob("metadata.*")))


def metadata_tables(folder: Path) -> list[Path]:
    """Return the tables beside samples in a folder and those below it, as Hugging Face names them.

    Raises
    ------
    TaskError
        There is none.
    """
    found = sorted(filter(_is_metadata, folder.rglob("metadata.*")))
    if not found:
        raise TaskError(
            f"cannot read labels from {folder}: it is a folder without metadata.csv, .jsonl or .parquet; name a table, "
            "or take its folders as classes with --from-folders"
        )
    return found


def joined_tables(folder: Path, paths: Sequence[Path], parts: Sequence[TableLabels]) -> TableLabels:
    """Return the labels of several tables below a folder; folders with the name of a split say it.

    Parameters
    ----------
    folder : Path
    paths : sequence of Path
        Of the tables.
    parts : sequence of TableLabels
        What each of them says.

    Raises
    ------
    TaskError
        Their labels have other names.
    """
    labels = []
    for path, part in zip(paths, parts, strict=True):
        if part.names != parts[0].names:
            raise TaskError(
                f"{paths[0]} has labels called {', '.join(parts[0].names)}, and {path} {', '.join(part.names)}; name "
                "the columns with --label-column"
            )
        folders = [name.lower() for name in path.parent.relative_to(folder).parts]
        split = next((SPLIT_OF[name] for name in folders if name in SPLIT_OF), None)
        labels += [label if label.split else replace(label, split=split) for label in part.labels]
    warnings = dict.fromkeys(warning for part in parts for warning in part.warnings)
    return replace(parts[0], labels=tuple(labels), origin=folder.name, warnings=tuple(warnings))


def named_beside(path: Path, labels: TableLabels, names: Sequence[str] | None) -> TableLabels:
    """Return the labels of a table by the names that samples beside it have in the source.

    A name that fits several samples of the source, as ``0001.jpg`` does of ``train/`` and ``test/``, means that beside
    the table, if all names of the table are there.

    Parameters
    ----------
    path : Path
        The table.
    labels : TableLabels
    names : sequence of str, optional
        Of the source.
    """
    keys, known = {label.key for label in labels.labels}, frozenset(names or ())
    if not known or keys <= known:
        return labels
    # Where the source begins is not said: any end of the path may be a folder of it.
    folders = path.absolute().parts[1:-1]
    for start in range(len(folders)):
        prefix = "/".join(folders[start:])
        if all(f"{prefix}/{key}" in known for key in keys):
            return replace(labels, labels=tuple(replace(label, key=f"{prefix}/{label.key}") for label in labels.labels))
    return labels


def _is_metadata(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and path.is_file()
