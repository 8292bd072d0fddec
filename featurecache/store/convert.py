"""Another precision of cached features, made from the cache alone; the first is not touched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurecache.errors import RequestError
from featurecache.store.commits import Commit
from featurecache.store.constants import constants_of
from featurecache.store.dtypes import LARGEST
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.features import Features, rows_of_commit
from featurecache.store.precision import finite_rows, measure_error, read_back, stored_arrays
from featurecache.store.store import FeatureStore

_DIGITS = {"float32": 24, "float16": 11, "bfloat16": 8, "int8": 8}


def convert_features(
    store: FeatureStore, source: FeatureSet, dtype: str, *, on_shard: Callable[[int, int], None] | None = None
) -> FeatureSet:
    """Write the features of one set in another number type.

    Parameters
    ----------
    store : FeatureStore
        The cache.
    source : FeatureSet
        What to convert.
    dtype : str
        ``float16``, ``bfloat16`` or ``int8``.
    on_shard : callable, optional
        Called with (shards done, shards to do).

    Raises
    ------
    RequestError
        The wanted type would promise digits that the stored one does not have.
    """
    if dtype not in _DIGITS:
        raise RequestError(f"unknown dtype {dtype!r}; known: {', '.join(_DIGITS)}")
    if dtype == source.dtype or _DIGITS[dtype] > _DIGITS[source.dtype] or source.dtype == "int8":
        raise RequestError(
            f"{source.dtype} features cannot become {dtype}: the missing digits are gone; "
            f"run `featurecache extract --dtype {dtype}`"
        )
    target = store.add_feature_set(source.identity, source.about, source.tap, dtype)
    features = source.open()
    done = {commit.key for commit in target.folder.commits()}
    for number, commit in enumerate(features.commits, 1):
        if commit.key not in done:
            _convert_shard(features, commit, target)
        if on_shard:
            on_shard(number, len(features.commits))
    if (probe := source.probe()) is not None:
        target.keep_probe(probe)
    for warning in source.warnings():
        target.keep_warning(warning)
    return target


def _convert_shard(features: Features, commit: Commit, target: FeatureSet) -> None:
    values = features.read_shard(commit).astype(np.float32)
    bad, rows = list(commit.body["bad"]), rows_of_commit(commit).tolist()
    known = {row for row, *_ in bad}
    for place in np.flatnonzero(_too_large(values, target.dtype)).tolist():
        if rows[place] not in known:
            reason = f"a feature exceeds the range of {target.dtype}; use --dtype float32"
            bad.append([rows[place], "overflow", reason])
        values[place] = np.nan
    arrays = stored_arrays(values, target.dtype, target.identity.views)
    views = target.identity.views
    error = measure_error(values, arrays, against=features.dtype, views=views)
    good = finite_rows(values)
    constant = constants_of(read_back(arrays)[good], views)
    arrays["id"] = ("uint8", features.ids_of(commit))
    body = {
        **{name: value for name, value in commit.body.items() if name != "constant"},
        **({} if constant is None else {"constant": constant}),
        "bad": sorted(bad),
        "precision": _whole_error(error, commit.body.get("precision")),
        "converted_from": features.dtype,
    }
    target.folder.publish(commit.key, arrays, body, kind="features")


def _whole_error(error: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
    """Bound the error against float32 of what was rounded before already: by the triangle inequality, the sum."""
    if error["against"] == "float32" or before is None:
        return error
    measured = ("relative_rms", "relative_largest", "relative_to_spread")
    sums = {name: float(f"{error[name] + before[name]:.3g}") for name in measured if name in error and name in before}
    return {**error, **sums, "against": before["against"], "bound": True}


def _too_large(values: NDArray[np.float32], dtype: str) -> NDArray[np.bool_]:
    with np.errstate(invalid="ignore"):
        largest = np.abs(values.reshape(len(values), -1)).max(axis=1, initial=0)
        return np.asarray(largest > LARGEST.get(dtype, np.inf))
