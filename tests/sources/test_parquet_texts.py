"""Parquet files that hold texts: rows are samples, named and read as those that hold images are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import need
from object_store import Store

import featurecache as fc
from featurecache.errors import InputError, RequestError, SourceError
from featurecache.extraction import blocks
from featurecache.sources.opening import SourceSpec, open_source, source_spec, table_options
from featurecache.sources.parquet_texts import ParquetTexts
from featurecache.sources.source import Unit
from featurecache.testing import SourceContract

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
TEXTS = ["Rain in the east", "", "na\u00efve", 'sun\nand "wind"', "Rain in the east", "hail", "fog"]


def write_texts(folder: Path, texts: list[str | None], *, num_files: int = 2, **columns: Any) -> str:
    """Write texts in files of two rows a group, and return their pattern."""
    folder.mkdir(exist_ok=True)
    for number in range(num_files):
        table = {name: values[number::num_files] for name, values in {"text": texts, **columns}.items()}
        parquet.write_table(arrow.table(table), folder / f"t-{number}.parquet", row_group_size=2)
    return str(folder / "t-*.parquet")


class TestParquetTexts(SourceContract):
    def make_source(self, folder: Path) -> tuple[SourceSpec, dict[str, bytes]]:
        url = write_texts(folder, TEXTS)
        names = {f"t-{k % 2}.parquet/{k // 2:09d}": text.encode() for k, text in enumerate(TEXTS)}
        return source_spec(url, text_column="text"), dict(sorted(names.items()))

    def change(self, spec: SourceSpec, name: str) -> None:
        path = Path(spec.url).parent / name.partition("/")[0]
        texts = parquet.read_table(path)["text"].to_pylist()
        texts[int(name.partition("/")[2])] += " "
        parquet.write_table(arrow.table({"text": texts}), path)


def test_texts_have_the_ids_that_they_have_in_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featurecache.sources.file_units.UNSETTLED_NS", -(10**18))
    url = write_texts(tmp_path / "files", TEXTS)
    parquet.write_table(arrow.table({"text": TEXTS}), tmp_path / "one.parquet")
    table = fc.scan(tmp_path / "one.parquet", tmp_path / "c", text_column="text")
    report = fc.scan(url, tmp_path / "c", text_column="text")
    assert (report.num_files, report.num_samples, report.num_new) == (7, table.num_samples, 0)
    assert fc.scan(url, tmp_path / "c", text_column="text").num_read == 0
    assert table_options(open_source(url, text_column="text")) == ("--text-column", "text")


@pytest.mark.parametrize(
    "kind", [arrow.string(), arrow.large_string(), arrow.dictionary(arrow.int32(), arrow.string())], ids=str
)
def test_any_type_of_text_is_read(kind: Any, tmp_path: Path) -> None:
    column = arrow.array(["a", None, "b"]).cast(kind)
    parquet.write_table(arrow.table({"said": column, "n": [1, 2, 3]}), tmp_path / "t.parquet")
    source = open_source(str(tmp_path / "*.parquet"), text_column="said")
    (unit,) = source.units()
    assert dict(source.read(unit)) == {"t.parquet/000000000": b"a", "t.parquet/000000002": b"b"}
    with pytest.raises(InputError, match="the row holds no bytes"):
        source.open("t.parquet/000000001", stamp=None)
    for wrong, known in (("n", "unknown column of texts 'n'; known: said"), ("sad", "did you mean 'said'")):
        with pytest.raises(SourceError, match=known):
            fc.scan(str(tmp_path / "*.parquet"), tmp_path / "c", text_column=wrong)
    with pytest.raises(RequestError, match="--id-column n is for one table"):
        source_spec(str(tmp_path / "*.parquet"), text_column="said", id_column="n")


def test_files_that_are_far_away(tmp_path: Path) -> None:
    write_texts(tmp_path / "files", TEXTS)
    Store.serve({f"b/{path.name}": path.read_bytes() for path in (tmp_path / "files").iterdir()})
    report = fc.scan("store://b/t-*.parquet", tmp_path / "c", text_column="text")
    assert (report.num_files, report.num_samples) == (7, len(set(TEXTS)))
    # One by its name too: as images it had been refused for a column that nobody named.
    assert fc.scan("store://b/t-0.parquet", tmp_path / "c", text_column="text").num_files == 4


def test_run_and_predict_take_texts_and_labels_of_files(tmp_path: Path, call: Any) -> None:
    need("tokenizers")
    texts: list[str | None] = [f"{'rain' if k % 2 else 'sun'} on day {k}" for k in range(40)]
    url = write_texts(tmp_path / "files", texts, label=[k % 2 for k in range(40)], mood=[*"gb" * 20])
    options = ["--text-column", "text", "--device", "cpu"]
    made = ["--cache", tmp_path / "c", "--backbone", "words", "--head", "nearest_mean"]
    status, out, err = call("run", url, *options, *made)
    assert status == 0, err
    assert "task run: 2 classes" in out
    status, _, err = call("run", url, *options, *made, "--label-column", "mood")
    assert status == 0, err
    status, out, err = call("predict", tmp_path / "c/heads/run", url, *options, "--json")
    assert status == 0, err
    assert out.count('"label": "g"') == 20
    store = fc.FeatureStore.open(tmp_path / "c")
    assert store.task("run").classes == ["b", "g"]
    for more in ([], ["--label-column", "mood"]):
        status, _, err = call("task", "add", tmp_path / "c", "t", url, "--text-column", "text", "--replace", *more)
        assert status == 0, err
        assert store.task("t").classes == (["b", "g"] if more else ["0", "1"])
    for more, words in (
        (["--group-column", "mood"], "carries one class for each text; leave --group-column out"),
        (["--label-column", "mood", "--label-column", "label"], "leave --label-column out"),
        (["--label-column", "moods"], "did you mean 'mood'?"),
    ):
        status, _, err = call("task", "add", tmp_path / "c", "u", url, "--text-column", "text", *more)
        assert status == 2
        assert words in err


def test_texts_are_read_and_computed_in_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("tokenizers")
    monkeypatch.setattr("featurecache.sources.file_units.UNSETTLED_NS", -(10**18))
    monkeypatch.setattr(blocks, "_BLOCK_BYTES", 1)
    texts: list[str | None] = [f"day {k}: {'rain ' * (k % 9)}" for k in range(60)]
    url = write_texts(tmp_path / "files", texts, num_files=4)
    parquet.write_table(arrow.table({"text": texts}), tmp_path / "one.parquet")
    read, real = list[str](), ParquetTexts.read

    def noted(self: ParquetTexts, unit: Unit) -> Any:
        read.append(unit.name)
        return real(self, unit)

    monkeypatch.setattr(ParquetTexts, "read", noted)
    settings = fc.ExtractionSettings(runtime="torch", shard_rows=16)
    options = {"backbone": "words", "text_column": "text", "settings": settings}
    store = fc.extract(url, tmp_path / "c", **options)
    assert sorted(read) == [str(tmp_path / f"files/t-{k}.parquet") for k in range(4)]
    expected = fc.extract(tmp_path / "one.parquet", tmp_path / "d", **options)
    assert len(store.features()) == 60
    found = {identity.tobytes(): row for row, identity in enumerate(store.samples.ids)}
    rows = np.array([found[identity.tobytes()] for identity in expected.samples.ids])
    assert np.allclose(store.features().read(rows), expected.features().read(np.arange(60)), atol=1e-3)
    read.clear()
    assert len(fc.extract(url, tmp_path / "c", **options).features()) == 60
    assert read == []


def test_labels_are_read_as_those_of_a_table(tmp_path: Path, call: Any) -> None:
    need("tokenizers")
    said = ["pos", " pos", "pos ", "neg", "", "NA", None, "neg", "pos", "neg", "neg", "pos"] * 2
    texts: list[str | None] = [f"text {k} {label}" for k, label in enumerate(said)]
    columns = {"verdict": said, "tags": [["a"]] * 24, "none": [""] * 24, "sign": [1, -1] * 12}
    url = write_texts(tmp_path / "files", texts, **columns)
    options = ["--text-column", "text"]
    made = ["--cache", tmp_path / "c", "--backbone", "words", "--head", "nearest_mean", "--device", "cpu"]
    for more, words in (
        ([], "has no column called label, labels, class or target; it has: text, verdict, tags, none, sign; name"),
        (["--merge-spellings"], "has no column called label"),
        (["--label-column", "tags"], "t-0.parquet/000000000: the label holds several values"),
        (["--label-column", "none"], "has no label in any row; name another column with --label-column"),
        (["--label-column", "verdict", "--keep-na"], "leave --keep-na out"),
    ):
        status, _, err = call("run", url, *options, *made, *more)
        assert (status, words in err) == (2, True), err
        assert not (tmp_path / "c").exists()
    assert call("run", url, *options, *made, "--label-column", "verdict")[0] == 0
    store = fc.FeatureStore.open(tmp_path / "c")
    assert (store.task("run").classes, len(store.task("run").ids)) == (["neg", "pos"], 18)
    assert call("task", "add", tmp_path / "c", "sign", url, *options, "--label-column", "sign")[0] == 0
    assert store.task("sign").classes == ["-1", "1"]
    status, _, err = call(
        "extract", url, *options, "--cache", tmp_path / "d", "--backbone", "words", "--delimiter", ";"
    )
    assert status == 2
    assert "--delimiter and --no-header are about tables of text" in err
    status, _, err = call("task", "add", tmp_path / "c", "t", url, "--label-column", "sign")
    assert status == 2 or store.task("t").classes == ["-1", "1"]


def test_a_file_of_a_name_like_a_pattern_is_a_table(tmp_path: Path) -> None:
    for name in ("t{1..2}.parquet", "t*.parquet"):
        parquet.write_table(arrow.table({"text": ["a", "b"]}), tmp_path / name)
        assert source_spec(tmp_path / name, text_column="text").kind == "text_table"
    assert source_spec("mine://x.parquet", text_column="text") == SourceSpec(
        "mine", "mine://x.parquet", (("text_column", "text"),)
    )
