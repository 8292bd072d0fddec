"""Features as clusters and neighbours want them: standardised, turned into their main axes, of length one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from featurecache.advice.probe import Floats, scaled

_NUM_AXES = 50


def unit_axes(X: NDArray[np.floating], count: int = _NUM_AXES) -> Floats:
    """Return the coordinates of samples on their main axes, scaled to length one, (n, k).

    Parameters
    ----------
    X : ndarray (n, d)
        Features.
    count : int
        Axes at most.
    """
    coordinates = main_axes(X, count)
    return np.asarray(coordinates / np.maximum(np.linalg.norm(coordinates, axis=1, keepdims=True), 1e-12))


def main_axes(X: NDArray[np.floating], count: int) -> Floats:
    """Return the coordinates of samples on the principal axes of standardised features, (n, k); axes have a fixed sign.

    Parameters
    ----------
    X : ndarray (n, d)
    count : int
        Axes at most.
    """
    from sklearn.decomposition import PCA

    rows = scaled(X)
    most = min(count, rows.shape[1], max(len(rows) - 1, 1))
    return np.asarray(PCA(most, svd_solver="randomized", random_state=0).fit_transform(rows), np.float64)
