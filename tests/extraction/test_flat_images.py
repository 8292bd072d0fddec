"""Images that became flat are counted from the records of all shards: for whichever run, verb and source asks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import COLOURS, RUNTIME, TINY, write_image
from PIL import Image

import featurecache as fc
from featurecache.errors import ReportWarning
from featurecache.extraction.extract import make_request, run_extraction
from featurecache.reporting.pictures import thumbnail
from featurecache.specs import ExtractionSettings
from featurecache.store.soundness import warnings_of
from featurecache.store.store import FeatureStore
from featurecache.store.verify import verify

Call = Callable[..., tuple[int, str, str]]
SETTINGS = ExtractionSettings(runtime="torch", batch_size=4, shard_rows=5)


def write_deep(path: Path, *, seed: int, most: int = 511) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, most, (40, 48))
    Image.fromarray(values.astype(np.uint16)).save(path)
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Six ordinary images of two classes, each with two of 9 bits in 16 and one that is transparent everywhere."""
    for label in ("blue", "red"):
        for number in range(6):
            write_image(tmp_path / "photos" / label / f"a{number}.png", COLOURS[label], seed=number + 10 * len(label))
        for number in range(2):
            write_deep(tmp_path / "photos" / label / f"deep{number}.png", seed=100 + number + 10 * len(label))
        clear = np.random.default_rng(len(label)).integers(0, 255, (40, 48, 4)).astype(np.uint8)
        clear[..., 3] = 0
        Image.fromarray(clear).save(tmp_path / "photos" / label / "transparent.png")
    return tmp_path / "photos"


def extracted(source: Path, cache: Path, **options: Any) -> ReportWarning | None:
    request = make_request(TINY, preprocess=options.pop("preprocess", None))
    report = run_extraction(source, cache, request, settings=options.pop("settings", SETTINGS), **options)
    flat = [warning for warning in report.warnings if warning.kind == "flat_images"]
    assert len(flat) <= 1
    return flat[0] if flat else None


def test_runs_in_any_order_and_size_say_the_same(source: Path, tmp_path: Path) -> None:
    first = extracted(source, tmp_path / "a")
    assert first is not None
    assert (first.count, "4 of more than 8 bits" in first.text, "2 transparent" in first.text) == (6, True, True)
    assert "--range image" in first.text
    assert set(first.examples) <= {f"{label}/{n}.png" for label in COLOURS for n in ("deep0", "deep1", "transparent")}
    assert extracted(source, tmp_path / "a") == first  # nothing was computed this time
    other = ExtractionSettings(runtime="torch", batch_size=3, shard_rows=2, num_workers=3)
    assert extracted(source, tmp_path / "b", settings=other) == first
    for label in ("red", "blue"):  # one class after the other, the deep ones first
        shutil.copytree(source / label, tmp_path / "slowly" / label)
        again = extracted(tmp_path / "slowly", tmp_path / "d")
    assert again is not None
    assert (again.count, again.text) == (first.count, first.text)
    assert verify(FeatureStore.open(tmp_path / "a")).problems == ()


def test_only_what_a_source_holds_is_counted(source: Path, tmp_path: Path) -> None:
    cache = tmp_path / "c"
    extracted(source, cache)
    (source / "red" / "deep0.png").unlink()
    write_deep(tmp_path / "other" / "one.png", seed=7)
    write_deep(tmp_path / "other" / "two.png", seed=8, most=65535)
    left, other = extracted(source, cache), extracted(tmp_path / "other", cache)
    assert left is not None
    assert other is not None
    assert (left.count, other.count, other.examples) == (5, 1, ("one.png",))
    (whole,) = (w for w in warnings_of(FeatureStore.open(cache).feature_sets()[0]) if w.kind == "flat_images")
    assert whole.count == 6


def test_a_range_mends_it_under_a_fingerprint_of_its_own(source: Path, tmp_path: Path) -> None:
    cache = tmp_path / "c"
    plain = extracted(source, cache)
    mended = extracted(source, cache, preprocess={"range": "image"})
    window = extracted(source, cache, preprocess={"range": (0, 511)})
    assert [w and w.count for w in (plain, mended, window)] == [6, 2, 2]
    sets = FeatureStore.open(cache).feature_sets()
    assert len({each.fingerprint for each in sets}) == 3


def test_views_and_conversions_carry_it(source: Path, tmp_path: Path) -> None:
    from featurecache.store.convert import convert_features

    flat = extracted(source, tmp_path / "c", views=2)
    store = FeatureStore.open(tmp_path / "c")
    assert flat is not None
    assert len(store.feature_sets()) == 2
    converted = convert_features(store, store.feature_sets()[0], "int8")
    for each in [*store.feature_sets(), converted]:
        assert [w.count for w in warnings_of(each) if w.kind == "flat_images"] == [6]


def test_run_info_train_and_deep_verification(source: Path, tmp_path: Path, call: Call) -> None:
    cache = tmp_path / "c"
    ranged = ["--backbone", TINY, "--range", "-100,70000", *RUNTIME]
    status, out, _ = call("run", source, "--cache", cache, "--head", "ridge", *ranged)
    assert status == 0
    assert out.count("4 of more than 8 bits, with --range -100,70000 (another --range LOW,HIGH") == 1
    assert "range -100,70000" in call("info", cache)[1]
    assert [f["warnings"][0]["count"] for f in json.loads(call("info", cache, "--json")[1])["features"]] == [6]
    out = call("train", cache, "--task", "run", "--head", "ridge", "--quiet", "--json")[1]
    warnings = [(w["kind"], w["count"]) for w in json.loads(out)["warnings"]]
    assert warnings == [("flat_images", 6), ("no_better_than_baseline", 4)]
    status, out, _ = call("verify", cache, "--deep", "--source", source, "--backbone", TINY, "--quiet")
    assert (status, "18 rows computed again: 18 identical" in out) == (0, True)


def test_an_unfit_range_costs_no_extraction(source: Path, tmp_path: Path, call: Call) -> None:
    for wrong in ("half", "5", "9,1", "1,nan"):
        status, _, err = call("extract", source, "--cache", tmp_path / "c", "--backbone", TINY, "--range", wrong)
        assert (status, "range" in err, err.count("\n")) == (2, True, 1)
    assert not (tmp_path / "c").exists()


def test_a_thumbnail_shows_what_a_deep_image_holds(tmp_path: Path) -> None:
    import base64
    import io

    path = write_deep(tmp_path / "deep.png", seed=0)
    uri = thumbnail(path.read_bytes())
    assert uri is not None
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as shown:
        low, high = shown.convert("L").getextrema()
    assert high - low > 200


def test_training_on_images_obeys_the_range(source: Path, tmp_path: Path) -> None:
    from featurecache.finetuning.images import images_of

    store = fc.extract(source, tmp_path / "c", backbone=TINY, preprocess={"range": "image"}, settings=SETTINGS)
    task = store.add_task("t", fc.labels_from_folders())
    (feature_set,) = store.feature_sets()
    images = images_of(store, task, feature_set, [source])
    listing = store.listings.load(source)
    assert listing is not None
    dataset = images.dataset
    with dataset.modality.undisturbed():
        pixels = dataset.read(np.searchsorted(images.rows, [listing.row_of["red/deep0.png"]]))
    assert float(pixels.max() - pixels.min()) > 1.5  # of 2, with a standard deviation of 0.5
