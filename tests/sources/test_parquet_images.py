"""Parquet files that hold images: rows are samples, a column is read in pieces, and only where a file is new."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, image_bytes
from object_store import Store

import featurecache as fc
from featurecache.errors import InputError, SourceError
from featurecache.interop.dataset_labels import labels_in_source
from featurecache.sources import parquet_files
from featurecache.sources.opening import SourceSpec, open_source, open_sources, source_spec, table_options
from featurecache.sources.parquet_files import _Reader
from featurecache.sources.parquet_images import ParquetImages
from featurecache.sources.source import Unit
from featurecache.testing import SourceContract

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def write_parquet(path: Path, images: list[bytes | None], *, group: int = 2, **columns: list[Any]) -> Path:
    """Write images as Hugging Face does, some rows in a group."""
    cells = [None if data is None else {"bytes": data, "path": "x.png"} for data in images]
    table = arrow.table({"image": cells, "label": [k % 2 for k in range(len(images))], **columns})
    names = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    parquet.write_table(table.replace_schema_metadata({"huggingface": json.dumps(names)}), path, row_group_size=group)
    return path


class TestParquet(SourceContract):
    def make_source(self, folder: Path) -> tuple[SourceSpec, dict[str, bytes]]:
        images = [image_bytes(k) for k in range(5)]
        write_parquet(folder / "p-0.parquet", [*images[:3]])
        write_parquet(folder / "p-1.parquet", [*images[3:]])
        names = [*(f"p-0.parquet/{k:09d}" for k in range(3)), *(f"p-1.parquet/{k:09d}" for k in range(2))]
        return source_spec(str(folder / "p-{0..1}.parquet")), dict(zip(names, images, strict=True))

    def change(self, spec: SourceSpec, name: str) -> None:
        path = Path(spec.url).parent / name.partition("/")[0]
        images = [cell["bytes"] for cell in parquet.read_table(path)["image"].to_pylist()]
        images[int(name.partition("/")[2])] += b" "
        write_parquet(path, images)


class TestPlainBytes(SourceContract):
    """A column of bytes, one file."""

    def make_source(self, folder: Path) -> tuple[SourceSpec, dict[str, bytes]]:
        images = [image_bytes(k) for k in range(3)]
        table = arrow.table({"n": [1, 2, 3], "scan": arrow.array(images, arrow.large_binary())})
        parquet.write_table(table, folder / "p.parquet", row_group_size=2)
        return source_spec(folder / "p.parquet"), {f"p.parquet/{k:09d}": data for k, data in enumerate(images)}

    def change(self, spec: SourceSpec, name: str) -> None:
        parquet.write_table(arrow.table({"scan": [b"another"] * 3}), spec.url)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The row groups from which files were read."""
    found, real = list[int](), _Reader.batches

    def noted(self: _Reader, group: int) -> Any:
        found.append(group)
        return real(self, group)

    monkeypatch.setattr(_Reader, "batches", noted)
    return found


def test_a_scan_reads_the_images_once_and_the_next_one_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes: list[int]
) -> None:
    monkeypatch.setattr("featurecache.sources.file_units.UNSETTLED_NS", -(10**18))
    (tmp_path / "folder").mkdir()
    for k in range(6):
        (tmp_path / "folder" / f"{k}.png").write_bytes(image_bytes(k))
        write_parquet(tmp_path / f"p-{k % 2}.parquet", [image_bytes(j) for j in range(6) if j % 2 == k % 2])
    report = fc.scan(str(tmp_path / "p-*.parquet"), tmp_path / "c")
    assert (report.num_files, report.num_new, passes) == (6, 6, [0, 0])
    # The ids are those of files with the same bytes.
    assert fc.scan(tmp_path / "folder", tmp_path / "c").num_new == 0
    passes.clear()
    assert fc.scan(str(tmp_path / "p-*.parquet"), tmp_path / "c").num_read == 0
    assert passes == []
    write_parquet(tmp_path / "p-1.parquet", [image_bytes(9)])
    assert fc.scan(str(tmp_path / "p-*.parquet"), tmp_path / "c").num_new == 1
    assert passes == [0]


def test_rows_without_an_image_are_bad_inputs(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "p.parquet", [image_bytes(0), None, b"x" * 3000, image_bytes(1)])
    spec = SourceSpec("parquet", str(path), (("max_bytes", 2500),))
    report = fc.scan(spec, tmp_path / "c")
    assert report.listing.problems == {
        "p.parquet/000000001": "the row holds no bytes",
        "p.parquet/000000002": "the image has 3000 bytes, the limit is 2500",
    }
    assert report.listing.num_readable == 2
    for name in ("p.parquet/00000000x", "p.parquet/000000004", "p.parquet/1", "q.parquet/000000000"):
        with pytest.raises(InputError) as raised:
            open_source(path).open(name, stamp=None)
        assert raised.value.status == "missing"


def test_memory_does_not_grow_with_a_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_files, "_KEPT_BYTES", 4 << 20)
    size, count = 6_000, 6 << 10
    noise = np.random.default_rng(0).bytes(size + count)
    images = [noise[k : k + size] for k in range(count)]
    source = open_source(write_parquet(tmp_path / "p.parquet", images, group=count))
    (unit,) = source.units()
    before, most = arrow.total_allocated_bytes(), 0
    for number, (_, data) in enumerate(source.read(unit)):
        assert data == images[number]
        most = max(most, arrow.total_allocated_bytes() - before)
    # A batch and a page, which pyarrow writes of 1,024 rows at least, as it is and decompressed.
    assert most < size * count / 2
    for number in range(0, count, 50):
        source.open(f"p.parquet/{number:09d}", stamp=None)
    kept = source._readers[unit.name][1]._kept
    assert sum(values.nbytes for _, values in kept) < 8 << 20


def test_neighbours_are_read_once_in_whatever_order(tmp_path: Path, passes: list[int]) -> None:
    images = [f"{k} {'x' * (k % 7)}".encode() for k in range(3000)]
    path = write_parquet(tmp_path / "p.parquet", images, group=7)
    source, names = open_source(path), [f"p.parquet/{k:09d}" for k in range(3000)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda name: source.open(name, stamp=None), names)) == images
    assert passes == [0]
    # From anywhere else, beginning with the row group.
    order = np.random.default_rng(0).permutation(3000)[:50].tolist()
    assert [source.open(names[k], stamp=None) for k in order] == [images[k] for k in order]
    passes.clear()
    reader = _Reader(*source._file(Unit(str(path))))
    assert [reader.row(k) for k in (2500, 2501, 40)] == [images[k] for k in (2500, 2501, 40)]
    assert passes == [2500 // 7, 40 // 7]


def test_of_files_that_are_far_away_each_image_comes_once(tmp_path: Path, call: Any) -> None:
    rng = np.random.default_rng(0)
    images = [rng.bytes(20_000) for _ in range(100)]
    data = write_parquet(tmp_path / "p.parquet", images, group=10).read_bytes()
    Store.serve({"b/p-0.parquet": data, "b/p-1.parquet": data[:-9] + data[-9:]})
    source = open_source("store://b/p-*.parquet")
    report = fc.scan(source, tmp_path / "c")
    assert (report.num_files, report.num_new) == (200, 100)
    footers = 2 * (1 << 16)  # as pyarrow reads them, with what may stand before them
    assert all(len(data) <= count <= len(data) + footers for count in Store.served.values())
    Store.served.clear()
    assert fc.scan("store://b/p-*.parquet", tmp_path / "c").num_read == 0
    assert Store.served.total() <= footers
    for options in ([], ["--label-column", "label"]):
        status, out, err = call("task", "add", tmp_path / "c", "t", "store://b/p-*.parquet", "--replace", *options)
        assert status == 0, err
        assert "100 samples" in out or "50" in out


def test_labels_are_those_of_the_column(tmp_path: Path) -> None:
    path = str(write_parquet(tmp_path / "p.parquet", [image_bytes(k) for k in range(3)]))
    found = labels_in_source(path, open_source(path))
    assert found is not None
    assert Counter(label.label for label in found.labels) == {"cat": 2, "dog": 1}
    plain = tmp_path / "q.parquet"
    parquet.write_table(arrow.table({"img": [b"a", b"b"], "class": ["x", None]}), plain)
    assert list(open_source(plain).labels()) == [("q.parquet/000000000", "x")]


def test_which_column_holds_the_images(tmp_path: Path) -> None:
    data = [image_bytes(0)]
    path = tmp_path / "p.parquet"
    parquet.write_table(arrow.table({"mask": data, "image": [b"i"], "note": ["n"]}), path)
    assert dict(open_source(path).read(Unit(str(path)))) == {"p.parquet/000000000": b"i"}
    source = open_source(source_spec(path, path_column="mask"))
    assert dict(source.read(Unit(str(path)))) == {"p.parquet/000000000": data[0]}
    assert table_options(source) == ("--path-column", "mask")
    assert source.key != open_source(path).key
    with pytest.raises(SourceError, match=r"'masks'.*mask.*--path-column"):
        next(iter(ParquetImages(str(path), column="masks").list(Unit(str(path)))))
    parquet.write_table(arrow.table({"note": ["n"]}), path)
    with pytest.raises(SourceError, match=r"no column of encoded images; it has: note"):
        next(iter(ParquetImages(str(path)).list(Unit(str(path)))))
    # Names of files stay what they were.
    parquet.write_table(arrow.table({"path": ["a.png"], "image": [b"i"]}), path)
    assert source_spec(path).kind == "path_table"
    assert source_spec(path, text_column="path").kind == "text_table"
    assert [source.key for source in open_sources([path])] == [f"{path}:path"]


def test_what_is_no_whole_file_is_said(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "p-0.parquet", [image_bytes(k) for k in range(40)], group=10)
    path.write_bytes(path.read_bytes()[:-100])
    for name in ("p-*.parquet", "p-0.parquet"):
        with pytest.raises(SourceError, match=r"p-0\.parquet is no whole Parquet file"):
            fc.scan(str(tmp_path / name), tmp_path / "c")
    data = bytearray(write_parquet(path, [image_bytes(k) for k in range(40)], group=10).read_bytes())
    data[2000:9000] = bytes(7000)
    path.write_bytes(data)
    with pytest.raises(SourceError, match=r"p-0\.parquet is no whole Parquet file"):
        fc.scan(str(tmp_path / "p-*.parquet"), tmp_path / "c")
    with pytest.raises(SourceError, match=r"no file fits .*shards/\*\.parquet"):
        fc.scan(str(tmp_path / "q-*.parquet"), tmp_path / "c")


def test_a_footer_of_too_many_rows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "p.parquet", [b"x"] * 9)
    monkeypatch.setattr(parquet_files, "_MOST_ROWS", 8)
    with pytest.raises(SourceError, match=r"9 rows, more than 8; split it"):
        fc.scan(path, tmp_path / "c")


def test_run_takes_images_and_labels_of_one_file(tmp_path: Path, call: Any) -> None:
    """Whose name is that of a table, and whose columns no option names."""
    path = tmp_path / "d.parquet"
    columns = {"picture": [image_bytes(k) for k in range(24)] + [None], "class": [*"ab" * 12, "a"]}
    parquet.write_table(arrow.table(columns), path)
    options = ["--cache", tmp_path / "c", "--backbone", TINY, "--head", "nearest_mean", "--device", "cpu"]
    status, out, err = call("run", path, *options)
    assert "task run: 2 classes" in out, err
    assert status == 0, err
    columns["told"] = [*"uv" * 12, "u"]
    parquet.write_table(arrow.table(columns), path)
    status, out, err = call("run", path, *options, "--label-column", "told")
    assert status == 0, err
    assert fc.FeatureStore.open(tmp_path / "c").task("run").classes == ["u", "v"]
    for option, value in (("--label-column", "tld"), ("--group-column", "told"), ("--class-folder", "outermost")):
        status, _, err = call("run", path, *options, option, value)
        assert status == 2
        assert ("did you mean 'told'?" if value == "tld" else f"leave {option} out") in err
