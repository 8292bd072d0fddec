"""Heads that earlier releases saved predict as they did then, or are refused by a line that names the way out."""

from __future__ import annotations

import csv
import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from featurecache import FeatureStore
from featurecache.cli import main

FOLDER = Path(__file__).resolve().parent / "archives"
ARCHIVES = sorted(FOLDER.glob("heads-*"))
_spec = importlib.util.spec_from_file_location("make_heads", FOLDER / "make_heads.py")
make = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make)

HEADS = [
    (archive, head.parent.relative_to(archive))
    for archive in ARCHIVES
    for head in sorted(archive.glob("cache*/heads/*/head.json"))
]
REFUSED = {
    "boosted_trees": "it holds boosted trees, which this release no longer has; predict with featurecache 0.1, or "
    "train another head",
}
"""Heads that went, by the end of their name, and the line that names the way out."""
CASES = [(archive, head) for archive, head in HEADS if head.name.rpartition("-")[2] not in REFUSED]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("new") / "photos"
    make.write_photos(folder, make.NEW)
    return folder


def expected_of(archive: Path, head: Path) -> list[dict[str, str]]:
    expected = json.loads((archive / "expected.json").read_text())
    of_cache = {"cache_of_tokens": "tokens", "cache_of_program": "program"}
    return expected[of_cache[head.parts[0]]] if head.parts[0] in of_cache else expected["heads"][head.name]


@pytest.mark.parametrize(("archive", "head"), CASES, ids=lambda path: f"{path.parent.parent.name}-{path.name}")
def test_a_head_predicts_as_it_did_when_it_was_saved(
    archive: Path, head: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A head whose program is a file is found from the folder in which it was named.
    monkeypatch.chdir(archive)
    backbone = {"cache_of_tokens": make.TOKENS, "cache_of_program": f"file:{make.PROGRAM}"}
    table = tmp_path / "out.csv"
    options = [
        "--backbone",
        backbone.get(head.parts[0], make.BACKBONE),
        "--out",
        str(table),
        "--quiet",
        "--runtime",
        "torch",
    ]
    assert main(["predict", str(head), str(photos), *options, "--quiet"]) == 0
    with table.open(newline="") as file:
        found = list(csv.DictReader(file))
    expected = expected_of(archive, head)
    assert [Path(row["path"]).name for row in found] == [row["path"] for row in expected]
    for now, then in zip(found, expected, strict=True):
        for name in then.keys() - {"path"}:
            try:
                assert float(now[name]) == pytest.approx(float(then[name]), rel=2e-3, abs=2e-4), name
            except ValueError:
                assert now[name] == then[name], name


@pytest.mark.parametrize(
    ("archive", "head"), [case for case in HEADS if case not in CASES], ids=lambda path: f"{path.name}"
)
def test_a_head_that_went_is_refused_by_a_line_that_names_the_way_out(
    archive: Path, head: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(archive)
    assert main(["predict", str(head), str(photos), "--backbone", make.BACKBONE, "--quiet"]) == 2
    assert REFUSED[head.name.rpartition("-")[2]] in capsys.readouterr().err


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: path.name)
def test_fingerprints_taps_and_types_stay(archive: Path, tmp_path: Path) -> None:
    """A cache that is extended by the same command is continued: no second set stands beside the one that is there."""
    expected = json.loads((archive / "expected.json").read_text())["features"]
    copy = Path(shutil.copytree(archive, tmp_path / "archive"))
    for name, sets in expected.items():
        assert make.identities(copy / name) == sets
    source = tmp_path / "photos"
    make.write_photos(source)
    make.write_photos(source, make.NEW)
    taps = [f"--tap={tap}" for tap in make.TAPS]
    cache = copy / "cache"
    command = ["extract", str(source), "--cache", str(cache), "--backbone", make.BACKBONE, *taps, *make.SMALL]
    assert main([*command, *make.RUN]) == 0
    assert make.identities(cache) == expected["cache"]
    (extended,) = {len(s.open().rows) for s in FeatureStore.open(cache).feature_sets() if s.num_views is None}
    assert extended == 36


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: path.name)
def test_a_cache_of_a_program_is_continued_by_the_very_file(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier releases gave the architecture of a program another digest; the content of the file decides."""
    expected = json.loads((archive / "expected.json").read_text())["features"]["cache_of_program"]
    cache = Path(shutil.copytree(archive, tmp_path / "archive")) / "cache_of_program"
    make.write_photos(tmp_path / "photos", make.NEW)
    monkeypatch.chdir(archive)
    command = ["extract", str(tmp_path / "photos"), "--cache", str(cache), "--backbone", f"file:{make.PROGRAM}"]
    assert main([*command, *make.RUN]) == 0
    assert make.identities(cache) == expected
    (extended,) = {len(s.open().rows) for s in FeatureStore.open(cache).feature_sets()}
    assert extended > len(make.NEW)
