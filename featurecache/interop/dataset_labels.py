"""Labels that a source carries: data sets of torch, torchvision and Hugging Face, tables, tar and Parquet files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from featurecache.errors import TaskError
from featurecache.sources.datasets import dataset_labels, is_dataset, is_hugging_face
from featurecache.sources.opening import SourceSpec
from featurecache.sources.parquet_files import ParquetRows
from featurecache.sources.path_table import PathTable
from featurecache.sources.source import Source
from featurecache.sources.tars import Tars
from featurecache.sources.text_table import TextTable
from featurecache.store.label_entries import TargetReader
from featurecache.store.labels import SPLIT_OF, Label, TableLabels
from featurecache.tables import ListField


def labels_from_dataset(dataset: Any, *, root: str | Path | None = None, merge_spellings: bool = False) -> TableLabels:
    """Take the class of each sample, and its split, from the data set that was extracted.

    Parameters
    ----------
    dataset : Dataset
        Of torchvision or torch: its attribute ``targets`` or ``labels``, else the second of each item, and its
        ``classes``. Of Hugging Face: its column ``label``; of several parts their names are splits.
    root : path, optional
        The source that is labelled, by its key; all sources of the cache when left out.
    merge_spellings : bool
        Classes that differ only in case or spaces are one.

    Raises
    ------
    RequestError
        It has no labels.
    TaskError
        It has no samples.
    """
    found = [
        Label(name, label, None if split is None else SPLIT_OF.get(split.lower()))
        for name, label, split in dataset_labels(dataset)
    ]
    if not found:
        raise TaskError("the data set has no labelled samples")
    return TableLabels(
        labels=tuple(found), origin=f"a data set ({type(dataset).__name__})", root=root, merge_spellings=merge_spellings
    )


def labels_in_source(
    source: Any, opened: Source, text_column: str | None = None, *, label_column: str | None = None
) -> TableLabels | None:
    """Return the labels that a source has of its own; None where its folders may say them.

    Parameters
    ----------
    source : path, SourceSpec, or samples in memory
        As somebody named it.
    opened : Source
    text_column : str, optional
        Of a table or a data frame of texts.
    label_column : str, optional
        Of Parquet files that hold the samples.

    Raises
    ------
    TaskError
        A table that says no label.
    """
    from featurecache.store.label_tables import labels_from_csv, labels_from_frame

    if isinstance(opened, TextTable | PathTable):
        path_column = opened.path_column if isinstance(opened, PathTable) else None
        text_column = opened.text_column if isinstance(opened, TextTable) else None
        return labels_from_csv(
            opened.path,
            text_column=text_column,
            path_column=path_column,
            root=opened.key,
            delimiter=opened.delimiter,
            has_header=opened.has_header,
        )
    origin = Path(getattr(opened, "url", "")).name
    if isinstance(opened, ParquetRows):
        # As a table with one column of classes is read.
        labels = opened.labels(label_column)
        reader = TargetReader("classification", ("label",), blank=None, uncertain="missing", separator=" ")
        fields = ((name, entry if isinstance(entry, ListField) else entry.strip()) for name, entry in labels)
        read = ((name, reader.read(name, [field])) for name, field in fields)
        found = tuple(Label(name, target[0]) for name, target in read if target is not None)
        if not found:
            raise TaskError(f"{opened.url} has no label in any row; name another column with --label-column")
        return TableLabels(labels=found, origin=origin, root=opened.key)
    if isinstance(opened, Tars):
        found = tuple(Label(name, label) for name, label in opened.labels())
        return TableLabels(labels=found, origin=origin, root=opened.key) if found else None
    # What is named by a path has folders, and these may be the classes.
    if isinstance(source, str | Path | SourceSpec):
        return None
    # A data set of Hugging Face has columns as well, and is read below.
    if hasattr(source, "columns") and not is_hugging_face(source):
        if text_column is not None:
            raise TaskError("say the labels of the texts in a data frame: labels=, by their names in id_column")
        return labels_from_frame(source, root=opened.key)
    if is_hugging_face(source) or (is_dataset(source) and not isinstance(source, list | tuple | Mapping | np.ndarray)):
        return labels_from_dataset(source, root=opened.key)
    return None
