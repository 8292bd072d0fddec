"""Where samples come from: a folder of images or a table of texts, behind one protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from featurecache.errors import RequestError, SourceError, shortened
from featurecache.sources.folder import Entries, FolderSource
from featurecache.sources.inputs import Input
from featurecache.sources.text_table import TableSource
from featurecache.specs import MAX_FILE_BYTES
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


def open_source(
    path: str | Path, *, text_column: str | None = None, id_column: str | None = None, max_bytes: int = MAX_FILE_BYTES
) -> Source:
    """Return the source at a place.

    Parameters
    ----------
    path
        A folder of images; with ``text_column`` given, a table of texts (CSV or TSV).
    text_column
        The column that holds the texts.
    id_column
        The column that names its rows; their numbers where left out.
    max_bytes
        Of a folder, larger files are not read, not even to identify them.
    """
    if text_column is not None:
        return TableSource(Path(path), text_column, id_column)
    if id_column is not None:
        raise RequestError(f"--id-column {id_column} is for tables of texts; add --text-column NAME")
    if Path(path).is_file():
        raise SourceError(f"{path} is {_what_it_is(Path(path))}")
    return FolderSource(Path(path), max_bytes)


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
