"""Shards: what is written comes back, other programs can read it, and no changed byte goes unnoticed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from featurecache.errors import CorruptError
from featurecache.store.dtypes import decode, encode
from featurecache.store.folders import ShardFolder
from featurecache.store.gathering import RowGatherer
from featurecache.store.shards import ShardWriter

pytestmark = pytest.mark.quick

ARRAYS = st.fixed_dictionaries(
    {
        "features": hnp.arrays(np.float16, hnp.array_shapes(min_dims=1, max_dims=4, max_side=9)),
        "id": hnp.arrays(np.uint8, st.tuples(st.integers(1, 40), st.just(32))),
    }
)


def publish(folder: ShardFolder, key: str, features: np.ndarray) -> None:
    assert folder.publish(key, {"features": ("float16", features)}, {"n": 1}, kind="test")


def random_rows(n: int, d: int = 7, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float16)


@settings(max_examples=40)
@given(arrays=ARRAYS)
def test_round_trip_here_and_in_plain_h5py(tmp_path_factory: pytest.TempPathFactory, arrays: dict) -> None:
    folder = ShardFolder(tmp_path_factory.mktemp("shards"))
    stored = {"features": ("float16", arrays["features"]), "id": ("uint8", arrays["id"])}
    folder.publish("000", stored, {"any": "thing"}, kind="test")
    (commit,) = folder.commits()
    assert commit.body == {"any": "thing"}
    shard = folder.open(commit)
    with h5py.File(folder.path / "shards" / commit.file_name) as file:
        for name, values in arrays.items():
            assert shard.read(name).tobytes() == values.tobytes()
            assert file[name][...].tobytes() == values.tobytes()
            assert file[name].chunks is None
            assert file[name].compression is None


def test_equal_content_is_equal_bytes(tmp_path: Path) -> None:
    folder, other = ShardFolder(tmp_path / "a"), ShardFolder(tmp_path / "b")
    publish(folder, "000", random_rows(100))
    publish(other, "000", random_rows(100))
    assert folder.commits() == other.commits()


def test_rows_in_any_order_equal_indexing(tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path)
    rows = random_rows(3000, 500)  # 3 MB: several blocks
    publish(folder, "000", rows)
    wanted = np.random.default_rng(1).integers(0, 3000, 200)
    shard = folder.open(folder.commits()[0])
    taken = RowGatherer("features", "float16", lambda number: shard, 1).take(np.zeros(200, int), wanted, (500,))
    assert np.array_equal(taken, rows[wanted])
    assert np.array_equal(folder.open(folder.commits()[0]).read("features", 1000, 2001), rows[1000:2001])


def test_second_commit_of_a_key_loses(tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path)
    publish(folder, "000", random_rows(5, seed=1))
    assert not folder.publish("000", {"features": ("float16", random_rows(5, seed=2))}, {}, kind="test")
    assert np.array_equal(folder.open(folder.commits()[0]).read("features"), random_rows(5, seed=1))


def test_a_flipped_bit_anywhere_is_noticed_or_in_an_unused_byte(tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path)
    rows = random_rows(40)
    publish(folder, "000", rows)
    (commit,) = folder.commits()
    array = commit.shard.arrays["features"]
    path = tmp_path / "shards" / commit.file_name
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        if array.offset <= place < array.offset + array.nbytes:
            with pytest.raises(CorruptError, match="does not match its checksum"):
                folder.open(commit).read("features")
        else:  # HDF5's own bytes, which this reader never uses
            assert np.array_equal(folder.open(commit).read("features"), rows)


def test_only_touched_blocks_are_read(tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path)
    publish(folder, "000", random_rows(3000, 500))
    (commit,) = folder.commits()
    path = tmp_path / "shards" / commit.file_name
    data = bytearray(path.read_bytes())
    data[commit.shard.arrays["features"].offset + 2_900_000] ^= 1
    path.write_bytes(data)
    shard = folder.open(commit)
    assert np.array_equal(shard.read("features", 0, 10), random_rows(3000, 500)[:10])
    with pytest.raises(CorruptError, match="block 2 of array 'features'"):
        shard.read("features", 2900, 2901)


@pytest.mark.parametrize("change", ["cut", "longer", "gone", "link", "folder"])
def test_a_shard_that_is_not_the_committed_one_is_refused(tmp_path: Path, change: str) -> None:
    folder = ShardFolder(tmp_path)
    publish(folder, "000", random_rows(10))
    (commit,) = folder.commits()
    path = tmp_path / "shards" / commit.file_name
    data = path.read_bytes()
    path.unlink()
    if change == "cut":
        path.write_bytes(data[:-1])
    elif change == "longer":
        path.write_bytes(data + b"\0")
    elif change == "link":
        (tmp_path / "elsewhere").write_bytes(data)
        path.symlink_to(tmp_path / "elsewhere")
    elif change == "folder":
        path.mkdir()
    with pytest.raises((CorruptError, OSError)):
        folder.open(commit).read("features")


def test_leftovers_are_invisible(tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path)
    publish(folder, "000", random_rows(10))
    (tmp_path / "commits" / ".001.json.abc.partial").write_bytes(b"{")
    (tmp_path / "shards" / "001-0000000000000000.h5").write_bytes(b"never committed")
    assert len(folder.commits()) == 1


def test_a_failed_writer_leaves_nothing(tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path)
    with pytest.raises(RuntimeError), ShardWriter(folder.path, {"features": ("float16", (4, 2))}, {}) as writer:
        writer.append("features", random_rows(2, 2))
        raise RuntimeError("the network broke")
    assert not list((tmp_path / "shards").iterdir())
    assert folder.commits() == []


def test_a_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = ShardFolder(tmp_path)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left") as caught:
        folder.publish("000", {"features": ("float16", random_rows(5))}, {}, kind="test")
    assert "free some space and run again" in caught.value.__notes__[0]
    assert not list((tmp_path / "shards").iterdir())
    assert folder.commits() == []


@given(values=hnp.arrays(np.float32, st.integers(1, 50), elements=st.floats(width=32, allow_nan=True)))
def test_bfloat16_equals_torch(values: np.ndarray) -> None:
    import torch

    expected = torch.from_numpy(values.copy()).to(torch.bfloat16).to(torch.float32).numpy()
    assert np.array_equal(decode(encode(values, "bfloat16"), "bfloat16"), expected, equal_nan=True)


def test_folder_made_by_another_writer_meanwhile_is_just_empty(tmp_path: Path) -> None:
    make_and_remove = "import os, sys\nwhile True: os.mkdir(sys.argv[1]); os.rmdir(sys.argv[1])"
    maker = subprocess.Popen([sys.executable, "-c", make_and_remove, str(tmp_path / "commits")])
    try:
        assert all(ShardFolder(tmp_path).records() == [] for _ in range(20_000))
    finally:
        maker.kill()
        maker.wait()


def test_file_in_the_place_of_the_records_says_so(tmp_path: Path) -> None:
    (tmp_path / "commits").write_text("")
    with pytest.raises(CorruptError, match="commits is a file where a folder of records belongs; remove it"):
        ShardFolder(tmp_path).records()
