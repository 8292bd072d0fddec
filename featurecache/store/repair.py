"""Repair: damaged shards are set aside, the next extraction computes them again, and the digests are compared.

Nothing is deleted: what is damaged moves to ``quarantine/`` under its own path. Any shard of features can be computed
again from its inputs, and equal work gives equal bytes, so the digest of the old record says whether it is the same.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from featurecache.atomic import fsync_directory, make_folder
from featurecache.errors import FeatureCacheError
from featurecache.store.commits import Commit, read_commit
from featurecache.store.store import FeatureStore
from featurecache.store.verify import QUARANTINE, Problem, verify


@dataclass(frozen=True, slots=True)
class Repair:
    """What happened to one damaged thing."""

    where: str
    what: str
    action: str
    """``set aside``, or what a person must do."""

    def to_json(self) -> dict[str, str]:
        """Return plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Recomputed:
    """A shard that was set aside earlier, and what became of it."""

    where: str
    state: str
    """``missing`` (extract again), ``identical``, ``different`` or ``unknown`` (the old record cannot be read)."""

    def to_json(self) -> dict[str, str]:
        """Return plain JSON values."""
        return asdict(self)


def repair(store: FeatureStore) -> tuple[list[Repair], list[Recomputed]]:
    """Set damaged shards aside, and compare those that were computed again since an earlier repair."""
    done = [_repair(store.path, problem) for problem in verify(store).problems]
    return done, [_compare(store.path, record) for record in _quarantined(store.path)]


def _repair(root: Path, problem: Problem) -> Repair:
    place = PurePosixPath(problem.where)
    if place.parts[:1] == ("samples",) or place.parts[:1] == (".",):
        return Repair(problem.where, problem.what, "restore it from a copy of the cache, or extract into a new one")
    if place.parent.name in ("commits", "shards"):
        key = place.stem.partition("-")[0]
        folder = root / place.parent.parent
        moved = [folder / "commits" / f"{key}.json", *sorted((folder / "shards").glob(f"{key}-*.h5"))]
    elif place.parts[0] == "requests":
        moved = [root / place]
    else:
        return Repair(
            problem.where,
            problem.what,
            problem.advice if "repair" not in problem.advice else "extract into a new cache",
        )
    for path in moved:
        _set_aside(root, path)
    return Repair(problem.where, problem.what, "set aside; run the same `featurecache extract` (or task add) again")


def _set_aside(root: Path, path: Path) -> None:
    if not path.exists() and not path.is_symlink():
        return
    target = root / QUARANTINE / path.relative_to(root)
    number = 0
    while target.exists():
        number += 1
        target = target.with_name(f"{path.name}.{number}")
    make_folder(target.parent)
    path.rename(target)
    fsync_directory(target.parent)
    fsync_directory(path.parent)


def _quarantined(root: Path) -> list[Path]:
    return sorted((root / QUARANTINE / "features").rglob("commits/[0-9]*.json"))


def _compare(root: Path, record: Path) -> Recomputed:
    where = str(record.relative_to(root / QUARANTINE))
    try:
        old: Commit = read_commit(record)
    except (FeatureCacheError, OSError):
        return Recomputed(where, "unknown")
    try:
        new = read_commit(root / where)
    except (FeatureCacheError, OSError):
        return Recomputed(where, "missing")
    return Recomputed(where, "identical" if new.shard.sha256 == old.shard.sha256 else "different")


def summary(repairs: list[Repair], recomputed: list[Recomputed]) -> dict[str, Any]:
    """Return plain JSON values."""
    return {"repairs": [r.to_json() for r in repairs], "recomputed": [r.to_json() for r in recomputed]}
