"""What safety costs in time, and what ten million rows cost in memory."""

from __future__ import annotations

import json
import resource
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from trials.common import ABOUT, Options, Tally, features_body

ROWS_PER_SECOND = 5_000
"""Rate of an extraction that the cost is compared with."""
_SLACK_BYTES = 2 << 30
_WIDTH = 512
_READ_AT_ONCE = 1 << 18
"""Files whose ids come together, as in a scan."""


def try_durability(options: Options) -> list[Tally]:
    """Shards written, checksummed, fsynced and committed, against the same bytes written plainly; interleaved."""
    from featurecache.extraction.plan import LARGEST_SHARD
    from featurecache.store.folders import ShardFolder

    num_rows = LARGEST_SHARD
    rng = np.random.default_rng(0)
    features = rng.normal(size=(num_rows, 1280)).astype(np.float16)
    ids = rng.integers(0, 256, (num_rows, 32), dtype=np.uint8)
    folder = ShardFolder(options.scratch / "features")
    safe, plain, last_steps = [], [], []
    for number in range(4 if options.quick else 30):
        started = time.perf_counter()
        finishing = _write_shard(folder, number, features, ids)
        safe.append(time.perf_counter() - started)
        last_steps.append(finishing)
        started = time.perf_counter()
        _write_plainly(options.scratch / f"{number}.bin", features, ids)
        plain.append(time.perf_counter() - started)
    scale = ROWS_PER_SECOND / num_rows
    ours, theirs, ending = (scale * statistics.median(times[1:]) for times in (safe, plain, last_steps))
    percent = 100 * (ours - theirs)
    tally = Tally("limits on the cost of safety were exceeded")
    tally.add([f"{percent:.1f} % is above 5 %"] if percent > 5 and not options.quick else [], label="cost")
    tally.numbers = {"seconds_safe": ours, "seconds_plain": theirs, "seconds_finish": ending, "percent": percent}
    tally.notes.append(
        f"{percent:.1f} % of the time at {ROWS_PER_SECOND} rows/s of 1280 float16: {1000 * ours:.1f} ms a second for "
        f"shards and commits ({1000 * ending:.1f} ms of it digest, fsync and commit), {1000 * theirs:.1f} ms for plain "
        f"writing; median of {len(safe) - 1} shards"
    )
    return [tally]


def _write_shard(folder: Any, number: int, features: np.ndarray, ids: np.ndarray) -> float:
    from featurecache.store.shards import ShardWriter

    key = f"{number * len(ids):012d}"
    layout = {"features": ("float16", features.shape), "id": ("uint8", ids.shape)}
    with ShardWriter(folder.path, layout, {"format": "featurecache", "kind": "features"}) as writer:
        for start in range(0, len(ids), 32):
            writer.append("features", features[start : start + 32])
        writer.append("id", ids)
        started = time.perf_counter()
        shard = writer.finish(key)
    folder.commit(key, shard, {"rows": [[number * len(ids), (number + 1) * len(ids)]], "bad": []})
    return time.perf_counter() - started


def _write_plainly(path: Path, features: np.ndarray, ids: np.ndarray) -> None:
    with path.open("wb", buffering=0) as file:
        for start in range(0, len(ids), 32):
            file.write(features[start : start + 32])
        file.write(ids)


def try_size(options: Options) -> list[Tally]:
    """Write and read many rows in processes of their own; measure memory and speed."""
    num_rows = options.rows or (50_000 if options.quick else 10_000_000)
    needed = num_rows * (2 * _WIDTH + 200) + _SLACK_BYTES
    if (free := shutil.disk_usage(options.scratch).free) < needed:
        raise SystemExit(f"needs {needed:,} bytes free, there are {free:,}; name another folder with --scratch")
    cache = options.scratch / "large.cache"
    writing = _in_new_process("write_many", cache, num_rows)
    reading = _in_new_process("read_many", cache, num_rows)
    limits = [
        ("writer's own memory (MB)", writing["anonymous_mb"], 1_500, "at most"),
        ("reader's own memory (MB)", reading["anonymous_mb"], 300, "at most"),
        ("seconds to open", reading["open_seconds"], 1.0, "at most"),
        ("random rows/s, warm", reading["random_rows_per_second"], 1e6, "at least"),
        ("wrong rows", reading["wrong_rows"], 0, "at most"),
    ]
    tally = Tally(f"limits were broken at {num_rows:,} rows x {_WIDTH} float16")
    for name, value, limit, kind in limits:
        broken = value > limit if kind == "at most" else value < limit
        timed = "seconds" in name or "rows/s" in name  # say little about a small run on a busy machine
        tally.add(
            [f"{value:,.2f}"] if broken and not (options.quick and timed) else [], label=f"{name} {kind} {limit:,}"
        )
        tally.notes.append(f"{name}: {value:,.2f} ({kind} {limit:,})")
    tally.numbers = {"num_rows": num_rows, "writer": writing, "reader": reading}
    tally.notes.append(
        f"writer: {writing['rows_per_second']:,.0f} rows/s in {writing['seconds']:.0f} s, "
        f"{writing['table_seconds']:.0f} s of it for the sample table and the source view"
    )
    tally.notes.append(
        f"with mapped pages, which the system takes back at will: writer {writing['peak_mb']:,.0f} MB, reader "
        f"{reading['peak_mb']:,.0f} MB; reader: "
        f"{reading['sequential_mb_per_second']:,.0f} MB/s in order; sample ids in {reading['ids_seconds']:.2f} s"
    )
    return [tally]


def _in_new_process(name: str, cache: Path, num_rows: int) -> dict[str, Any]:
    code = f"import sys; sys.path[:0] = sys.argv[3:]; from trials import costs; costs.{name}(*sys.argv[1:3])"
    command = [sys.executable, "-c", code, str(cache), str(num_rows), *sys.path[:3]]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout)


def write_many(cache: str, count: str) -> None:
    """Do what an extraction does, with a backbone that makes numbers up. Prints what it took."""
    from featurecache.extraction.plan import plan_extraction
    from featurecache.specs import FeatureIdentity, PreprocessSpec
    from featurecache.store.listings import Listing
    from featurecache.store.schemas import BackboneAbout
    from featurecache.store.shards import ShardWriter
    from featurecache.store.store import FeatureStore
    from featurecache.text import TextColumn

    num_rows, started, sampler = int(count), time.perf_counter(), MemorySampler()
    store = FeatureStore.create(cache)
    paths = TextColumn.pack(f"photos/{number // 1000:06d}/{number:09d}.jpg" for number in range(num_rows))
    rows, rng = np.empty(num_rows, np.int64), np.random.default_rng(0)
    for start in range(0, num_rows, _READ_AT_ONCE):
        places = np.arange(start, min(start + _READ_AT_ONCE, num_rows))
        ids = rng.integers(0, 256, (len(places), 32), dtype=np.uint8)
        rows[places] = store.samples.append(ids, paths.take(places), np.full(len(places), 100_000))
    listing = store.listings.save(
        Listing(str(Path(cache).with_name("photos")), paths, np.full((num_rows, 4), 100_000), rows, {})
    )
    table_seconds = time.perf_counter() - started
    del paths, rows
    identity = FeatureIdentity(
        backbone="synthetic", architecture="0" * 64, weights="0" * 64, preprocess=PreprocessSpec()
    )
    feature_set = store.add_feature_set(identity, BackboneAbout(**ABOUT), "layer:avg", "float16")
    table_ids = store.samples.ids
    for job in plan_extraction(listing.unique_rows, {"layer:avg": np.zeros(0, np.int64)}):
        layout = {"features": ("float16", (len(job.rows), _WIDTH)), "id": ("uint8", (len(job.rows), 32))}
        with ShardWriter(feature_set.folder.path, layout, {"format": "featurecache", "kind": "features"}) as writer:
            for start in range(0, len(job.rows), 256):
                writer.append("features", made_up(job.rows[start : start + 256]))
            writer.append("id", table_ids[job.rows])
            shard = writer.finish(job.key)
        assert feature_set.folder.commit(job.key, shard, features_body(feature_set, job.rows))
    seconds = time.perf_counter() - started
    memory = {"anonymous_mb": sampler.peak_mb(), "peak_mb": _peak_mb()}
    result = {"seconds": seconds, "rows_per_second": num_rows / seconds, "table_seconds": table_seconds}
    print(json.dumps({**result, **memory}))


def read_many(cache: str, count: str) -> None:
    """Open, read in order, and gather random rows. Prints what it took."""
    from featurecache.store.store import FeatureStore

    num_rows, sampler = int(count), MemorySampler()
    started = time.perf_counter()
    features = FeatureStore.open(cache).features()
    assert len(features) == num_rows
    open_seconds = time.perf_counter() - started
    wrong = 0
    block = 4096
    for _ in range(2):  # the second time is warm: pages in memory, blocks checked
        started = time.perf_counter()
        for start in range(0, num_rows, block):
            values = features.read(np.arange(start, min(start + block, num_rows)))
        sequential = num_rows * _WIDTH * 2 / (time.perf_counter() - started) / 1e6
        wrong += int((values != made_up(np.arange(num_rows - len(values), num_rows))).any(axis=1).sum())
    rng = np.random.default_rng(1)
    rates = []
    for _ in range(40):
        rows = rng.integers(0, num_rows, 50_000)
        started = time.perf_counter()
        values = features.read(rows)
        rates.append(len(rows) / (time.perf_counter() - started))
        wrong += int((values[::10] != made_up(rows[::10])).any(axis=1).sum())
    anonymous = sampler.peak_mb()
    started = time.perf_counter()
    num_ids = len(FeatureStore.open(cache).samples.ids)
    result = {
        "open_seconds": open_seconds,
        "sequential_mb_per_second": sequential,
        "random_rows_per_second": statistics.median(rates),
        "wrong_rows": wrong + abs(num_ids - num_rows),
        "anonymous_mb": anonymous,
        "peak_mb": _peak_mb(),
        "ids_seconds": time.perf_counter() - started,
    }
    print(json.dumps(result))


def made_up(rows: np.ndarray) -> np.ndarray:
    """Features that tell their row: its digits to base 1024, and then a pattern."""
    values = np.tile(np.arange(_WIDTH, dtype=np.float16), (len(rows), 1))
    for place in range(4):
        values[:, place] = rows // 1024**place % 1024
    return values


class MemorySampler:
    """Follows the memory that is a process's own; pages of mapped files belong to the system."""

    def __init__(self) -> None:
        self._peak = 0.0
        threading.Thread(target=self._follow, daemon=True).start()

    def peak_mb(self) -> float:
        return max(self._peak, _status_mb("RssAnon") or _peak_mb())

    def _follow(self) -> None:
        while True:
            self._peak = max(self._peak, _status_mb("RssAnon") or 0.0)
            time.sleep(0.02)


def _peak_mb() -> float:
    # On Linux the maximum of getrusage also counts the process that started this one.
    return _status_mb("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _status_mb(name: str) -> float | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:")), None)
