"""Parquet files with a column of texts, of which each is a unit; one file of this machine is read as a table."""

from __future__ import annotations

from typing import Any

from featurecache.errors import SourceError, UnknownNameError
from featurecache.sources.parquet_files import ParquetRows, modules
from featurecache.specs import MAX_FILE_BYTES


class ParquetTexts(ParquetRows):
    """The texts in one column of Parquet files; each file is a unit, read some pages at a time.

    A row without a text is a bad input.

    Parameters
    ----------
    url : str
        A path or URL of one file, or a pattern of several.
    text_column : str
        Holds the texts.
    max_bytes : int
        Larger texts are not read.
    """

    modality = "text"
    noun = "text"

    def __init__(self, url: str, *, text_column: str, max_bytes: int = MAX_FILE_BYTES) -> None:
        super().__init__(url, column=text_column, max_bytes=max_bytes)
        self.text_column = text_column

    def find_column(self, schema: Any, where: str) -> str:
        """Return the column of texts; see `ParquetRows.find_column`."""
        types, texts = modules()[0].types, list[str]()
        for field in schema:
            kind = field.type.value_type if types.is_dictionary(field.type) else field.type
            if types.is_string(kind) or types.is_large_string(kind):
                texts.append(field.name)
        if self.text_column not in texts:
            error = UnknownNameError("column of texts", self.text_column, texts, advice="choose one with --text-column")
            raise SourceError(f"{where}: {error}")
        return self.text_column
