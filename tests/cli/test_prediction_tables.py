"""Tables of predictions: all classes, the most probable ones, columns that are named, or those of a sample."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import COLOURS, RUNTIME, TINY, write_cache, write_image

pytestmark = pytest.mark.usefixtures("few_settings")
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kept head, and photographs to label, one of which is none."""
    from featurecache.cli import main

    folder = tmp_path_factory.mktemp("predicting")
    cache = write_cache(folder, per_class=8)
    assert main(["train", str(cache), "--task", "colour", "--head", "logistic", "--save", "h", "--quiet"]) == 0
    for number, colour in enumerate(COLOURS.values()):
        write_image(folder / "test" / f"{number:03}.png", colour, seed=number)
    (folder / "test" / "bad.png").write_bytes(b"no image")
    return folder


@pytest.fixture
def predict(folder: Path, call: Call) -> Callable[..., tuple[int, str, str]]:
    head = folder / "c" / "heads" / "h"
    return lambda *more: call("predict", head, folder / "test", "--backbone", TINY, *RUNTIME, "--quiet", *more)


def rows_in(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_all_probabilities_stand_in_columns_of_their_classes(predict: Callable, folder: Path) -> None:
    _, out, _ = predict("--csv", "--proba", "--top-k", "2")
    document = json.loads(predict("--json")[1])["predictions"]
    for row, item in zip(rows_in(out), document, strict=True):
        if item["label"] is None:
            assert row["label_1"] == row[next(iter(COLOURS))] == ""
            continue
        assert {name: float(row[name]) for name in COLOURS} == item["probabilities"]
        ranked = sorted(item["probabilities"].items(), key=lambda pair: -pair[1])
        assert [row["label_1"], row["label_2"]] == [ranked[0][0], ranked[1][0]] == [item["label"], ranked[1][0]]
        assert float(row["probability_2"]) == ranked[1][1]
    _, out, _ = predict("--top-k", "2")
    assert "2." in out


def test_named_columns_make_a_submission(predict: Callable, folder: Path, tmp_path: Path) -> None:
    first = next(iter(COLOURS))
    status, _, err = predict("--out", tmp_path / "s.csv", "--columns", f"image_id,breed,{first}")
    assert status == 1, err  # one is no image
    rows = rows_in((tmp_path / "s.csv").read_text())
    assert [row["image_id"] for row in rows] == ["000", "001", "002", "bad"]
    assert [row["breed"] for row in rows] == [*COLOURS, ""]
    assert 0.3 < float(rows[0][first]) <= 1
    _, out, _ = predict("--csv", "--columns", "filename, label, status")
    assert [row["filename"] for row in rows_in(out)] == ["000.png", "001.png", "002.png", "bad.png"]
    assert rows_in(out)[-1] == {"filename": "bad.png", "label": "", "status": "not_an_image"}


def test_a_submission_like_a_sample_has_its_rows_and_names(predict: Callable, tmp_path: Path) -> None:
    classes = list(COLOURS)
    (tmp_path / "sample.csv").write_text(f"id,{','.join(classes)}\n002,0,0,1\n000,0,0,1\n")
    status, _, err = predict("--out", tmp_path / "s.parquet", "--like", tmp_path / "sample.csv", "--raw-cells")
    assert status == 1, err
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(tmp_path / "s.parquet").to_pydict()
    assert table["id"] == ["002", "000"]
    for name, index in zip(table["id"], range(2), strict=True):
        assert max(classes, key=lambda label: table[label][index]) == classes[int(name)]
    (tmp_path / "sample.csv").write_text("id;label\n002;x\n009;x\n")
    status, _, err = predict("--out", tmp_path / "s.csv", "--like", tmp_path / "sample.csv")
    assert status == 2
    assert "1 of 2 rows is of inputs that were not named, first '009'; name their folder too" in err
    assert not (tmp_path / "s.csv").exists()


def test_the_column_of_names_in_a_sample_is_told_by_its_entries(predict: Callable, tmp_path: Path) -> None:
    sample, out = tmp_path / "sample.csv", tmp_path / "s.csv"
    sample.write_text("Specimen No;Which\n002;?\n000;?\n")
    status, said, err = predict("--out", out, "--like", sample)
    assert status == 1, err
    expected = [{"Specimen No": name, "Which": list(COLOURS)[int(name)]} for name in ("002", "000")]
    assert rows_in(out.read_text()) == expected
    assert "warning: the column 'Specimen No' names the inputs" in said
    # A known name says nothing where other entries name inputs.
    sample.write_text("id,Specimen No,label\n7,002,?\n8,000,?\n")
    status, _, err = predict("--out", out, "--replace", "--like", sample)
    assert (status, "the column 'id' says nothing that this head knows" in err) == (2, True)
    for table, reason in (
        ("one,two\n000,002\n001,000\n", "of 2 rows so many name samples of the source: 'one' 2, 'two' 2"),
        ("one,two\nx,y\n", "of 1 row so many name samples of the source: 'one' 0, 'two' 0"),
        ("one,000\n000,0.3\n009,0.3\n", "1 of 2 rows is of inputs that were not named, first '009'"),
    ):
        sample.write_text(table)
        status, _, err = predict("--out", out, "--replace", "--like", sample)
        assert (status, err.count("\n"), reason in err) == (2, 1, True), err
    assert rows_in(out.read_text()) == expected


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--proba"], "--proba is about a table; add --out FILE or --csv"),
        (["--columns", "image_id,label"], "--columns is about a table; add --out FILE or --csv"),
        (["--csv", "--columns", "a", "--like", "b"], "--columns and --like both say which columns a table has"),
        (["--csv", "--columns", "image_id,label", "--proba"], "--proba adds columns, and --columns names all"),
        (["--top-k", "0"], "--top-k is a number of classes from 1 up; got 0"),
        (["--csv", "--columns", "label,probability"], "none of the columns label, probability is known to name inputs"),
        (["--csv", "--columns", "id,label,label"], "have one twice; name each once"),
        (
            ["--csv", "--columns", "id,label,colour"],
            "the column 'colour' says nothing that this head knows; it knows la",
        ),
        (["--csv", "--columns", "id,confidence"], "the column 'confidence' says nothing that this head knows"),
        (["--csv", "--columns", " , "], "--columns names no column; say which, such as image_id,label"),
        (["--csv", "--columns", "id,one,two"], "the column 'two' says nothing that this head knows"),
        (["--csv", "--like", "gone.csv"], "--like gone.csv: it does not exist"),
    ],
)
def test_requests_that_make_no_sense_are_one_line(predict: Callable, options: list[str], said: str) -> None:
    status, out, err = predict(*options)
    assert status == 2
    assert said in err
    assert not out


def test_inputs_of_one_name_are_not_mixed_up(folder: Path, call: Call, tmp_path: Path) -> None:
    colours = list(COLOURS.values())
    for number, site in enumerate(("a", "b")):
        write_image(tmp_path / site / "1.png", colours[number], seed=number)
    predict = ["predict", folder / "c" / "heads" / "h", tmp_path / "a", tmp_path / "b", "--backbone", TINY, *RUNTIME]
    status, _, err = call(*predict, "--quiet", "--out", tmp_path / "s.csv", "--columns", "image_id,label")
    assert status == 2
    assert "two inputs are called '1' in the column 'image_id'; call it path instead" in err
    (tmp_path / "like.csv").write_text("path,label\nc/1.png,x\n")
    status, _, err = call(*predict, "--quiet", "--out", tmp_path / "s.csv", "--like", tmp_path / "like.csv")
    assert status == 2
    assert "1 of 1 row is of inputs that were not named, first 'c/1.png'" in err


def test_classes_in_another_case_and_cells_that_a_spreadsheet_runs(predict: Callable, folder: Path, call: Call) -> None:
    first = next(iter(COLOURS))
    _, out, _ = predict("--csv", "--columns", f"id,{first.upper()}")
    _, again, _ = predict("--csv", "--columns", f"id,{first}")
    assert [row[first.upper()] for row in rows_in(out)] == [row[first] for row in rows_in(again)]
    write_image(folder / "odd" / "-x7.png", COLOURS[first], seed=5)
    options = ["--backbone", TINY, *RUNTIME, "--quiet", "--csv", "--columns", "id,label"]
    _, out, err = call("predict", folder / "c" / "heads" / "h", folder / "odd", *options)
    assert rows_in(out)[0]["id"] == "'-x7"
    assert "1 row has a cell that a spreadsheet would run, written with an apostrophe" in err
    _, out, err = call("predict", folder / "c" / "heads" / "h", folder / "odd", *options, "--raw-cells")
    assert rows_in(out)[0]["id"] == "-x7"
    assert "apostrophe" not in err
