"""Several writers at once on one cache, with the leases that would keep them apart, and without them."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trials.common import (
    BACKBONE,
    Options,
    Tally,
    Truth,
    be_child,
    for_each,
    leftovers,
    problems_of,
    run_child,
    warm_up,
    write_images,
)

NUM_WRITERS = 8
NO_LINKS = "with leases where there are no hard links"
KINDS = ("alike", "alike, extending", "overlapping sources", "other shard sizes")


@dataclass(frozen=True)
class Ground:
    """What the writers race over."""

    sources: tuple[Path, ...]
    """The first holds everything, the others hold overlapping parts of it."""
    half: Path
    truth: dict[bytes, bytes]
    """The stored bytes of every good input, by sample id."""
    scratch: Path


def try_races(options: Options) -> list[Tally]:
    """Races of eight processes: alike, extending a cache, with overlapping sources, with other shard sizes."""
    warm_up()
    ground = _make_ground(options.scratch)
    tallies = []
    few = 1 if options.quick else 40
    for with_them, number in (("without leases", 2 if options.quick else 200), ("with leases", few), (NO_LINKS, few)):
        races = [(ground, KINDS[k % len(KINDS)], k, with_them) for k in range(number)]
        results = for_each(races, _race, jobs=2)
        right = Tally(f"races of 8 writers {with_them} left a wrong or doubled row, a temporary or a failed writer")
        complete = Tally(f"races {with_them} left rows uncached although every writer said it was done")
        counts: Counter[str] = Counter()
        for (_, kind, _, _), result in zip(races, results, strict=True):
            right.add(problems_of(result), label=kind)
            complete.add(result.get("value", {}).get("missing", []), label=kind)
            counts.update(result.get("value", {}).get("counts", {}))
        right.numbers = dict(counts)
        right.notes.append(", ".join(f"{name} {count}" for name, count in sorted(counts.items())))
        tallies += [right, complete]
    return tallies


def _make_ground(scratch: Path) -> Ground:
    whole, cache, half = scratch / "photos", scratch / "whole", scratch / "half"
    write_images(whole, count=10)
    _must(lambda: write(whole, half, 3))
    write_images(whole, count=10, first=10)
    _must(lambda: write(whole, cache, 3))
    files = sorted(path for path in whole.rglob("*") if path.is_file())
    sources = [whole]
    for part in range(3):
        folder = scratch / f"part{part}"
        for path in files[part * 4 : part * 4 + 14]:
            target = folder / path.relative_to(whole)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
        sources.append(folder)
    truth = Truth.of(cache)
    rows = next(iter(truth.rows.values()))
    return Ground(tuple(sources), half, {truth.ids[row].tobytes(): data for row, data in rows.items()}, scratch)


def write(source: Path, cache: Path, shard_rows: int) -> int:
    from featurecache.cli import main

    numbers = ["--batch-size", "4", "--shard-rows", str(shard_rows), "--jobs", "1", "--max-bad", "1"]
    command = ["extract", str(source), "--cache", str(cache), "--backbone", BACKBONE, "--runtime", "torch", "--quiet"]
    return main([*command, *numbers])


def _must(work: Callable[[], int]) -> None:
    if (ended := run_child(work)).status:
        raise RuntimeError(f"the run before the races failed: {ended.error}")


def _race(race: tuple[Ground, str, int, str]) -> dict[str, Any]:
    from featurecache.store.leases import Leases

    ground, kind, number, with_them = race
    rng = random.Random(number)
    cache = ground.scratch / f"race{number}-{with_them.replace(' ', '-')}"
    if kind == "alike, extending":
        shutil.copytree(ground.half, cache)
    if with_them == "without leases":
        Leases.hold = _no_lease
    if with_them == NO_LINKS:
        os.link = _no_link
    runs = []
    for writer in range(NUM_WRITERS):
        source = ground.sources[writer % len(ground.sources)] if kind == "overlapping sources" else ground.sources[0]
        shard_rows = rng.choice((2, 3, 5, 8)) if kind == "other shard sizes" else 3
        delay = rng.random() * 0.2 if number % 2 else 0.0
        runs.append((source, shard_rows, delay))
    problems = run_together([lambda run=run: _late(cache, *run) for run in runs])
    found, missing, counts = _inspect(cache, ground)
    shutil.rmtree(cache, ignore_errors=True)
    return {"problems": problems + found, "missing": missing, "counts": counts}


def _no_link(*_: Any, **__: Any) -> None:
    raise OSError(errno.EPERM, "this file system has no hard links")


@contextmanager
def _no_lease(_: Any, key: str) -> Iterator[bool]:
    yield True


def _late(cache: Path, source: Path, shard_rows: int, delay: float) -> int:
    time.sleep(delay)
    return write(source, cache, shard_rows)


def run_together(runs: list[Callable[[], int]]) -> list[str]:
    """Start all at one moment; return what went wrong in any."""
    gate, opening = os.pipe()
    pids = {}
    errors = []
    for number, work in enumerate(runs):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(opening)
            os.read(gate, 1)  # until the parent opens the gate for all
            be_child(work, writing, thorough=False)
        os.close(writing)
        pids[pid] = (number, reading)
    os.close(gate)
    os.close(opening)
    started = time.perf_counter()
    while pids:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            if time.perf_counter() - started > 240:
                for late in pids:
                    os.kill(late, signal.SIGKILL)
                started = float("inf")
            time.sleep(0.002)
            continue
        number, reading = pids.pop(pid)
        with os.fdopen(reading, "rb") as pipe:
            said = pipe.read().decode(errors="replace")
        if status:
            errors.append(f"writer {number} ended with {os.waitstatus_to_exitcode(status)}: {said.strip()[-400:]}")
    return errors


def _inspect(cache: Path, ground: Ground) -> tuple[list[str], list[str], dict[str, int]]:
    """Return what is wrong, what is missing, and counts."""
    from featurecache.store.features import rows_of_commit
    from featurecache.store.store import FeatureStore

    store = FeatureStore.open(cache)
    ids = np.asarray(store.samples.ids)
    problems = [] if len(np.unique(ids, axis=0)) == len(ids) else ["a sample is in the table twice"]
    problems += [f"temporary {name}" for name in leftovers(cache)]
    problems += [f"lease {path.name} was left" for path in cache.rglob("*.lease")]
    (feature_set,) = store.feature_sets()
    features = feature_set.open()
    good = features.rows[features.usable(features.rows)]
    for row, value in zip(good.tolist(), features.read(good), strict=True):
        if ground.truth.get(ids[row].tobytes()) != value.tobytes():
            problems.append(f"row {row} is wrong")
    committed = set()
    for commit in features.commits:
        held = rows_of_commit(commit)
        if not np.array_equal(feature_set.folder.open(commit).read("id"), ids[held]):
            problems.append(f"the ids of commit {commit.key} are wrong")
        committed.add(commit.file_name)
    stored = {path.name for path in (feature_set.folder.path / "shards").glob("*.h5")}
    problems += [f"commit of {name} has no shard" for name in committed - stored]
    wanted = {row for listing in store.listings.all() for row in listing.unique_rows.tolist()}
    absent = sorted(wanted - set(features.rows.tolist()))
    missing = [f"{len(absent)} of {len(wanted)} rows, first {absent[0]}"] if absent else []
    counts = {"commits": len(committed), "losing shards left": len(stored - committed), "races": 1}
    return problems, missing, counts
