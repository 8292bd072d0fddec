"""Garbage collection over overlapping shards of killed writers: no row of a file that is there may be lost."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from trials.blocks import PATTERN, extract_blocks, problems_of_blocks, write_tars
from trials.common import BACKBONE, Options, Tally, Truth, for_each, problems_of, run_child, warm_up, write_images
from trials.injection import KILLS, Injection
from trials.races import run_together

_MOST_WRITERS = 4
_NUM_CALLS = 400
"""File-system calls within which a writer is killed: some writers end before, most leave a part of their shards."""
_NUM_CALLS_OF_GC = 60


def try_gc(options: Options) -> list[Tally]:
    """Killed writers with shards of other sizes, files that go, and a collection that is killed too, or not alone."""
    warm_up()
    photos, whole = options.scratch / "photos", options.scratch / "whole"
    write_images(photos, count=24)
    if (ended := run_child(partial(write, photos, whole, 5))).status:
        raise RuntimeError(f"the run before the trial failed: {ended.error}")
    truth = Truth.of(whole)
    rows = next(iter(truth.rows.values()))
    by_id = {truth.ids[row].tobytes().hex(): data for row, data in rows.items()}
    cases = [(options.scratch, by_id, number) for number in range(3 if options.quick else 200)]
    tally = Tally("collections over overlapping shards of killed writers lost or changed a row, or left what is gone")
    counts: Counter[str] = Counter()
    for (_, _, number), result in zip(cases, for_each(cases, _collect, jobs=options.jobs), strict=True):
        tally.add(problems_of(result), label=f"case {number}")
        counts.update(result.get("value", {}).get("counts", {}))
    tally.numbers = dict(counts)
    tally.notes.append(", ".join(f"{name} {count}" for name, count in sorted(counts.items())))
    if options.quick:
        return [tally]
    write_tars(photos, options.scratch / "tars", count=6)
    cases = [(options.scratch, by_id, number) for number in range(100)]
    beside = Tally("collections beside writers that hold blocks of tars lost or changed a row, or left what is gone")
    for (_, _, number), result in zip(cases, for_each(cases, _collect_beside, jobs=options.jobs), strict=True):
        beside.add(problems_of(result), label=f"case {number}")
    return [tally, beside]


def write(source: Path, cache: Path, shard_rows: int) -> int:
    """Extract, as the command line does."""
    from featurecache.cli import main

    numbers = ["--batch-size", "4", "--shard-rows", str(shard_rows), "--jobs", "1", "--max-bad", "1"]
    command = ["extract", str(source), "--cache", str(cache), "--backbone", BACKBONE, "--runtime", "torch", "--quiet"]
    return main([*command, *numbers])


def _collect(case: tuple[Path, dict[str, bytes], int]) -> dict[str, Any]:
    scratch, truth, number = case
    rng = random.Random(number)
    source, cache = scratch / f"photos{number}", scratch / f"cache{number}"
    shutil.copytree(scratch / "photos", source)
    for _ in range(rng.randint(1, _MOST_WRITERS)):
        run_child(
            partial(_killed_writer, source, cache, rng.randint(2, 9), rng.choice(KILLS), rng.randint(60, _NUM_CALLS))
        )
    gone = _remove_some(source, rng)
    run_child(partial(_list_only if rng.random() < 0.7 else write, source, cache, 4))
    before = _live_rows(cache)
    counts = {"live rows": len(before), "cases": 1, "overlapping": int(_overlaps(cache))}
    problems = []
    for _ in range(rng.randint(0, 2)):
        run_child(partial(_killed_gc, cache, rng.choice(KILLS), rng.randint(1, _NUM_CALLS_OF_GC)))
        problems += _problems(cache, before, truth)
        counts["killed collections"] = counts.get("killed collections", 0) + 1
    problems += run_together([partial(_gc, cache)] * rng.choice((1, 2)))
    problems += _problems(cache, before, truth) + _dead_rows(cache)
    for path in gone:
        shutil.copy2(scratch / "photos" / path, source / path)
    ended = run_child(partial(write, source, cache, rng.randint(2, 9)))
    if ended.status or ended.hung:
        problems.append(f"the extraction after it ended with {ended.status}: {ended.error[-300:]}")
    after = _live_rows(cache)
    if set(after) != set(truth):
        problems.append(f"{len(after)} of {len(truth)} rows once all files are back")
    problems += _problems(cache, after, truth)
    for folder in (source, cache):
        shutil.rmtree(folder, ignore_errors=True)
    return {"problems": problems, "counts": counts}


def _collect_beside(case: tuple[Path, dict[str, bytes], int]) -> dict[str, Any]:
    """Collect while writers read tars in one pass, of which some are gone, after others were killed at that."""
    scratch, truth, number = case
    rng = random.Random(number)
    tars, cache = scratch / f"tars{number}", scratch / f"blocks{number}"
    shutil.copytree(scratch / "tars", tars)
    pattern = str(tars / PATTERN)
    if rng.random() < 0.5:  # a listing is there, and only the tars that come later are in no listing
        for path in sorted(tars.iterdir())[3:]:
            path.rename(scratch / f"{path.name}-{number}")
        run_child(partial(extract_blocks, pattern, cache, shard_rows=rng.randint(2, 9)))
        for path in scratch.glob(f"*.tar-{number}"):
            path.rename(tars / path.name.removesuffix(f"-{number}"))
    for _ in range(rng.randint(0, 2)):
        run_child(partial(_killed_in_blocks, pattern, cache, rng.choice(KILLS), rng.randint(60, 2 * _NUM_CALLS)))
    for path in rng.sample(sorted(tars.iterdir()), rng.randint(0, 3)):
        path.rename(scratch / f"{path.name}-{number}")
    writers = [partial(extract_blocks, pattern, cache, shard_rows=rng.randint(2, 9)) for _ in range(rng.choice((1, 2)))]
    gcs = [partial(_late_gc, cache, rng.random() * 0.6) for _ in range(rng.choice((1, 2, 3)))]
    problems = run_together([*writers, *gcs]) + problems_of_blocks(cache, pattern, truth)
    problems += run_together([partial(_gc, cache)]) + problems_of_blocks(cache, pattern, truth) + _dead_rows(cache)
    for path in scratch.glob(f"*.tar-{number}"):
        path.rename(tars / path.name.removesuffix(f"-{number}"))
    problems += run_together([partial(extract_blocks, pattern, cache)]) + problems_of_blocks(cache, pattern, truth)
    for folder in (tars, cache):
        shutil.rmtree(folder, ignore_errors=True)
    return {"problems": problems}


def _killed_in_blocks(pattern: str, cache: Path, action: str, at: int) -> int:
    Injection(cache, action, at).install()
    return extract_blocks(pattern, cache)


def _late_gc(cache: Path, delay: float) -> int:
    """Collect again and again for a while."""
    time.sleep(delay)
    for _ in range(5):
        if (cache / "FORMAT.json").exists() and (status := _gc(cache)):
            return status
        time.sleep(0.05)
    return 0


def _killed_writer(source: Path, cache: Path, shard_rows: int, action: str, at: int) -> int:
    """Extract as a writer that planned before any other had published, and is killed at some call."""
    from featurecache.extraction import plan

    real, early = plan.plan_extraction, [True, True]  # once to see whether anything is missing, once to begin

    def plan_extraction(wanted: Any, cached: Any, **options: Any) -> Any:
        if early:
            early.pop()
            cached = {tap: rows[:0] for tap, rows in cached.items()}
        return real(wanted, cached, **options)

    plan.plan_extraction = plan_extraction
    Injection(cache, action, at).install()
    return write(source, cache, shard_rows)


def _list_only(source: Path, cache: Path, shard_rows: int) -> int:
    """Extract, and be killed when it is known what the source holds."""
    from featurecache.extraction.worker import Worker

    Worker.run = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    return write(source, cache, shard_rows)


def _gc(cache: Path) -> int:
    from featurecache.cli import main

    return main(["gc", str(cache), "--unused", "--remove"])


def _killed_gc(cache: Path, action: str, at: int) -> int:
    Injection(cache, action, at).install()
    return _gc(cache)


def _remove_some(source: Path, rng: random.Random) -> list[Path]:
    """Remove files, often the first ones of the sample table, with which shards begin."""
    files = sorted(path.relative_to(source) for path in source.rglob("*.png"))
    share = rng.choice((0.1, 0.3, 0.7))
    gone = [path for place, path in enumerate(files[:-1]) if rng.random() < (share if place % 5 else 0.8)]
    for path in gone:
        (source / path).unlink()
    return gone


def _live_rows(cache: Path) -> dict[str, int]:
    """Sample id -> row of what is cached and held by the source."""
    from featurecache.store.store import FeatureStore

    store = FeatureStore.open(cache)
    if not (sets := store.feature_sets()):
        return {}
    features = sets[0].open()
    held = np.concatenate([listing.unique_rows for listing in store.listings.all()])
    good = features.rows[features.usable(features.rows)]
    rows = good[np.isin(good, held)]
    return {identity.tobytes().hex(): row for identity, row in zip(store.samples.ids[rows], rows.tolist(), strict=True)}


def _overlaps(cache: Path) -> bool:
    from featurecache.store.features import rows_of_commit
    from featurecache.store.store import FeatureStore

    sets = FeatureStore.open(cache).feature_sets()
    held = [rows_of_commit(commit) for each in sets for commit in each.folder.commits()]
    return sum(map(len, held)) > len(np.unique(np.concatenate(held or [np.zeros(0)])))


def _problems(cache: Path, live: dict[str, int], truth: dict[str, bytes]) -> list[str]:
    """What is wrong with the rows that were there."""
    from featurecache.store.store import FeatureStore
    from featurecache.store.verify import verify

    store = FeatureStore.open(cache)
    problems = [f"{problem.where} {problem.what}" for problem in verify(store).problems]
    lost = sorted(live.keys() - _live_rows(cache).keys())
    if lost:
        return [*problems, f"{len(lost)} of {len(live)} rows of live files are lost"]
    if live:
        names = sorted(live)
        values = store.features().read(np.array([live[name] for name in names]))
        changed = sum(truth[name] != value.tobytes() for name, value in zip(names, values, strict=True))
        problems += [f"{changed} rows are wrong"] if changed else []
    return problems


def _dead_rows(cache: Path) -> list[str]:
    """Name what should have gone."""
    from featurecache.store.store import FeatureStore

    store = FeatureStore.open(cache)
    held = np.concatenate([listing.unique_rows for listing in store.listings.all()])
    dead = [int((~np.isin(each.open().rows, held)).sum()) for each in store.feature_sets()]
    return [f"{sum(dead)} rows of files that are gone are still there"] if sum(dead) else []
