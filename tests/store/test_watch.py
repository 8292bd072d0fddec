"""How far all workers are is seen from commits and leases, while real processes commit."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from conftest import REPOSITORY, RUNTIME, TINY, write_folder

import featurecache as fc
from featurecache.cli import main
from featurecache.store.folders import ShardFolder
from featurecache.store.leases import Leases
from featurecache.store.store import FeatureStore
from featurecache.store.watch import Watch, recent_rate

Call = Callable[..., tuple[int, str, str]]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])}
EXTRACT = ["--backbone", TINY, "--dtype", "float16", *RUNTIME]
SLOW = """
import os, sys, time
from pathlib import Path
import featurecache as fc
from featurecache.progress import Silent

class Slow(Silent):
    def advance(self, count, *, bad=0):
        time.sleep(0.1 * count)

# Both begin together, or the first would have taken most leases.
Path(f"{sys.argv[2]}.ready.{os.getpid()}").touch()
while len(list(Path(sys.argv[2]).parent.glob("*.ready.*"))) < 2:
    time.sleep(0.01)
settings = fc.ExtractionSettings(runtime="torch", batch_size=1, shard_rows=2, dtype="float16")
fc.extract(sys.argv[1], sys.argv[2], backbone=sys.argv[3], settings=settings, progress=Slow())
"""
"""A worker that commits two rows at a time, five times in a second."""


def watch(cache: Path, *more: str, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "featurecache", "ls", str(cache), "--watch", "--interval", "0.1", *more]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen(command, env=ENVIRONMENT, **pipes)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("watch") / "photos", per_class=20)


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("whole") / "c"
    assert main(["extract", str(photos), "--cache", str(cache), "--shard-rows", "5", *EXTRACT]) == 0
    return cache


@pytest.fixture
def workers(photos: Path, tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two processes that commit slowly into the cache ``c``."""
    fc.scan(photos, tmp_path / "c")
    command = [sys.executable, "-c", SLOW, str(photos), str(tmp_path / "c"), TINY]
    started = [subprocess.Popen(command, env=ENVIRONMENT) for _ in range(2)]
    yield started
    for process in started:
        process.kill()
        process.wait()


def test_it_follows_all_workers_until_all_is_done(workers: list[subprocess.Popen[bytes]], tmp_path: Path) -> None:
    watching = watch(tmp_path / "c")
    out, error = watching.communicate(timeout=300)
    assert (watching.returncode, error) == (0, "")
    lines = out.splitlines()
    assert re.fullmatch(rf"{TINY} .* float16 \(\w+\): 60 of 60 rows; done: nothing is missing", lines[-1])
    counts = [int(found[1]) for line in lines if (found := re.search(r"(\d+) of 60 rows", line))]
    assert counts == sorted(counts)
    assert len(set(counts)) > 3
    # By the number of its process, with a rate and what remains; one may have found all leases taken.
    seen = {int(number) for line in lines for number in re.findall(r" (\d+) \(\d+ shards?, seen \d+ s ago\)", line)}
    assert seen
    assert seen <= {process.pid for process in workers}
    assert re.search(r"rows, \d+\.\d rows/s, \d:\d\d:\d\d left; [12] workers?: ", out)
    assert len(FeatureStore.open(tmp_path / "c").features()) == 60


def test_a_terminal_is_redrawn_in_place(workers: list[subprocess.Popen[bytes]], tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    watching = watch(tmp_path / "c", stdout=theirs)
    os.close(theirs)
    drawn = b""
    try:
        while piece := os.read(ours, 1 << 16):
            drawn += piece
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(ours)
    assert watching.communicate(timeout=60) == (None, "")
    assert watching.returncode == 0
    assert drawn.count(b"\x1b[1A") > 3  # the cursor goes up to draw over what is there
    assert b"done: nothing is missing" in drawn


def test_ctrl_c_ends_it_without_a_traceback(whole: Path, tmp_path: Path) -> None:
    cache = Path(shutil.copytree(whole, tmp_path / "c"))
    next(cache.glob("features/*/*/*/commits/*.json")).unlink()
    watching = watch(cache)
    assert watching.stdout is not None
    assert re.search(r"55 of 60 rows.*; no worker$", watching.stdout.readline())
    watching.send_signal(signal.SIGINT)
    _, error = watching.communicate(timeout=60)
    assert (watching.returncode, error) == (130, "featurecache: stopped; nothing was changed\n")


def test_it_ends_where_nobody_is_at_work_any_more(
    whole: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featurecache.cli.ls._IDLE_SECONDS", 0.2)
    cache = Path(shutil.copytree(whole, tmp_path / "c"))
    commit = next(cache.glob("features/*/*/*/commits/*.json"))
    commit.rename(tmp_path / "later")
    status, out, error = call("ls", cache, "--watch", "--interval", "0.05")
    assert (status, len(out.splitlines()) > 2, error.count("\n")) == (1, True, 1)
    assert re.search(r"nobody has been at work for .*float16 \(\w+\) lacks 5 rows; run the same `featurecache", error)
    # Who is longer at a shard is waited for.
    with ExitStack() as leases, ThreadPoolExecutor() as pool:
        leases.enter_context(Leases(next(cache.glob("features/*")) / "leases").hold("000000000000"))
        watching = pool.submit(call, "ls", cache, "--watch", "--interval", "0.05")
        time.sleep(0.6)
        is_waiting = not watching.done()
        (tmp_path / "later").rename(commit)
        leases.close()
        assert (is_waiting, watching.result()[0]) == (True, 0)


def test_a_look_reads_what_is_new_and_writes_nothing(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Path(shutil.copytree(whole, tmp_path / "c"))
    last = max(cache.glob("features/*/*/*/commits/*.json"))
    later = last.rename(tmp_path / "later")
    read, original = list[str](), ShardFolder.read

    def noted(self: ShardFolder, record: Path) -> object:
        read.append(record.name)
        return original(self, record)

    watching = Watch(FeatureStore.open(cache))
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    monkeypatch.setattr(ShardFolder, "read", noted)
    (first,) = watching.update().sets
    assert (first.num_rows, first.num_listed) == (55, 60)
    assert read.count(last.name) == 0
    read.clear()
    monkeypatch.setattr("featurecache.store.watch._UNSETTLED_SECONDS", 0.0)
    with monkeypatch.context() as patch:  # not even the names are read again
        patch.setattr(ShardFolder, "records", None)
        assert watching.update().sets[0].num_rows == 55
    assert read == []
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == before
    later.rename(last)
    assert watching.update().is_done
    assert read == [last.name]


def test_what_is_listed_without_features_is_waited_for(photos: Path, whole: Path, tmp_path: Path, call: Call) -> None:
    """Of a source that was scanned, and not of one that another feature set is of."""
    cache = Path(shutil.copytree(whole, tmp_path / "c"))
    assert call("ls", cache, "--watch")[0] == 0
    more = write_folder(tmp_path / "more", per_class=1, seed=99)
    fc.scan(more, cache)
    found = Watch(FeatureStore.open(cache)).update()
    assert (found.is_done, found.waiting, found.sets[0].num_listed) == (False, (str(more),), 60)
    assert call("extract", more, "--cache", cache, "--tap", "stem:avg", *EXTRACT)[0] == 0
    status, out, _ = call("ls", cache, "--watch", "--json")
    sets = sorted((item["rows"], item["listed"]) for item in json.loads(out)["features"])
    assert (status, sets) == (0, [(3, 3), (60, 60)])


def test_only_the_living_are_workers(whole: Path, tmp_path: Path) -> None:
    cache = Path(shutil.copytree(whole, tmp_path / "c"))
    folder = next(cache.glob("features/*")) / "leases"
    watching = Watch(FeatureStore.open(cache))
    with Leases(folder).hold("000000000000") as is_mine:
        assert is_mine
        (found,) = watching.update().workers
        assert (found.pid, found.num_shards, found.is_scanning) == (os.getpid(), 1, False)
        lease = next(folder.glob("*.lease"))
        old = time.time() - 60
        os.utime(lease, (old, old))
        assert watching.update().workers[0].age == pytest.approx(60, abs=5)
        os.utime(lease, (old - 100, old - 100))
        assert watching.update().workers == ()
    for strange in ("[]", "{}", "not JSON", '{"host": "h", "pid": "x"}'):
        (folder / "strange.lease").write_text(strange)
        assert watching.update().workers == ()
    with Leases(cache / "sources" / "any" / "leases").hold("scan"):
        assert [worker.is_scanning for worker in watching.update().workers] == [True]


def test_the_rate_is_that_of_the_last_while() -> None:
    steady = {float(second): 10 for second in range(1000, 2001, 20)}
    assert recent_rate(steady, now=2000.0) == pytest.approx(0.5)
    assert recent_rate(steady, now=2015.0) == pytest.approx(0.5)  # the next one is not overdue
    assert recent_rate(steady, now=2100.0) < 0.35
    faster = steady | {2000.0 + second: 10 for second in range(1, 121)}
    assert recent_rate(faster, now=2120.5) == pytest.approx(10, rel=0.02)
    slow = {0.0: 100, 500.0: 100, 1000.0: 100, 1500.0: 100}
    assert recent_rate(slow, now=1500.0) == pytest.approx(0.2)
    assert recent_rate({0.0: 5, 5000.0: 5}, now=5001.0) is None  # of a run long ago nothing is known
    assert recent_rate({}, now=0.0) is None


def test_wrong_words_are_refused(whole: Path, tmp_path: Path, call: Call) -> None:
    for words, message in (
        (["--interval", "1"], "--interval is of --watch; add it, or leave --interval out"),
        (["--watch", "--interval", "0"], "needs a number of seconds above 0, at most a day, got '0'"),
        (["--watch", "--interval", "nan"], "got 'nan'"),
    ):
        status, _, error = call("ls", whole, *words)
        assert (status, error.count("\n"), message in error) == (2, 1, True), error
    assert "no cache at" in call("ls", tmp_path / "none", "--watch")[2]
