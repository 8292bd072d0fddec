"""Repair: damaged shards are set aside, and compared with what is computed instead of them.

Nothing is deleted: what is damaged moves to ``quarantine/`` under its own path. Any shard of features can be computed
again from its inputs (``extraction/recomputation.py``, or the next extraction), and equal work gives equal bytes, so
the digest of the old record says whether it is the same.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from featurecache.atomic import fsync_directory, make_folder
from featurecache.errors import FeatureCacheError
from featurecache.store.commits import Commit, read_commit
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.features import rows_of_commit
from featurecache.store.folders import ShardFolder
from featurecache.store.samples import Rows
from featurecache.store.schemas import features_schema
from featurecache.store.store import FeatureStore
from featurecache.store.verify import NOTES, QUARANTINE, Problem, verify


@dataclass(frozen=True, slots=True)
class Repair:
    """What happened to one damaged thing."""

    where: str
    what: str
    action: str
    """``set aside``, or what a person must do."""


@dataclass(frozen=True, slots=True)
class Recomputed:
    """A shard that was set aside earlier, and what became of it."""

    where: str
    state: str
    """``missing``, ``identical``, ``different``, ``other rows`` or ``unknown`` (the old record cannot be read)."""


def repair(store: FeatureStore) -> list[Repair]:
    """Set damaged shards aside."""
    problems = verify(store).problems
    if not problems:
        return []
    quarantine = _next_quarantine(store.path)
    done = [_repair(store.path, quarantine, problem) for problem in problems]
    with contextlib.suppress(OSError):  # unless it holds something
        quarantine.rmdir()
    return done


def compare_set_aside(store: FeatureStore) -> list[Recomputed]:
    """Compare the shards that were set aside with those that have been computed instead of them since."""
    return [_compare(store, where, record) for where, record in _quarantined(store.path).items()]


def _repair(root: Path, quarantine: Path, problem: Problem) -> Repair:
    where, moved = PurePosixPath(problem.where), list[Path]()
    action = problem.advice if "repair" not in problem.advice else "extract into a new cache"
    if where.parts[:1] in ((), ("samples",)):
        action = "restore it from a copy of the cache, or extract into a new one"
    elif where.parent.name in ("commits", "shards"):
        key = where.stem.partition("-")[0]
        # Another name could be a pattern.
        moved = _files_to_move(root / where.parent.parent, key) if key.isdecimal() else [root / where]
    elif where.parts[0] == "sources":
        action = "extract the source again, or `featurecache scan` it"
    elif where.parts[0] in NOTES:
        moved = [root / where]
    if not moved:
        return Repair(problem.where, problem.what, action)
    for path in moved:
        _set_aside(root, quarantine, path)
    again = {
        "tasks": "make the task again",
        "results": "the next sweep computes it",
        "searches": "the next training computes it",
        "probes": "the next advice computes it",
        "history": "figures of an earlier training are lost with it, and nothing else",
    }
    advice = again.get(where.parts[0], "run `featurecache repair` with --source, or extract")
    return Repair(problem.where, problem.what, f"set aside; {advice}")


def _files_to_move(folder: Path, damaged: str) -> list[Path]:
    """Return record and shards of a damaged key, the record first: no record ever points at nothing."""
    keys = [damaged]
    # Of a task also those before it: an older one must not pass for the newest.
    if folder.parent.name == "tasks":
        earlier = ShardFolder(folder).keys()
        keys = sorted({damaged, *(key for key in earlier if key < damaged)})
    shards = {key: sorted((folder / "shards").glob(f"{key}-*.h5")) for key in keys}
    return [path for key in keys for path in (folder / "commits" / f"{key}.json", *shards[key])]


def _next_quarantine(root: Path) -> Path:
    """Make a folder for what is set aside now; earlier ones keep theirs, and another repair has its own."""
    quarantine = root / QUARANTINE
    make_folder(quarantine)
    number = max((int(path.name) for path in quarantine.glob("[0-9]*") if path.name.isdecimal()), default=0)
    while True:
        number += 1
        with contextlib.suppress(FileExistsError):
            (quarantine / f"{number:04d}").mkdir()
            fsync_directory(quarantine)
            return quarantine / f"{number:04d}"


def _set_aside(root: Path, quarantine: Path, path: Path) -> None:
    if not path.exists():
        return
    target = quarantine / path.relative_to(root)
    make_folder(target.parent)
    try:
        path.rename(target)
    except FileNotFoundError:  # another repair was faster
        return
    fsync_directory(target.parent)
    fsync_directory(path.parent)


def _quarantined(root: Path) -> dict[PurePosixPath, Path]:
    """The records of features that were set aside: path in the cache -> the latest record of that path."""
    found = {}
    for folder in sorted((root / QUARANTINE).glob("[0-9]*")):
        for record in sorted((folder / "features").rglob("commits/[0-9]*.json")):
            found[PurePosixPath(record.relative_to(folder).as_posix())] = record
    return found


def _compare(store: FeatureStore, where: PurePosixPath, record: Path) -> Recomputed:
    try:
        old: Commit = read_commit(record)
    except (FeatureCacheError, OSError):
        return Recomputed(str(where), "unknown")
    try:
        new = read_commit(store.path / where)
    except FileNotFoundError:
        return Recomputed(str(where), "other rows" if _held_by_others(store, where, old) else "missing")
    except (FeatureCacheError, OSError):
        return Recomputed(str(where), "missing")
    if old.body.get("rows") != new.body.get("rows"):  # files are gone since, or were shared out to other shards
        return Recomputed(str(where), "other rows")
    return Recomputed(str(where), "identical" if new.shard.sha256 == old.shard.sha256 else "different")


def _held_by_others(store: FeatureStore, where: PurePosixPath, old: Commit) -> bool:
    """Tell whether shards of other keys hold all rows of one that was set aside."""
    try:
        feature_set = store.feature_set_at(where.parent.parent)
        if feature_set is None:
            return False
        # Of a stranger, perhaps: no more rows than a shard ever holds.
        features_schema(feature_set.dtype).check(old, feature_set.folder.path)
        return bool(np.isin(rows_of_commit(old), feature_set.open().rows).all())
    except (FeatureCacheError, OSError, KeyError, TypeError, ValueError):
        return False


@dataclass(frozen=True, slots=True)
class SetAside:
    """Rows of one shard that was set aside and is not there again."""

    feature_set: FeatureSet
    rows: Rows
    provenance: dict[str, Any]
    """What ran when they were made."""


def shards_set_aside(store: FeatureStore) -> list[SetAside]:
    """List the shards of features in quarantine that nothing has replaced yet, as far as their records can be read."""
    lost = []
    for where, record in _quarantined(store.path).items():
        feature_set = store.feature_set_at(where.parent.parent)
        if feature_set is None or (store.path / where).exists():
            continue
        with contextlib.suppress(FeatureCacheError, OSError, KeyError):  # `Recomputed` names it: unknown
            commit = feature_set.folder.read(record)  # no more rows than a shard ever holds
            lost.append(SetAside(feature_set, rows_of_commit(commit), commit.body["provenance"]))
    return lost
