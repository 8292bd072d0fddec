"""What the trials share: tallies, forked workers that may die, generated images, and comparisons of caches."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

BACKBONE = "python:tiny_backbones:tiny"


@dataclass(frozen=True, kw_only=True)
class Options:
    """How large the trials are and where they write."""

    quick: bool
    jobs: int
    scratch: Path
    rows: int | None = None


@dataclass
class Tally:
    """Attempts at breaking one promise."""

    promise: str
    """What the attempts were, read after '0 of N'."""
    num_trials: int = 0
    violations: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)

    def add(self, problems: Sequence[str], *, label: str) -> None:
        """Count one attempt; however many problems it had, it is one violation."""
        self.num_trials += 1
        if problems:
            self.violations.append(f"{label}: {'; '.join(problems[:4])}")

    def line(self) -> str:
        """Say it as '0 of N ...'."""
        return f"{len(self.violations)} of {self.num_trials} {self.promise}"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "promise": self.promise,
            "num_trials": self.num_trials,
            "num_violations": len(self.violations),
            "violations": self.violations[:100],
            "numbers": self.numbers,
        }


# Forked processes


@dataclass(frozen=True)
class Ended:
    """How a child ended: exit status (negative: the signal that killed it), its stderr, and whether it hung."""

    status: int
    error: str
    hung: bool = False


def run_child(
    work: Callable[[], int], *, thorough: bool = False, timeout: float = 60.0, kill_after: float | None = None
) -> Ended:
    """Run ``work`` in a forked child.

    ``thorough``: leave through the C library's exit, where libhdf5 and others clean up and may crash.
    ``kill_after``: SIGKILL from outside after so many seconds.
    """
    # A pipe, not a file: a limit on the size of files must not cut the message.
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        be_child(work, writing, thorough=thorough)
    os.close(writing)
    started = time.perf_counter()
    limit = timeout if kill_after is None else kill_after
    hung = False
    while not (found := os.waitpid(pid, os.WNOHANG))[0]:
        if time.perf_counter() - started > limit:
            hung = kill_after is None
            os.kill(pid, signal.SIGKILL)
            found = os.waitpid(pid, 0)
            break
        time.sleep(0.001)
    with os.fdopen(reading, "rb") as pipe:
        error = pipe.read().decode(errors="replace")
    return Ended(os.waitstatus_to_exitcode(found[1]), error, hung)


def be_child(work: Callable[[], int], errors: int, *, thorough: bool) -> None:
    """Do ``work`` in a forked child with stderr to the descriptor ``errors``, and end the process."""
    status = 70
    try:
        os.dup2(errors, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", closefd=False)
        status = work()
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        if thorough:
            gc.collect()
            ctypes.CDLL(None).exit(status)
        os._exit(status)


def for_each(
    items: Sequence[Any], work: Callable[[Any], Any], *, jobs: int, timeout: float = 120.0
) -> list[dict[str, Any]]:
    """Call ``work`` on each item in forked workers; JSON values come back, in the order of the items.

    Each result is ``{"value": ...}``, or ``{"failed": reason}`` when the worker died, raised or hung at that item;
    the items after it are still tried.
    """
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page it looks at
    results: list[dict[str, Any]] = [{} for _ in items]
    workers = [_start(list(range(k, len(items), jobs)), items, work) for k in range(min(jobs, len(items)))]
    while workers:
        ready, _, _ = select.select([worker.pipe for worker in workers], [], [], 0.5)
        for worker in list(workers):
            if worker.pipe in ready and worker.receive(results):
                continue
            late = time.perf_counter() - worker.last > timeout
            if worker.pipe not in ready and not late:
                continue
            workers.remove(worker)
            worker.end(results, late=late)
            if worker.pending:
                workers.append(_start(worker.pending, items, work))
    gc.unfreeze()
    return results


@dataclass
class _Worker:
    pid: int
    pipe: int
    pending: list[int]
    last: float
    buffer: bytes = b""

    def receive(self, results: list[dict[str, Any]]) -> bool:
        """Take what has come; False at the end of the pipe."""
        data = os.read(self.pipe, 1 << 16)
        self.buffer += data
        *lines, self.buffer = self.buffer.split(b"\n")
        for line in lines:
            results[self.pending.pop(0)] = json.loads(line)
            self.last = time.perf_counter()
        return bool(data)

    def end(self, results: list[dict[str, Any]], *, late: bool) -> None:
        """Collect the process; an item it was at when it hung or died has failed."""
        if late:
            os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        os.close(self.pipe)
        if self.pending:
            reason = "hung" if late else f"the process ended with status {os.waitstatus_to_exitcode(status)}"
            results[self.pending.pop(0)] = {"failed": reason}


def _start(indices: list[int], items: Sequence[Any], work: Callable[[Any], Any]) -> _Worker:
    reading, writing = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        for index in indices:
            try:
                result = {"value": work(items[index])}
            except Exception:
                result = {"failed": traceback.format_exc()[-1500:]}
            os.write(writing, json.dumps(result).encode() + b"\n")
        os._exit(0)
    os.close(writing)
    return _Worker(pid, reading, list(indices), time.perf_counter())


def problems_of(result: dict[str, Any]) -> list[str]:
    """The problems that a trial returned, or the failure of the trial itself."""
    if "failed" in result:
        return [" ".join(result["failed"].split())]
    return list(result["value"]["problems"])


# Caches


def warm_up() -> None:
    """Import everything that a run needs, so that forked children start at once. Starts no threads."""
    import h5py  # noqa: F401
    import tiny_backbones  # noqa: F401
    import torch

    import featurecache.backbones.runtimes
    import featurecache.backbones.taps
    import featurecache.cli
    import featurecache.extraction.extract
    import featurecache.extraction.worker

    torch.set_num_threads(1)
    featurecache.cli.build_parser()


def search_little() -> None:
    """Search one setting of each head in this process from now on: trials want heads, not the best ones."""
    from featurecache.evaluation import selection
    from featurecache.heads import registry

    selection._MAX_REPEATS = 1
    for cls in (cls for classes in registry._BUILT_IN.values() for cls in classes):
        cls.grid = {name: values[-1:] for name, values in cls.grid.items()}  # of neighbours the fewest: rows are few


def write_images(folder: Path, *, count: int, first: int = 0) -> None:
    """Write small noisy images in two classes; every fourth has an equal copy, and one file is broken."""
    from PIL import Image

    for number in range(first, first + count):
        path = folder / ("even", "odd")[number % 2] / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(number)
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path)
        if number % 4 == 0:
            path.with_name(f"{number:04d}-copy.png").write_bytes(path.read_bytes())
    (folder / "odd" / f"broken-{first}.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing more" + bytes([first % 256]))


def features_body(feature_set: Any, rows: np.ndarray) -> dict[str, Any]:
    """Return what a commit of features says, of rows that no backbone made."""
    from featurecache.store.row_runs import runs_of_rows

    ran = {"runtime": "none", "device": "none", "machine": "any", "batch_size": 1, "versions": {}}
    names = {"tap": feature_set.tap, "fingerprint": feature_set.fingerprint}
    return {"rows": runs_of_rows(rows), "bad": [], "provenance": ran, **names}


ABOUT = {
    "num_parameters": 0,
    "num_trainable": 0,
    "weights_source": "none",
    "license": None,
    "classifier": None,
    "notes": [],
}
"""What is said of a backbone that does not exist."""


def snapshot(cache: Path) -> dict[str, bytes]:
    """Every file of a cache but temporaries: path -> bytes."""
    from featurecache.atomic import is_partial

    files = (path for path in sorted(cache.rglob("*")) if path.is_file() and not is_partial(path))
    return {path.relative_to(cache).as_posix(): path.read_bytes() for path in files}


def leftovers(cache: Path) -> list[str]:
    """Temporaries in a cache."""
    from featurecache.atomic import is_partial

    return [path.relative_to(cache).as_posix() for path in cache.rglob("*") if path.is_file() and is_partial(path)]


def compare_snapshots(found: dict[str, bytes], whole: dict[str, bytes]) -> tuple[list[str], dict[str, int]]:
    """Problems of a completed cache against the uninterrupted one, and counts of the harmless leftovers."""
    problems = [f"{name} is missing" for name in whole if name not in found]
    problems += [f"{name} differs" for name, data in whole.items() if name in found and found[name] != data]
    counts = {"unreferenced": 0, "superseded": 0, "leases": 0}
    for name in found.keys() - whole.keys():
        record = name.replace("/shards/", "/commits/").rpartition("-")[0] + ".json"
        if "/shards/" in name and (record not in found or record in whole):
            counts["unreferenced"] += 1
        elif name.endswith(".lease"):
            counts["leases"] += 1  # the next writer sees that its holder is dead
        elif name.startswith(("sources/", "tasks/")):
            counts["superseded"] += 1  # an older generation: only the greatest key counts
        else:
            problems.append(f"{name} should not be there")
    return problems, counts


@dataclass
class Truth:
    """What an uninterrupted run made: its files, its sample ids, and the stored bytes of every row."""

    files: dict[str, bytes]
    ids: np.ndarray
    rows: dict[tuple[str, str, str], dict[int, bytes]]
    bad: dict[tuple[str, str, str], dict[int, tuple[str, str]]]

    @classmethod
    def of(cls, cache: Path) -> Truth:
        """Read a whole cache."""
        from featurecache.store.store import FeatureStore

        store = FeatureStore.open(cache)
        sets = {(s.fingerprint, s.tap, s.dtype): s.open() for s in store.feature_sets()}
        rows = {key: read_rows(features) for key, features in sets.items()}
        bad = {key: dict(features.bad) for key, features in sets.items()}
        return cls(snapshot(cache), np.array(store.samples.ids), rows, bad)


def read_rows(features: Any) -> dict[int, bytes]:
    """The bytes of every good row, read by scattered rows and by runs."""
    good = features.rows[features.usable(features.rows)]
    values = features.read(good)
    if not np.array_equal(values[::-1], features.read(good[::-1])):
        raise AssertionError("scattered and consecutive reading disagree")
    return {int(row): np.ascontiguousarray(value).tobytes() for row, value in zip(good, values, strict=True)}


def visible_problems(cache: Path, whole: Truth) -> list[str]:
    """What a reader could see in an interrupted cache that is not right."""
    from featurecache.errors import FeatureCacheError
    from featurecache.store.store import FeatureStore

    if not (cache / "FORMAT.json").exists():
        return [f"{name} is there before FORMAT.json" for name in snapshot(cache)] if cache.exists() else []
    problems = []
    try:
        store = FeatureStore.open(cache)
        ids = np.asarray(store.samples.ids)
        if not np.array_equal(ids, whole.ids[: len(ids)]):
            problems.append("the sample table is not a beginning of the right one")
        if len(store.samples.uris_of(range(len(ids)))) != len(ids) or len(store.samples.sizes) != len(ids):
            problems.append("the columns of the sample table differ in length")
        for feature_set in store.feature_sets():
            problems += _set_problems(feature_set, ids, whole)
        store.listings.all()
        for name in store.task_names():
            store.task(name)
    except (FeatureCacheError, OSError, AssertionError) as error:
        problems.append(f"{type(error).__name__}: {str(error).replace(str(cache), 'CACHE')}")
    return problems


def _set_problems(feature_set: Any, ids: np.ndarray, whole: Truth) -> list[str]:
    from featurecache.store.features import rows_of_commit

    key = (feature_set.fingerprint, feature_set.tap, feature_set.dtype)
    if key not in whole.rows:
        return [f"unexpected feature set {feature_set}"]
    features = feature_set.open()
    rows = read_rows(features)
    wrong = [row for row, data in rows.items() if whole.rows[key].get(row) != data]
    problems = [f"row {row} of {feature_set.tap} is wrong" for row in wrong]
    if any(whole.bad[key].get(row) != status for row, status in features.bad.items()):
        problems.append(f"bad rows of {feature_set.tap} are wrong")
    for commit in features.commits:
        held = rows_of_commit(commit)
        if held.max() >= len(ids):
            problems.append(f"commit {commit.key} has rows that the sample table has not")
        elif not np.array_equal(feature_set.folder.open(commit).read("id"), ids[held]):
            problems.append(f"the ids of commit {commit.key} are wrong")
    return problems
