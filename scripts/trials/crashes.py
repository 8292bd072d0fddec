"""Killed and failing runs: what they leave is right, and the next run completes it byte for byte."""

from __future__ import annotations

import random
import resource
import shutil
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from trials.common import (
    BACKBONE,
    Options,
    Tally,
    Truth,
    compare_snapshots,
    for_each,
    leftovers,
    problems_of,
    run_child,
    snapshot,
    visible_problems,
    warm_up,
    write_images,
)
from trials.injection import FAULTS, KILLS, Injection, fits

TASK = "parity"


@dataclass(frozen=True)
class Scenario:
    """A run to interrupt: from nothing, or from a cache of half the images."""

    name: str
    source: Path
    before: Path | None
    whole: Truth
    trace: tuple[str, ...]
    """Names of the file-system calls of the uninterrupted run."""
    scratch: Path
    in_blocks: bool = False
    """Tars are read in blocks, each in one pass: how a killed run is gone on with decides where shards are cut."""

    def fresh_cache(self) -> Path:
        """Return a cache as it is before the run; nothing there for a run from nothing."""
        cache = self.scratch / f"{self.name}-{random.SystemRandom().getrandbits(64):x}"
        if self.before:
            shutil.copytree(self.before, cache)
        return cache


def try_kills(options: Options) -> list[Tally]:
    """SIGKILL before, during and after every call, and at random moments."""
    scenarios = make_scenarios(options.scratch, quick=options.quick)
    injected = [
        (scenario, action, at)
        for scenario in scenarios
        for action in (KILLS[:2] if options.quick else KILLS)  # after a call is before the next
        for at in _points(scenario, action, quick=options.quick, step=307)
    ]
    points = Tally("kills at file-system calls left something wrong, lost or incomplete")
    _collect(points, injected, _kill_at, options.jobs)
    rng = random.Random(0)
    chains = [
        (scenarios[k % len(scenarios)], [rng.random() for _ in range(4)]) for k in range(1 if options.quick else 50)
    ]
    moments = Tally("kills at random moments left something wrong, lost or incomplete")
    for chain, result in zip(chains, for_each(chains, _kill_sometimes, jobs=options.jobs), strict=True):
        problems = problems_of(result)
        for place in range(len(chain[1])):
            moments.add(problems if place == 0 else [], label=f"{chain[0].name} killed at {chain[1]}")
    return [points, moments]


def try_faults(options: Options) -> list[Tally]:
    """Every error at every write-side call, and real limits on the size of files."""
    scenarios = make_scenarios(options.scratch, quick=options.quick)
    injected = [
        (scenario, action, at)
        for scenario in scenarios
        for action in (FAULTS if scenario.before is None else FAULTS[1:3] + FAULTS[4:])
        for at in _points(scenario, action, quick=options.quick, step=601)
    ]
    faults = Tally("failing calls crashed, hung, were unclear, committed something wrong or could not be repaired")
    _collect(faults, injected, _fail_at, options.jobs)
    limits = Tally("limits on the size of files, which libhdf5 meets itself, did the same")
    sizes = range(0, 18_000, 6_000 if options.quick else 128)
    _collect(limits, [(scenarios[0], "EFBIG", size) for size in sizes], _fail_at, options.jobs)
    return [faults, limits]


def make_scenarios(scratch: Path, *, quick: bool) -> list[Scenario]:
    """Make the images, the caches before, and the caches that uninterrupted runs make; few of them for a quick look."""
    warm_up()
    source, half = scratch / "photos", scratch / "half"
    write_images(source, count=8)
    _run_well(source, half)
    write_images(source, count=8, first=8)
    # The same in tars, of which the second comes later.
    pattern, first = scratch / "tars" / "p-*.tar", scratch / "first"
    pattern.parent.mkdir()
    for number in range(2):
        with tarfile.open(pattern.with_name(f"p-{number}.tar"), "w") as tar:
            for path in sorted(source.rglob("*.png"))[number::2]:
                tar.add(path, path.relative_to(source))
        if number == 0:
            time.sleep(2.2)
            _run_well(pattern, first)
    time.sleep(2.2)  # files that were written just now are told apart from settled ones
    return [
        _scenario("new", source, None, scratch),
        _scenario("extended", source, half, scratch),
        _scenario("tars", pattern, None, scratch),
        _scenario("one more tar", pattern, first, scratch),
        *([] if quick else [_scenario("tars in one pass", pattern, None, scratch, in_blocks=True)]),
    ]


def run(source: Path, cache: Path, *, in_blocks: bool = False) -> int:
    """Extract several taps and add a task, as the command line does; what is there already is not done again."""
    from featurecache.cli import main
    from featurecache.extraction import blocks, unit_scan
    from featurecache.store.folders import ShardFolder

    unit_scan._MOST_UNITS = 1  # each tar is written down by itself, as large ones are
    if in_blocks:
        blocks._BLOCK_BYTES = 1  # each tar is a block
    taps = ["--tap", "stem:avg", "--tap", "body:avg"]
    numbers = ["--batch-size", "4", "--shard-rows", "6", "--jobs", "2", "--max-bad", "1"]
    command = ["extract", str(source), "--cache", str(cache), "--backbone", BACKBONE, "--runtime", "torch", "--quiet"]
    status = main([*command, *taps, *numbers])
    if status == 0 and not ShardFolder(cache / "tasks" / TASK).records():
        status = main(["task", "add", str(cache), TASK, "--from-folders", "--json"])
    return status


def _run_well(source: Path, cache: Path) -> None:
    ended = run_child(lambda: run(source, cache))
    if ended.status:
        raise RuntimeError(f"the uninterrupted run failed: {ended.error}")


def _scenario(name: str, source: Path, before: Path | None, scratch: Path, *, in_blocks: bool = False) -> Scenario:
    whole, trace = scratch / f"whole-{name}", scratch / f"trace-{name}"
    if before:
        shutil.copytree(before, whole)

    def traced() -> int:
        injection = Injection(whole)
        injection.install()
        status = run(source, whole, in_blocks=in_blocks)
        calls = list(injection.trace)
        trace.write_text("\n".join(calls))
        return status

    if (ended := run_child(traced)).status:
        raise RuntimeError(f"the traced run failed: {ended.error}")
    return Scenario(name, source, before, Truth.of(whole), tuple(trace.read_text().split("\n")), scratch, in_blocks)


def _points(scenario: Scenario, action: str, *, quick: bool, step: int) -> Sequence[int]:
    points = [at for at, name in enumerate(scenario.trace, 1) if fits(action, name)]
    return points[len(action) % 7 :: step] if quick else points


def _collect(tally: Tally, trials: Sequence[tuple[Scenario, str, int]], work: Callable[..., Any], jobs: int) -> None:
    counts: Counter[str] = Counter()
    for (scenario, action, at), result in zip(trials, for_each(trials, work, jobs=jobs), strict=True):
        name = f" ({scenario.trace[at - 1]})" if action != "EFBIG" else " bytes"
        tally.add(problems_of(result), label=f"{scenario.name}, {action} {at}{name}")
        counts.update(result.get("value", {}).get("counts", {}))
    tally.numbers = dict(counts)
    tally.notes.append(", ".join(f"{name} {number}" for name, number in sorted(counts.items())))


def _kill_at(trial: tuple[Scenario, str, int]) -> dict[str, Any]:
    scenario, action, at = trial
    cache = scenario.fresh_cache()
    ended = run_child(partial(_injected, scenario, cache, action, at))
    problems = [] if ended.status == -9 else [f"was not killed (status {ended.status}): {ended.error[-300:]}"]
    return _finish(scenario, cache, problems)


def _kill_sometimes(trial: tuple[Scenario, list[float]]) -> dict[str, Any]:
    """Kill run after run on one cache, each within the time that a whole run takes."""
    scenario, shares = trial
    cache = scenario.fresh_cache()
    problems = []
    for share in shares:
        run_child(lambda: run(scenario.source, cache, in_blocks=scenario.in_blocks), kill_after=0.02 + 0.25 * share)
        problems += visible_problems(cache, scenario.whole)
    return _finish(scenario, cache, problems)


def _fail_at(trial: tuple[Scenario, str, int]) -> dict[str, Any]:
    scenario, action, at = trial
    cache = scenario.fresh_cache()
    # Cleaning up at exit is slow; where libhdf5 met the error it always runs, elsewhere at every fifth call.
    thorough = action == "EFBIG" or scenario.trace[at - 1].startswith("h5py") or at % 5 == 0
    ended = run_child(partial(_injected, scenario, cache, action, at), thorough=thorough)
    problems = []
    if ended.hung:
        problems.append("hung")
    elif ended.status == 0:
        problems += compare_snapshots(snapshot(cache), scenario.whole.files)[0]
    elif ended.status != 1:
        problems.append(f"ended with status {ended.status}: {ended.error[-300:]}")
    elif not is_one_clear_line(ended.error):
        problems.append(f"did not end with one clear line: {ended.error[-600:]!r}")
    result = _finish(scenario, cache, problems)
    result["counts"]["tolerated" if ended.status == 0 else "refused"] = 1
    return result


def _injected(scenario: Scenario, cache: Path, action: str, at: int) -> int:
    if action == "EFBIG":
        resource.setrlimit(resource.RLIMIT_FSIZE, (at, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    else:
        Injection(cache, action, at).install()
    return run(scenario.source, cache, in_blocks=scenario.in_blocks)


def is_one_clear_line(error: str) -> bool:
    return error.startswith("featurecache: error: ") and error.count("\n") == 1 and len(error) > 40


def _finish(scenario: Scenario, cache: Path, problems: list[str]) -> dict[str, Any]:
    """Look at what is visible, run again, and compare with the uninterrupted cache."""
    problems = problems + visible_problems(cache, scenario.whole)
    rerun = run_child(lambda: run(scenario.source, cache, in_blocks=scenario.in_blocks))
    if rerun.hung:
        problems.append("the next run waits and waits")
    elif rerun.status:
        problems.append(f"the next run ended with status {rerun.status}: {rerun.error[-300:]}")
    counts = {}
    if scenario.in_blocks:
        found = Truth.of(cache)
        same = np.array_equal(found.ids, scenario.whole.ids), found.rows == scenario.whole.rows
        problems += [] if all(same) and found.bad == scenario.whole.bad else ["samples or their features differ"]
    else:
        different, counts = compare_snapshots(snapshot(cache), scenario.whole.files)
        problems += different
    counts["temporaries"] = len(leftovers(cache))
    shutil.rmtree(cache, ignore_errors=True)
    return {"problems": problems, "counts": counts}
