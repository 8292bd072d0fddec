"""Images in their folders, for layers that start at the network's input.

Nothing of them is cached: a batch is decoded when it is needed, while the layers work on the one before. They are the
same numbers as cached activations of the tap ``input:none``, and a head that was trained on them is one on that tap.
What a cache of these activations cannot do is to show another random view of each image in every epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import msgspec
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
from featurecache.heads.gradient.datasets import Draw, InputDataset
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
from featurecache.wording import counted

TAP = f"{INPUT}:none"
_OF_FEATURES = ("overflow", "non_finite")
"""What may be wrong with features of an image that is good."""


class ImageDataset(InputDataset):
    """Images that are decoded whenever they are read, by as many threads as there are cores.

    Parameters
    ----------
    files : sequence of Input
        To be read.
    preprocess : PreprocessSpec
        As the network's weights need it.
    identity : str
        Digest of the images.
    """

    def __init__(self, files: Sequence[Input], preprocess: PreprocessSpec, identity: str = "") -> None:
        super().__init__(np.arange(len(files)), (3, *preprocess.crop_shape), identity)
        self.files, self.preprocess = files, preprocess
        self._prepare = input_kind_of(preprocess).prepare(preprocess)
        self.modality = ImageModality(preprocess, None)
        """Of plain images; its `undisturbed` is entered around all reading."""
        # Threads, not processes: decoders release the interpreter's lock.
        self._threads = ThreadPoolExecutor(num_cores())

    def read(self, selected: NDArray[np.int64], draw: Draw | None = None) -> Tensor:
        """Return images (B, 3, crop, crop) float32, normalised; see `Dataset.read`.

        Raises
        ------
        RequestError
            One cannot be read any more.
        """
        modality = self.modality if draw is None else ImageModality(self.preprocess, ViewSpec(seed=draw.seed))
        load = partial(self._load, modality, 0 if draw is None else draw.number)
        files = [self.files[index] for index in self.indices[selected].tolist()]
        pixels = torch.from_numpy(np.stack(list(self._threads.map(load, files))))
        with torch.no_grad():
            images: Tensor = self._prepare(pixels).contiguous()
        return images

    def reference(self) -> dict[str, Any]:
        """Return the record of the program's own images at the network's input."""
        modality = self.modality
        with modality.undisturbed(), torch.no_grad():
            pixels = np.concatenate([modality.load(data).arrays for data in modality.reference_inputs])
            ran = drift.provenance("torch", "cpu", len(pixels))
            images = self._prepare(torch.from_numpy(pixels)).contiguous().numpy()
            record = drift.reference_of({TAP: images}, modality, ran)
        return dict(msgspec.to_builtins(record))

    def _load(self, modality: ImageModality, number: int, file: Input) -> NDArray[np.uint8]:
        try:
            return modality.load_view(file.read(modality.max_bytes), number)
        except InputError as error:
            raise RequestError(
                f"{file.name} cannot be trained on any more: {error.reason}; put it back as it was, and go on with "
                "--resume"
            ) from None


@dataclass(frozen=True, eq=False)
class ImageSet(FeatureSet):
    """The feature set of a tap that is not cached: images, which are decoded when they are read."""

    cached: FeatureSet
    """Features of the same images: they tell which images are good."""
    rows: Rows
    """Of the images in the sample table, sorted."""
    dataset: ImageDataset
    """The image of each row."""
    num_bytes: ClassVar[int] = 0
    """Nothing is cached of an image."""

    def open(self) -> Features:
        """Return the images as features."""
        return ImageFeatures(self)

    @property
    def key(self) -> str:
        """Tell it from all others, and from what is cached of the same images."""
        return f"{super().key} of {self.dataset.identity}"

    def reference(self) -> dict[str, Any] | None:
        """Return what known images are on this machine at the network's input, which is what is trained on here."""
        try:
            return self.dataset.reference()
        except InputError:  # this preprocess has limits that they exceed
            return None


class ImageFeatures(Features):
    """Images as features: (3, crop, crop) numbers of each."""

    def __init__(self, images: ImageSet) -> None:
        cached = images.cached
        super().__init__(cached.tap, cached.dtype, cached.folder, cached.samples)
        self.tap, self.dtype, self._images = images.tap, images.dtype, images
        self.sample_shape = images.dataset.sample_shape

    @cached_property
    def bad(self) -> dict[int, tuple[str, str]]:
        """Those of the cached features that are no images; features that fit no type are no fault of theirs."""
        cached = self._images.cached.open().bad
        gone = np.setdiff1d(np.fromiter(cached, np.int64, len(cached)), self._images.rows)
        return {row: cached[row] for row in gone.tolist()}

    def usable(self, rows: Rows) -> NDArray[np.bool_]:
        """Tell which of ``rows`` are images here."""
        return np.isin(rows, self._images.rows)

    def dataset(self, rows: Rows) -> ImageDataset:
        """Return the images of rows.

        Raises
        ------
        RequestError
            A row is none of the images.
        """
        if not (usable := self.usable(rows)).all():
            raise RequestError(f"row {np.asarray(rows)[~usable][0]} is none of the images; make a set of its task")
        return self._images.dataset[np.searchsorted(self._images.rows, rows)]

    def read(self, rows: Rows) -> NDArray[Any]:
        """Decode the images of rows, (n, 3, crop, crop) float32."""
        dataset = self.dataset(rows)
        return np.asarray(dataset.read(np.arange(len(dataset))).numpy())


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
    store : FeatureStore
    task : Task
    feature_set : FeatureSet
        Plain features of the same network: they tell which images are good.
    folders : sequence of Path
        That hold the images, which are recognised by their content.
    progress : Progress, optional
        Of listing the folders.

    Raises
    ------
    RequestError
        Some of them lie in none of the folders.
    SourceError
        A folder that holds none, or a network that takes texts.
    """
    preprocess = feature_set.identity.preprocess
    features = feature_set.open()
    labeled = np.unique(store.samples.rows_of(task.ids))
    unfit = [row for row, (status, _) in features.bad.items() if status in _OF_FEATURES]
    # Of an image that is good, features may still have overflowed their number type.
    labeled = labeled[features.usable(labeled) | np.isin(labeled, unfit)]
    files: dict[int, Input] = {}
    for folder in folders:
        source = open_source(folder)
        check_modality(source, preprocess, feature_set.identity.backbone)
        listing = take_inventory(store, source, progress).now
        # An image in several folders is read from the first.
        rows = np.setdiff1d(np.intersect1d(listing.unique_rows, labeled), list(files))
        files |= dict(zip(rows.tolist(), inputs_of_rows(source, listing, store.samples, rows), strict=True))
    if missing := sorted(set(labeled.tolist()) - set(files)):
        raise RequestError(
            f"{counted(len(missing), 'image', of=len(labeled))} of task {task.name!r} not found in "
            f"{' or '.join(map(str, folders))} (first: {store.samples.uris_of(missing[:1])[0]}); name every folder "
            "that images were extracted from"
        )
    assert isinstance(preprocess, PreprocessSpec)
    rows = np.array(sorted(files), np.int64)
    identity = digest_arrays("images", [store.samples.ids[rows]])
    dataset = ImageDataset([files[row] for row in rows.tolist()], preprocess, identity)
    same = {**vars(feature_set), "tap": TAP, "dtype": "float32"}
    return ImageSet(**same, cached=feature_set, rows=rows, dataset=dataset)
