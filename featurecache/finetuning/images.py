"""Images as they lie in their folders, for layers that begin at the network's input.

Nothing of them is cached: a batch is decoded when its turn comes, by as many threads as there are cores, while the
layers work on the one before. They stand in the place of cached activations of the tap ``input:none``, of which they
are the very numbers, and a head that was trained on them is one on that tap. What a cache with these activations cannot
do is to show another random view of each image in every epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featurecache.backbones.dry_run import INPUT
from featurecache.backbones.input_kinds import input_kind_of
from featurecache.errors import InputError, RequestError
from featurecache.extraction import drift
from featurecache.extraction.inventory import take_inventory
from featurecache.extraction.modality import ImageModality
from featurecache.extraction.reading import inputs_of_rows
from featurecache.hashing import digest_arrays
from featurecache.heads.gradient.reading import Draw
from featurecache.machine import num_cores
from featurecache.progress import Progress
from featurecache.sources.inputs import Input
from featurecache.sources.opening import open_source
from featurecache.sources.source import check_modality
from featurecache.specs import PreprocessSpec, ViewSpec
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.features import Features
from featurecache.store.samples import Rows
from featurecache.store.store import FeatureStore
from featurecache.store.tasks import Task

TAP = f"{INPUT}:none"
_OF_FEATURES = ("overflow", "non_finite")
"""What may be wrong with features of an image that is good."""
_MOST_IMAGES = 1 << 24  # places are handed on as float32


@dataclass(frozen=True, eq=False)
class ImageSet(FeatureSet):
    """What `FeatureSet` is to cached features, this is to images: reads their places, and a reader makes the rest."""

    cached: FeatureSet
    """Features of the same images: they tell which images are good."""
    rows: Rows
    """Of the images in the sample table, sorted."""
    reader: ImageReader

    def open(self) -> Features:
        """Return the place of each image in `rows` as its only feature."""
        return _Places(self)

    @property
    def activation_shape(self) -> tuple[int, ...]:
        """Channels, height and width, as the network sees an image."""
        return (3, *self.reader.preprocess.crop_shape)

    @property
    def num_bytes(self) -> int:
        """Nothing is cached of an image."""
        return 0

    @property
    def key(self) -> str:
        """Tell it from all others, and from what is cached of the same images."""
        return f"{super().key} of {digest_arrays('images', [self.samples.ids[self.rows]])}"

    def reference(self) -> dict[str, Any] | None:
        """Return what known images are on this machine at the network's input, which is what is trained on here."""
        try:
            return self.reader.reference()
        except InputError:  # this preprocess has limits that they exceed
            return None


class _Places(Features):
    """The place of each image, where that of its features would be."""

    def __init__(self, images: ImageSet) -> None:
        cached = images.cached
        super().__init__(cached.tap, cached.dtype, cached.folder, cached.samples)
        self.tap, self.dtype, self._images = images.tap, images.dtype, images

    @property
    def sample_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """One number."""
        return (1,)

    @cached_property
    def bad(self) -> dict[int, tuple[str, str]]:
        """Those of the cached features that are no images; features that fit no type are no fault of theirs."""
        cached = self._images.cached.open().bad
        gone = np.setdiff1d(np.fromiter(cached, np.int64, len(cached)), self._images.rows)
        return {row: cached[row] for row in gone.tolist()}

    def usable(self, rows: Rows) -> NDArray[np.bool_]:
        """Tell which of ``rows`` are images here."""
        return np.isin(rows, self._images.rows)

    def read(self, rows: Rows) -> NDArray[Any]:
        """Return places, (n, 1) float32."""
        if not (there := self.usable(rows)).all():
            raise RequestError(f"row {np.asarray(rows)[~there][0]} is none of the images; make a set of its task")
        return np.searchsorted(self._images.rows, rows).astype(np.float32)[:, None]


class ImageReader:
    """Decodes images by their place, several at a time.

    Parameters
    ----------
    files
        To be read.
    preprocess
        As the network's weights need it.
    """

    def __init__(self, files: Sequence[Input], preprocess: PreprocessSpec) -> None:
        self.preprocess = preprocess
        self.files = files
        self._prepare = input_kind_of(preprocess).prepare(preprocess)
        self._threads = ThreadPoolExecutor(num_cores())

    def __call__(self, places: NDArray[np.int64], draw: Draw | None) -> Tensor:
        """Return images (B, 3, crop, crop) float32, normalised; with a draw, a view of each.

        Raises
        ------
        RequestError
            One cannot be read any more.
        """
        views = None if draw is None else ViewSpec(seed=draw.seed)
        modality = ImageModality(self.preprocess, views)
        load = partial(self._load, modality, 0 if draw is None else draw.number)
        return self._prepared(np.stack(list(self._threads.map(load, places.tolist()))))

    def __sklearn_clone__(self) -> Self:
        return self

    def undisturbed(self) -> AbstractContextManager[None]:
        """Keep off what other libraries set for all; entered around all reading."""
        return ImageModality(self.preprocess, None).undisturbed()

    def reference(self) -> dict[str, Any]:
        """Return the record of the program's own images at the network's input."""
        modality = ImageModality(self.preprocess, None)
        with self.undisturbed():
            pixels = np.concatenate([modality.load(data).arrays for data in modality.reference_inputs])
            record = drift.record_of({TAP: self._prepared(pixels).numpy()}, modality)
        return {**record, "provenance": drift.provenance_record("torch", "cpu", len(pixels))}

    def _prepared(self, pixels: NDArray[np.uint8]) -> Tensor:
        with torch.no_grad():
            prepared: Tensor = self._prepare(torch.from_numpy(pixels)).contiguous()
        return prepared

    def _load(self, modality: ImageModality, number: int, place: int) -> NDArray[np.uint8]:
        file = self.files[place]
        try:
            data = file.read(modality.max_bytes)
            pixels = modality.load(data).arrays[0] if modality.views is None else modality.load_view(data, number)
        except InputError as error:
            raise RequestError(
                f"{file.name} cannot be trained on any more: {error.reason}; put it back as it was, and go on with "
                "--resume"
            ) from None
        return pixels


def images_of(
    store: FeatureStore,
    task: Task,
    feature_set: FeatureSet,
    folders: Sequence[Path],
    *,
    progress: Progress | None = None,
) -> ImageSet:
    """Return the images of a task, in the folders that they were extracted from.

    Parameters
    ----------
    store, task
    feature_set
        Plain features of the same network: they tell which images are good.
    folders
        Where the images lie; they are recognised by their content.

    Raises
    ------
    RequestError
        Some of them lie in none of the folders.
    SourceError
        A folder that holds none, or a network that takes texts.
    """
    preprocess = feature_set.identity.preprocess
    good = feature_set.open()
    wanted = np.unique(store.samples.rows_of(task.ids))
    unfit = [row for row, (status, _) in good.bad.items() if status in _OF_FEATURES]
    wanted = wanted[good.usable(wanted) | np.isin(wanted, unfit)]
    files: dict[int, Input] = {}
    for folder in folders:
        source = open_source(folder)
        check_modality(source, preprocess, feature_set.identity.backbone)
        listing = take_inventory(store, source, progress).now
        rows = np.setdiff1d(np.intersect1d(listing.unique_rows, wanted), list(files))
        files |= dict(zip(rows.tolist(), inputs_of_rows(source, listing, store.samples, rows), strict=True))
    if missing := sorted(set(wanted.tolist()) - set(files)):
        raise RequestError(
            f"{len(missing)} of {len(wanted)} images of task {task.name!r} are not in "
            f"{' or '.join(map(str, folders))} (first: {store.samples.uris_of(missing[:1])[0]}); name every folder "
            "that they were extracted from"
        )
    if len(files) > _MOST_IMAGES:
        raise RequestError(f"{len(files)} images are more than can be trained on ({_MOST_IMAGES})")
    assert isinstance(preprocess, PreprocessSpec)
    rows = np.array(sorted(files), np.int64)
    same = {**vars(feature_set), "tap": TAP, "dtype": "float32"}
    reader = ImageReader([files[row] for row in rows.tolist()], preprocess)
    return ImageSet(**same, cached=feature_set, rows=rows, reader=reader)
