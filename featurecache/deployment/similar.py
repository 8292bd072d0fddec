"""The cached samples that are most like a new one, by the cosine of their features: exact, block by block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from featurecache.backbones.taps import resolve_taps
from featurecache.deployment.transformer import features_of
from featurecache.errors import RequestError
from featurecache.extraction.reproduction import reproduce_backbone
from featurecache.heads.preparation import unit_rows
from featurecache.sources.inputs import inputs_of
from featurecache.sources.opening import open_sources
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.samples import Rows
from featurecache.store.store import FeatureStore

# Rows compared at a time: of 10^6 rows with 512 features an input took 0.51 s of one core, by 8,192 at a time 0.67 s.
_BLOCK = 2048


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A cached sample beside a new one.

    Attributes
    ----------
    name : str
        Where the cached sample was first seen.
    similarity : float
        Cosine of their features, -1 to 1.
    """

    name: str
    similarity: float


def similar(
    store: FeatureStore,
    inputs: Sequence[Any],
    feature_set: FeatureSet,
    count: int = 10,
    *,
    backbone: str | None = None,
    weights: str | Path | None = None,
) -> dict[str, list[Neighbour]]:
    """Return the nearest cached samples of each input, the most alike first.

    Parameters
    ----------
    store : FeatureStore
    inputs : sequence
        As `open_sources` takes them.
    feature_set : FeatureSet
        Plain and pooled.
    count : int
        Neighbours of each.
    backbone, weights : str and path, optional
        What a record cannot decide; see `reproduce_backbone`.

    Raises
    ------
    RequestError
        Features of views or activations, or no neighbours are asked for.
    InputError
        An input that cannot be read or decoded.
    """
    if feature_set.num_views is not None or not feature_set.is_pooled:
        raise RequestError(f"neighbours are told by plain, pooled features; {feature_set.tap} is not that")
    if count < 1:
        raise RequestError(f"ask for one neighbour at least, not {count}")
    names, X = _features_of(inputs, feature_set, backbone, weights)
    features = feature_set.open()
    rows = features.rows[features.usable(features.rows)]
    best_rows, best = nearest_rows(X, rows, features.read, count)
    found = {}
    for name, of_input, values_of_input in zip(names, best_rows, best, strict=True):
        uris = store.samples.uris_of(of_input)
        found[name] = [Neighbour(uri, float(v)) for uri, v in zip(uris, values_of_input.tolist(), strict=True)]
    return found


def nearest_rows(
    X: NDArray[np.float32], rows: Rows, read: Callable[[Rows], NDArray[Any]], count: int
) -> tuple[Rows, NDArray[np.float32]]:
    """Return the rows nearest to each input, and the cosines of their features, the greatest first.

    Parameters
    ----------
    X : ndarray of float32, shape (n_inputs, n_features)
        Of length one.
    rows : ndarray of int64
        That are compared. Of equals the first one counts.
    read : callable
        Returns the features of some rows.
    count : int
        Neighbours of each input; fewer where there are not so many rows.
    """
    count = min(count, len(rows))
    best_rows = np.full((len(X), count), -1, np.int64)
    best = np.full((len(X), count), -np.inf, np.float32)
    # Block by block, so that a cache of any size needs the memory of one block.
    for start in range(0, len(rows), _BLOCK):
        some = rows[start : start + _BLOCK]
        # Widened by torch, and lengths divide cosines and not features: by numpy's `astype` it took 3 to 5 s.
        stored = torch.from_numpy(read(some)).float().numpy()
        lengths = np.sqrt(np.einsum("ij,ij->i", stored, stored))
        values = (X @ stored.T) / np.maximum(lengths, 1e-12)
        # To sort all of each block took most of the time; few of a later one are nearer than what was found.
        is_near = values > best[:, -1:]
        for index in np.flatnonzero(is_near.any(axis=1)):
            near = np.flatnonzero(is_near[index])
            merged = np.concatenate([best[index], values[index, near]])
            order = np.argsort(-merged, kind="stable")[:count]
            best[index] = merged[order]
            best_rows[index] = np.concatenate([best_rows[index], some[near]])[order]
    return best_rows, best


def _features_of(
    named: Sequence[Any], feature_set: FeatureSet, backbone: str | None, weights: str | Path | None
) -> tuple[list[str], NDArray[np.float32]]:
    network = reproduce_backbone(
        feature_set.identity,
        feature_set.about.weights_source,
        needed_by="finding neighbours",
        backbone=backbone,
        weights=weights,
    )
    inputs = [item for source in open_sources(named) for item in inputs_of(source)]
    (tap,) = resolve_taps(network, [feature_set.tap])
    # The first bad input ends it: without features there are no neighbours of it.
    X = features_of(inputs, network, tap, runtime="torch", device="auto")
    return [item.name for item in inputs], unit_rows(X)
