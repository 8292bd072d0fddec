"""A package of somebody else, in one file: a source, a provider, an engine and a head, each under an entry point."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Self
from zipfile import ZipFile

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from torch import nn

from featurecache.backbones.provider import Provided
from featurecache.errors import HeadError, InputError
from featurecache.extraction.engines.job import Job, Report
from featurecache.heads.head import HeadMixin
from featurecache.heads.modules import Linear, Softmax
from featurecache.progress import Progress
from featurecache.sources.source import Entry, Stamp, Unit
from featurecache.specs import PreprocessSpec

ENTRY_POINTS = {
    "featurecache.sources": ("zipped", "Zipped"),
    "featurecache.backbones": ("outside", "OutsideProvider"),
    "featurecache.engines": ("twice", "Twice"),
    "featurecache.heads": ("nearest", "Nearest"),
}
"""Group -> name and class."""


class Zipped:
    """Images in a zip archive: ``zipped:///folder/photos.zip``."""

    modality = "image"

    def __init__(self, url: str) -> None:
        self.key, self._path = url, Path(url.partition("://")[2])

    def units(self) -> Iterator[Unit]:
        yield Unit(self._path.name)

    def list(self, unit: Unit) -> Iterator[Entry]:
        with ZipFile(self._path) as archive:
            yield from (Entry(each.filename, (each.file_size, each.CRC, 0, 0)) for each in archive.infolist())

    def read(self, unit: Unit) -> Iterator[tuple[str, bytes]]:
        with ZipFile(self._path) as archive:
            yield from ((name, archive.read(name)) for name in archive.namelist())

    def open(self, name: str, *, stamp: Stamp | None) -> bytes:
        with ZipFile(self._path) as archive:
            if name not in archive.namelist():
                raise InputError("missing", "the archive does not hold it")
            entry = archive.getinfo(name)
            if stamp is not None and stamp != (entry.file_size, entry.CRC, 0, 0):
                raise InputError("changed", "the archive was written again while the run went on")
            return archive.read(name)


class OutsideProvider:
    """``outside:small``."""

    packages = ()

    def list_names(self) -> list[str]:
        return ["outside:small"]

    def build(self, name: str, *, pretrained: bool, weights: Path | None, keep_classifier: bool) -> Provided:
        module = nn.Sequential(nn.Conv2d(3, 8, 5, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
        if pretrained:
            generator = torch.Generator().manual_seed(0)
            for parameter in module.parameters():
                nn.init.normal_(parameter, std=0.3, generator=generator)
        return Provided(module=module, preprocess=PreprocessSpec(resize=32, crop=32), classifiers=("4",))

    def own_weights_digest(self, name: str) -> str | None:
        return None

    def reproducible(self, name: str) -> bool:
        return False


class Twice:
    """Two workers, one after the other, with the job as it would arrive in other processes."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def run(self, job: Job[Report]) -> Iterator[Report]:
        for _ in range(2):
            yield pickle.loads(pickle.dumps(job)).work(progress=self.progress)


class Nearest(HeadMixin, ClassifierMixin, BaseEstimator):
    """The class whose mean is nearest."""

    kinds = frozenset({"classification"})
    grid = {"scale": [0.1, 1.0]}  # noqa: RUF012
    arrays = ("classes_", "means_")

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        rows, self.n_features_in_, self.classes_ = np.asarray(X, np.float64), np.shape(X)[1], np.unique(y)
        self.means_ = np.stack([rows[np.asarray(y) == each].mean(axis=0) for each in self.classes_])
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        weights, bias = self._linear()
        return softmax(np.asarray(X, np.float64) @ weights + bias, axis=1)

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:
        return self.classes_[self.predict_proba(X).argmax(axis=1)]

    def check_arrays(self) -> None:
        if np.shape(self.means_) != (len(self.classes_), self.n_features_in_):
            raise HeadError("the means of its Nearest do not fit its classes")

    def to_module(self) -> nn.Module:
        weights, bias = self._linear()
        return nn.Sequential(Linear(weight=weights, bias=bias), Softmax(temperature=1.0))

    def _linear(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return 2 * self.scale * self.means_.T, -self.scale * (self.means_**2).sum(axis=1)
