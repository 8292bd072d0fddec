"""A copy of a good cache, and the tools to change it with digests that are right all the same."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SECRET = "canary-5b1c2d"
"""Content of the files beside the cache; no output may hold it."""
TASK, HEADS, N_FEATURES = (
    "parity",
    ("logistic", "linear_svm", "rbf_svm", "mlp", "knn", "ridge", "majority"),
    16,
)
OTHER_TASKS = {
    "zlabels": ("multilabel", ("logistic", "mlp")),
    "znumbers": ("regression", ("ridge", "knn", "mlp", "mean")),
}
"""Name, kind and heads of the tasks without classes; their heads are kept as ``<kind>-<head>``."""
ALL_HEADS = (*HEADS, *(f"{kind}-{head}" for kind, heads in OTHER_TASKS.values() for head in heads))
SECONDS, MEMORY = 30, 4 << 30
MOST_OUTPUT = 1 << 16
"""Bytes of a message on stderr: one line that quotes a whole record is not clear."""

SET = "features/*/*=avg/float16"
KINDS = {
    "FORMAT.json": "FORMAT.json",
    "samples": "samples",
    "samples' commits": "samples/commits",
    "samples' shards": "samples/shards",
    "a samples' commit": "samples/commits/*.json",
    "a samples' shard": "samples/shards/*.h5",
    "sources": "sources",
    "a source": "sources/*",
    "a source's commits": "sources/*/commits",
    "a source's commit": "sources/*/commits/*.json",
    "a source's shard": "sources/*/shards/*.h5",
    "features": "features",
    "a fingerprint": "features/*",
    "a spec": "features/*/spec.json",
    "a tap": "features/*/*=avg",
    "a dtype": SET,
    "commits": f"{SET}/commits",
    "shards": f"{SET}/shards",
    "a commit": f"{SET}/commits/*.json",
    "a shard": f"{SET}/shards/*.h5",
    "a probe": f"{SET}/probe.json",
    "leases": "features/*/leases",
    "a lease": "features/*/leases/*.lease",
    "tasks": "tasks",
    "a task": "tasks/*",
    "a task's commits": "tasks/*/commits",
    "a task's commit": "tasks/*/commits/*.json",
    "a task's shard": "tasks/*/shards/*.h5",
    "heads": "heads",
    "a head": "heads/logistic",
    "a head's record": "heads/logistic/head.json",
    "a head's arrays": "heads/logistic/head.safetensors",
    "requests": "requests",
    "a request": "requests/*.json",
    "quarantine": "quarantine",
    "a quarantined commit": "quarantine/0001/features/*/*/*/commits/*.json",
    "the report": "report.html",
}
WRONG: tuple[Any, ...] = (None, "\x1b[2Jx\n", [], {}, True, -1, 0.5, 10**30)
"""What a field is replaced by, one after the other."""


@dataclass(frozen=True)
class Attack:
    """A change to a good cache. ``noticed``: the first level at which verify must find something, if any must."""

    group: str
    name: str
    forge: Callable[[Forgery], None]
    noticed: str | None = "structure"
    small: bool = False
    """Tried in fewer ways: one of thousands."""


@dataclass(frozen=True)
class Forgery:
    """A copy of the good cache, and the folder beside it that nobody may look into."""

    cache: Path
    outside: Path

    def find(self, pattern: str) -> Path:
        """Return the first thing of the cache that matches; of sources the last: only the newest view counts."""
        return sorted(self.cache.glob(pattern))[-1 if pattern.startswith("sources") else 0]

    def edit(self, pattern: str, change: Callable[[dict[str, Any]], object]) -> None:
        """Change a record and sign it."""
        path = self.find(pattern)
        content = json.loads(path.read_bytes())
        change(content)
        path.write_bytes(signed(content))

    def body(self, pattern: str, **fields: Any) -> None:
        """Replace fields of the body of a commit."""
        self.edit(pattern, lambda content: content["body"].update(fields))

    def rewrite(self, pattern: str, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
        """Change arrays and body of a shard of a folder; everything else is made to fit."""
        from featurecache.store.folders import ShardFolder

        folder = ShardFolder(self.find(pattern))
        commit = folder.commits()[-1 if pattern.startswith("sources") else 0]
        mapped = folder.open(commit)
        arrays = {name: (array.dtype, mapped.read(name).copy()) for name, array in commit.shard.arrays.items()}
        body = dict(commit.body)
        change(arrays, body)
        folder.discard([commit])
        folder.publish(commit.key, arrays, body, kind="features")

    def adopt(self, make: Callable[[Any], None], *, keep: Sequence[str] = ("id",), **options: Any) -> None:
        """Put another HDF5 file in the place of a shard; the record is true of its bytes, so only libhdf5 can tell.

        ``make`` writes the data set ``features``; its honest bytes come behind the end of what HDF5 uses.
        """
        import h5py

        from featurecache.store.folders import ShardFolder

        folder = ShardFolder(self.find(SET))
        commit = folder.commits()[0]
        mapped = folder.open(commit)
        arrays = {name: np.array(mapped.read(name)) for name in commit.shard.arrays}
        path = folder.path / "shards" / "forged.h5"
        with h5py.File(path, "w", **options) as file:
            for name in keep:
                file.create_dataset(name, data=arrays[name])
            file.flush()
            make(file)
        content = json.loads((folder.path / "commits" / f"{commit.key}.json").read_bytes())
        self._settle(folder.path, commit.key, content, path.read_bytes(), arrays)

    def settle(self, data: bytes) -> None:
        """Put arbitrary bytes in the place of a shard, with the honest arrays behind them."""
        from featurecache.store.folders import ShardFolder

        folder = ShardFolder(self.find(SET))
        commit = folder.commits()[0]
        mapped = folder.open(commit)
        arrays = {name: np.array(mapped.read(name)) for name in commit.shard.arrays}
        content = json.loads((folder.path / "commits" / f"{commit.key}.json").read_bytes())
        self._settle(folder.path, commit.key, content, data, arrays)

    def _settle(
        self, folder: Path, key: str, content: dict[str, Any], data: bytes, arrays: dict[str, np.ndarray]
    ) -> None:
        for name, values in arrays.items():
            data += b"\0" * (-len(data) % 64)
            raw = np.ascontiguousarray(values).tobytes()
            content["arrays"][name] |= {"offset": len(data), "block_bytes": 1 << 30, "crc32": [crc32(raw)]}
            data += raw
        place_shard(folder, key, content, data)
        for other in ("features/*/*=avg/int8", "tasks", "sources/*"):  # libhdf5 need not be asked about those
            shutil.rmtree(self.find(other))


def place_shard(folder: Path, key: str, content: dict[str, Any], data: bytes) -> None:
    """Write a shard and the record that names it."""
    for old in (folder / "shards").glob(f"{key}-*.h5"):
        old.unlink()
    (folder / "shards" / "forged.h5").unlink(missing_ok=True)
    content["sha256"], content["size"] = hashlib.sha256(data).hexdigest(), len(data)
    (folder / "shards" / f"{key}-{content['sha256'][:16]}.h5").write_bytes(data)
    (folder / "commits" / f"{key}.json").write_bytes(signed(content))


def crc32(data: bytes) -> int:
    """The checksum of a block."""
    import zlib

    return zlib.crc32(data)


def canonical(content: Any) -> str:
    """Write JSON as the digests of records want it, and what they do not allow as well."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


def signed(content: dict[str, Any]) -> bytes:
    """Return the bytes of a record with the right digest, as anybody can make them."""
    content = {name: value for name, value in content.items() if name != "digest"}
    digest = hashlib.sha256(canonical(content).encode()).hexdigest()
    return canonical({**content, "digest": digest}).encode()


def state(folder: Path) -> str:
    """A digest of the names, kinds, sizes and times below a folder; nothing but folders is opened, no link followed."""
    found, todo = [], [str(folder)]
    while todo:
        here = todo.pop()
        try:
            for entry in os.scandir(here):
                status = entry.stat(follow_symlinks=False)
                link = Path(entry.path).readlink() if entry.is_symlink() else ""
                found.append(f"{entry.path} {status.st_mode} {status.st_size} {status.st_mtime_ns} {link}")
                if entry.is_dir(follow_symlinks=False):
                    todo.append(entry.path)
        except OSError as error:  # deeper than paths can be long
            found.append(f"{here} {error.errno}")
    return hashlib.sha256("\n".join(sorted(found)).encode(errors="surrogateescape")).hexdigest()


def set_field(name: str, value: Any, content: dict[str, Any]) -> None:
    content[name] = value
