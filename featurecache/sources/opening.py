"""From what somebody named as a source to the source: a plain spec that travels, opened where it arrives.

A source of another distribution is found by its entry point in the group ``featurecache.sources``: a callable that
takes a URL and the options by name. Its name is the scheme: ``tars`` opens ``tars://bucket/photos``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurecache.errors import RequestError, SourceError, shortened
from featurecache.plugins import load_named
from featurecache.sources.files import NamedFiles
from featurecache.sources.folder import FolderSource
from featurecache.sources.source import Source
from featurecache.sources.text_table import TextTable
from featurecache.specs import MAX_FILE_BYTES
from featurecache.tables import TableError, open_table

GROUP = "featurecache.sources"
OWN: dict[str, Callable[..., Source]] = {"folder": FolderSource, "text_table": TextTable}
_TABLES = (".csv", ".tsv", ".tab")


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """What somebody named as a source, in plain values.

    Attributes
    ----------
    kind : str
        ``folder``, ``text_table``, or the name of an entry point.
    url : str
        Where it is, as the user wrote it.
    options : tuple of (str, value)
        Sorted by name.
    """

    kind: str
    url: str
    options: tuple[tuple[str, Any], ...] = ()


def source_spec(
    path: str | Path, *, text_column: str | None = None, id_column: str | None = None, max_bytes: int = MAX_FILE_BYTES
) -> SourceSpec:
    """Return what a path or URL and the options of a table stand for.

    Parameters
    ----------
    path : path or str
        A folder of images; with ``text_column`` given, a table of texts (CSV or TSV); a URL ``KIND://...``.
    text_column : str, optional
        The column that holds the texts.
    id_column : str, optional
        The column that names its rows; their numbers where left out.
    max_bytes : int
        Of a folder, larger files are not read, not even to identify them.

    Raises
    ------
    RequestError
        A column is named that names rows, and none that holds texts.
    SourceError
        A file where a folder is wanted.
    """
    columns = {"id_column": id_column, "text_column": text_column}
    options = tuple((name, column) for name, column in columns.items() if column is not None)
    # A path may hold a colon, but hardly this.
    kind, scheme, _ = str(path).partition("://")
    if scheme:
        return SourceSpec(kind, str(path), options)
    if text_column is not None:
        return SourceSpec("text_table", str(path), options)
    if id_column is not None:
        raise RequestError(f"--id-column {id_column} is for tables of texts; add --text-column NAME")
    if Path(path).is_file():
        raise SourceError(f"{path} is {_what_it_is(Path(path))}")
    return SourceSpec("folder", str(path), (("max_bytes", max_bytes),))


def open_spec(spec: SourceSpec) -> Source:
    """Open the source that a spec names."""
    source: Source = load_named("kind of source", spec.kind, OWN, group=GROUP)(spec.url, **dict(spec.options))
    return source


def open_source(path: str | Path, *, text_column: str | None = None, id_column: str | None = None) -> Source:
    """Open what a path or URL and the options of a table stand for.

    Parameters
    ----------
    path, text_column, id_column
        As for `source_spec`.
    """
    return open_spec(source_spec(path, text_column=text_column, id_column=id_column))


def open_sources(paths: Sequence[str | Path]) -> list[Source]:
    """Open files, folders and URLs as sources, in their order; files that follow each other are one.

    Raises
    ------
    SourceError
        There is no such file or folder.
    """
    # A source for each file would mean a batch for each file.
    sources, files = list[Source](), list[Path]()
    for path in paths:
        if "://" not in str(path) and not Path(path).is_dir():
            if not os.path.lexists(path):  # a link that leads nowhere is a bad input, not an error
                raise SourceError(f"no input at {path}: there is no such file or folder")
            files.append(Path(path))
            continue
        sources += [NamedFiles(files)] if files else []
        files = []
        sources.append(open_source(path))
    return [*sources, *([NamedFiles(files)] if files else [])]


def _what_it_is(path: Path) -> str:
    """Say what a file is where a folder of images or a table with its column of texts was wanted."""
    if path.suffix.lower() in _TABLES:
        try:
            with open_table(path, raw=True) as table:
                columns = shortened(", ".join(table.columns))
            return f"a table with the columns {columns}; name the one that holds the texts with --text-column"
        except TableError:
            pass
    return "a file; name the folder that holds the images, or add --text-column NAME if it is a table of texts"
