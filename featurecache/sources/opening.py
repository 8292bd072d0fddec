"""From what somebody named or holds as a source to the source: a plain spec that travels, opened where it arrives.

A source of another distribution is found by its entry point in the group ``featurecache.sources``: a callable that
takes a URL and the options by name. Its name is the scheme: ``tars`` opens ``tars://bucket/photos``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from featurecache import tables
from featurecache.errors import RequestError, SourceError, UnknownNameError, shortened
from featurecache.files import open_regular
from featurecache.plugins import load_named
from featurecache.sources.datasets import dataset_source, is_dataset, is_hugging_face
from featurecache.sources.file_units import is_pattern
from featurecache.sources.files import NamedFiles
from featurecache.sources.folder import FolderSource
from featurecache.sources.hdf5_arrays import Hdf5Arrays
from featurecache.sources.in_memory import IndexedImages, InMemory, number_names
from featurecache.sources.parquet_files import PARQUET_SUFFIX, ParquetRows
from featurecache.sources.parquet_images import ParquetImages, image_columns
from featurecache.sources.parquet_texts import ParquetTexts
from featurecache.sources.path_list import PathList
from featurecache.sources.path_table import PathTable
from featurecache.sources.remote_files import is_remote
from featurecache.sources.remote_folder import RemoteFolder
from featurecache.sources.source import Source
from featurecache.sources.tars import TAR_SUFFIXES, Tars
from featurecache.sources.text_table import TextTable
from featurecache.specs import MAX_FILE_BYTES
from featurecache.table_files import is_pickle

GROUP = "featurecache.sources"
OWN: dict[str, Callable[..., Source]] = {
    "folder": FolderSource,
    "text_table": TextTable,
    "path_table": PathTable,
    "remote_folder": RemoteFolder,
    "tars": Tars,
    "parquet": ParquetImages,
    "parquet_texts": ParquetTexts,
    "h5": Hdf5Arrays,
}
_HDF5 = (".h5", ".hdf5")
_SAMPLE = 200
"""Rows by which a column of names of files is told."""
_OBJECTS = (".pkl", ".pickle", ".pt", ".pth")
_CONTAINERS = (*TAR_SUFFIXES, PARQUET_SUFFIX, ".zip", *_HDF5)


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
    path: str | Path,
    *,
    text_column: str | None = None,
    id_column: str | None = None,
    path_column: str | None = None,
    allow_local_urls: bool = False,
    max_bytes: int = MAX_FILE_BYTES,
    delimiter: str | None = None,
    has_header: bool = True,
) -> SourceSpec:
    """Return what a path or URL and the options of a table stand for.

    Parameters
    ----------
    path : path or str
        A folder of images; with ``text_column``, a table of texts (CSV, TSV, JSON or Parquet) or a pattern of Parquet
        files, and with ``path_column`` a table of paths and URLs of images; tar files, or Parquet files that hold
        images, one or a pattern; a zip file; an HDF5 file (``h5://FILE::ARRAY``); a folder of any file system that
        fsspec knows (``s3://...``); or ``KIND://...`` of another distribution.
    text_column, path_column : str, optional
        The column that holds the texts, or names the images; of Parquet files also that which holds them.
    id_column : str, optional
        The column that names the rows of texts; their numbers where left out.
    allow_local_urls : bool
        URLs in a table may name this machine and its network.
    max_bytes : int
        Larger images are not read, not even to identify them.
    delimiter : str, optional
        Between the columns of a table; found in its first rows when left out.
    has_header : bool
        The first row of a table names its columns; else they are called ``1``, ``2`` and so on.

    Raises
    ------
    RequestError
        A column is named that names rows, and none that holds texts.
    SourceError
        A file where a folder is wanted.
    """
    text, limit, form = str(path), {"max_bytes": max_bytes}, dict[str, Any]()
    # Left out at their usual values: a source of another distribution need not know them.
    form |= {} if delimiter is None else {"delimiter": delimiter}
    form |= {} if has_header else {"has_header": False}
    columns = {"id_column": id_column, "text_column": text_column}
    of_texts = {name: column for name, column in columns.items() if column is not None}
    of_paths = {"allow_local_urls": allow_local_urls, **form, **limit}

    def spec(kind: str, url: str = text, /, **options: Any) -> SourceSpec:
        return SourceSpec(kind, url, tuple(sorted(options.items())))

    is_parquet = text.lower().endswith(PARQUET_SUFFIX)
    if is_parquet and form and _is_elsewhere(text):
        raise RequestError(f"--delimiter and --no-header are about tables of text, and {path} are Parquet files")
    if text_column is not None and is_parquet and _is_elsewhere(text):
        if id_column is not None:
            raise RequestError(
                f"--id-column {id_column} is for one table; rows of several Parquet files are named by the file and "
                "their number"
            )
        return spec("parquet_texts", text_column=text_column, **limit)
    # Of a URL, options of a table go to the source of its scheme.
    if text_column is not None and "://" not in text:
        return spec("text_table", **of_texts, **form)
    if id_column is not None and "://" not in text:
        raise RequestError(f"--id-column {id_column} is for tables of texts; add --text-column NAME")
    if is_parquet and _holds_images(text, path_column):
        return spec("parquet", **({} if path_column is None else {"column": path_column}), **limit)
    if path_column is not None:
        return spec("path_table", path_column=path_column, **of_paths)
    if text.lower().endswith(TAR_SUFFIXES):
        return spec("tars", **limit)
    # A path may hold a colon, but hardly this.
    kind, scheme, _ = text.partition("://")
    if is_remote(text) and kind not in OWN:
        return spec("remote_folder", **limit)
    if scheme:
        return spec(kind, **of_texts)
    if Path(path).is_file():
        if text.lower().endswith(".zip"):
            return spec("remote_folder", f"zip://::{Path(path).absolute()}", **limit)
        if text.lower().endswith(_HDF5):
            return spec("h5", f"h5://{text}")
        column, is_header = _known_column(Path(path), **form)
        if column is not None:
            of_paths |= {} if is_header else {"has_header": False}
            return spec("path_table", path_column=column, **of_paths)
        raise SourceError(f"{path} is {_what_it_is(Path(path), **form)}")
    return spec("folder", **limit)


def open_spec(spec: SourceSpec) -> Source:
    """Open the source that a spec names."""
    return load_named("kind of source", spec.kind, OWN, group=GROUP)(spec.url, **dict(spec.options))


def table_options(source: Source) -> tuple[str, ...]:
    """Return the options of the command line that open a table as it was opened; none for other sources."""
    if isinstance(source, ParquetRows):
        option = "--text-column" if source.modality == "text" else "--path-column"
        return () if source.column is None else (option, source.column)
    if not isinstance(source, TextTable | PathTable):
        return ()
    named = {
        "--text-column": getattr(source, "text_column", None),
        "--id-column": getattr(source, "id_column", None),
        "--path-column": getattr(source, "path_column", None),
        "--delimiter": source.delimiter,
    }
    words = [word for option, value in named.items() if value is not None for word in (option, value)]
    return (*words, *([] if source.has_header else ["--no-header"]))


def open_source(
    source: Any, *, text_column: str | None = None, id_column: str | None = None, name: str = "memory"
) -> Source:
    """Open what somebody named or holds.

    Parameters
    ----------
    source : path, str, SourceSpec, Source, or samples in memory
        See `source_spec` for paths and URLs, and `samples_in_memory`.
    text_column, id_column : str, optional
        Of a table or a data frame of texts.
    name : str
        Names samples in memory in a cache.
    """
    if isinstance(source, SourceSpec):
        return open_spec(source)
    if isinstance(source, str | Path):
        return open_spec(source_spec(source, text_column=text_column, id_column=id_column))
    if all(hasattr(source, attribute) for attribute in ("key", "modality", "units", "list", "open")):
        return source
    return samples_in_memory(source, name=name, text_column=text_column, id_column=id_column)


def samples_in_memory(
    samples: Any, *, name: str = "memory", text_column: str | None = None, id_column: str | None = None
) -> Source:
    """Return samples of this process as a source.

    Parameters
    ----------
    samples : sequence, array, DataFrame or data set
        A list of paths; a list of pictures (arrays, PIL images, encoded bytes); an array or tensor of pictures; a data
        frame with a column of paths, or of texts with ``text_column``; a data set of torch or Hugging Face.
    name : str
        Names the source in a cache: other samples under the same name take its place.
    text_column, id_column : str, optional
        Of a data frame.

    Raises
    ------
    RequestError
        Nothing of these.
    """
    key = f"memory:{name}"
    # Before frames: such a data set has columns and items as well.
    if is_hugging_face(samples):
        return dataset_source(samples, key)
    if hasattr(samples, "columns") and hasattr(samples, "__getitem__"):
        return _frame_source(samples, key, text_column, id_column)
    if text_column is not None:
        raise RequestError("--text-column is of a table or a data frame; leave it out")
    if hasattr(samples, "ndim") and hasattr(samples, "shape"):
        if samples.ndim not in (3, 4):
            raise RequestError(
                "an array of pictures has 3 or 4 axes, (n, height, width) or (n, height, width, channels); got "
                f"{samples.ndim}"
            )
        return IndexedImages(samples.__getitem__, number_names(len(samples)), key=key)
    if isinstance(samples, list | tuple):
        if samples and all(isinstance(item, str | Path) for item in samples):
            return PathList(samples, key=key)
        return IndexedImages(samples.__getitem__, number_names(len(samples)), key=key)
    if isinstance(samples, Mapping):
        names = [str(name) for name in samples]
        return IndexedImages(list(samples.values()).__getitem__, names, key=key)
    if is_dataset(samples):
        return dataset_source(samples, key)
    raise RequestError(
        f"a source is a path, a URL, a list of paths or pictures, an array, a data frame or a data set; got "
        f"{type(samples).__name__}"
    )


def _frame_source(frame: Any, key: str, text_column: str | None, id_column: str | None) -> Source:
    columns = [str(name) for name in frame.columns]
    if text_column is not None:
        for option, column in (("text_column", text_column), ("id_column", id_column)):
            if column is not None and column not in columns:
                raise RequestError(str(UnknownNameError("column", column, columns, advice=f"choose one with {option}")))
        texts = [tables.field_of(text) or "" for text in frame[text_column]]
        # As `TextTable` names rows, so that both list the same.
        names = [f"row {number:09d}" for number in range(1, len(texts) + 1)]
        names = names if id_column is None else [str(name) for name in frame[id_column]]
        samples = dict(zip(names, map(tables.to_bytes, texts), strict=True))
        if len(samples) < len(texts):
            raise RequestError(f"the column {id_column!r} names a row twice; give each its own name")
        return InMemory(samples, "text", key)
    if not (known := tables.sample_columns(columns)):
        cells = {
            str(name): map(tables.field_of, list(frame[name])[:_SAMPLE])
            for name in frame.columns
            if columns.count(str(name)) == 1
        }
        rows: list[tables.Row] = [dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)]
        of_files = tables.columns_of_files(list(cells), rows)
        known = of_files if len(of_files) == 1 else []
    if not known:
        raise RequestError(
            f"none of the columns {', '.join(columns)} is known to name images; call it path, or give a list of paths"
        )
    return PathList([str(path) for path in frame[known[0]]], key=key)


def open_sources(paths: Sequence[Any]) -> list[Source]:
    """Open files, folders, URLs and what `open_source` takes, in their order; files that follow each other are one.

    Raises
    ------
    SourceError
        There is no such file or folder.
    """
    # A source for each file would mean a batch for each file.
    sources, files = list[Source](), list[Path]()
    for path in paths:
        is_one = not isinstance(path, str | Path) or "://" in str(path) or str(path).lower().endswith(_CONTAINERS)
        if not is_one and not Path(path).is_dir():
            if not os.path.lexists(path):  # a link that leads nowhere is a bad input, not an error
                raise SourceError(f"no input at {path}: there is no such file or folder")
            files.append(Path(path))
            continue
        sources += [NamedFiles(files)] if files else []
        files = []
        sources.append(open_source(path))
    return [*sources, *([NamedFiles(files)] if files else [])]


def _is_elsewhere(path: str) -> bool:
    """Tell whether a path is more than one file of this machine: the URL of a file system, or a pattern."""
    return is_remote(path) or ((is_pattern(path) or "{" in path) and not Path(path).is_file())


def _holds_images(path: str, column: str | None) -> bool:
    """Tell whether Parquet files hold images, in some column or in this one, and not the names of files."""
    if _is_elsewhere(path):
        return True  # tables of names are one file of this machine
    columns, of_bytes = image_columns(Path(path))
    if column is not None:
        return column in of_bytes
    known = _columns_of_names(columns)
    return bool(of_bytes) and (not known or known[0] in of_bytes)


def _columns_of_names(columns: Sequence[str]) -> list[str]:
    """Return the columns that are known to name images by files: one of ids does that too, but not by files."""
    return [one for one in tables.sample_columns(columns) if not tables.plain_name(one).endswith("id")]


def _known_column(path: Path, **form: Any) -> tuple[str | None, bool]:
    """Return the column of a table that names images by files, by its name or its entries, and whether it has a header.

    No column is returned of other files. A first line that names a file is a row, whether a header was said or not.
    """
    has_header = form.get("has_header", True)
    if tables.is_table_name(path):
        with suppress(tables.TableError), tables.open_table(path, **form) as table:
            if has_header and tables.first_line_is_row(table.columns) and table.format is not None:
                return _known_column(path, **{**form, "has_header": False})
            known = _columns_of_names(table.columns)
            of_files = tables.columns_of_files(table.columns, [row for _, row in islice(table, _SAMPLE)])
            return known[0] if known else of_files[0] if len(of_files) == 1 else None, has_header
    return None, has_header


def _what_it_is(path: Path, **form: Any) -> str:
    """Say what a file is where a folder of images or a table with its column of texts was wanted."""
    with suppress(OSError), open_regular(path) as (file, _):
        start = file.read(8) or b""
        if is_pickle(start) or path.suffix.lower() in _OBJECTS:
            return (
                "a file of Python objects, which could run code when it is read; load it where you trust it, and "
                "hand on its images: fc.extract(images, cache)"
            )
        if start.startswith(b"\x93NUMPY") or path.suffix.lower() == ".npz":
            return "an array of numpy; hand it on in Python, fc.extract(numpy.load(path), cache), or write it to HDF5"
    if tables.is_table_name(path):
        with suppress(tables.TableError), tables.open_table(path, raw=True, **form) as table:
            columns = shortened(", ".join(table.columns))
            advice = "name the one that holds the texts with --text-column, or paths with --path-column"
            return f"a table with the columns {columns}; {advice}"
    return "a file; name the folder that holds the images, or add --text-column NAME if it is a table of texts"
