"""What may be removed from a cache: leftovers of interrupted writers, and rows that no source holds any more."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from featurecache.atomic import is_partial
from featurecache.errors import CorruptError
from featurecache.hashing import digest_json
from featurecache.records import PlainValues
from featurecache.store.commits import Commit
from featurecache.store.dtypes import Array
from featurecache.store.features import Features, body_of_rows, rows_of_commit
from featurecache.store.folders import ShardFolder
from featurecache.store.row_runs import RowRuns, runs_of_rows
from featurecache.store.samples import Rows
from featurecache.store.schemas import features_schema
from featurecache.store.store import FeatureStore
from featurecache.store.verify import shard_folders

# Folder of a cache where trainings keep how far they are; one that is killed leaves its files, to go on from.
TRAINING = "training"
# A younger leftover may belong to a writer that is still at work.
DEFAULT_AGE_HOURS = 24 * 7


@dataclass
class Garbage(PlainValues):
    """What was found, and whether it was removed."""

    leftovers: list[str] = field(default_factory=list)
    """Temporary files, checkpoints of killed trainings and shards without a commit, older than the guard."""
    young: list[str] = field(default_factory=list)
    """The same, but too young to be sure."""
    num_bytes: int = 0
    unused_rows: int = 0
    """Feature rows (over all taps) whose sample no source holds any more."""
    removed: bool = False


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
        with contextlib.suppress(FileNotFoundError):  # another collection was faster
            _collect(path, store.path, limit, garbage)
    if unused:
        for feature_set in store.feature_sets():
            # Read anew for each: a source may have been extracted again meanwhile, and what it holds stays. The
            # features first: rows are listed before they are computed, by a run that reads block by block too.
            features = feature_set.open()
            held = store.listings.held()
            garbage.unused_rows += _drop_unused(features, feature_set.folder, held, remove=remove)
    return garbage


def _collect(path: Path, root: Path, limit: float, garbage: Garbage) -> None:
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    statuses = [file.stat() for file in files]
    if max([path.stat().st_mtime, *(status.st_mtime for status in statuses)]) > limit:
        garbage.young.append(str(path.relative_to(root)))
        return
    garbage.leftovers.append(str(path.relative_to(root)))
    garbage.num_bytes += sum(status.st_size for status in statuses)
    if garbage.removed and path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    elif garbage.removed:
        path.unlink(missing_ok=True)


def _leftovers(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        yield from (path for name in sorted([*folders, *files]) if is_partial(path := Path(folder) / name))
        folders[:] = [name for name in folders if not is_partial(Path(name))]
    yield from sorted((root / TRAINING).glob("*/*.safetensors"))
    for folder_of_shards in shard_folders(root):
        shards = sorted((folder_of_shards / "shards").glob("[0-9]*.h5"))
        named = {commit.file_name for commit in ShardFolder(folder_of_shards).commits()}
        yield from (path for path in shards if path.name not in named)


def _drop_unused(features: Features, folder: ShardFolder, held: RowRuns, *, remove: bool) -> int:
    dropped = 0
    for commit in features.commits:
        rows = rows_of_commit(commit)
        keep = held.contains(rows)
        dropped += int((~keep).sum())
        if remove and not keep.all():
            try:
                _shrink(features, folder, commit, rows, keep)
            except (FileNotFoundError, CorruptError):
                if folder.record(commit.key).exists():  # else another collection has done it
                    raise
    return dropped


def _shrink(features: Features, folder: ShardFolder, commit: Commit, rows: Rows, keep: np.ndarray) -> None:
    """Replace a shard by one without some rows: the new one stands before the old one goes.

    Rows that another shard holds too are kept: two that drop each other's copies at once would lose both.
    """
    if keep.any():
        kept = rows[keep]
        # A key of these rows of this shard alone: the first row is the key of whoever computes from that row on, and a
        # shard of that name may be there.
        digest = digest_json("part of a shard", 1, {"shard": commit.shard.sha256, "rows": runs_of_rows(kept)})
        key = f"{kept[0]:012d}{int(digest[:16], 16):020d}"
        folder.publish(key, _kept_arrays(features, folder, commit, keep), body_of_rows(commit, kept), kind="features")
        # It may be there already, of a collection that was killed before it removed the old one.
        if not np.array_equal(rows_of_commit(folder.read(folder.record(key))), kept):
            raise CorruptError(
                f"{folder.path}: commit {key} holds other rows than it should; run `featurecache verify`"
            )
    folder.discard([commit])


def _kept_arrays(
    features: Features, folder: ShardFolder, commit: Commit, keep: np.ndarray
) -> dict[str, tuple[str, Array]]:
    """Return the arrays of a shard without the rows that go; what belongs to all rows stays as it is."""
    old = folder.open(commit)
    known = [name for name in features_schema(features.dtype).arrays if name in commit.shard.arrays]
    arrays = {name: (commit.shard.arrays[name].dtype, old.read(name)) for name in known}
    return arrays | {name: (arrays[name][0], arrays[name][1][keep]) for name in ("features", "id")}
