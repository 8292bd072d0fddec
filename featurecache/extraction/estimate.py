"""What a run will take, said before it begins: bytes against what is free on the disk, and seconds where known."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featurecache.backbones.inspection import bytes_per_sample
from featurecache.backbones.taps import Tap
from featurecache.errors import RequestError
from featurecache.extraction.plan import PlannedShard
from featurecache.store.dtypes import STORED
from featurecache.store.feature_sets import FeatureSet
from featurecache.wording import counted, human_bytes


@dataclass(frozen=True)
class Estimate:
    """What extraction will take.

    Attributes
    ----------
    num_rows : int
        Samples to compute.
    num_bytes : int
        Of their features on disk.
    free_bytes : int
        On the disk of the cache.
    seconds : float or None
        Of the network alone, at the rate that was measured while a runtime was chosen; None where none was.
    """

    num_rows: int
    num_bytes: int
    free_bytes: int
    seconds: float | None

    def sentence(self) -> str:
        """Return it for people."""
        time = "" if self.seconds is None else f", about {max(self.seconds, 1):,.0f} s of the network"
        free = f"{human_bytes(self.num_bytes)} of features, {human_bytes(self.free_bytes)} are free"
        return f"{counted(self.num_rows, 'sample')} to extract: {free}{time}"


def estimate(
    shards: Sequence[PlannedShard],
    sets: Sequence[FeatureSet],
    taps: Mapping[str, Tap],
    *,
    cache: Path,
    rate: float | None = None,
) -> Estimate:
    """Estimate what some shards will take.

    Parameters
    ----------
    shards : sequence of PlannedShard
    sets : sequence of FeatureSet
        What they extend, one set for each tap.
    taps : mapping of str to Tap
    cache : path
    rate : float, optional
        Plain inputs per second.

    Raises
    ------
    RequestError
        More bytes than are free: a run of hours should not end with a full disk.
    """
    views = sets[0].num_views or 1  # the same of all: they have one fingerprint
    row_bytes = {}
    for feature_set in sets:
        tap, itemsize = taps[feature_set.tap], np.dtype(STORED[feature_set.dtype]).itemsize
        # The id of a sample is stored once for all of its views.
        row_bytes[feature_set.tap] = bytes_per_sample(tap, itemsize=itemsize) + (views - 1) * itemsize * math.prod(
            tap.shape
        )
    num_rows = sum(len(shard.runs) for shard in shards)
    num_bytes = sum(len(shard.runs) * row_bytes[tap] for shard in shards for tap in shard.taps)
    free = shutil.disk_usage(cache).free
    found = Estimate(num_rows, num_bytes, free, num_rows * views / rate if rate else None)
    if num_bytes > free:
        raise RequestError(
            f"the features of {counted(num_rows, 'sample')} take {human_bytes(num_bytes)}, and "
            f"{human_bytes(free)} are free "
            f"on the disk of {cache}; free some, or choose another disk, smaller taps, or --dtype float16"
        )
    return found
