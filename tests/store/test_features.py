"""Features by row equal a plain dict of rows, whatever shards they lie in."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurecache.errors import CorruptError, InputError, RequestError
from featurecache.store.convert import stored_arrays
from featurecache.store.features import Features
from featurecache.store.folders import ShardFolder
from featurecache.store.row_runs import runs_of_rows
from featurecache.store.samples import SampleTable

pytestmark = pytest.mark.quick


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


def test_features_of_samples_that_another_writer_has_added(tmp_path: Path) -> None:
    tables = [SampleTable(ShardFolder(tmp_path / "samples")) for _ in range(2)]
    tables[1].append(np.zeros((1, 32), np.uint8), ["a.jpg"], np.array([1]))
    commit_rows(ShardFolder(tmp_path / "features"), [0])
    features = Features("t:avg", "float16", ShardFolder(tmp_path / "features"), tables[0])
    assert features.read(np.array([0])).tolist() == [value_of(0)]


def read_by_h5py(folder: ShardFolder, dtype: str, row: int) -> np.ndarray:
    """The slow and obvious way to one row."""
    for commit in folder.commits():
        rows = [r for start, stop in commit.body["rows"] for r in range(start, stop)]
        if row in rows:
            with h5py.File(folder.path / "shards" / commit.file_name) as file:
                stored = file["features"][rows.index(row)]
                if dtype == "int8":
                    return stored * file["scale"][...] + file["offset"][...]
                return (stored.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else stored
    raise AssertionError(row)


@pytest.mark.full
@settings(max_examples=25)
@given(
    dtype=st.sampled_from(["float16", "float32", "bfloat16", "int8"]),
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    data=st.data(),
)
def test_rows_in_any_order_equal_h5py(
    tmp_path_factory: pytest.TempPathFactory, dtype: str, shape: tuple, sizes: list[int], data: st.DataObject
) -> None:
    folder, count = ShardFolder(tmp_path_factory.mktemp("features")), sum(sizes)
    values = np.random.default_rng(count).normal(size=(count, *shape)).astype(np.float32)
    stops = np.cumsum(sizes).tolist()
    for start, stop in zip([0, *stops], stops, strict=False):
        arrays = stored_arrays(values[start:stop], dtype)
        folder.publish(f"{start:012d}", arrays, {"rows": [[start, stop]], "bad": []}, kind="features")
    features = Features("t:avg", dtype, folder)
    for _ in range(3):  # later gathers meet shards that are mapped and checked already
        wanted = data.draw(st.lists(st.integers(0, count - 1), max_size=12))
        expected = np.array([read_by_h5py(folder, dtype, row) for row in wanted], features.read([]).dtype)
        assert np.array_equal(features.read(wanted), expected.reshape(-1, *shape))
        start = data.draw(st.integers(0, count - 1))
        found = features.read(np.arange(start, count))
        assert np.array_equal(found, [read_by_h5py(folder, dtype, row) for row in range(start, count)])


def test_a_damaged_block_is_noticed_whichever_way_it_is_read(tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path)
    values = np.random.default_rng(0).normal(size=(3000, 500)).astype(np.float16)  # several blocks in a shard
    for start in (0, 1500):
        arrays = {"features": ("float16", values[start : start + 1500])}
        folder.publish(f"{start:012d}", arrays, {"rows": [[start, start + 1500]], "bad": []}, kind="features")
    second = folder.commits()[1]
    path = tmp_path / "shards" / second.file_name
    content = bytearray(path.read_bytes())
    content[second.shard.arrays["features"].offset + 1_200_000] ^= 1  # row 1200 of the second shard: 2700
    path.write_bytes(content)
    features = Features("t:avg", "float16", folder)
    assert np.array_equal(features.read([1600, 3, 1501]), values[[1600, 3, 1501]])
    for rows in ([2700, 5], [2600, 2601, 2602, *range(2603, 2710)], [5, 2700, 1600]):
        with pytest.raises(CorruptError, match="block 1 of array 'features' does not match its checksum"):
            features.read(rows)
    assert np.array_equal(features.read([2, 1600, 1]), values[[2, 1600, 1]])


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


def num_open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="this system does not list open files there")
def test_files_are_open_while_they_are_mapped_and_no_longer(tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path)
    for row in range(40):
        commit_rows(folder, [row])
    features, before = Features("t:avg", "float16", folder), num_open()
    for _ in range(2):
        values = features.read(np.arange(40))
        assert num_open() == before + 40
        features.let_go()
        assert num_open() == before
        assert values.tolist() == [value_of(row) for row in range(40)]


@pytest.mark.full
@pytest.mark.parametrize("hard", [400, 60])
def test_more_shards_than_a_process_may_hold_open(tmp_path: Path, hard: int) -> None:
    folder = ShardFolder(tmp_path)
    for row in range(100):
        commit_rows(folder, [row])
    code = (
        "import resource, sys, numpy as np; from pathlib import Path; "
        "from featurecache.store.features import Features; from featurecache.store.folders import ShardFolder; "
        f"resource.setrlimit(resource.RLIMIT_NOFILE, (50, {hard})); "
        "values = Features('t:avg', 'float16', ShardFolder(Path(sys.argv[1]))).read(np.arange(100)); "
        "print(values[:, 0].astype(int).tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    if hard == 400:  # what the system grants is taken
        assert done.stdout == f"{list(range(100))}\n", done.stderr
    else:
        *_, said = done.stderr.splitlines()
        assert "StoreError" in said
        assert "this process may hold no more files open; allow it more (`ulimit -n`)" in said


def test_missing_and_bad_rows_are_named(tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path)
    commit_rows(folder, [0, 1, 2], bad={1: "undecodable"})
    features = Features("t:avg", "float16", folder)
    assert features.bad == {1: ("undecodable", "a reason")}
    assert features.usable(np.array([0, 1, 2, 3])).tolist() == [True, False, True, False]
    with pytest.raises(RequestError, match=r"tap 't:avg' lacks 2 rows, first 3; run"):
        features.read(np.array([0, 3, 4]))
    for wanted in ([0, 1], [2, 1, 0]):
        with pytest.raises(InputError, match=r"row 1 has no features \(a reason\); drop bad rows"):
            features.read(np.array(wanted))
    commit_rows(folder, [5, 6])
    features = Features("t:avg", "float16", folder)
    for wanted in ([2, 3, 4, 5, 6], [6, 7], [4, 5], [-1, 0]):
        with pytest.raises(RequestError, match="tap 't:avg' lacks"):
            features.read(np.array(wanted))
    assert features.read([5, 6]).shape == (2, 3)
    nothing = Features("t:avg", "float16", ShardFolder(tmp_path / "none"))
    with pytest.raises(RequestError, match="lacks 1 row, first 0"):
        nothing.read([0])


@pytest.mark.parametrize("rows", [[[0, 2]], [[2, 0]], [[-1, 2]], [[0, 4]]])
def test_a_commit_with_impossible_rows_is_refused(tmp_path: Path, rows: list[list[int]]) -> None:
    folder = ShardFolder(tmp_path)
    arrays = {"features": ("float16", np.zeros((3, 2), np.float16))}
    folder.publish("000", arrays, {"rows": rows, "bad": []}, kind="features")
    with pytest.raises(CorruptError, match="commit 000 lists"):
        _ = Features("t:avg", "float16", folder).rows
