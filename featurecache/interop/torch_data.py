"""Features as data sets of torch: by index in batches, or as a stream of shuffled blocks for more than memory holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from featurecache.errors import RequestError
from featurecache.store.features import Features
from featurecache.store.store import FeatureStore
from featurecache.store.tasks import Task

Item = tuple[Tensor, Tensor] | Tensor
BLOCK = 4096
"""Rows of a stream that are read at once, and held."""


class _Rows:
    """Rows of a cache with their targets; in another process the cache is opened anew.

    Parameters
    ----------
    store : Path
    folder : PurePosixPath
        Of the feature set in it.
    rows : ndarray of int64 (n,)
    y : ndarray (n, ...), optional
    """

    def __init__(self, store: Path, folder: PurePosixPath, rows: NDArray[np.int64], y: NDArray[Any] | None) -> None:
        self._store, self._folder, self._rows, self._y = store, folder, rows, y
        self._features: Features | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __getstate__(self) -> dict[str, Any]:
        # Open files do not travel; the path of the cache does.
        return {**vars(self), "_features": None}

    def _read(self, index: NDArray[np.int64]) -> tuple[Tensor, Tensor | None]:
        """Return float32 features of some of the rows, and their targets."""
        if self._features is None:
            feature_set = FeatureStore.open(self._store).feature_set_at(self._folder)
            if feature_set is None:
                raise RequestError(f"{self._store} holds no features {self._folder} any more")
            self._features = feature_set.open()
        X = torch.from_numpy(self._features.read(self._rows[index]).astype(np.float32))
        return X, None if self._y is None else torch.from_numpy(np.asarray(self._y[index]))


class FeatureDataset(_Rows, Dataset[Item]):
    """Features (and targets) by index; a `DataLoader` asks for whole batches."""

    def __getitem__(self, index: int) -> Item:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """Return several items by one read of the cache."""
        # `DataLoader` calls this where it is there: item by item, each would be a read of its own.
        X, y = self._read(np.asarray(indices, np.int64))
        return list(X) if y is None else list(zip(X, y, strict=True))


class FeatureStream(_Rows, IterableDataset[Item]):
    """Features (and targets) in blocks of neighbouring rows: blocks in random order, rows in random order within.

    Each worker of a `DataLoader` has blocks of its own. Set another ``seed`` for each epoch.

    Attributes
    ----------
    seed : int or None
        None: in the order of the rows.
    """

    def __init__(self, *rows: Any, seed: int | None = 0) -> None:
        super().__init__(*rows)
        self.seed = seed

    def __iter__(self) -> Iterator[Item]:
        starts = np.arange(0, len(self), BLOCK)
        generator = None if self.seed is None else np.random.default_rng(self.seed)
        if generator is not None:
            # Every worker shuffles the same list by the same seed, so that their shares of it are disjoint.
            generator.shuffle(starts)
        worker = get_worker_info()
        if worker is not None:
            starts = starts[worker.id :: worker.num_workers]
        for start in starts.tolist():
            index = np.arange(start, min(start + BLOCK, len(self)))
            X, y = self._read(index)
            order = range(len(index))
            if generator is not None:
                order = np.random.default_rng([self.seed or 0, start]).permutation(len(index)).tolist()
            for k in order:
                yield X[k] if y is None else (X[k], y[k])


def torch_dataset(
    store: FeatureStore,
    folder: PurePosixPath,
    features: Features,
    task: Task | None = None,
    split: str | None = None,
    *,
    stream: bool = False,
    seed: int | None = 0,
) -> FeatureDataset | FeatureStream:
    """Return features as a data set of torch.

    Parameters
    ----------
    store : FeatureStore
    folder : PurePosixPath
        Of the feature set in it.
    features : Features
    task : Task, optional
        Whose samples are taken, with their targets as `Task.rows` returns them.
    split : str, optional
        Of the task; all of them when left out.
    stream : bool
        As `FeatureStream`.
    seed : int, optional
        Of a stream.

    Raises
    ------
    RequestError
        A split without a task.
    """
    y: NDArray[Any] | None = None
    if task is None:
        if split is not None:
            raise RequestError(f"the split {split!r} is of a task; name that too")
        rows = features.rows[features.usable(features.rows)]
    else:
        found = [task.rows(features, name) for name in ([split] if split else task.counts())]
        rows, y = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        # In the order of the cache, so that neighbours are read at once.
        order = np.argsort(rows, kind="stable")
        rows, y = rows[order], y[order]
    if stream:
        return FeatureStream(store.path, folder, rows, y, seed=seed)
    return FeatureDataset(store.path, folder, rows, y)
