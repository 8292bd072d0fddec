"""Features that have the same value in every row: a sign of dead layers, lost digits, or a tap that sees no input.

Each shard records which of its channels are constant, and at what value, so that nothing has to be read to tell. Of
shards without such a record (earlier releases, or very few rows), the first rows are read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featurecache.errors import ReportWarning
from featurecache.specs import ViewSpec
from featurecache.store.commits import Commit
from featurecache.store.dtypes import Array
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.features import Features
from featurecache.store.precision import FEWEST_ROWS, by_channel, finite_rows, in_percent
from featurecache.wording import counted

Runs = list[list[float]]
"""``[[start, stop, value], ...]``: channels that are constant in a shard."""

# Of a record; what is beyond is not recorded.
_MOST_RUNS = 4096
# Enough to find a channel that varies at all; a shard may be wide, and its bytes lie on a disk.
_ROWS_READ = 256
# Of shards that have no record of it.
_MOST_SHARDS_READ = 64


@dataclass(frozen=True, slots=True)
class ConstantFeatures:
    """How many channels of a feature set have the same value in every row.

    Attributes
    ----------
    count, num_features : int
        Constant channels, and all.
    num_rows : int
        Good rows.
    sampled : bool
        Some rows were not read.
    """

    count: int
    num_features: int
    num_rows: int
    sampled: bool = False


class ConstantFinder:
    """Watches the rows of a shard for channels that never change.

    Attributes
    ----------
    channels : ndarray of int64
        Those that have not changed so far.
    values : ndarray
        Theirs.
    num_rows, num_channels : int
        How many rows came, and the channels of each.

    Parameters
    ----------
    views : ViewSpec, optional
        Of features of views.
    """

    def __init__(self, views: ViewSpec | None = None) -> None:
        self._views = views
        self.channels: NDArray[np.int64] = np.zeros(0, np.int64)
        self.values: Array = np.zeros(0, np.float32)
        self.num_rows = 0
        self.num_channels = 0

    def add(self, values: Array) -> None:
        """Take good rows, ``(n, ...)``."""
        if not len(values):
            return
        is_first = self.num_rows == 0
        self.num_rows += len(values)
        values = by_channel(values, self._views)
        if is_first:
            self.num_channels = values.shape[1]
            # Copied: a view would keep the whole batch in memory for as long as the shard is written.
            self.channels, self.values = np.arange(values.shape[1]), values[0].copy()
        elif len(self.channels) < self.num_channels:
            values = values[:, self.channels]
        same = (values == self.values).all(axis=0)
        self.channels, self.values = self.channels[same], self.values[same]

    def runs(self) -> Runs | None:
        """Return what a record says; None where the rows are too few to say anything."""
        if self.num_rows < FEWEST_ROWS:
            return None
        channels, values = self.channels, self.values.astype(np.float64)
        if not len(channels):
            return []
        breaks = np.flatnonzero((np.diff(channels) != 1) | (np.diff(values) != 0)) + 1
        pieces = np.split(np.arange(len(channels)), breaks)
        runs = [[int(channels[p[0]]), int(channels[p[-1]]) + 1, float(values[p[0]])] for p in pieces]
        return runs[:_MOST_RUNS]


def constant_features(feature_set: FeatureSet, features: Features) -> ConstantFeatures:
    """Count the channels of a feature set that have the same value in every good row."""
    if not features.commits:
        return ConstantFeatures(0, 0, 0)
    channels: NDArray[np.int64] | None = None
    values: NDArray[np.float64] = np.zeros(0)
    silent = [commit for commit in features.commits if commit.body.get("constant") is None]
    sampled, num_rows = False, len(features) - len(features.bad)
    chosen = {int(n) for n in np.linspace(0, len(silent) - 1, _MOST_SHARDS_READ)} if silent else set()
    recorded = [commit for commit in features.commits if commit.body.get("constant") is not None]
    checked = [*recorded, *(silent[n] for n in sorted(chosen))]
    for commit in checked:
        found = _of_shard(feature_set, features, commit)
        sampled |= commit.body.get("constant") is None and commit.shard.arrays["features"].shape[0] > _ROWS_READ
        if found is None:
            continue
        if channels is None:
            channels, values = found
        else:
            common, mine, theirs = np.intersect1d(channels, found[0], assume_unique=True, return_indices=True)
            same = values[mine] == found[1][theirs]
            channels, values = common[same], values[mine][same]
        if not len(channels):
            break
    sampled |= len(chosen) < len(silent)
    count = 0 if channels is None else len(channels)
    empty = np.zeros((1, *features.sample_shape), np.bool_)
    num_features = by_channel(empty, feature_set.identity.views).shape[1]
    return ConstantFeatures(count, num_features, num_rows, sampled and count > 0)


def constant_warning(feature_set: FeatureSet, features: Features) -> ReportWarning | None:
    """Return a warning where features have the same value in every row."""
    found = constant_features(feature_set, features)
    # Of one sample every feature has one value.
    if not found.count or found.num_rows < 2:
        return None
    where = " of those that were read" if found.sampled else ""
    advice = "heads learn nothing from them"
    if found.count == found.num_features:
        advice = "no head can tell samples apart: check the tap, the weights and the images"
        if feature_set.dtype != "float32":
            advice += f", or whether {feature_set.dtype} lost the difference (the default --dtype auto measures it)"
    return ReportWarning(
        kind="constant_features",
        count=found.count,
        text=f"{counted(found.count, 'feature', of=found.num_features)} "
        f"({in_percent(found.count / found.num_features)}) of "
        f"{feature_set.tap} {'has' if found.count == 1 else 'have'} the same value in every row{where}; {advice}",
    )


def _of_shard(
    feature_set: FeatureSet, features: Features, commit: Commit
) -> tuple[NDArray[np.int64], NDArray[np.float64]] | None:
    """Return the constant channels of a shard and their values; None where it has no good rows."""
    recorded: Runs | None = commit.body.get("constant")
    if recorded is not None:
        channels = [np.arange(int(start), int(stop)) for start, stop, _ in recorded]
        values = [np.full(int(stop) - int(start), value) for start, stop, value in recorded]
        return np.concatenate([np.zeros(0, np.int64), *channels]), np.concatenate([np.zeros(0), *values])
    finder = ConstantFinder(feature_set.identity.views)
    first_rows = features.first_rows(commit, _ROWS_READ)
    finder.add(first_rows[finite_rows(first_rows)])
    return (finder.channels, finder.values.astype(np.float64)) if finder.num_rows else None
