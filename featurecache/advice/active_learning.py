"""Label these next: which of the samples without labels teach a head most.

As long as labels are few, samples that are typical of a cluster without labels (Hacohen et al., "Active learning on a
budget: opposite strategies suit high and low budgets", ICML 2022); from then on samples that a probe is unsure of, one
from each cluster of these, so that they differ (Citovsky et al., "Batch active learning at scale", NeurIPS 2021).
Uncertain samples from the first label on are worse than random ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from featurecache.advice.axes import k_means, main_axes
from featurecache.advice.finding import Finding
from featurecache.advice.probe import Floats, linear_probe, one_hot, predict_new
from featurecache.heads.preparation import unit_rows
from featurecache.wording import counted

Indices = NDArray[np.int64]
ENOUGH_PER_CLASS = 3
"""Labels of a class from which on a probe knows what it is unsure of."""
_NEIGHBOURS = 20
_CANDIDATES = 10
"""Unsure samples for each that is taken, at most half of all."""


def choose_samples(
    X: NDArray[np.floating], labeled: Indices, y: Indices, n_classes: int, count: int, *, random_state: int = 0
) -> Indices:
    """Return the samples to label next, the most useful first.

    Parameters
    ----------
    X : ndarray (n, d)
        Features of samples with and without labels.
    labeled : ndarray of int64 (m,)
        Which have a label.
    y : ndarray of int64 (m,)
        Their classes.
    n_classes : int
    count : int
    random_state : int
        Of clusters and folds.
    """
    axes = unit_rows(main_axes(X))
    # A probe of so few labels is unsure of everything; what it is least sure of is a worse choice than a random one.
    if len(labeled) < max(ENOUGH_PER_CLASS * n_classes, 2) or len(np.unique(y)) < 2:
        return typical_samples(axes, labeled, count, random_state=random_state)
    pool = np.setdiff1d(np.arange(len(X)), labeled)
    margin = _margins(X[labeled], y, n_classes, X[pool], random_state)
    return _unsure_and_different(axes[pool], pool, margin, count, random_state)


def typical_samples(axes: Floats, labeled: Indices, count: int, *, random_state: int = 0) -> Indices:
    """Return the most typical samples of the largest clusters without a label.

    Parameters
    ----------
    axes : ndarray (n, k)
        Of length one; see `unit_rows`.
    labeled : ndarray of int64 (m,)
    count : int
    random_state : int
    """
    # As many clusters as there will be labels, so that each new one stands for a cluster that has none.
    num_clusters = min(len(labeled) + count, len(axes))
    cluster = k_means(axes, num_clusters, random_state=random_state).labels_
    is_free = np.ones(len(axes), bool)
    is_free[labeled] = False
    num_labels = np.bincount(cluster[labeled], minlength=num_clusters)
    sizes = np.bincount(cluster, minlength=num_clusters)
    # Clusters with the fewest labels first, of these the largest.
    order = np.lexsort([-sizes, num_labels]).tolist()
    chosen: list[int] = []
    while len(chosen) < min(count, len(axes) - len(labeled)):
        for number in order:
            members = np.flatnonzero(cluster == number)
            free = members[is_free[members]]
            if len(free) and len(chosen) < count:
                chosen.append(int(free[np.argmax(_typicality(axes[free], axes[members]))]))
                is_free[chosen[-1]] = False
    return np.array(chosen, np.int64)


def _typicality(rows: Floats, members: Floats) -> Floats:
    """Return the mean cosine of rows to their nearest neighbours in a cluster, of which they are members."""
    count = min(_NEIGHBOURS, len(members) - 1)
    if count == 0:
        return np.zeros(len(rows))
    nearest = np.sort(rows @ members.T, axis=1)[:, ::-1]
    return np.asarray(nearest[:, 1 : count + 1].mean(axis=1))  # the first is the row itself


def _margins(
    X: NDArray[np.floating], y: Indices, n_classes: int, new: NDArray[np.floating], random_state: int
) -> Floats:
    """Return by how much a probe prefers its first answer for new rows to its second."""
    folds = np.random.default_rng(random_state).permutation(len(y)) % min(5, len(y))
    Y = one_hot(y, n_classes)
    decisions = np.sort(predict_new(X, Y, new, linear_probe(X, Y, folds).penalty), axis=1)
    return np.asarray(decisions[:, -1] - decisions[:, -2])


def _unsure_and_different(axes: Floats, pool: Indices, margin: Floats, count: int, random_state: int) -> Indices:
    """Return the sample of the smallest margin of each cluster of the samples of small margins."""
    count = min(count, len(pool))
    most = max(min(_CANDIDATES * count, len(pool) // 2), count)
    candidates = np.argsort(margin, kind="stable")[:most]
    cluster = k_means(axes[candidates], count, random_state=random_state).labels_
    # Candidates come by their margins: the first of a cluster is the one that is least sure.
    _, first = np.unique(cluster, return_index=True)
    rest = np.setdiff1d(np.arange(len(candidates)), first)
    taken = np.concatenate([np.sort(first), rest])[:count]
    return np.asarray(pool[candidates[taken]])


def label_next_finding(
    names: Sequence[str], num_labeled: int, n_classes: int, num_candidates: int, *, next_command: str | None = None
) -> Finding:
    """Say which samples to label next.

    Parameters
    ----------
    names : sequence of str
        Of the samples, the most useful first.
    num_labeled, n_classes : int
        Samples with a label; classes, 0 where there are none yet.
    num_candidates : int
        Samples that were chosen from.
    next_command : str, optional
        That takes the labels.
    """
    is_start = num_labeled < max(ENOUGH_PER_CLASS * n_classes, 2)
    how = "typical of clusters without labels" if is_start else "unsure by a linear probe, and different"
    return Finding(
        question="more_data",
        verdict="label these",
        text=f"label {counted(len(names), 'sample', of=num_candidates)} without labels next, first {names[0]}: {how}",
        n=num_candidates,
        basis=f"features; labels of {counted(num_labeled, 'sample')}",
        next_command=next_command,
        details={"label_next": list(names)},
    )
