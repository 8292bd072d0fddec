"""Power cuts: what was reported as done is there afterwards, whatever the file system had not been told to keep.

A run of the verbs is recorded (`disk_model`); then the trees that a crash after each of its calls may leave are made
and looked at. The trial fails when any one `fsync` of the package is taken out: that is tried for each of them.
"""

from __future__ import annotations

import ast
import csv
import hashlib
import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trials.common import BACKBONE, Options, Tally, for_each, problems_of, warm_up, write_images
from trials.disk_model import KEEPS, Op, Recording, Site, Tree, crash, crash_without
from trials.named import run_verb

_PACKAGE = Path(__file__).resolve().parent.parent.parent / "featurecache"
_SYNCS = ("fsync", "fsync_file", "fsync_directory")
_FEWEST_CUTS = 500


@dataclass
class Seen:
    """What is found in a tree. Whatever is cached is named by the sample's id, so that its order says nothing."""

    is_cache: bool = False
    problems: set[str] = field(default_factory=set)
    """Where `verify` finds one."""
    samples: int = 0
    rows: dict[str, str] = field(default_factory=dict)
    """Tap, stored type and sample id -> digest of the features."""
    names: dict[str, str] = field(default_factory=dict)
    """Things with a name, and which version of each is there."""
    set_aside: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Run:
    """A recorded run: its calls, where its phases end, and what was there at each end."""

    ops: list[Op]
    ends: list[int]
    seen: list[Seen]
    scratch: Path


def try_fsync(options: Options) -> list[Tally]:
    """Crashes at every call, and each fsync of the package taken out."""
    warm_up()
    run = _record(options.scratch)
    rng = random.Random(0)
    cuts = range(1, len(run.ops) + 1)
    chosen = sorted({*rng.sample(cuts, 4), *run.ends}) if options.quick else cuts
    crashes = [
        (run, cut, keeps) for cut in chosen for keeps in (KEEPS if not options.quick or cut in run.ends else KEEPS[:2])
    ]
    lost = Tally("trees that a power cut may leave lacked what had been reported as done, or held something wrong")
    for (_, cut, keeps), result in zip(crashes, for_each(crashes, _crash, jobs=options.jobs), strict=True):
        lost.add(problems_of(result), label=f"call {cut} of {len(run.ops)}, keeping {keeps}")
    lost.notes.append(f"{len(chosen)} cut points of {len(run.ops)} calls, {len(run.ends)} phases")
    if not options.quick and len(chosen) < _FEWEST_CUTS:
        lost.add([f"only {len(chosen)} cut points"], label="too small a run")
    sites = sorted(fsyncs_of_package())
    missed = Tally("fsyncs of the package can be taken out without this trial noticing")
    for site, result in zip(
        sites, for_each([(run, site) for site in sites], _take_out, jobs=options.jobs), strict=True
    ):
        missed.add(problems_of(result), label=f"{site[0]}:{site[1]}")
    return [lost, missed]


def fsyncs_of_package() -> Iterator[Site]:
    """Yield every line of the package that syncs a file or a folder."""
    for path in sorted(_PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        helpers = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in _SYNCS]
        inside = {id(node) for helper in helpers for node in ast.walk(helper)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and id(node) not in inside:
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if name in _SYNCS:
                    yield str(path.relative_to(_PACKAGE.parent)), node.lineno


# The run


def _record(scratch: Path) -> Run:
    world, photos = scratch / "world", scratch / "photos"
    world.mkdir()
    write_images(photos, count=10)
    (photos / "odd" / "broken-0.png").unlink()
    recording = Recording(world)
    seen = [Seen()]
    with recording.installed():
        for phase in _phases(world, photos, recording):
            phase()
            recording.mark()
            seen.append(look(world))
    return Run(recording.ops, recording.ends, seen, scratch)


def _phases(world: Path, photos: Path, recording: Recording) -> Iterator[Any]:
    cache = str(world / "cache")
    numbers = ["--batch-size", "4", "--shard-rows", "6", "--jobs", "1", "--runtime", "torch", "--quiet"]
    extract = ["extract", str(photos), "--cache", cache, "--backbone", BACKBONE, *numbers]
    train = ["train", cache, "--task", "parity", "--jobs", "1", "--quiet", "--save", "best", "--head"]
    task = ["task", "add", cache, "parity", "--from-folders"]
    predict = ["predict", f"{cache}/heads/best", str(photos), "--out", str(world / "out.csv"), "--backbone", BACKBONE]

    def verb(command: list[str], *statuses: int) -> Any:
        def run() -> None:
            if run_verb(command) not in (0, *statuses):
                raise RuntimeError(f"the recorded run failed: {command}")

        return run

    yield verb(extract)
    yield verb(task)
    for seed in ("1", "2"):  # the third generation removes the first
        yield verb([*task, "--replace", "--random-state", seed])
    for head in ("ridge", "majority"):
        yield verb([*train, head])
    yield verb([*predict, "--quiet"])
    write_images(photos, count=6, first=10)
    (photos / "odd" / "broken-10.png").unlink()
    yield verb(extract)
    yield verb([*predict, "--quiet", "--replace"])
    yield verb([*extract, "--tap", "body:avg"])
    yield verb(["sweep", cache, "--task", "parity", "--head", "ridge", "--jobs", "1", "--quiet"])
    yield verb(["convert", cache, "--tap", "body:avg", "--to", "int8", "--quiet"])
    for path in sorted(photos.rglob("*.png"))[::3]:
        path.unlink()
    yield verb(extract)
    yield verb(["gc", cache, "--unused", "--remove"])
    yield lambda: recording.overwrite(*_damaged(Path(cache)))
    yield verb(["repair", cache], 1)
    yield verb(extract)


def _damaged(cache: Path) -> tuple[Path, bytes]:
    shard = sorted(cache.glob("features/*/*/float16/shards/*.h5"))[0]
    return shard, shard.read_bytes()[:-64] + bytes(64)


# What a tree holds


def look(world: Path) -> Seen:
    """Look at a tree as a reader does."""
    from featurecache.store.store import FeatureStore
    from featurecache.store.verify import verify

    cache, seen = world / "cache", Seen()
    seen.names["out.csv"] = _table(world / "out.csv")
    if not (cache / "FORMAT.json").exists():
        return seen
    seen.is_cache = True
    store = FeatureStore.open(cache)
    seen.problems = {problem.where for problem in verify(store).problems}
    seen.samples = len(store.samples)
    for feature_set in store.feature_sets():
        seen.rows |= _rows(feature_set)
    seen.names |= {f"task {name}": str(store.task(name).about["random_state"]) for name in store.task_names()}
    seen.names |= {f"head {name}": _head(store.heads_path / name) for name in store.head_names()}
    for listing in store.listings.all():
        paths = "\n".join(listing.paths)
        seen.names["listing"] = hashlib.sha256(paths.encode()).hexdigest()
    quarantine = cache / "quarantine"
    seen.set_aside = {
        f"{path.relative_to(quarantine)} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        for path in quarantine.rglob("*")
        if path.is_file()
    }
    return seen


def _rows(feature_set: Any) -> dict[str, str]:
    from featurecache.errors import CorruptError

    features, rows = feature_set.open(), {}
    for commit in features.commits:
        try:
            values, ids = features.read_shard(commit), feature_set.folder.open(commit).read("id")
        except CorruptError:
            continue  # among the problems
        for identity, value in zip(ids, np.asarray(values), strict=True):
            digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
            rows[f"{feature_set.tap} {feature_set.dtype} {identity.tobytes().hex()}"] = digest
    return rows


def _head(folder: Path) -> str:
    from featurecache.deployment.saved import open_head

    return str(open_head(folder).meta["head"])


def _table(path: Path) -> str:
    if not path.exists():
        return ""
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    if len(rows) < 2 or len({len(row) for row in rows}) != 1:
        raise ValueError("half a table")
    return str(len(rows))


def compare(found: Seen, before: Seen, after: Seen, *, at_end: bool) -> list[str]:
    """What is wrong with a tree that a crash in a phase has left, of which the ends are known.

    Parameters
    ----------
    found, before, after : Seen
        After the crash, when the phase began, and when it ended.
    at_end : bool
        It had ended, and everything that it did was reported as done.
    """
    problems = [f"verify finds {where}" for where in sorted(found.problems - after.problems)]
    if not at_end:
        problems = [f"verify finds {where}" for where in sorted(found.problems - after.problems - before.problems)]
    if not found.is_cache and (before.is_cache or at_end):
        problems.append("there is no cache any more")
    low = after.samples if at_end else before.samples
    if not low <= found.samples <= after.samples:
        problems.append(f"{found.samples} samples, expected {low} to {after.samples}")
    known = before.rows | after.rows
    needed = after.rows if at_end else {name: value for name, value in before.rows.items() if name in after.rows}
    if lost := [name for name in needed if name not in found.rows]:
        problems.append(f"{len(lost)} rows are lost")
    if wrong := [name for name, value in found.rows.items() if known.get(name) != value]:
        problems.append(f"{len(wrong)} rows are wrong")
    for name in sorted(before.names.keys() | after.names.keys() | found.names.keys()):
        versions = [seen.names.get(name, "") for seen in ((after,) if at_end else (before, after))]
        if (version := found.names.get(name, "")) not in versions:
            problems.append(f"{name} is {version!r}, not {' or '.join(map(repr, versions))}")
    if not (after if at_end else before).set_aside <= found.set_aside:
        problems.append("what was set aside is lost")
    return problems


# Attempts


def _crash(trial: tuple[Run, int, str]) -> dict[str, Any]:
    run, cut, keeps = trial
    return {"problems": _examine(run, cut, crash(run.ops, cut, keeps, random.Random(cut)))}


def _examine(run: Run, cut: int, tree: Tree) -> list[str]:
    phase = next(number for number, end in enumerate(run.ends) if cut <= end)
    place = Path(tempfile.mkdtemp(dir=run.scratch))
    try:
        tree.write(place / "world")
        found = look(place / "world")
        return compare(found, run.seen[phase], run.seen[phase + 1], at_end=cut == run.ends[phase])
    except Exception as error:  # whatever a reader meets
        return [f"{type(error).__name__}: {str(error)[:300]}"]
    finally:
        shutil.rmtree(place)


def _take_out(trial: tuple[Run, Site]) -> dict[str, Any]:
    """Lose what only the syncs of one line keep, at the calls after each of them, until it is noticed."""
    run, site = trial
    places = [index for index, op in enumerate(run.ops) if op.site == site]
    if not places:
        return {"problems": ["no run of this trial comes by this line"]}
    ends = {next(end for end in run.ends if index < end) for index in places}
    cuts = sorted(ends) + [cut for index in places for cut in range(index + 1, min(index + 9, len(run.ops)) + 1)]
    tried = set()
    for cut in cuts:
        tree = crash_without(run.ops, cut, site)
        if (digest := tree.digest()) not in tried:
            tried.add(digest)
            if _examine(run, cut, tree):
                return {"problems": []}
    return {"problems": [f"nothing is missed in {len(tried)} trees"]}
