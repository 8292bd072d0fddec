"""Where samples come from: a folder of images or a table of texts, behind one protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featurecache.errors import RequestError, SourceError, shortened
from featurecache.sources.folder import Entries, FolderSource
from featurecache.sources.inputs import Input
from featurecache.sources.text_table import TableSource
from featurecache.specs import MAX_FILE_BYTES, AnyPreprocess
from featurecache.tables import TableError, open_table

_TEXT_TABLES = (".csv", ".tsv", ".tab")


class Source(Protocol):
    """Lists its inputs, identifies them by their bytes, and hands them out."""

    @property
    def root(self) -> Path:
        """What the source is known by in a cache, relative to which its inputs are named."""
        ...

    @property
    def modality(self) -> str:
        """Kind of its inputs, as a preprocess names it."""
        ...

    @property
    def noun(self) -> str:
        """What its inputs are called, several of them."""
        ...

    def check(self) -> None:
        """Raise `SourceError` when it is missing or empty; quick where that can be told quickly."""
        ...

    def find(self) -> Entries:
        """List the inputs."""
        ...

    def identify(
        self, listing: Entries, places: NDArray[np.int64], *, on_read: Callable[[int], None] = lambda count: None
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
        """Read some inputs of a listing and yield blocks of (places, ids): ids are the SHA-256 of the bytes."""
        ...

    def inputs(
        self, paths: Sequence[str], ids: Sequence[str], stamps: NDArray[np.int64] | None = None
    ) -> Sequence[Input]:
        """Return some inputs, by path and id (hex).

        With their stamps from a listing, those that have not been touched since need not be identified once more.
        """
        ...


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """What somebody named as a source, in plain values: it travels, and the source is opened where it arrives.

    Attributes
    ----------
    kind : str
        ``folder``, ``text_table``.
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
    """Return what a path and the options of a table stand for.

    Parameters
    ----------
    path : path
        A folder of images; with ``text_column`` given, a table of texts (CSV or TSV).
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
    if text_column is not None:
        options = (
            {"text_column": text_column} if id_column is None else {"id_column": id_column, "text_column": text_column}
        )
        return SourceSpec("text_table", str(path), tuple(options.items()))
    if id_column is not None:
        raise RequestError(f"--id-column {id_column} is for tables of texts; add --text-column NAME")
    if Path(path).is_file():
        raise SourceError(f"{path} is {_what_it_is(Path(path))}")
    return SourceSpec("folder", str(path), (("max_bytes", max_bytes),))


def open_source(path: str | Path, *, text_column: str | None = None, id_column: str | None = None) -> Source:
    """Open what a path and the options of a table stand for; the parameters are those of `source_spec`."""
    return open_spec(source_spec(path, text_column=text_column, id_column=id_column))


def open_spec(spec: SourceSpec) -> Source:
    """Open the source that a spec names."""
    if spec.kind == "text_table":
        return TableSource(Path(spec.url), **dict(spec.options))
    return FolderSource(Path(spec.url), **dict(spec.options))


def check_modality(source: Source, preprocess: AnyPreprocess, backbone: str) -> None:
    """Raise `SourceError` when a backbone takes another kind of input than a source holds."""
    if source.modality != preprocess.modality:
        advice = "name a table and its --text-column" if preprocess.modality == "text" else "name a folder of images"
        raise SourceError(
            f"{backbone} takes {preprocess.modality}s, and {source.root} holds {source.modality}s; {advice}, or choose "
            "another backbone"
        )


def _what_it_is(path: Path) -> str:
    """Say what a file is where a folder of images or a table with its column of texts was wanted."""
    if path.suffix.lower() in _TEXT_TABLES:
        try:
            with open_table(path, raw=True) as table:
                columns = shortened(", ".join(table.columns))
            return f"a table with the columns {columns}; name the one that holds the texts with --text-column"
        except TableError:
            pass
    return "a file; name the folder that holds the images, or add --text-column NAME if it is a table of texts"
