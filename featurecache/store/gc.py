"""What may be removed from a cache: leftovers of interrupted writers, and rows that no source holds any more."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from featurecache.atomic import fsync_directory, is_partial, publish_bytes
from featurecache.store.commits import Commit, encode_commit
from featurecache.store.features import Features, rows_of_commit, runs_of_rows
from featurecache.store.folders import ShardFolder
from featurecache.store.samples import Rows
from featurecache.store.schemas import features_schema
from featurecache.store.store import FeatureStore
from featurecache.store.verify import shard_folders
from featurecache.store.views import merged_rows

TRAINING = "training"
"""Folder of a cache where trainings keep how far they are; one that is killed leaves its files, to go on from."""
DEFAULT_AGE_HOURS = 24 * 7
"""A younger leftover may belong to a writer that is still at work."""


@dataclass
class Garbage:
    """What was found, and whether it was removed."""

    leftovers: list[str] = field(default_factory=list)
    """Temporary files, checkpoints of killed trainings and shards without a commit, older than the guard."""
    young: list[str] = field(default_factory=list)
    """The same, but too young to be sure."""
    num_bytes: int = 0
    unused_rows: int = 0
    """Feature rows (over all taps) whose sample no source holds any more."""
    removed: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return dict(vars(self))


def collect_garbage(
    store: FeatureStore, *, remove: bool = False, unused: bool = False, older_than_hours: float = DEFAULT_AGE_HOURS
) -> Garbage:
    """Find, and if asked remove, what nobody needs.

    Parameters
    ----------
    store : FeatureStore
        The cache.
    remove : bool
        Otherwise nothing is touched.
    unused : bool
        Also drop features of samples that no source holds any more. Row numbers don't change.
    older_than_hours : float
        Guard: a younger leftover stays.
    """
    garbage = Garbage(removed=remove)
    limit = time.time() - 3600 * older_than_hours
    for path in _leftovers(store.path):
        status = path.stat()
        if status.st_mtime > limit:
            garbage.young.append(str(path.relative_to(store.path)))
            continue
        garbage.leftovers.append(str(path.relative_to(store.path)))
        garbage.num_bytes += status.st_size
        if remove:
            path.unlink(missing_ok=True)
    if unused:
        held = merged_rows(store.views.all())
        for feature_set in store.feature_sets():
            garbage.unused_rows += _drop_unused(feature_set.open(), feature_set.folder, held, remove=remove)
    return garbage


def _leftovers(root: Path) -> Iterator[Path]:
    for folder, _, files in os.walk(root):
        yield from (path for name in sorted(files) if is_partial(path := Path(folder) / name))
    yield from sorted((root / TRAINING).glob("*/*.safetensors"))
    for place in shard_folders(root):
        named = {commit.file_name for commit in ShardFolder(place).commits()}
        shards = place / "shards"
        if shards.is_dir():
            yield from (path for path in sorted(shards.glob("[0-9]*.h5")) if path.name not in named)


def _drop_unused(features: Features, folder: ShardFolder, held: Rows, *, remove: bool) -> int:
    dropped = 0
    for commit in features.commits:
        rows = rows_of_commit(commit)
        keep = np.isin(rows, held)
        dropped += int((~keep).sum())
        if remove and not keep.all():
            _shrink(features, folder, commit, rows, keep)
    return dropped


def _shrink(features: Features, folder: ShardFolder, commit: Commit, rows: Rows, keep: np.ndarray) -> None:
    """Replace a shard by one without some rows: the new one is complete before the old one goes."""
    if keep.any():
        old = folder.open(commit)
        known = [name for name in features_schema(features.dtype).arrays if name in commit.shard.arrays]
        arrays = {name: (commit.shard.arrays[name].dtype, old.read(name)) for name in known}
        arrays |= {name: (arrays[name][0], arrays[name][1][keep]) for name in ("features", "id")}
        layout = {name: (dtype, values.shape) for name, (dtype, values) in arrays.items()}
        kept = rows[keep]
        key = f"{kept[0]:012d}"
        with folder.writer(layout, {"format": "featurecache", "kind": "features"}) as writer:
            for name, (_, values) in arrays.items():
                writer.append(name, values)
            shard = writer.finish(key)
        bad = [item for item in commit.body["bad"] if item[0] in set(kept.tolist())]
        body = {**commit.body, "rows": runs_of_rows(kept), "bad": bad}
        publish_bytes(folder.path / "commits" / f"{key}.json", encode_commit(shard, body))
        if key == commit.key:  # the record now names the new shard
            (folder.path / "shards" / commit.file_name).unlink(missing_ok=True)
            fsync_directory(folder.path / "shards")
            return
    folder.discard([commit.key])
