"""Samples that are nearly the same, told by their features.

What a near-copy is depends on the features and the pictures: in one set two photographs are never as alike as 0.75, in
another all are. So the threshold is above what the tenth-nearest neighbours of a set reach, of which copies are few.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featurecache.heads.preparation import scaled

Floats = NDArray[np.float64]
# Copies are so much (the margin) more alike than the tenth-nearest neighbours of nearly all samples.
_LEAST_SIMILARITY, _MOST_SIMILARITY, _MARGIN = 0.8, 0.98, 0.05
_NEIGHBOUR = 10
_BLOCK = 512


@dataclass(frozen=True, slots=True, eq=False)
class NearCopies:
    """Pairs of samples that are nearly the same.

    Attributes
    ----------
    pairs : ndarray of int64 (n_pairs, 2)
        Indices, the first of a pair the smaller.
    similarity : ndarray (n_pairs,)
        Cosine of standardised features.
    threshold : float
    group : ndarray of int64 (n,)
        Samples that are joined by pairs have the same number.
    are_distinct : bool
        False: even the tenth neighbours are as alike as copies, which cannot be told from them.
    """

    pairs: NDArray[np.int64]
    similarity: Floats
    threshold: float
    group: NDArray[np.int64]
    are_distinct: bool = True

    @property
    def num_alike(self) -> int:
        """Samples that have a near-copy."""
        return int(np.sum(np.bincount(self.group)[self.group] > 1))


def near_copies(X: NDArray[np.floating]) -> NearCopies:
    """Find samples that are nearly the same: re-encoded, resized, cropped, mirrored, or of one burst.

    Parameters
    ----------
    X : ndarray (n, d)
        Features.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    if len(X) < 2:
        nothing = np.empty(0)
        return NearCopies(np.empty((0, 2), np.int64), nothing, _LEAST_SIMILARITY, np.arange(len(X)))
    rows = scaled(X).astype(np.float32)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    n, neighbour = len(rows), min(_NEIGHBOUR, len(rows) - 1)
    high: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]] = []
    of_neighbour = np.empty(n, np.float32)
    for start in range(0, n, _BLOCK):
        block = rows[start : start + _BLOCK] @ rows.T
        # No sample is its own neighbour.
        block[np.arange(len(block)), np.arange(start, start + len(block))] = -1.0
        of_neighbour[start : start + len(block)] = np.partition(block, n - neighbour, axis=1)[:, n - neighbour]
        i, j = np.nonzero(block > _LEAST_SIMILARITY)
        upper = j > i + start
        high.append(((i + start)[upper], j[upper], block[i, j][upper]))
    # Of so few samples the tenth neighbour is no near one, and says nothing of what is natural.
    natural = float(np.quantile(of_neighbour, 0.99)) if n > 2 * _NEIGHBOUR else 0.0
    threshold = min(max(_LEAST_SIMILARITY, natural + _MARGIN), _MOST_SIMILARITY)
    first, second, similarity = (np.concatenate(blocks) for blocks in zip(*high, strict=True))
    kept = similarity > threshold
    pairs = np.stack([first[kept], second[kept]], axis=1)
    graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    _, group = connected_components(graph, directed=False)
    order = np.argsort(-similarity[kept], kind="stable")
    return NearCopies(
        pairs[order],
        similarity[kept][order].astype(np.float64),
        threshold,
        group.astype(np.int64),
        natural + _MARGIN <= _MOST_SIMILARITY,
    )
