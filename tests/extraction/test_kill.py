"""A real process, really killed: the cache it leaves is completed by the next run, byte for byte."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import REPOSITORY, TINY

from featurecache.extraction.extract import make_request, run_extraction
from featurecache.specs import ExtractionSettings
from featurecache.store.store import FeatureStore


def start(source: Path, cache: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "featurecache", "extract", str(source), "--cache", str(cache), "--backbone", TINY]
    options = ["--runtime", "torch", "--batch-size", "4", "--shard-rows", "8", "--quiet", *more]
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    return subprocess.Popen(
        [*command, *options], env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def finish(source: Path, cache: Path, views: int | None) -> None:
    """Run to the end, in this process: what another process made must be the same."""
    settings = ExtractionSettings(runtime="torch", batch_size=4, shard_rows=8)
    run_extraction(source, cache, make_request(TINY), views=views, settings=settings)


def shards(cache: Path) -> dict[str, bytes]:
    """Everything committed: records, and the shards they name."""
    found = {}
    for feature_set in FeatureStore.open(cache).feature_sets():
        for commit in feature_set.open().commits:
            name = f"{feature_set.fingerprint} {commit.key}"
            found[name] = (feature_set.folder.path / "shards" / commit.file_name).read_bytes()
            found[f"{name}.json"] = (feature_set.folder.path / "commits" / f"{commit.key}.json").read_bytes()
    return found


def num_commits(cache: Path) -> int:
    return len(list(cache.glob("features/*/*/*/commits/[0-9]*.json")))


@pytest.mark.parametrize(
    ("how", "more", "attempts"),
    [
        pytest.param(signal.SIGKILL, (), 2, id="kill-plain", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, ("--views", "2"), 1, id="interrupt-views"),
        pytest.param(signal.SIGKILL, ("--views", "2"), 2, id="kill-views", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, (), 2, id="interrupt-plain", marks=pytest.mark.slow),
    ],
)
def test_killed_and_resumed_equals_uninterrupted(
    make_folder: Callable[..., Path], tmp_path: Path, how: int, more: tuple[str, ...], attempts: int
) -> None:
    source, views = make_folder(per_class=24), 2 if more else None
    finish(source, tmp_path / "whole", views)
    whole = shards(tmp_path / "whole")
    assert len(whole) == 2 * 9 * (2 if more else 1)
    for attempt in range(attempts):
        process = start(source, tmp_path / "killed", *more)
        wanted = num_commits(tmp_path / "killed") + random.Random(attempt).randint(1, 6 if more else 3)
        while process.poll() is None and num_commits(tmp_path / "killed") < wanted:
            time.sleep(0.001)
        process.send_signal(how)
        error, status = process.communicate()[1].decode(), process.returncode
        if how == signal.SIGINT and status != 0:
            assert status == 130
            assert error == "featurecache: stopped; finished shards are kept, run the same command to go on\n"
        kept = shards(tmp_path / "killed")
        assert all(whole[name] == data for name, data in kept.items())  # what is visible is right
    finish(source, tmp_path / "killed", views)
    assert shards(tmp_path / "killed") == whole
