"""Splits made where labels bring none: 60 % train, 20 % validation, 20 % test of each class."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurecache.hashing import digest_bytes
from featurecache.store.samples import Ids

# Equal, because heads are chosen on the one and reported on the other, with intervals of the same width.
_TEST_SHARE = _VALIDATION_SHARE = 0.2


def stratified_splits(
    ids: Ids, labels: NDArray[np.int32], *, random_state: int, kept: NDArray[np.int64] | None = None
) -> NDArray[np.uint8]:
    """Give each class 60 % train, 20 % validation and 20 % test.

    Depends on content and seed, not on names, order or other classes. Samples that had a split keep it, and new ones
    fill up what is missing: a test sample never becomes a training sample.

    Parameters
    ----------
    ids, labels : ndarray
        Samples and their classes.
    random_state : int
        Seed.
    kept : ndarray of int64, shape (n,), optional
        Earlier split of each sample, -1 where it is new.

    Notes
    -----
    A class with fewer than three samples fills train first, then test.
    """
    splits = np.full(len(ids), -1) if kept is None else kept.copy()
    lots = np.array([digest_bytes(f"{random_state} ".encode() + row.tobytes()) for row in ids])
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        new = mine[splits[mine] < 0]
        new = new[np.argsort(lots[new])]
        size = len(mine)
        num_test = max(round(_TEST_SHARE * size), int(size > 1)) - int((splits[mine] == 2).sum())
        num_validation = max(round(_VALIDATION_SHARE * size), int(size > 2)) - int((splits[mine] == 1).sum())
        num_test = min(max(num_test, 0), len(new))
        num_validation = min(max(num_validation, 0), len(new) - num_test)
        splits[new] = 0
        splits[new[:num_test]] = 2
        splits[new[num_test : num_test + num_validation]] = 1
    return splits.astype(np.uint8)


def strata_of_numbers(numbers: NDArray[np.float64]) -> NDArray[np.int32]:
    """Return the fifth in which each sample's first number lies, (n,): in which splits of numbers should be alike."""
    first = numbers[:, 0]
    if np.isnan(first).any():
        first = _first_known(numbers)
    return np.searchsorted(np.quantile(first, [0.2, 0.4, 0.6, 0.8]), first).astype(np.int32)


def _first_known(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the first number of each sample that is known, in units of its spread; 0 of a sample that has none."""
    first = np.full(len(numbers), np.nan)
    for column in numbers.T:
        if np.isfinite(column).any() and (spread := np.nanstd(column)) > 0:
            first = np.where(np.isnan(first), (column - np.nanmedian(column)) / spread, first)
    return np.nan_to_num(first)


def grouped_splits(
    groups: NDArray[np.int32], labels: NDArray[Any], lots: list[str], *, kept: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Give whole groups to train, validation and test, each class as near to 60, 20 and 20 % as that allows.

    Parameters
    ----------
    groups, labels : ndarray of int32, shape (n,)
        Group and class of each sample; of several labels, (n, n_labels), 0 or 1.
    lots : list of str
        By group: what decides the order in which they are given away, whatever they are called otherwise.
    kept : ndarray of int64, shape (n,)
        Earlier split of each sample, -1 where it is new. A group goes where any of its samples was, to the last split
        of several: a test sample never becomes a training sample.
    """
    if labels.ndim == 1:
        counts_GC = np.zeros((len(lots), int(labels.max()) + 1))
        np.add.at(counts_GC, (groups, labels), 1)
    else:  # and one more, which every sample has
        counts_GC = np.zeros((len(lots), labels.shape[1] + 1))
        np.add.at(counts_GC, groups, np.column_stack([labels, np.ones(len(labels))]))
    total_C = np.maximum(counts_GC.sum(axis=0), 1)
    target_SC = np.outer([1 - _VALIDATION_SHARE - _TEST_SHARE, _VALIDATION_SHARE, _TEST_SHARE], total_C)
    split_G = np.full(len(lots), -1)
    np.maximum.at(split_G, groups, kept)
    have_SC = np.stack([counts_GC[split_G == split].sum(axis=0) for split in range(3)])
    # The largest first, as what is left over must fit into what is lacking; of equals by lot.
    for group in sorted(np.flatnonzero(split_G < 0).tolist(), key=lambda g: (-counts_GC[g].sum(), lots[g])):
        lacking_S = ((target_SC - have_SC) / total_C) @ counts_GC[group]
        # In units of the split's own share: else train, which lacks most, would take everything first.
        split_G[group] = int(np.argmax(lacking_S / [3, 1, 1]))
        have_SC[split_G[group]] += counts_GC[group]
    return split_G[groups].astype(np.uint8)
