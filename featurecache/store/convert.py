"""Another precision of cached features, made from the cache alone; the first is not touched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurecache.errors import RequestError
from featurecache.specs import ViewSpec
from featurecache.store.commits import Commit
from featurecache.store.dtypes import LARGEST, Array, decode, encode, quantise
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.features import Features, rows_of_commit
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
    arrays["id"] = ("uint8", features.ids_of(commit))
    body = {
        **commit.body,
        "bad": sorted(bad),
        "precision": _whole_error(measure_error(values, arrays, against=features.dtype), commit.body.get("precision")),
        "converted_from": features.dtype,
    }
    target.folder.publish(commit.key, arrays, body, kind="features")


def stored_arrays(
    values: NDArray[np.float32], dtype: str, views: ViewSpec | None = None
) -> dict[str, tuple[str, Array]]:
    """Return the arrays that keep float32 ``values``, ``(n, ...)`` or ``(n, n_views, ...)``, in a stored type."""
    if dtype != "int8":
        return {"features": (dtype, encode(values, dtype))}
    if views is None:
        stored, scale, offset = quantise(values)
    else:  # all views share their channels' steps
        steps, scale, offset = quantise(values.reshape(-1, *values.shape[2:]))
        stored, scale, offset = steps.reshape(values.shape), scale[None], offset[None]
    return {"features": ("int8", stored), "scale": ("float32", scale), "offset": ("float32", offset)}


def measure_error(values: NDArray[np.float32], arrays: dict[str, tuple[str, Array]], *, against: str) -> dict[str, Any]:
    """Measure what storing cost: root mean square and largest error, relative to the same of the values."""
    dtype, stored = arrays["features"]
    back = stored * arrays["scale"][1] + arrays["offset"][1] if dtype == "int8" else decode(stored, dtype)
    good = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    exact, error = values[good].astype(np.float64), (back[good] - values[good]).astype(np.float64)
    if not exact.size:
        return {"against": against, "rows": 0, "relative_rms": 0.0, "relative_largest": 0.0}
    return {
        "against": against,
        "rows": int(good.sum()),
        "relative_rms": float(f"{np.sqrt(np.mean(error**2)) / max(np.sqrt(np.mean(exact**2)), 1e-30):.3g}"),
        "relative_largest": float(f"{np.abs(error).max() / max(np.abs(exact).max(), 1e-30):.3g}"),
    }


def _whole_error(error: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
    """Bound the error against float32 of what was rounded before already: by the triangle inequality, the sum."""
    if error["against"] == "float32" or before is None:
        return error
    sums = {name: float(f"{error[name] + before[name]:.3g}") for name in ("relative_rms", "relative_largest")}
    return {**error, **sums, "against": before["against"], "bound": True}


def _too_large(values: NDArray[np.float32], dtype: str) -> NDArray[np.bool_]:
    with np.errstate(invalid="ignore"):
        largest = np.abs(values.reshape(len(values), -1)).max(axis=1, initial=0)
        return np.asarray(largest > LARGEST.get(dtype, np.inf))
