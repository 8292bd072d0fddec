"""``--dtype auto``: float16 unless it would lose the features; chosen once, whatever the order, and continued."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from conftest import RUNTIME, TINY, write_image
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from featurecache.atomic import publish_bytes
from featurecache.extraction.extract import make_request, run_extraction
from featurecache.extraction.report import ExtractionReport
from featurecache.extraction.stored_type import smallest
from featurecache.records import encode_record
from featurecache.specs import ExtractionSettings, ViewSpec
from featurecache.store.schemas import StoredType
from featurecache.store.soundness import warnings_of
from featurecache.store.store import FeatureStore
from featurecache.store.verify import verify

Make = Callable[..., Path]
LOST = ("python:tiny_backbones:tiny_features", "python:tiny_backbones:far_features")


def extract(source: Path, cache: Path, backbone: str, **settings: object) -> ExtractionReport:
    views = settings.pop("views", None)
    made = ExtractionSettings(**{"runtime": "torch", "batch_size": 4} | settings)
    return run_extraction(source, cache, make_request(backbone), settings=made, views=views)


def keys(report: ExtractionReport) -> list[str]:
    return [feature_set.key for feature_set in report.sets]


def kinds(report: ExtractionReport) -> list[str]:
    return [warning.kind for warning in report.warnings]


@pytest.mark.parametrize("backbone", [*LOST, "python:tiny_backbones:overflowing"])
def test_features_that_float16_would_lose_are_stored_as_float32(
    backbone: str, make_folder: Make, tmp_path: Path
) -> None:
    source = make_folder(per_class=4)
    report = extract(source, tmp_path / "c", backbone)
    (feature_set,) = report.sets
    assert feature_set.dtype == "float32"
    assert (kinds(report), report.bad) == (["storage_error"], {})
    assert "float32" in report.warnings[0].text
    assert np.ptp(feature_set.open()[:], axis=0).min() > 0
    again = extract(source, tmp_path / "c", backbone)
    assert (again.num_extracted, again.warnings) == (0, report.warnings)


def test_usual_features_are_stored_as_float16_in_silence(make_folder: Make, tmp_path: Path) -> None:
    report = extract(make_folder(per_class=4), tmp_path / "c", TINY)
    assert [s.dtype for s in report.sets] == ["float16"]
    assert report.warnings == []


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_type_that_was_asked_for_is_taken_and_its_error_told(dtype: str, make_folder: Make, tmp_path: Path) -> None:
    backbone = LOST[1] if dtype != "float16" else LOST[0]
    source = make_folder(per_class=4)
    report = extract(source, tmp_path / "c", backbone, dtype=dtype)
    assert [s.dtype for s in report.sets] == [dtype]
    assert set(kinds(report)) == {"storage_error", "constant_features"}
    assert verify(report.store).problems == ()


def test_every_verb_that_uses_features_warns(make_folder: Make, tmp_path: Path, call: Callable) -> None:
    source, cache = make_folder(per_class=8), tmp_path / "c"
    status, out, _ = call("extract", source, "--cache", cache, "--backbone", LOST[0], "--dtype", "float16", *RUNTIME)
    assert status == 0
    assert "warning: 16 of 16 features (100 %) of pre_logits:none have the same value in every row" in out
    assert "float16, with an error of" in out
    assert call("task", "add", cache, "colour", "--from-folders")[0] == 0
    train = ["train", cache, "--task", "colour", "--head", "ridge", "--quiet"]
    sweep = ["sweep", cache, "--head", "ridge", "--seeds", "1", "--quiet"]
    for args in (train, sweep, ["info", cache], ["verify", cache, "--quiet"]):
        status, out, _ = call(*args)
        assert (status, "16 of 16 features (100 %)" in out, "with an error of" in out) == (0, True, True), args
        document = json.loads(call(*args, "--json")[1])
        found = document["warnings"] if "warnings" in document else document["features"][0]["warnings"]
        counts = {w["kind"]: w["count"] for w in found}
        counts.pop("no_better_than_baseline", None)  # of such features nothing can be learned, and training says so
        assert counts == {"constant_features": 16, "storage_error": 1}


def test_some_constant_features_are_counted(make_folder: Make, tmp_path: Path) -> None:
    source, cache = make_folder(per_class=4), tmp_path / "c"
    report = extract(source, cache, "python:tiny_backbones:dead_features", shard_rows=5)  # shards of 5, 5 and 2 rows
    assert kinds(report) == ["constant_features"]
    assert (report.warnings[0].count, "4 of 16 features (25 %)" in report.warnings[0].text) == (4, True)
    whole = extract(source, tmp_path / "d", "python:tiny_backbones:dead_features")
    assert whole.warnings == report.warnings


def test_what_is_constant_in_each_shard_but_not_in_all_is_not_constant(make_folder: Make, tmp_path: Path) -> None:
    source, cache = tmp_path / "flat", tmp_path / "c"
    for value in (10, 200):
        for number in range(8):
            path = source / f"{value}-{number}.png"
            path.parent.mkdir(exist_ok=True)
            about = PngInfo()
            about.add_text("number", str(number))  # other bytes, the same picture
            Image.fromarray(np.full((40, 48, 3), value, np.uint8)).save(path, pnginfo=about)
    report = extract(source, cache, TINY, shard_rows=8)
    bodies = [commit.body for commit in report.sets[0].open().commits]
    assert [body["constant"] != [] for body in bodies] == [True, True]
    values = report.sets[0].open()[:]
    dead = int((np.ptp(values, axis=0) == 0).sum())
    assert [w.count for w in report.warnings if w.kind == "constant_features"] == ([dead] if dead else [])


def test_the_choice_holds_for_added_files_other_sources_and_after_a_kill(make_folder: Make, tmp_path: Path) -> None:
    source, cache = make_folder(per_class=4), tmp_path / "c"
    first = extract(source, cache, LOST[0])
    write_image(source / "red" / "new.png", (200, 10, 10), seed=99)
    assert keys(extract(source, cache, LOST[0])) == keys(first)
    other = make_folder("other", per_class=2, seed=77)
    assert keys(extract(other, cache, LOST[0])) == keys(first)
    # A run that was killed after the choice and before its first shard has left the choice.
    begun = FeatureStore.create(tmp_path / "begun")
    tap, fingerprint = first.sets[0].tap, first.sets[0].fingerprint
    kept = begun.remember_type(fingerprint, tap, StoredType(dtype="float16", rows=16, error=0.0))
    assert begun.remember_type(fingerprint, tap, StoredType(dtype="float32", rows=16, error=0.5)) == kept
    assert [s.dtype for s in extract(source, begun.path, LOST[0]).sets] == ["float16"]


def test_a_damaged_choice_is_found_and_made_again(make_folder: Make, tmp_path: Path) -> None:
    source, store = make_folder(per_class=2), extract(make_folder(per_class=2), tmp_path / "c", LOST[0]).store
    (path,) = (store.path / "types").iterdir()
    path.write_bytes(path.read_bytes()[:-9])
    assert [problem.where for problem in verify(store).problems] == [f"types/{path.name}"]
    assert [s.dtype for s in extract(source, store.path, LOST[0]).sets] == ["float32"]


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_cache_of_any_type_is_continued_in_it(dtype: str, make_folder: Make, tmp_path: Path) -> None:
    source, cache = make_folder(per_class=4), tmp_path / "c"
    begun = extract(source, cache, LOST[1], dtype=dtype)
    write_image(source / "red" / "new.png", (200, 10, 10), seed=99)
    continued = extract(source, cache, LOST[1])
    assert (keys(continued), continued.num_extracted) == (keys(begun), 1)
    assert ("storage_error" in kinds(continued)) == (dtype in ("float16", "bfloat16"))


@pytest.mark.parametrize("backbone", LOST)
def test_a_cache_of_an_earlier_release_is_continued_with_a_warning(
    backbone: str, make_folder: Make, tmp_path: Path
) -> None:
    """Its shards say nothing of spreads and constants."""
    source, cache = make_folder(per_class=4), tmp_path / "c"
    begun = extract(source, cache, backbone, dtype="float16")
    feature_set = begun.sets[0]
    # Where everything became equal, nobody can say any more whether it was.
    expected = [kind for kind in kinds(begun) if backbone == LOST[0] or kind == "constant_features"]
    for commit in feature_set.open().commits:
        precision = {n: v for n, v in commit.body["precision"].items() if n != "relative_to_spread"}
        body = {n: v for n, v in commit.body.items() if n != "constant"} | {"precision": precision}
        content = {**msgspec.to_builtins(commit.shard), "body": body}
        publish_bytes(feature_set.folder.record(commit.key), encode_record("commit", content))
    write_image(source / "red" / "new.png", (200, 10, 10), seed=99)
    continued = extract(source, cache, backbone)
    assert keys(continued) == keys(begun)
    assert kinds(continued) == expected
    assert "the default --dtype auto" in continued.warnings[0].text


def test_the_widest_of_several_types_is_continued(make_folder: Make, tmp_path: Path) -> None:
    source, cache = make_folder(per_class=2), tmp_path / "c"
    for dtype in ("float16", "float32"):
        extract(source, cache, TINY, dtype=dtype)
    report = extract(source, cache, TINY)
    assert ([s.dtype for s in report.sets], report.num_extracted) == (["float32"], 0)


@pytest.mark.parametrize("backbone", [TINY, LOST[0]])
def test_views_have_the_type_of_the_plain_features(backbone: str, make_folder: Make, tmp_path: Path) -> None:
    source, cache = make_folder(per_class=3), tmp_path / "c"
    report = extract(source, cache, backbone, views=ViewSpec(count=2))
    assert len({s.dtype for s in report.sets}) == 1
    again = extract(source, cache, backbone, views=ViewSpec(count=2))
    assert (keys(again), again.num_extracted) == (keys(report), 0)


def test_bad_inputs_say_nothing_of_a_type(tmp_path: Path, make_folder: Make) -> None:
    source, cache = tmp_path / "bad", tmp_path / "c"
    source.mkdir()
    for number in range(40):
        (source / f"{number}.png").write_bytes(f"no image {number}".encode())
    bad = extract(source, cache, LOST[0])
    assert (len(bad.bad), kinds(bad)) == (40, [])
    good = make_folder(per_class=2)
    for path in good.rglob("*.png"):
        path.rename(source / f"{path.parent.name}-{path.name}")
    report = extract(source, cache, LOST[0])
    assert ([s.dtype for s in report.sets], len(report.bad)) == (["float32"], 40)


def test_the_choice_does_not_depend_on_names_or_order(make_folder: Make, tmp_path: Path) -> None:
    source = make_folder(per_class=8)
    first = extract(source, tmp_path / "c", LOST[0])
    for number, path in enumerate(sorted(source.rglob("*.png"), reverse=True)):
        path.rename(source / f"{number:03d}.png")
    second = extract(source, tmp_path / "d", LOST[0], num_workers=1, batch_size=3)
    tap, fingerprint = first.sets[0].tap, first.sets[0].fingerprint
    assert first.store.recall_type(fingerprint, tap) == second.store.recall_type(fingerprint, tap)


def test_the_smallest_ids_are_those_of_the_source_alone() -> None:
    ids = np.random.default_rng(0).integers(0, 256, (3000, 32), np.uint8)
    rows = np.arange(1, 3000, 2)
    chosen = smallest(ids, rows, 20)
    expected = sorted(rows.tolist(), key=lambda row: ids[row].tobytes())[:20]
    assert chosen.tolist() == expected


def test_a_warning_of_a_set_can_be_read_without_its_source(make_folder: Make, tmp_path: Path) -> None:
    (feature_set,) = extract(make_folder(per_class=4), tmp_path / "c", LOST[0], dtype="float16").sets
    assert {w.kind for w in warnings_of(feature_set)} == {"storage_error", "constant_features"}
    assert warnings_of(replace(feature_set, about={})) == warnings_of(feature_set)
