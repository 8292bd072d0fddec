"""What is kept is what was given, within the bounds, and nothing is left over."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from featurecache import spill
from featurecache.spill import Spill

pytestmark = pytest.mark.quick

BLOBS = [np.random.default_rng(seed).bytes(int(seed**2.5)) for seed in range(40)]
ENTRIES = {sha256(data).digest(): data for data in BLOBS}


def total(kept: Spill) -> int:
    return sum(len(data) for key in ENTRIES if (data := kept.get(key)) is not None)


@pytest.mark.parametrize("memory_bytes", [1 << 30, 100_000, 40_000])
def test_what_is_kept_is_what_was_given(memory_bytes: int) -> None:
    kept = Spill(memory_bytes=memory_bytes, disk_bytes=1 << 30)
    with ThreadPoolExecutor(4) as pool:  # as threads of a scan do, and those that decode
        list(pool.map(kept.add, ENTRIES, ENTRIES.values()))
        list(pool.map(kept.add, ENTRIES, [b"other bytes"] * len(ENTRIES)))
        assert dict(zip(ENTRIES, pool.map(kept.get, ENTRIES), strict=True)) == ENTRIES
    assert kept.get(b"another key") is None
    kept.close()
    kept.add(b"key", b"data")
    assert [kept.get(key) for key in (*ENTRIES, b"key")] == [None] * (len(ENTRIES) + 1)


def test_no_more_is_kept_than_there_is_room_for() -> None:
    only_memory = Spill(memory_bytes=40_000, disk_bytes=0)
    with_disk = Spill(memory_bytes=40_000, disk_bytes=30_000)
    without_index = Spill(memory_bytes=10 * spill._ENTRY_BYTES, disk_bytes=1 << 30)
    for key, data in ENTRIES.items():
        for kept in (only_memory, with_disk, without_index):
            kept.add(key, data)
    assert 10_000 < total(only_memory) <= 20_000 < total(with_disk) <= 50_000
    assert 0 < sum(key in without_index for key in ENTRIES) <= 10
    for kept in (only_memory, with_disk, without_index):
        kept.close()


def test_a_full_disk_ends_what_is_kept_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Spill(memory_bytes=40_000, disk_bytes=1 << 30)
    room = os.open("/dev/full", os.O_RDWR)
    monkeypatch.setattr(spill.tempfile, "TemporaryFile", lambda prefix, buffering: os.fdopen(room, "r+b", buffering))
    for key, data in ENTRIES.items():
        kept.add(key, data)
    found = {key: data for key in ENTRIES if (data := kept.get(key)) is not None}
    assert 0 < len(found) < len(ENTRIES)
    assert all(ENTRIES[key] == data for key, data in found.items())
    kept.close()


def test_the_file_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill.tempfile, "tempdir", str(tmp_path))
    kept = Spill(memory_bytes=40_000)
    for key, data in ENTRIES.items():
        kept.add(key, data)
    assert total(kept) == sum(map(len, ENTRIES.values()))
    # So a process that is killed leaves nothing either.
    assert list(tmp_path.iterdir()) == []
    kept.close()
