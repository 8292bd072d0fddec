"""Features by row equal a plain dict of rows, whatever shards they lie in."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurecache.errors import CorruptError, InputError, RequestError
from featurecache.store.features import Features, runs_of_rows
from featurecache.store.folders import ShardFolder


def value_of(row: int) -> list[float]:
    return [row, row / 2, -row]


def commit_rows(
    folder: ShardFolder, rows: list[int], bad: dict[int, str] | None = None, dtype: str = "float16"
) -> None:
    values = np.array([value_of(row) for row in rows], np.float16)
    arrays = {"features": (dtype, values), "id": ("uint8", np.zeros((len(rows), 32), np.uint8))}
    problems = [[row, status, "a reason"] for row, status in (bad or {}).items()]
    folder.publish(f"{rows[0]:012d}", arrays, {"rows": runs_of_rows(np.array(rows)), "bad": problems}, kind="features")


@settings(max_examples=40)
@given(data=st.data())
def test_reads_like_a_dict(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = ShardFolder(tmp_path_factory.mktemp("features"))
    rows = data.draw(st.lists(st.integers(0, 60), unique=True, min_size=1))
    groups: dict[int, list[int]] = {}
    for row in rows:
        groups.setdefault(data.draw(st.integers(0, 3)), []).append(row)
    for group in groups.values():
        commit_rows(folder, sorted(group))
    features = Features("t:avg", "float16", folder)
    assert features.rows.tolist() == sorted(rows)
    assert features.shape == (len(rows), 3)
    wanted = data.draw(st.lists(st.sampled_from(rows), max_size=20))
    expected = np.array([value_of(row) for row in wanted], np.float16).reshape(-1, 3)
    assert np.array_equal(features.read(np.array(wanted, np.int64)), expected)
    assert np.array_equal(np.asarray(features), np.array([value_of(r) for r in sorted(rows)], np.float16))


@given(rows=st.lists(st.integers(0, 100), unique=True, min_size=1).map(sorted))
def test_runs_say_the_same_rows(rows: list[int]) -> None:
    runs = runs_of_rows(np.array(rows))
    assert [row for start, stop in runs for row in range(start, stop)] == rows
    assert all(a[1] < b[0] for a, b in pairwise(runs))


def test_overlapping_shards_of_two_writers_read_once(tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path)
    commit_rows(folder, [0, 1, 2, 3])
    commit_rows(folder, [2, 3, 4, 5, 6])
    commit_rows(folder, [4])
    features = Features("t:avg", "float16", folder)
    assert features.rows.tolist() == list(range(7))
    assert np.array_equal(features[:], np.array([value_of(r) for r in range(7)], np.float16))


def test_missing_and_bad_rows_are_named(tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path)
    commit_rows(folder, [0, 1, 2], bad={1: "undecodable"})
    features = Features("t:avg", "float16", folder)
    assert features.bad == {1: ("undecodable", "a reason")}
    assert features.usable(np.array([0, 1, 2, 3])).tolist() == [True, False, True, False]
    with pytest.raises(RequestError, match=r"2 rows \(first: 3\) are not cached for tap 't:avg'; run"):
        features.read(np.array([0, 3, 4]))
    with pytest.raises(InputError, match=r"row 1 has no features \(a reason\); drop bad rows"):
        features.read(np.array([0, 1]))


@pytest.mark.parametrize("rows", [[[0, 2]], [[2, 0]], [[-1, 2]], [[0, 4]]])
def test_a_commit_with_impossible_rows_is_refused(tmp_path: Path, rows: list[list[int]]) -> None:
    folder = ShardFolder(tmp_path)
    arrays = {"features": ("float16", np.zeros((3, 2), np.float16))}
    folder.publish("000", arrays, {"rows": rows, "bad": []}, kind="features")
    with pytest.raises(CorruptError, match="commit 000 lists"):
        _ = Features("t:avg", "float16", folder).rows
