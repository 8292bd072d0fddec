"""What strangers wrote is shown, and steers neither terminal nor spreadsheet nor browser; stderr is ours alone."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import COLOURS, RUNTIME, TINY, need, write_image
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from featurecache.table_output import safe_row, write_table

pytestmark = pytest.mark.usefixtures("few_settings")

HERE = Path(__file__).parents[1]
STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
EVIL = "=cmd|'\x1b[31m\u202ec\x7f\x85\u200b'!A1"
"""Begins like a formula, colours a terminal, turns what follows, and hides a character."""


def steering(text: str) -> list[str]:
    return STEERING.findall(text.replace("\r\n", "").replace("\n", ""))


@given(st.text())
def test_a_cell_is_no_formula_and_steers_nothing(text: str) -> None:
    cell = safe_row({"x": text})["x"]
    assert not STEERING.search(cell)
    number = re.fullmatch(r"[+-]?[0-9.]+([eE][+-]?[0-9]+)?", cell)
    assert number or not cell.lstrip().startswith(("=", "+", "-", "@", "＝", "＋", "－", "＠"))
    if text.isprintable() and text[:1].isalnum():
        assert cell == text


def test_numbers_stay_numbers_and_raw_cells_raw(tmp_path: Path) -> None:
    rows = [{"n": -1.5, "t": "-2", "f": "-2+3", "e": None}, {"n": 3, "t": "+1e-3", "f": "\t=1", "e": "@x"}]
    write_table(tmp_path / "a.csv", ["n", "t", "f", "e"], rows)
    assert (tmp_path / "a.csv").read_text() == "n,t,f,e\n-1.5,-2,'-2+3,\n3,+1e-3,\\t=1,'@x\n"
    write_table(tmp_path / "b.tsv", ["f"], rows, raw=True)
    with (tmp_path / "b.tsv").open(newline="") as file:
        assert [row["f"] for row in csv.DictReader(file, dialect=csv.excel_tab)] == ["-2+3", "\t=1"]


@pytest.fixture(scope="module")
def evil_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over a class and files whose names steer; returns its folder."""
    from featurecache.cli import main

    folder = tmp_path_factory.mktemp("evil")
    for label in ("$\\frac{" + EVIL, "plain"):
        for i in range(9):
            colour = COLOURS["red" if label == "plain" else "blue"]
            path = write_image(folder / "photos" / "x" / f"{i}.png", colour, seed=i + 100 * (label == "plain"))
            path.parent.rename(path.parent) if path.parent.name == label else None
            target = folder / "photos" / label
            target.mkdir(exist_ok=True)
            path.rename(target / f"{EVIL if i == 0 else i}.png")
    (folder / "photos" / "x").rmdir()
    options = ["--cache", str(folder / "c"), "--backbone", TINY, "--head", "ridge", *RUNTIME]
    assert main(["run", str(folder / "photos"), *options]) == 0
    return folder


def test_predictions_steer_nothing_wherever_they_go(evil_run: Path, call: Callable, tmp_path: Path) -> None:
    need("pyarrow")
    import pyarrow.parquet

    command = ["predict", evil_run / "c" / "heads" / "run", evil_run / "photos", "--backbone", TINY, *RUNTIME]
    for form in ([], ["--csv"], ["--json"]):
        status, out, err = call(*command, *form)
        assert (status, steering(out), steering(err)) == (0, [], [])
    assert json.loads(out)["predictions"][0]["path"].endswith(f"{EVIL}.png") or EVIL in out.encode().decode(
        "unicode_escape"
    )
    out = call(*command, "--csv")[1]
    assert not [row for row in csv.DictReader(io.StringIO(out)) if row["label"].startswith(("=", "+", "-", "@"))]
    for name in ("a.csv", "a.tsv", "a.parquet"):
        assert call(*command, "--out", tmp_path / name)[0] == 0
    assert not steering((tmp_path / "a.csv").read_text())
    assert not steering((tmp_path / "a.tsv").read_text().replace("\t", ""))
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert not [value for row in table for value in row.values() if isinstance(value, str) and STEERING.search(value)]
    assert call(*command, "--out", tmp_path / "raw.parquet", "--raw-cells")[0] == 0
    raw = pyarrow.parquet.read_table(tmp_path / "raw.parquet").to_pylist()
    assert [row for row in raw if EVIL in row["path"]]


def test_the_report_carries_a_policy_and_steers_nothing(evil_run: Path) -> None:
    text = (evil_run / "c" / "report.html").read_text()
    policy = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', text)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    assert text.index("Content-Security-Policy") < text.index("<style")
    assert not STEERING.search(text.replace("\n", "").replace("\t", ""))
    assert "<svg" in text
    assert "\\x1b[31m\\u202e" in text
    assert not re.search(r"<script|<link|src=\"(?!data:)", text)


def test_a_picture_takes_any_name() -> None:
    from featurecache.reporting.pictures import draw_intervals

    svg = draw_intervals([("$\\frac{" + EVIL, 0.5, 0.4, 0.6), ("$x_{1}$ $5", 0.6, 0.5, 0.7)])
    assert not STEERING.search(svg.replace("\n", ""))


def test_what_libtiff_says_is_the_reason_of_its_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from featurecache.cli import main

    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (90, 90, 3), dtype=np.uint8))
    for number in range(12):
        path = tmp_path / "photos" / f"{number:02d}.tif"
        path.parent.mkdir(exist_ok=True)
        image.save(path, compression="tiff_lzw" if number % 2 else "tiff_adobe_deflate")
        if number < 10:
            data = bytearray(path.read_bytes())
            data[4000 + number : 4100] = b"\xff" * (100 - number)
            path.write_bytes(data)
    # A fax of which a part is damaged is decoded all the same.
    fax = io.BytesIO()
    Image.fromarray(rng.random((90, 90)) < 0.5).save(fax, "TIFF", compression="tiff_ccitt")
    data = bytearray(fax.getvalue())
    data[900:920] = bytes(20)
    (tmp_path / "photos" / "fax.tif").write_bytes(data)
    options = ["--cache", tmp_path / "c", "--backbone", TINY, *RUNTIME, "--max-bad", "1", "--jobs", "4"]
    status = main([str(word) for word in ("extract", tmp_path / "photos", *options, "--json")])
    out, err = capfd.readouterr()  # of the descriptors, where libtiff would write
    assert (status, err) == (0, "")
    (warning,) = (each for each in json.loads(out)["warnings"] if each["kind"] == "decoder")
    assert (warning["count"], warning["examples"]) == (1, ["fax.tif"])
    assert "decoded although the decoder reported errors in the file" in warning["text"]
    bad = {item["path"]: item["reason"] for item in json.loads(out)["bad"]}
    assert sorted(bad) == [f"{number:02d}.tif" for number in range(10)]
    for path, reason in bad.items():
        assert ("libtiff: ZIPDecode" in reason) == (int(path[:2]) % 2 == 0), reason
        assert "libtiff: " in reason


@pytest.mark.skipif(os.name == "nt", reason="streams are closed by a shell")
def test_a_closed_stdout_ends_quietly(evil_run: Path) -> None:
    run = f"{sys.executable} -m featurecache"
    commands = f"""
        {run} --help | true
        {run} info c | true
        {run} info c --json | head -c 1 >/dev/null
        {run} ls c >&- || exit 7
        {run} ls c >&- 2>&- || exit 8
        {run} ls c --json <&- >/dev/null || exit 9
    """
    path = os.pathsep.join([str(HERE), str(HERE.parent)])
    done = subprocess.run(
        ["sh", "-c", commands], cwd=evil_run, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
