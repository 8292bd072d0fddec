"""Data sets of torch, torchvision and Hugging Face as sources, and their labels.

Where a data set knows the files or the encoded bytes of its pictures, these are read, so that samples have the ids that
a folder of the same files gives; else the pictures that it returns are samples with ids of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from featurecache.errors import RequestError
from featurecache.sources.in_memory import IndexedImages, number_names
from featurecache.sources.path_list import PathList
from featurecache.sources.source import Source

_TARGETS = ("targets", "labels", "_labels", "y")
IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img", "picture", "jpg", "png"), ("label", "labels", "class", "target")


def is_hugging_face(dataset: Any) -> bool:
    """Tell whether this is a data set, or several by split, of the library ``datasets``."""
    return type(dataset).__module__.partition(".")[0] == "datasets"


def is_dataset(dataset: Any) -> bool:
    """Tell whether this has items by number, as a data set of torch does."""
    return callable(getattr(dataset, "__getitem__", None)) and callable(getattr(dataset, "__len__", None))


def dataset_source(dataset: Any, key: str) -> Source:
    """Return the pictures of a data set as a source.

    Parameters
    ----------
    dataset : Dataset
        Of torch (with items by number, each a picture or a tuple that begins with one), or of Hugging Face.
    key : str
        Names the source in a cache.

    Raises
    ------
    RequestError
        It has no pictures.
    """
    if is_hugging_face(dataset):
        names, get = _hugging_face_images(dataset)
        return IndexedImages(get, names, key=key)
    if (paths := _paths_of(dataset)) is not None:
        return PathList(paths, key=key)

    def item(index: int) -> Any:
        found = dataset[index]
        return found[0] if isinstance(found, tuple | list) else found

    return IndexedImages(item, number_names(len(dataset)), key=key, one_at_a_time=True)


def dataset_labels(dataset: Any) -> Iterator[tuple[str, str, str | None]]:
    """Yield the name, the class and the split (where there are several) of each sample that has a class.

    Parameters
    ----------
    dataset : Dataset
        As for `dataset_source`.

    Raises
    ------
    RequestError
        It has no classes.
    """
    if is_hugging_face(dataset):
        yield from _hugging_face_labels(dataset)
        return
    classes = getattr(dataset, "classes", None)
    paths = _paths_of(dataset)
    names = number_names(len(dataset)) if paths is None else paths
    for name, target in zip(names, _targets_of(dataset), strict=True):
        yield name, str(classes[int(target)] if classes is not None else target), None


def _paths_of(dataset: Any) -> list[str] | None:
    """Return the files of a data set of torchvision that reads one for each item, such as `ImageFolder`."""
    samples = getattr(dataset, "samples", None)
    if getattr(dataset, "loader", None) is None or not isinstance(samples, Sequence) or len(samples) != len(dataset):
        return None
    paths = [sample[0] for sample in samples if isinstance(sample, tuple) and isinstance(sample[0], str)]
    return paths if len(paths) == len(dataset) else None


def _targets_of(dataset: Any) -> Sequence[Any]:
    """Return the targets of all items: as an attribute has them, else from the items themselves, which takes long."""
    for name in _TARGETS:
        values = getattr(dataset, name, None)
        if values is not None and not callable(values) and len(values) == len(dataset):
            return np.asarray(values).tolist()
    found = []
    for index in range(len(dataset)):
        item = dataset[index]
        if not isinstance(item, tuple | list) or len(item) < 2:
            raise RequestError("the items of this data set are pictures alone; give their labels as a table or mapping")
        found.append(item[1].item() if hasattr(item[1], "item") else item[1])
    return found


def _data_by_prefix(dataset: Any) -> dict[str, Any]:
    """Return the splits of a data set of Hugging Face by what stands before the names of their samples."""
    if isinstance(dataset, Mapping):
        return {f"{split}/": data for split, data in dataset.items()}
    return {"": dataset}


def _hugging_face_images(dataset: Any) -> tuple[list[str], Callable[[int], Any]]:
    image_type = import_module("datasets").Image
    tables = []
    for prefix, data in _data_by_prefix(dataset).items():
        if not hasattr(data, "__len__"):
            raise RequestError("a data set that streams has no samples by number; load it without streaming=True")
        columns = [name for name, feature in data.features.items() if isinstance(feature, image_type)]
        # Of several columns of images that with a usual name; masks and depths are images too.
        named = [name for name in IMAGE_COLUMNS if name in columns] or columns
        if not named:
            raise RequestError(f"the data set has no column of images; it has: {', '.join(data.features)}")
        # Undecoded, so that a sample has the id of the file with its bytes.
        images = data.select_columns([named[0]]).cast_column(named[0], image_type(decode=False))
        tables.append((prefix, images, named[0]))
    names = [f"{prefix}{name}" for prefix, images, _ in tables for name in number_names(len(images))]
    starts = np.cumsum([0, *(len(images) for _, images, _ in tables)])

    def get(index: int) -> Any:
        number = int(np.searchsorted(starts, index, side="right")) - 1
        _, images, column = tables[number]
        return images[index - int(starts[number])][column]

    return names, get


def _hugging_face_labels(dataset: Any) -> Iterator[tuple[str, str, str | None]]:
    for prefix, data in _data_by_prefix(dataset).items():
        named = [column for column in LABEL_COLUMNS if column in data.features]
        if not named:
            raise RequestError(f"the data set has no column of labels; it has: {', '.join(data.features)}")
        of_class = getattr(data.features[named[0]], "int2str", str)
        for name, value in zip(number_names(len(data)), data[named[0]], strict=True):
            if value is not None and value != -1:  # -1: not known, as test splits have it
                yield f"{prefix}{name}", of_class(value), prefix.rstrip("/") or None
