"""A scan by itself: what comes later finds its listing, and the cache is the one that an extraction alone makes."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import REPOSITORY, RUNTIME, TINY

import featurecache as fc
from featurecache.cli import build_parser
from featurecache.errors import SourceError
from featurecache.sources import folder
from featurecache.sources.folder import FolderSource

Make = Callable[..., Path]
Call = Callable[..., tuple[int, str, str]]
EXTRACT = ["--backbone", TINY, "--dtype", "float16", *RUNTIME]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of samples in the order in which they are read."""
    names, original = list[str](), FolderSource.open

    def noted(self: FolderSource, name: str, *, stamp: tuple[int, ...] | None) -> bytes:
        names.append(name)
        return original(self, name, stamp=stamp)

    monkeypatch.setattr(FolderSource, "open", noted)
    monkeypatch.setattr(folder, "UNSETTLED_NS", 0)  # the files of a test have just been written
    return names


def content(cache: Path) -> dict[str, bytes]:
    """Everything but the listings, whose stamps tell when a file was written."""
    files = {path.relative_to(cache).as_posix(): path for path in cache.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not name.startswith("sources/")}


def test_an_extraction_after_a_scan_reads_each_sample_for_its_features_alone(
    make_folder: Make, tmp_path: Path, opened: list[str], call: Call
) -> None:
    source, cache = make_folder(per_class=4), tmp_path / "c"
    report = fc.scan(source, cache)
    assert (report.num_files, report.num_samples, report.num_read, report.num_new) == (12, 12, 12, 12)
    assert len(opened) == 12
    assert call("extract", source, "--cache", cache, *EXTRACT)[0] == 0
    assert sorted(opened[12:]) == sorted(report.listing.paths)
    again = fc.scan(source, cache)
    assert (again.num_read, again.num_new, len(opened)) == (0, 0, 24)


def test_its_cache_becomes_the_one_that_an_extraction_alone_makes(
    make_folder: Make, tmp_path: Path, call: Call
) -> None:
    source = make_folder(per_class=2)
    (source / "red" / "copy.png").write_bytes((source / "red" / "000.png").read_bytes())
    report = fc.scan(source, tmp_path / "scanned")
    assert (report.num_files, report.num_samples, report.num_copies) == (7, 6, 1)
    for cache in ("scanned", "extracted"):
        assert call("extract", source, "--cache", tmp_path / cache, *EXTRACT)[0] == 0
    assert content(tmp_path / "scanned") == content(tmp_path / "extracted")


def test_a_scan_needs_no_torch(make_folder: Make, tmp_path: Path) -> None:
    code = "import sys; import featurecache as fc; print(fc.scan(*sys.argv[1:]), 'torch' in sys.modules)"
    command = [sys.executable, "-c", code, str(make_folder(per_class=1)), str(tmp_path / "c")]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"ScanReport('{tmp_path / 'photos'}': 3 files, 3 samples, 0 unreadable) False\n"


def test_the_summary_says_what_is_left_out_and_what_comes_next(make_folder: Make, tmp_path: Path, call: Call) -> None:
    source = make_folder(per_class=1)
    (source / "red" / "scan.svs").write_bytes(b"?")
    (source / "red" / "notes.txt").write_text("?")
    (source / "red" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    status, out, error = call("scan", source, "--quiet")
    assert status == 1
    assert error.startswith("featurecache: 1 of 4 inputs is bad (25.0%), the limit is 5.0%")
    assert "4 files, 3 samples\n3 read, 3 samples are new to the cache" in out
    assert "1 cannot be read, and will have no features:\n  red/gone.png: " in out
    assert "1 other file left out by name: 1 .txt" in out
    assert out.splitlines()[-1].startswith("warning: 1 file left out by name: 1 .svs")
    status, out, error = call("scan", source, "--json", "--max-bad", "0.5")
    found = json.loads(out)
    assert (status, error, found["cache"]) == (0, "", str(tmp_path / "photos.cache"))
    assert [item["path"] for item in found["unreadable"]] == ["red/gone.png"]
    assert [warning["kind"] for warning in found["warnings"]] == ["ignored_files"]
    engines = []
    for command in found["next"]:
        args = build_parser().parse_args(shlex.split(command)[1:])
        assert (args.verb, args.source, args.cache) == ("extract", source, tmp_path / "photos.cache")
        engines.append((args.engine, args.device))
    assert engines == [("local", "auto"), ("processes", "cuda:all"), ("rank", "auto")]


def test_columns_of_tables_are_those_of_extract(tmp_path: Path, call: Call) -> None:
    table = tmp_path / "mails.csv"
    table.write_text("key,body\na,one\nb,two\n")
    columns = ["--text-column", "body", "--id-column", "key"]
    status, out, _ = call("scan", table, *columns, "--cache", tmp_path / "c", "--json")
    found = json.loads(out)
    assert (status, found["files"], found["root"]) == (0, 2, f"{table}:body")
    args = build_parser().parse_args(shlex.split(found["next"][0])[1:])
    assert (args.text_column, args.id_column, args.backbone) == ("body", "key", ["all_minilm_l6_v2"])
    assert "2 rows, 2 samples\n" in call("scan", table, *columns, "--cache", tmp_path / "c")[1]


def test_a_wrong_source_leaves_no_cache(tmp_path: Path, call: Call) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("missing", "empty"):
        with pytest.raises(SourceError):
            fc.scan(tmp_path / name, tmp_path / "c")
        status, _, error = call("scan", tmp_path / name, "--cache", tmp_path / "c")
        assert (status, error.count("\n")) == (2, 1)
    assert not (tmp_path / "c").exists()
    status, _, error = call("scan", "s3://bucket/photos")
    assert (status, "say where the cache of s3://bucket/photos goes: --cache DIR" in error) == (2, True)
