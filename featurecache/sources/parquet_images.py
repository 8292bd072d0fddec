"""Parquet files with a column of encoded images."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from featurecache.errors import SourceError, UnknownNameError, shortened
from featurecache.sources.datasets import IMAGE_COLUMNS
from featurecache.sources.parquet_files import ParquetRows, modules


class ParquetImages(ParquetRows):
    """The images in one column of Parquet files; each file is a unit.

    Parameters
    ----------
    url : str
        A path or URL of one file, or a pattern of several.
    column : str, optional
        Holds the images: bytes, or ``bytes`` in a struct, as Hugging Face has it; by its name where left out.
    max_bytes : int
        Larger images are not read.
    """

    def find_column(self, schema: Any, where: str) -> str:
        """Return the path of the column of images; see `ParquetRows.find_column`."""
        found, wanted = _columns_of_bytes(schema), self.column
        if wanted is not None and wanted not in found:
            error = UnknownNameError("column of images", wanted, list(found), advice="choose one with --path-column")
            raise SourceError(f"{where}: {error}")
        named = [wanted] if wanted is not None else [name for name in IMAGE_COLUMNS if name in found] or [*found]
        if not named:
            names, advice = shortened(", ".join(schema.names)), "of texts, name the column with --text-column"
            raise SourceError(f"{where} has no column of encoded images; it has: {names}; {advice}")
        return found[named[0]]


def image_columns(path: Path) -> tuple[list[str], list[str]]:
    """Return the columns of a file, and those that may hold encoded images; none where that cannot be told.

    Parameters
    ----------
    path : Path

    Raises
    ------
    SourceError
        It is no whole Parquet file.
    """
    if find_spec("pyarrow") is None or not path.is_file():
        return [], []
    arrow, parquet = modules()
    try:
        schema = parquet.read_schema(path)
    except (arrow.ArrowException, OSError) as error:
        raise SourceError(f"{path} is no whole Parquet file: {shortened(str(error), 200)}") from None
    return schema.names, [*_columns_of_bytes(schema)]


def _columns_of_bytes(schema: Any) -> dict[str, str]:
    types, found = modules()[0].types, {}
    for field in schema:
        parts = {part.name: part.type for part in field.type} if types.is_struct(field.type) else {}
        for path, kind in ((field.name, field.type), (f"{field.name}.bytes", parts.get("bytes"))):
            if kind is not None and (types.is_binary(kind) or types.is_large_binary(kind)):
                found[field.name] = path
    return found
