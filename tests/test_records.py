"""Records notice any change, and refuse what they did not write."""

from __future__ import annotations

import importlib
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from featurecache.atomic import publish_bytes, publish_once, published, published_folder
from featurecache.errors import CorruptError, FormatVersionError
from featurecache.hashing import canonical_json, digest_bytes
from featurecache.records import encode_record, read_record, read_small_file
from featurecache.table_output import write_table
from featurecache.tables import TableError

pytestmark = pytest.mark.quick

BODY = {"rows": [[0, 3]], "name": "é", "x": 1.5, "nested": {"a": None}}


def test_record_round_trip(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_bytes(encode_record("thing", BODY))
    assert read_record(tmp_path / "r.json", "thing") == BODY


def test_any_changed_byte_is_noticed(tmp_path: Path) -> None:
    data = encode_record("thing", BODY)
    path = tmp_path / "r.json"
    for place in range(len(data) - 1):  # the last byte is the final newline
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises((CorruptError, FormatVersionError)):
            read_record(path, "thing")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not valid JSON"),
        (b"[]", "holds no JSON object"),
        (b'{"a": 1, "a": 2}', "a key occurs twice"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b"[" * 100_000, "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b'{"format": "featurecache.other"}', "is not a featurecache thing record"),
    ],
)
def test_foreign_bytes_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "r.json").write_bytes(data)
    with pytest.raises(CorruptError, match=message):
        read_record(tmp_path / "r.json", "thing")


def test_newer_record_is_refused_with_advice(tmp_path: Path) -> None:
    content = {"format": "featurecache.thing", "version": 3}
    digest = digest_bytes(canonical_json(content).encode())
    (tmp_path / "r.json").write_text(canonical_json({**content, "digest": digest}))
    with pytest.raises(FormatVersionError, match="version 3; this release reads up to 2. Upgrade featurecache"):
        read_record(tmp_path / "r.json", "thing")


def test_links_folders_and_giants_are_refused(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"x" * 100)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(CorruptError, match="symbolic link"):
        read_small_file(tmp_path / "link")
    with pytest.raises(CorruptError, match="not a regular file"):
        read_small_file(tmp_path)
    with pytest.raises(CorruptError, match="has 100 bytes; a record has at most 99"):
        read_small_file(tmp_path / "real", max_bytes=99)


def test_a_limit_takes_no_memory(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"x" * 100)
    tracemalloc.start()
    try:
        assert read_small_file(tmp_path / "real", max_bytes=1 << 34) == b"x" * 100
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_records_are_utf8(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "r.json").write_bytes(encode_record("thing", BODY).decode().encode(encoding))
    with pytest.raises(CorruptError, match="not valid JSON"):
        read_record(tmp_path / "r.json", "thing")


def test_first_writer_wins(tmp_path: Path) -> None:
    assert publish_once(tmp_path / "f", b"first")
    assert not publish_once(tmp_path / "f", b"second")
    assert (tmp_path / "f").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_failed_publication_leaves_what_was_there(tmp_path: Path) -> None:
    publish_bytes(tmp_path / "f", b"old")
    with pytest.raises(RuntimeError, match="half way"), published(tmp_path / "f") as partial:
        partial.write_bytes(b"new, but only ha")
        raise RuntimeError("half way")
    assert (tmp_path / "f").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def write_folder(path: Path, text: str, *, replace: bool = True) -> None:
    with published_folder(path, replace=replace) as partial:
        (partial / "a").write_text(text)
        (partial / "b").write_text(text)


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_takes_the_place_of_another(tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:  # as on volumes that cannot
        monkeypatch.setattr("featurecache.atomic._exchange", lambda *_: False)
    for text in ("first", "second"):
        write_folder(tmp_path / "f", text)
        assert [(tmp_path / "f" / name).read_text() for name in "ab"] == [text] * 2
        assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_nothing_is_published_over_what_came_first_unless_it_may_be(tmp_path: Path) -> None:
    write_folder(tmp_path / "folder", "first")
    publish_bytes(tmp_path / "file", b"first")
    with pytest.raises(FileExistsError):
        write_folder(tmp_path / "folder", "second", replace=False)
    with pytest.raises(FileExistsError):
        publish_bytes(tmp_path / "file", b"second", replace=False)
    with pytest.raises(TableError, match="it is there by now; pass --replace, or name another place"):
        write_table(tmp_path / "file", ["a"], [{"a": 1}], replace=False)
    assert ((tmp_path / "file").read_bytes(), (tmp_path / "folder" / "a").read_text()) == (b"first", "first")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_folder_that_fails_half_way_leaves_the_one_before(tmp_path: Path) -> None:
    write_folder(tmp_path / "f", "old")
    with pytest.raises(RuntimeError, match="half way"), published_folder(tmp_path / "f") as partial:
        (partial / "a").write_text("new")
        raise RuntimeError("half way")
    assert [(tmp_path / "f" / name).read_text() for name in "ab"] == ["old"] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


@pytest.mark.full
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_a_table_is_written_as_its_rows_come(tmp_path: Path, suffix: str) -> None:
    """Of rows that would take hundreds of megabytes, only those of one group are held."""
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    path, count = tmp_path / f"table{suffix}", 24_000

    def rows() -> Iterator[dict[str, object]]:
        for number in range(count):
            assert not path.exists()
            yield {"name": f"{number}".zfill(600), "p": None if number < 12_000 else number / 2}

    tracemalloc.start()
    write_table(path, ["name", "p"], rows(), numbers=["p"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12_000_000  # all names alone take 15 MB
    if suffix == ".parquet":
        found = importlib.import_module("pyarrow.parquet").read_table(path).to_pylist()
        assert found[-1] == {"name": f"{count - 1}".zfill(600), "p": (count - 1) / 2}
    else:
        found = path.read_text().splitlines()[1:]
        assert found[0].rstrip("\t,") == "0".zfill(600)
    assert len(found) == count
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_rows_that_fail_leave_no_table(tmp_path: Path, suffix: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")

    def rows() -> Iterator[dict[str, object]]:
        yield {"a": "1"}
        raise OSError("the input is gone")

    with pytest.raises(OSError, match="the input is gone"):
        write_table(tmp_path / f"t{suffix}", ["a"], rows(), numbers=[])
    assert list(tmp_path.iterdir()) == []
