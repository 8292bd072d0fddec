"""Facts about files that are not the picture: what a head could go by without looking."""

from __future__ import annotations

from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from featurecache.store.samples import Rows
from featurecache.store.store import FeatureStore


def facts_of(store: FeatureStore, rows: Rows) -> dict[str, NDArray[np.float64]]:
    """Return what a cache knows of the files of some rows: size in bytes, type, depth, and the number in the name.

    Parameters
    ----------
    store : FeatureStore
    rows : ndarray of int64 (n,)
    """
    names = [PurePosixPath(name) for name in store.samples.uris_of(rows)]
    suffixes = [name.suffix.lower() for name in names]
    codes = {suffix: float(code) for code, suffix in enumerate(sorted(set(suffixes)))}
    facts = {
        "size of the file": np.log(np.maximum(store.samples.take("size", rows).astype(np.float64), 1.0)),
        "type of the file": np.array([codes[suffix] for suffix in suffixes]),
        "depth of the folder": np.array([float(len(name.parts)) for name in names]),
    }
    # What is the same for all files tells nothing.
    return {name: values for name, values in facts.items() if len(np.unique(values)) > 1}
