"""A folder of shards and their commit records: a shard is visible when its record is, and the first writer wins."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from featurecache.atomic import fsync_directory, is_partial, publish_once
from featurecache.errors import CorruptError
from featurecache.records import encode_record
from featurecache.store.commits import Commit, ShardRecord, read_commit
from featurecache.store.dtypes import Array
from featurecache.store.schemas import Schema
from featurecache.store.shards import MappedShard, ShardWriter

T = TypeVar("T")
# An attempt fails only if another process replaced a shard in the same moment; thirty in a row are no coincidence.
_ATTEMPTS = 30
# Folders below one another: quarantine, number, features, fingerprint, tap, type, commits, and one to spare.
_DEEPEST = 8


def find_strange(root: Path) -> Iterator[tuple[Path, str]]:
    """Yield what no cache contains, and what it is: links, which could lead out of it, devices, pipes, deep trees."""
    pending = [(root, 0)]
    while pending:
        folder, depth = pending.pop()
        if depth > _DEEPEST:
            yield folder, "lies deeper than anything in a cache"
            continue
        with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:  # else it has just been removed
            for entry in entries:
                if entry.is_symlink():
                    yield Path(entry.path), "is a symbolic link; a cache never contains links"
                elif entry.is_dir(follow_symlinks=False):
                    pending.append((Path(entry.path), depth + 1))
                elif not entry.is_file(follow_symlinks=False):
                    yield Path(entry.path), "is neither a file nor a folder"


# Compared by identity: a schema holds dicts, which have no hash.
@dataclass(frozen=True, slots=True, eq=False)
class ShardFolder:
    """A folder of shards (``shards/``) and their commit records (``commits/``).

    Parameters
    ----------
    path : Path
        The folder.
    schema : Schema, optional
        What its commits hold; a commit that holds something else is refused when it is read.
    """

    path: Path
    schema: Schema | None = None

    def commits(self, known: Mapping[str, Commit] | None = None) -> list[Commit]:
        """All published shards, in the order of their keys.

        Parameters
        ----------
        known : mapping of str to Commit, optional
            By key what was read before, of a folder whose records never change.
        """
        known = known or {}
        for _ in range(_ATTEMPTS):
            records = self.records()
            with contextlib.suppress(FileNotFoundError):
                commits = [known[path.stem] if path.stem in known else self.read(path) for path in records]
                if set(records) <= set(self.records()):  # else a shard may have been replaced while they were read
                    return commits
        raise CorruptError(f"{self.path} is rewritten faster than it can be read; try again")

    def read(self, record: Path) -> Commit:
        """Read one commit record and compare it with the schema."""
        _check_name(record)
        commit = read_commit(record)
        if self.schema is not None:
            self.schema.check(commit, self.path)
        return commit

    def record(self, key: str) -> Path:
        """Where the commit record of a key lies, or would lie."""
        return self.path / "commits" / f"{key}.json"

    def last(self) -> Commit | None:
        """The published shard with the greatest key."""
        return self.newest(lambda commit, _: commit)

    def find(self, key: str, read: Callable[[Commit, MappedShard], T]) -> T | None:
        """Read the shard of a key whole; None where there is none, or somebody withdraws it meanwhile."""
        for _ in range(_ATTEMPTS):
            try:
                commit = self.read(self.record(key))
            except FileNotFoundError:
                return None
            try:
                return read(commit, self.open(commit))
            except CorruptError:
                if self.still_holds(commit):  # nobody has withdrawn it, so it is broken
                    raise
        raise CorruptError(f"{self.path} is rewritten faster than it can be read; try again")

    def still_holds(self, commit: Commit) -> bool:
        """Tell whether a commit is there as it was read: a collection, or a writer, may have withdrawn it since."""
        return any(there.file_name == commit.file_name for there in self.still_there([commit.key]))

    def commit(self, key: str, shard: ShardRecord, body: Mapping[str, Any], *, version: int = 1) -> bool:
        """Publish a finished shard; False when another writer was first.

        Parameters
        ----------
        key : str
        shard : ShardRecord
        body : mapping
            What the commit records.
        version : int
            Of the record.
        """
        content = {**msgspec.to_builtins(shard), "body": dict(body)}
        return publish_once(self.record(key), encode_record("commit", content, version=version))

    def publish(self, key: str, arrays: Mapping[str, tuple[str, Array]], body: Mapping[str, Any], *, kind: str) -> bool:
        """Write, finish and commit a shard whose arrays are all at hand; False when another writer was first.

        Parameters
        ----------
        key : str
        arrays : mapping of name to (dtype, ndarray)
        body : mapping
            What the commit records.
        kind : str
            Of the shard, for people who open it with other programs.
        """
        layout = {name: (dtype, values.shape) for name, (dtype, values) in arrays.items()}
        with ShardWriter(self.path, layout, {"format": "featurecache", "kind": kind}) as writer:
            for name, (_, values) in arrays.items():
                writer.append(name, values)
            shard = writer.finish(key)
        return self.commit(key, shard, body, version=2 if kind == "task" else 1)

    @property
    def next_generation(self) -> int:
        """Number of the generation that `publish_next` would publish now."""
        keys = self.keys()
        return int(keys[-1]) + 1 if keys else 0

    def publish_next(
        self,
        arrays: Mapping[str, tuple[str, Array]],
        body: Mapping[str, Any],
        *,
        kind: str,
        generation: int | None = None,
    ) -> bool:
        """Publish the next generation of a folder where only the newest counts; False when another writer was first.

        Parameters
        ----------
        arrays, body, kind
            As for `publish`.
        generation : int, optional
            Its number, where it was made from the one before; by default whichever is the next by now.

        Notes
        -----
        The generation before stays until the next one comes: another process may be about to read it.
        """
        old, following = self.keys(), self.next_generation if generation is None else generation
        if old and following <= int(old[-1]):
            return False
        won = self.publish(f"{following:012d}", arrays, body, kind=kind)
        if won:
            self.discard(self.still_there(old[:-1]))
        return won

    def open(self, commit: Commit) -> MappedShard:
        """Map a published shard for reading."""
        return MappedShard(self.path / "shards" / commit.file_name, commit.shard)

    def newest(self, read: Callable[[Commit, MappedShard], T]) -> T | None:
        """Read the newest shard whole; a writer may withdraw it meanwhile for a newer one, then that one is read."""
        for _ in range(_ATTEMPTS):
            if not (records := self.records()):
                return None
            try:
                commit = self.read(records[-1])
                return read(commit, self.open(commit))
            except (FileNotFoundError, CorruptError):
                if self.records()[-1:] == records[-1:]:  # nobody has withdrawn it, so it is broken
                    raise
        raise CorruptError(f"{self.path} is rewritten faster than it can be read; try again")

    def keys(self) -> list[str]:
        """Keys of all published shards, in order."""
        records = self.records()
        for record in records:
            _check_name(record)
        return [record.stem for record in records]

    def discard(self, commits: Sequence[Commit]) -> None:
        """Withdraw superseded commits and their shards: the record first, so that no record ever points at nothing.

        Other shards of a key stay: they may belong to a writer that is about to commit.
        """
        mine = [commit for commit in commits if commit in self.still_there([commit.key])]
        for commit in mine:
            self.record(commit.key).unlink(missing_ok=True)
        if mine:  # a power cut could bring the records back, and not the shards
            fsync_directory(self.path / "commits")
        for commit in mine:
            (self.path / "shards" / commit.file_name).unlink(missing_ok=True)

    def still_there(self, keys: Sequence[str]) -> list[Commit]:
        """Read the commits of some keys, but for those that somebody else has withdrawn."""
        found = []
        for key in keys:
            with contextlib.suppress(FileNotFoundError):
                found.append(self.read(self.record(key)))
        return found

    def records(self) -> list[Path]:
        """Every commit record, in the order of the keys."""
        folder = self.path / "commits"
        try:  # a single system call: between two, another writer may make the folder
            paths = list(folder.iterdir())
        except FileNotFoundError:
            return []
        except NotADirectoryError as error:
            raise CorruptError(f"{folder} is a file where a folder of records belongs; remove it") from error
        found = [path for path in paths if path.suffix == ".json" and not is_partial(path)]
        # By name: to compare paths of one folder takes ten times as long.
        return sorted(found, key=lambda path: path.name)


def _check_name(record: Path) -> None:
    if not record.stem.isdecimal():
        raise CorruptError(f"{record} has not the name of a commit record; remove it")
