"""The cores that a process may use: no more than its affinity, nor than its container's quota."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from featurecache import machine
from featurecache.machine import at_most_cores, num_cores, variables_set

pytestmark = pytest.mark.quick


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity here")
@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 8), ("200000 100000", 2), ("10000 100000", 1), ("1600000 100000", 8), ("nonsense", 8), (None, 8)],
)
def test_cores(quota: str | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "cpu.max"
    if quota is not None:
        file.write_text(f"{quota}\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(machine, "Path", lambda path: file)
    assert machine.num_cores() == expected


def test_a_limit_on_cores_holds_for_its_block_only() -> None:
    before = num_cores()
    with at_most_cores(1):
        assert num_cores() == 1
        with at_most_cores(None):
            assert num_cores() == before
    assert num_cores() == before


def test_variables_are_as_before_once_their_block_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATURECACHE_THERE", "old")
    monkeypatch.delenv("FEATURECACHE_ABSENT", raising=False)
    with pytest.raises(KeyError), variables_set({"FEATURECACHE_THERE": "new", "FEATURECACHE_ABSENT": "new"}):
        assert [os.environ[f"FEATURECACHE_{name}"] for name in ("THERE", "ABSENT")] == ["new", "new"]
        raise KeyError
    assert os.environ["FEATURECACHE_THERE"] == "old"
    assert "FEATURECACHE_ABSENT" not in os.environ
