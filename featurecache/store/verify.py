"""Whether a cache is whole, at four levels, each including the ones before; nothing is changed or read outside.

structure  records, sizes, fingerprints, and that every stored id is the id of its row
blocks     CRC-32 of every block of every array
digest     SHA-256 of every shard file
hdf5       what libhdf5 reads in each shard agrees with its record, in a process of its own
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

import numpy as np

from featurecache.errors import CorruptError, FeatureCacheError, RequestError, command_line, shortened
from featurecache.hashing import digest_file
from featurecache.records import PlainValues, read_record
from featurecache.store.commits import Commit
from featurecache.store.dtypes import Array, decode
from featurecache.store.feature_sets import read_spec
from featurecache.store.features import rows_of_commit
from featurecache.store.folders import ShardFolder, find_strange
from featurecache.store.listings import listing_of
from featurecache.store.notes import KINDS
from featurecache.store.samples import SampleTable, first_indices
from featurecache.store.store import FeatureStore
from featurecache.store.unit_listings import UnitPart
from featurecache.text import TextColumn

Level = Literal["structure", "blocks", "digest", "hdf5"]
LEVELS: tuple[str, ...] = get_args(Level)
# Whether numbers are finite takes a byte for each: of wide features not for a whole shard at once.
_ROWS_AT_ONCE = 1024
# Folder of what `repair` set aside.
QUARANTINE = "quarantine"
# Folders of records that only save time, and their kinds.
NOTES = dict(KINDS.values())


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it should be: where (inside the cache), what, and the next command."""

    where: str
    what: str
    advice: str


@dataclass(frozen=True, slots=True)
class Verification(PlainValues):
    """What was checked, and the problems that were found."""

    level: str
    num_shards: int
    num_bytes: int
    problems: tuple[Problem, ...]


def verify(
    store: FeatureStore,
    *,
    level: str = "digest",
    sample: float = 1.0,
    random_state: int | None = None,
    on_shard: Callable[[int, int], None] | None = None,
) -> Verification:
    """Check a cache.

    Parameters
    ----------
    store : FeatureStore
        The cache.
    level : str
        One of `LEVELS`.
    sample : float
        Share of the shards whose bytes are read; records are all read always.
    random_state : int, optional
        Seed of that choice; another one each time when left out.
    on_shard : callable, optional
        Called with (shards done, shards to do).
    """
    if level not in LEVELS:
        raise RequestError(f"unknown level {level!r}; known: {', '.join(LEVELS)}")
    if not 0 < sample <= 1:
        raise RequestError(f"sample must be a share above 0 and at most 1, got {sample}")
    if problems := [Problem(_inside(store.path, path), what, "remove it") for path, what in find_strange(store.path)]:
        return Verification(level, 0, 0, tuple(problems))  # what leads elsewhere is not followed, so this is all
    problems = _check_records(store)
    samples = None if any(problem.where == "samples" for problem in problems) else store.samples
    found = list(_find_shards(store))
    chosen = random.Random(random_state).sample(found, max(round(sample * len(found)), min(len(found), 1)))
    num_bytes = 0
    # In the order of the cache, whatever was drawn.
    for done, (folder, commit) in enumerate(sorted(chosen, key=lambda item: (str(item[0].path), item[1].key)), 1):
        path, is_there = folder.path / "shards" / commit.file_name, partial(folder.still_holds, commit)
        with _noted(problems, store.path, path, is_there):
            _check_shard(folder, commit, level, samples)
        num_bytes += commit.shard.size
        if on_shard:
            on_shard(done, len(chosen))
    return Verification(level, len(chosen), num_bytes, tuple(dict.fromkeys(problems)))


def shard_folders(path: Path) -> Iterator[Path]:
    """Yield every folder of the cache that holds ``commits/``, but for what was set aside."""
    for folder, names, _ in os.walk(path):
        names[:] = sorted(name for name in names if name != QUARANTINE)
        if "commits" in names:
            yield Path(folder)


def _find_shards(store: FeatureStore) -> Iterator[tuple[ShardFolder, Commit]]:
    for folder in _folders(store):
        for record in folder.records():
            with suppress(FeatureCacheError, OSError):  # _check_records names it
                yield folder, folder.read(record)


def _folders(store: FeatureStore) -> Iterator[ShardFolder]:
    for path in shard_folders(store.path):
        folder = store.shard_folder_at(PurePosixPath(path.relative_to(store.path).as_posix()))
        if folder is not None:
            yield folder


def _check_records(store: FeatureStore) -> list[Problem]:
    problems: list[Problem] = []
    for folder, names, files in os.walk(store.path):
        names[:] = sorted(name for name in names if name != QUARANTINE)
        # Files where folders of shards and records belong: nothing below them would be found.
        for name in sorted({"commits", "shards"} & set(files)):
            where = _inside(store.path, Path(folder) / name)
            problems.append(Problem(where, "is a file where a folder belongs", "remove it"))
    known = {folder.path: folder for folder in _folders(store)}
    for path in shard_folders(store.path):
        if path not in known:
            problems.append(Problem(_inside(store.path, path), "holds commits where a cache has none", "remove it"))
            continue
        for record in known[path].records():
            with _noted(problems, store.path, record, record.exists):
                known[path].read(record)
    for notes, kind in NOTES.items():
        for record in sorted((store.path / notes).glob("*.json")):
            with _noted(problems, store.path, record):
                read_record(record, kind)
    with _noted(problems, store.path, store.path / "samples"):
        if len(first_indices(np.asarray(store.samples.ids))) != len(store.samples):
            raise CorruptError("sample table: a sample occurs twice")
    for spec in sorted((store.path / "features").glob("*/spec.json")):
        with _noted(problems, store.path, spec):
            read_spec(spec)
        for commits in sorted(spec.parent.glob("*/*/commits")):
            with _noted(problems, store.path, commits.parent):
                _check_features(store, commits.parent)
    for path, listings in known.items():
        if path.parent != store.path / "sources":
            continue
        generations: list[Commit] = []
        with _noted(problems, store.path, path):
            generations = listings.commits()
        for commit in generations:
            with _noted(problems, store.path, path, partial(listings.still_holds, commit)):
                # Of the one before, nobody needs what a scan since has listed anew.
                is_old = commit is not generations[-1]
                held = listing_of(listings, commit, listings.open(commit), without_damaged=is_old).held
                if held.stops.max(initial=0) > len(store.samples):
                    raise ValueError("it names rows that the sample table does not have")
    for name in store.task_names():
        with _noted(problems, store.path, store.path / "tasks" / name):
            if (store.samples.rows_of(store.task(name).ids) < 0).any():
                raise ValueError("it labels samples that the cache does not have")
    return problems


@contextmanager
def _noted(
    problems: list[Problem], root: Path, path: Path, is_there: Callable[[], bool] = lambda: True
) -> Iterator[None]:
    """Note what is raised in the block as a problem of a path, unless somebody has withdrawn it meanwhile."""
    try:
        yield
    # All that bytes of a stranger may raise in numpy and msgspec; what else is raised is our own mistake.
    except (FeatureCacheError, OSError, LookupError, TypeError, ValueError, ArithmeticError, MemoryError) as error:
        with suppress(FeatureCacheError, OSError):  # of a record that is damaged itself
            if not is_there():
                return
        what = str(error) if isinstance(error, FeatureCacheError | OSError) else repr(error)
        problems.append(Problem(_inside(root, path), shortened(what, 500), f"run `{command_line('repair', root)}`"))


def _check_features(store: FeatureStore, folder: Path) -> None:
    feature_set = store.feature_set_at(PurePosixPath(folder.relative_to(store.path).as_posix()))
    if feature_set is None:
        return  # its spec is missing, which is another problem
    features = feature_set.open()
    for commit in features.commits:
        if commit.body["fingerprint"] != feature_set.fingerprint:
            raise ValueError(f"commit {commit.key} belongs to fingerprint {shortened(commit.body['fingerprint'], 16)}")
    feature_set.reference()
    feature_set.warnings()
    if features.commits:  # else it was killed before its first commit, or repair has set all of it aside
        _ = features.sample_shape, features.rows, features.bad


def _check_shard(folder: ShardFolder, commit: Commit, level: str, samples: SampleTable | None) -> None:
    shard = folder.open(commit)
    shard.mapped()
    if "features" in commit.shard.arrays and samples is not None:
        rows = rows_of_commit(commit)
        if rows[-1] >= len(samples) or not np.array_equal(shard.read("id"), samples.ids[rows]):
            raise ValueError("the ids in this shard are not those of its rows in the sample table")
    if "unit_stamp" in commit.shard.arrays:
        UnitPart(commit, shard).names()
    elif folder.path.name == "samples" and samples is not None:
        samples.uris_of([int(commit.body["start"])])
    if level == "structure":
        return
    arrays = {name: shard.read(name) for name in commit.shard.arrays}
    _check_contents(commit, arrays)
    if level != "blocks" and digest_file(shard.path) != commit.shard.sha256:
        raise ValueError("the file's SHA-256 is not that of its commit record (in bytes that no array uses)")
    if level == "hdf5" and (difference := ask_libhdf5(shard.path, commit)):
        raise ValueError(difference)


def _check_contents(commit: Commit, arrays: Mapping[str, Array]) -> None:
    """Check what only the numbers themselves tell."""
    if "text_start" in arrays:
        TextColumn(arrays["text"], arrays["text_start"])
    if "features" not in arrays or commit.shard.arrays["features"].dtype == "int8":
        return
    bad = np.isin(rows_of_commit(commit), [row for row, *_ in commit.body["bad"]])
    values = decode(arrays["features"], commit.shard.arrays["features"].dtype).reshape(len(bad), -1)
    for first in range(0, len(bad), _ROWS_AT_ONCE):
        block = slice(first, first + _ROWS_AT_ONCE)
        if (np.isfinite(values[block]).all(axis=1) == bad[block]).any():
            raise ValueError("it holds numbers for bad inputs, or none for good ones")


def ask_libhdf5(path: Path, commit: Commit) -> str | None:
    """Say how libhdf5's view of a shard differs from its record, if it does.

    A process of its own, because a hostile file may crash libhdf5, and without filter plug-ins, because those are code.
    """
    recorded = {
        name: [np.dtype(array.dtype if array.dtype != "bfloat16" else "uint16").str, list(array.shape), array.offset]
        for name, array in commit.shard.arrays.items()
    }
    done = subprocess.run(
        [sys.executable, "-I", "-c", _GATE, os.fspath(path), json.dumps(recorded)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HDF5_PLUGIN_PRELOAD": "::"},
        check=False,
    )
    if done.returncode == 0:
        return None
    difference = done.stdout.strip() or f"libhdf5 failed with status {done.returncode}"
    return f"libhdf5 and the commit record disagree: {difference}"


_GATE = """
import json, sys
import h5py
wanted = json.loads(sys.argv[2])
def refuse(text):
    print(text); sys.exit(1)
try:
    with h5py.File(sys.argv[1], "r") as file:
        if set(file) != set(wanted):
            refuse(f"arrays {sorted(file)}")
        for name, (dtype, shape, offset) in wanted.items():
            if not isinstance(file.get(name, getlink=True), h5py.HardLink):
                refuse(f"{name} is a link to elsewhere")
            data = file[name]
            plan = data.id.get_create_plist()
            if plan.get_layout() != h5py.h5d.CONTIGUOUS or plan.get_nfilters() or plan.get_external_count():
                refuse(f"{name} is not stored plainly")
            found = [data.dtype.newbyteorder("<").str if data.dtype.itemsize > 1 else data.dtype.str,
                     list(data.shape), data.id.get_offset()]
            if found != [dtype, shape, offset]:
                refuse(f"{name} is {found}, the record says {[dtype, shape, offset]}")
except OSError as error:
    refuse(f"it is no HDF5 file ({error})")
"""


def _inside(root: Path, path: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
