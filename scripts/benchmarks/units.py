"""What many samples in many tars cost besides their bytes and their features. Run by `benchmark.py`.

The samples are a few bytes that follow from their number, and so are their features: what is left is the sample table,
the listing, commits, planning and `info`. Each step has a process of its own, so that its memory is seen.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from featurecache.sources.source import Entry, Stamp, Unit

_WIDTH = 8
_STEPS = ("scan", "extract", "rerun", "info", "one_more")


def add_units_options(parser: argparse.ArgumentParser) -> None:
    """Add how many there are."""
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--per-unit", type=int, default=10_000, help="samples in a tar (default 10000)")
    parser.add_argument("--scratch", type=Path, help="where the cache lies meanwhile")


def bench_units(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds and memory of a scan, of commits, of a re-run, of `info`, and of one more tar; bytes of a sample."""
    found: dict[str, Any] = {"samples": args.samples, "units": -(-args.samples // args.per_unit)}
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        cache = Path(scratch) / "many.cache"
        for step in _STEPS:
            num_samples = args.samples + (args.per_unit if step == "one_more" else 0)
            code = "import sys; sys.path[:0] = sys.argv[5:]; from benchmarks import units; units.run(*sys.argv[1:5])"
            numbers = [str(num_samples), str(args.per_unit)]
            command = [sys.executable, "-c", code, step, str(cache), *numbers, *sys.path[:3]]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[step] = json.loads(done.stdout)
            for name in ("samples", "sources"):
                num_bytes = sum(path.stat().st_size for path in (cache / name).rglob("*") if path.is_file())
                found[step][f"bytes a sample in {name}/"] = round(num_bytes / num_samples, 2)
    return found


class ManyUnits:
    """Samples that follow from their number, in units as tars are."""

    modality = "image"
    key = "/many/photos-{000000..999999}.tar"

    def __init__(self, num_samples: int, per_unit: int) -> None:
        self._num_samples, self._per_unit = num_samples, per_unit

    def units(self) -> Iterator[Unit]:
        """Yield the units."""
        return (Unit(f"photos-{number:06d}.tar") for number in range(-(-self._num_samples // self._per_unit)))

    def unit_stamp(self, unit: Unit) -> tuple[str, Stamp]:
        """Return what the names of a unit begin with, and its stamp."""
        return f"{unit.name}/", (0, 1, 1, int(unit.name[7:13]))

    def list(self, unit: Unit) -> Iterator[Entry]:
        """Yield the samples of a unit."""
        first = int(unit.name[7:13]) * self._per_unit
        stamp = (9, *self.unit_stamp(unit)[1][1:])
        for number in range(first, min(first + self._per_unit, self._num_samples)):
            yield Entry(f"{unit.name}/{number:09d}.jpg", stamp)

    def read(self, unit: Unit) -> Iterator[tuple[str, bytes]]:
        """Yield names and bytes."""
        return ((entry.name, self.open(entry.name, stamp=None)) for entry in self.list(unit))

    def open(self, name: str, *, stamp: Stamp | None) -> bytes:
        """Return the bytes of a sample."""
        return name[-13:-4].encode()


def run(step: str, cache: str, num_samples: str, per_unit: str) -> None:
    """Take one step and print what it took."""
    from trials.costs import MemorySampler

    from featurecache.extraction.plan import missing_shards
    from featurecache.extraction.scan import scan_into
    from featurecache.progress import Silent
    from featurecache.store.overview import describe_cache
    from featurecache.store.store import FeatureStore

    sampler, started = MemorySampler(), time.perf_counter()
    store = FeatureStore.create(cache)
    result: dict[str, Any] = {}
    if step == "info":
        describe_cache(store)
    else:
        listing, num_read = scan_into(store, ManyUnits(int(num_samples), int(per_unit)), Silent())
        result["read"] = num_read
    if step in ("extract", "rerun"):
        feature_set = _feature_set(store)
        planned = missing_shards([feature_set], listing.held)
        result |= {"planned": time.perf_counter() - started, "shards": len(planned)}
        for shard in planned:
            _commit(feature_set, store, shard.rows, shard.key)
    print(json.dumps({"seconds": time.perf_counter() - started, **result, "memory_mb": sampler.peak_mb()}))


def _feature_set(store: Any) -> Any:
    from trials.common import ABOUT

    from featurecache.specs import FeatureIdentity, PreprocessSpec
    from featurecache.store.schemas import BackboneAbout

    identity = FeatureIdentity(
        backbone="synthetic", architecture="0" * 64, weights="0" * 64, preprocess=PreprocessSpec()
    )
    return store.add_feature_set(identity, BackboneAbout(**ABOUT), "layer:avg", "float16")


def _commit(feature_set: Any, store: Any, rows: np.ndarray, key: str) -> None:
    from trials.common import features_body

    values = np.tile(np.arange(_WIDTH, dtype=np.float16), (len(rows), 1))
    arrays = {"features": ("float16", values), "id": ("uint8", store.samples.ids[rows])}
    assert feature_set.folder.publish(key, arrays, features_body(feature_set, rows), kind="features")
