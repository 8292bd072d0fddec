"""Errors of features that are stored in fewer digits, relative to how much they vary from sample to sample.

Rounding is harmless as long as it is small compared with the *spread* of a feature, not with its size: features of 1e-9
are zeros in float16, and features of 1000 that differ by 0.1 are all the same number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurecache.errors import ReportWarning
from featurecache.specs import ViewSpec
from featurecache.store.dtypes import DIGITS, LARGEST, Array, decode, encode, quantise
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.features import Features
from featurecache.store.schemas import Precision

# Share of the features' spread that rounding may take: above, ``--dtype auto`` takes float32, and other types warn.
MOST_ERROR = 0.01
# The largest feature of a few samples times this must fit a type: others of the source may have larger ones.
_HEADROOM = 16.0
# The spread of fewer rows is mostly chance; what is measured on them is not kept.
FEWEST_ROWS = 8
# Rows of a shard, and shards, that are read for an estimate where the records hold no error.
_ROWS_READ, _SHARDS_READ = 64, 4


def by_channel(values: Array, views: ViewSpec | None = None) -> Array:
    """Return features ``(n, ...)`` as ``(n * places, channels)``.

    Channels are the features of vectors, the last axis of tokens, the first axis of maps; views count as samples.
    """
    if views is not None:
        values = values.reshape(-1, *values.shape[2:])
    if values.ndim == 4:
        values = np.moveaxis(values, 1, -1)
    if values.ndim in (3, 4):
        return values.reshape(-1, values.shape[-1])
    return values if values.ndim == 2 else values.reshape(len(values), -1)


def finite_rows(values: Array) -> NDArray[np.bool_]:
    """Tell which rows ``(n, ...)`` hold neither NaN nor infinity."""
    return np.asarray(np.isfinite(values).all(axis=tuple(range(1, values.ndim))))


def stored_arrays(
    values: NDArray[np.float32], dtype: str, views: ViewSpec | None = None
) -> dict[str, tuple[str, Array]]:
    """Return the arrays that keep features in a stored type.

    Parameters
    ----------
    values : ndarray of float32, shape (n, ...) or (n, n_views, ...)
    dtype : str
    views : ViewSpec, optional
    """
    if dtype != "int8":
        return {"features": (dtype, encode(values, dtype))}
    if views is None:
        stored, scale, offset = quantise(values)
    else:  # all views share their channels' steps
        steps, scale, offset = quantise(values.reshape(-1, *values.shape[2:]))
        stored, scale, offset = steps.reshape(values.shape), scale[None], offset[None]
    return {"features": ("int8", stored), "scale": ("float32", scale), "offset": ("float32", offset)}


def read_back(arrays: dict[str, tuple[str, Array]]) -> Array:
    """Return the numbers that `stored_arrays` stand for."""
    dtype, stored = arrays["features"]
    return stored * arrays["scale"][1] + arrays["offset"][1] if dtype == "int8" else decode(stored, dtype)


def measure_error(
    values: NDArray[np.float32], arrays: dict[str, tuple[str, Array]], *, against: str, views: ViewSpec | None = None
) -> Precision:
    """Measure the error of stored features, for the record of a shard.

    Parameters
    ----------
    values : ndarray of float32
        Features before they are stored; rows that are not finite are left out.
    arrays : dict
        What `stored_arrays` made of them.
    against : str
        Number type of the values.
    views : ViewSpec, optional
        Of features of views.
    """
    back = read_back(arrays)
    good = finite_rows(values)
    exact, error = values[good].astype(np.float64), (back[good] - values[good]).astype(np.float64)
    if not exact.size:
        return Precision(against=against, rows=0, relative_rms=0.0, relative_largest=0.0)
    errors: dict[str, Any] = {
        "relative_rms": np.sqrt(np.mean(error**2)) / max(np.sqrt(np.mean(exact**2)), 1e-30),
        "relative_largest": np.abs(error).max() / max(np.abs(exact).max(), 1e-30),
    }
    if len(exact) >= FEWEST_ROWS:
        errors["relative_to_spread"] = spread_error(by_channel(exact, views), by_channel(error, views))
    errors = {name: float(f"{number:.3g}") for name, number in errors.items()}
    return Precision(against=against, rows=int(good.sum()), **errors)


def spread_error(exact: NDArray[np.float64], error: NDArray[np.float64]) -> float:
    """Return the share of the features' spread that rounding takes.

    Parameters
    ----------
    exact, error : ndarray, shape (n_samples, n_features)
        Features, and stored features minus them.

    Returns
    -------
    share : float
        The greater of two: the root mean square of the error over that of the deviations from each feature's mean; and
        the same of each feature by itself, at most 1, on average over the features that vary. The first is about
        distances, which the largest features make up; the second about heads that scale all features alike.
    """
    squared_error, squared_spread = np.mean(error**2, axis=0), np.var(exact, axis=0)
    # What float64 makes of a constant is no spread.
    varies = squared_spread > (1e-12 * np.abs(exact).max(axis=0, initial=0)) ** 2
    if not varies.any():  # nothing tells samples apart; the error is taken relative to the size
        squared_spread, varies = np.mean(exact**2, axis=0), (exact != 0).any(axis=0)
    if not varies.any():
        return 0.0
    squared_error, squared_spread = squared_error[varies], squared_spread[varies]
    of_features = np.sqrt(np.minimum(squared_error / squared_spread, 1.0))
    return float(max(np.sqrt(squared_error.sum() / squared_spread.sum()), of_features.mean()))


def error_as(values: NDArray[np.float32], dtype: str) -> float:
    """Return what `spread_error` would be if finite ``values`` were stored; infinity if they hardly fit."""
    if not len(values):
        return 0.0
    if np.abs(values).max() * _HEADROOM > LARGEST.get(dtype, np.inf):
        return float("inf")
    exact = values.astype(np.float64)
    back = read_back(stored_arrays(values, dtype)).astype(np.float64)
    return spread_error(by_channel(exact), by_channel(back - exact))


def storage_error(feature_set: FeatureSet, features: Features) -> float:
    """Return the share of the features' spread that rounding took.

    Shards recorded it when they were written. Where they did not (earlier releases, or fewer than `FEWEST_ROWS` rows),
    it is estimated from some of the stored features.
    """
    if feature_set.dtype == "float32":
        return 0.0
    precisions = [commit.body["precision"] for commit in features.commits if commit.body.get("precision")]
    recorded = [(p["rows"], p["relative_to_spread"]) for p in precisions if p.get("relative_to_spread") is not None]
    if recorded:
        return sum(rows * error for rows, error in recorded) / sum(rows for rows, _ in recorded)
    # Relative to the size of the features the error is no greater than relative to their spread.
    known = max((p["relative_rms"] for p in precisions if p["rows"]), default=0.0)
    return max(known, _estimated_error(feature_set, features))


def _estimated_error(feature_set: FeatureSet, features: Features) -> float:
    """Estimate the error from stored numbers: on average rounding takes a step over the root of twelve."""
    values, steps = [], []
    commits = features.commits
    for number in sorted({int(n) for n in np.linspace(0, len(commits) - 1, _SHARDS_READ)} if commits else ()):
        stored = features.first_rows(commits[number], _ROWS_READ).astype(np.float32)
        good = stored[finite_rows(stored)]
        if len(good):
            values.append(by_channel(good, feature_set.identity.views))
            steps.append(_steps(values[-1], feature_set.dtype))
    if not values:
        return 0.0
    exact, step = np.concatenate(values).astype(np.float64), np.concatenate(steps).astype(np.float64)
    if len(exact) < 2 or not (varies := np.ptp(exact, axis=0) > 0).any():
        return 0.0
    return spread_error(exact[:, varies], step[:, varies] / np.sqrt(12))


def _steps(values: NDArray[np.float32], dtype: str) -> Array:
    """Return how far apart the numbers of a type are at each of some numbers."""
    if dtype == "float16":
        with np.errstate(invalid="ignore", over="ignore"):
            return np.abs(np.spacing(values.astype(np.float16))).astype(np.float32)
    if dtype == "bfloat16":
        return np.spacing(np.abs(values)) * np.float32(1 << 16)
    return np.broadcast_to((np.ptp(values, axis=0) / 255).astype(np.float32), values.shape)


def storage_warning(feature_set: FeatureSet, features: Features) -> ReportWarning | None:
    """Return a warning where rounding took more than `MOST_ERROR` of the features' spread."""
    error = storage_error(feature_set, features)
    if error <= MOST_ERROR:
        return None
    return ReportWarning(
        kind="storage_error",
        count=1,
        text=f"{feature_set.tap} is stored as {feature_set.dtype}, with an error of {in_percent(error)} of the "
        "features' spread: extract again with --dtype float32, or into another cache, where the default --dtype auto "
        "takes float32 above 1 %",
    )


def in_percent(share: float) -> str:
    """Write a share, which may be above one, for people."""
    return f"{100 * share:.2g} %" if share < 1 else f"{100 * share:.0f} %"


def widest(dtypes: Sequence[str]) -> str | None:
    """Return the type with the most digits, None of none."""
    return min(dtypes, key=list(DIGITS).index, default=None)
