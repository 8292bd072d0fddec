"""The sample table agrees with a plain dict, whatever is added, and whoever else adds."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurecache.errors import CorruptError
from featurecache.store import samples
from featurecache.store.folders import ShardFolder
from featurecache.store.samples import SampleTable, find_ids
from featurecache.store.schemas import SAMPLES
from featurecache.text import TextColumn

pytestmark = pytest.mark.quick


def ids_of(numbers: list[int]) -> np.ndarray:
    digests = [hashlib.sha256(str(n).encode()).digest() for n in numbers]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)


def add(table: SampleTable, numbers: list[int]) -> np.ndarray:
    return table.append(ids_of(numbers), [f"f/{n}.jpg" for n in numbers], np.array(numbers))


@settings(max_examples=30)
@given(batches=st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=12), min_size=1, max_size=6))
def test_agrees_with_a_dict(tmp_path_factory: pytest.TempPathFactory, batches: list[list[int]]) -> None:
    folder = ShardFolder(tmp_path_factory.mktemp("table"))
    model: dict[int, int] = {}
    table = SampleTable(folder)
    for batch in batches:
        for number in batch:
            model.setdefault(number, len(model))
        assert add(table, batch).tolist() == [model[number] for number in batch]
    fresh = SampleTable(folder)
    assert len(fresh) == len(model)
    assert np.asarray(fresh.ids).tobytes() == ids_of(list(model)).tobytes()
    assert fresh.uris_of(range(len(fresh))) == [f"f/{n}.jpg" for n in model]
    assert np.asarray(fresh.sizes).tolist() == list(model)
    assert fresh.rows_of(ids_of([99])).tolist() == [-1]


def test_two_writers_never_give_a_row_twice(tmp_path: Path) -> None:
    first, second = SampleTable(ShardFolder(tmp_path)), SampleTable(ShardFolder(tmp_path))
    add(first, [1, 2])
    assert add(second, [3, 2]).tolist() == [2, 1]  # second's view was stale when it began
    assert add(first, [3, 4]).tolist() == [2, 3]
    assert len(SampleTable(ShardFolder(tmp_path))) == 4


def test_an_open_table_finds_what_another_writer_has_added(tmp_path: Path) -> None:
    # `advise` opens a cache, has untrained arms extracted into it from a larger folder, and reads these.
    opened, writer = SampleTable(ShardFolder(tmp_path)), SampleTable(ShardFolder(tmp_path))
    for numbers in ([1, 2], [3], [4]):
        add(writer, numbers)
    assert opened.ids[np.array([2, 0])].tobytes() == ids_of([3, 1]).tobytes()
    assert opened.uris_of([3]) == ["f/4.jpg"]
    with pytest.raises(CorruptError, match="has 4 rows, not row 4"):
        opened.uris_of([4])


def test_ids_that_share_a_prefix_are_told_apart() -> None:
    ids = np.zeros((5, 32), np.uint8)
    ids[:, 31] = [3, 1, 4, 1, 5]  # equal in the first eight bytes
    assert find_ids(ids, ids).tolist() == [0, 1, 2, 1, 4]
    missing = ids[:1].copy()
    missing[0, 31] = 9
    assert find_ids(missing, ids).tolist() == [-1]


@settings(max_examples=40)
@given(
    seed=st.integers(0, 1 << 30),
    num_ids=st.sampled_from([0, 1, 3, 40, 500]),
    num_rows=st.sampled_from([0, 1, 700, 3000]),
    shared=st.sampled_from([0, 2, 3, 4, 8, 31]),
    start=st.integers(0, 900),
    most=st.sampled_from([1 << 22, 1 << 6]),
)
def test_ids_are_found_as_in_a_dict(
    seed: int,
    num_ids: int,
    num_rows: int,
    shared: int,
    start: int,
    most: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Also ids that share what sifts them, or all but their last byte, and where too many are searched to be sifted."""
    rng = np.random.default_rng(seed)
    numbers = rng.integers(0, 256, (num_ids + num_rows, 32), np.uint8)
    numbers[rng.random(len(numbers)) < 0.7, :shared] = 7
    table = SampleTable(ShardFolder(tmp_path_factory.mktemp("table")))
    for rows in np.array_split(numbers[num_ids:], 2):
        table.append(rows, [""] * len(rows), np.ones(len(rows)))
    ids = np.asarray(table.ids)
    wanted = np.concatenate([numbers[:num_ids], ids[rng.integers(0, len(ids), min(num_ids, len(ids)))]])
    row_of = {each.tobytes(): row for row, each in enumerate(ids) if row >= start}
    expected = [row_of.get(each.tobytes(), -1) for each in wanted]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "_MOST_SIEVE", most)
        assert find_ids(wanted, table.ids, start=start).tolist() == expected


def test_what_was_added_is_told_from_what_another_writer_has_added_meanwhile(tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path)
    first, second = SampleTable(folder), SampleTable(folder)
    add(second, [1, 2, 3])
    rows, added = first.add(ids_of([9, 2, 8, 9]), ["", "", "", ""], np.ones(4))
    assert rows.tolist() == [3, 1, 4, 3]
    assert added == [(3, 5)]
    assert first.add(ids_of([8, 1]), ["", ""], np.ones(2))[1] == []


def test_records_of_a_table_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, read = SampleTable(ShardFolder(tmp_path)), list[str]()
    real = ShardFolder.read
    monkeypatch.setattr(ShardFolder, "read", lambda self, record: (read.append(record.stem), real(self, record))[1])
    for number in range(5):
        add(table, [number])
    assert read == [f"{number:012d}" for number in range(5)]


def test_paths_that_are_no_text_survive(tmp_path: Path) -> None:
    table = SampleTable(ShardFolder(tmp_path))
    odd = ["\udcff\udcfe.jpg", "zwei\nzeilen.jpg", "ünïcødé.jpg"]
    table.append(ids_of([1, 2, 3]), odd, np.array([1, 1, 1]))
    assert SampleTable(ShardFolder(tmp_path)).uris_of(range(3)) == odd


@settings(max_examples=30)
@given(
    batches=st.lists(
        st.tuples(st.booleans(), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), min_size=1, max_size=12)),
        min_size=1,
        max_size=5,
    )
)
def test_names_that_share_a_prefix_read_back_as_others_do(
    batches: list[tuple[bool, list[tuple[int, int]]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = ShardFolder(tmp_path_factory.mktemp("table"), SAMPLES)
    table, names, sizes = SampleTable(folder), dict[int, str](), dict[int, int]()
    prefixes = [f"p-{number}.tar/" for number in range(4)]
    for is_compact, batch in batches:
        batch.sort()
        numbers = [number for _, number in batch]
        values = np.array([number << (40 if number > 25 else 0) for number in numbers])
        if is_compact:
            prefix_of = np.array([prefix for prefix, _ in batch])
            rests = [f"{number}.jpg" for number in numbers]
            packed = TextColumn.pack(prefixes)
            rows = table.append(ids_of(numbers), rests, values, prefixes=packed, prefix_of=prefix_of)
        else:
            uris = [f"{prefixes[prefix]}{number}.jpg" for prefix, number in batch]
            rows = table.append(ids_of(numbers), uris, values)
        for row, (prefix, number), size in zip(rows.tolist(), batch, values.tolist(), strict=True):
            names.setdefault(row, f"{prefixes[prefix]}{number}.jpg")
            sizes.setdefault(row, size)
    again = SampleTable(folder)
    order = list(range(len(again)))[::-1]
    assert again.uris_of(order) == [names[row] for row in order]
    assert again.sizes[order].tolist() == np.asarray(again.sizes)[::-1].tolist() == [sizes[row] for row in order]
    assert again.sizes[order].dtype == np.uint64
