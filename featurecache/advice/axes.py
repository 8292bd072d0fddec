"""Features as clusters and neighbours want them: standardised, turned into their main axes, of length one."""

from __future__ import annotations

import warnings
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from featurecache.advice.probe import Floats
from featurecache.errors import MissingExtraError
from featurecache.heads.preparation import scaled

if TYPE_CHECKING:
    from sklearn.cluster import KMeans

MapName = Literal["pca", "umap"]
NUM_AXES = 50


def main_axes(X: NDArray[np.floating], count: int = NUM_AXES) -> Floats:
    """Return the coordinates of samples on the principal axes of standardised features, (n, k); axes have a fixed sign.

    Parameters
    ----------
    X : ndarray (n, d)
    count : int
        Axes at most.
    """
    from sklearn.decomposition import PCA

    rows = scaled(X)
    if not rows.any():
        return np.zeros((len(rows), 1))
    # Centred rows span one axis less than there are rows.
    most = min(count, rows.shape[1], max(len(rows) - 1, 1))
    # A randomized solver draws: with a fixed seed the same samples have the same axes.
    return np.asarray(PCA(most, svd_solver="randomized", random_state=0).fit_transform(rows), np.float64)


def plane_of(X: NDArray[np.floating], by: MapName = "pca", *, random_state: int = 0) -> Floats:
    """Lay samples out in a plane, (n, 2).

    Parameters
    ----------
    X : ndarray (n, d)
        Features.
    by : {"pca", "umap"}
        By the first two principal axes, or so that neighbours stay near (McInnes, Healy & Melville, "UMAP", 2018; extra
        ``map``): distances between groups mean nothing there.
    random_state : int
        Of UMAP.

    Raises
    ------
    MissingExtraError
        UMAP is not installed.
    """
    if by == "pca":
        plane = main_axes(X, 2)
        return plane if plane.shape[1] == 2 else np.pad(plane, ((0, 0), (0, 2 - plane.shape[1])))
    if find_spec("umap") is None:
        raise MissingExtraError("umap-learn, which --map umap needs,", "map")
    axes = main_axes(X)
    with warnings.catch_warnings():
        # It has no TensorFlow, and a seed keeps it from using threads: both are as they should be.
        warnings.simplefilter("ignore")
        umap: Any = import_module("umap")
        found = umap.UMAP(n_neighbors=min(15, len(axes) - 1), random_state=random_state).fit_transform(axes)
    return np.asarray(found, np.float64)


def k_means(axes: Floats, count: int, *, random_state: int, num_starts: int = 1) -> KMeans:
    """Return k-means fitted to samples; fewer clusters where fewer samples differ.

    Parameters
    ----------
    axes : ndarray (n, k)
    count : int
        Clusters.
    random_state : int
    num_starts : int
        Of which the best is taken.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # Of fewer distinct samples than clusters it warns, and gives fewer: callers count what there is.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return KMeans(count, n_init=num_starts, random_state=random_state).fit(axes)
