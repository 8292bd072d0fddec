"""Seeded views: the same whatever the machine does, equal to the obvious loop, and cached as any other features."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_backbones
import torch
from conftest import COLOURS, TINY, write_image
from PIL import Image
from torch import nn

import featurecache as fc
from featurecache.backbones.torchvision_compat import import_torchvision
from featurecache.errors import CorruptError, DriftError, InputError, RequestError, UnknownNameError
from featurecache.extraction import augmentation
from featurecache.extraction.augmentation import seed_of_view
from featurecache.extraction.deep_verification import verify_deep
from featurecache.extraction.extract import make_request, run_extraction
from featurecache.extraction.modality import modality_of
from featurecache.extraction.recomputation import Inputs, recompute_set_aside
from featurecache.extraction.report import ExtractionReport
from featurecache.hashing import digest_bytes
from featurecache.specs import ExtractionSettings, PreprocessSpec, ViewSpec
from featurecache.store.convert import convert_features
from featurecache.store.repair import compare_set_aside, repair
from featurecache.store.store import FeatureStore
from featurecache.store.verify import verify

Make = Callable[..., Path]
VIEWS = ViewSpec(count=3, hue=0.1)
SMALL = PreprocessSpec(resize=32, crop=32)


def run(source: Path, cache: Path, views: ViewSpec | int | None = VIEWS, **settings: object) -> ExtractionReport:
    taps = settings.pop("taps", ("default",))
    return run_extraction(
        source,
        cache,
        make_request(TINY),
        taps=taps,
        views=views,
        settings=ExtractionSettings(**{"runtime": "torch", "batch_size": 4, "dtype": "float32"} | settings),
    )


def transforms_by_hand(spec: ViewSpec, crop: int) -> Callable[[Image.Image], Image.Image]:
    import_torchvision()
    from torchvision.transforms import InterpolationMode, v2

    return v2.Compose(
        [
            v2.RandomResizedCrop(crop, spec.scale, spec.ratio, interpolation=InterpolationMode.BILINEAR),
            v2.RandomHorizontalFlip(spec.flip),
            v2.ColorJitter(spec.brightness, spec.contrast, spec.saturation, spec.hue),
        ]
    )


def pixels_by_hand(data: bytes, image: Image.Image, spec: ViewSpec, crop: int) -> np.ndarray:
    """The views of an image by torchvision's classes under the global seed, as anyone would write it."""
    views = []
    for number in range(spec.count):
        with torch.random.fork_rng():
            torch.manual_seed(seed_of_view(spec, digest_bytes(data), number))
            views.append(np.asarray(transforms_by_hand(spec, crop)(image)))
    return np.stack(views)


def features_by_hand(path: Path, spec: ViewSpec) -> np.ndarray:
    pixels = pixels_by_hand(path.read_bytes(), Image.open(path).convert("RGB"), spec, 32)
    x = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    network = tiny_backbones.TinyNet().eval()
    network.fc = nn.Identity()
    with torch.no_grad():
        return network(x).numpy()


def files_of(folder: Path) -> dict[str, bytes]:
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found if "sources" not in path.parts}


@pytest.mark.parametrize("size", [(48, 40), (7, 90), (1, 1), (200, 3)])
@pytest.mark.parametrize(
    "spec",
    [
        ViewSpec(count=4),
        ViewSpec(count=4, scale=(0.01, 0.1), ratio=(1, 1), flip=1, brightness=1, contrast=2, saturation=3, hue=0.5),
        ViewSpec(count=4, scale=(1, 1), flip=0, brightness=0, contrast=0, saturation=0),
    ],
    ids=["usual", "wild", "still"],
)
def test_pixels_are_those_of_torchvision_under_the_same_seed(spec: ViewSpec, size: tuple, tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png", (90, 120, 60), seed=3, size=size)
    state = torch.get_rng_state()
    views = loaded(path.read_bytes(), SMALL, spec)
    assert torch.equal(torch.get_rng_state(), state)  # what others draw is not disturbed
    assert np.array_equal(views, pixels_by_hand(path.read_bytes(), Image.open(path), spec, 32))


def loaded(data: bytes, spec: PreprocessSpec, views: ViewSpec) -> np.ndarray:
    return modality_of(spec, views=views).load(data).arrays


def test_what_other_code_draws_does_not_matter(tmp_path: Path) -> None:
    data = write_image(tmp_path / "a.png", (90, 120, 60), seed=3).read_bytes()
    before = loaded(data, SMALL, VIEWS)
    torch.rand(7)
    np.random.default_rng().random()
    assert np.array_equal(loaded(data, SMALL, VIEWS), before)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"scale": (0.1, 0.2)},
        {"ratio": (0.5, 2)},
        {"flip": 1.0},
        {"brightness": 0.9},
        {"contrast": 0.9},
        {"saturation": 0.9},
        {"hue": 0.5},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_setting_changes_pixels_and_more_views_keep_the_first(change: dict, tmp_path: Path) -> None:
    data = write_image(tmp_path / "a.png", (90, 120, 60), seed=3).read_bytes()
    views = loaded(data, SMALL, VIEWS)
    assert not np.array_equal(loaded(data, SMALL, replace(VIEWS, **change)), views)
    assert len(np.unique(views.reshape(3, -1), axis=0)) == 3
    assert np.array_equal(loaded(data, SMALL, replace(VIEWS, count=5))[:3], views)


def test_views_keep_to_the_preprocess(tmp_path: Path) -> None:
    data = write_image(tmp_path / "a.png", (90, 120, 60), seed=3, size=(300, 200)).read_bytes()
    views = loaded(data, SMALL, VIEWS)
    for change in ({"interpolation": "bicubic"}, {"antialias": False}):
        assert not np.array_equal(loaded(data, SMALL.override(**change), VIEWS), views)
    nearest, corners = {"antialias": False}, {"antialias": False, "alignment": "corners"}
    assert not np.array_equal(*(loaded(data, SMALL.override(**change), VIEWS) for change in (nearest, corners)))
    for change in ({"crop_first": True}, {"first_resize": 90}):  # as are these
        assert np.array_equal(loaded(data, SMALL.override(**change), VIEWS), views)
    assert np.array_equal(loaded(data, SMALL.override(resize=64), VIEWS), views)  # `resize` is for plain images
    with pytest.raises(InputError, match="empty"):
        loaded(b"", SMALL, VIEWS)


def test_views_are_made_of_what_trimming_leaves(tmp_path: Path) -> None:
    dark, paper = Image.new("RGB", (90, 70), (10, 20, 30)), Image.new("RGB", (300, 200), (255, 255, 255))
    paper.paste(dark, (20, 100))
    paper.save(tmp_path / "a.png")
    still = replace(VIEWS, brightness=0, contrast=0, saturation=0)
    data = (tmp_path / "a.png").read_bytes()
    assert loaded(data, SMALL, still).max() == 255
    assert loaded(data, SMALL.override(trim_margin=True), still).max() == 30


def test_features_equal_a_loop_by_hand_and_plain_ones_are_there_too(make_folder: Make, tmp_path: Path) -> None:
    source = make_folder(per_class=2)
    report = run(source, tmp_path / "c")
    assert [s.num_views for s in report.sets] == [None, 3]
    assert (report.num_extracted, report.num_cached) == (12, 0)
    features, listing = report.store.features(views=3), report.store.listings.load(source)
    assert features.shape == (6, 3, 16)
    for path, row in listing.row_of.items():
        assert np.allclose(features.read(np.array([row]))[0], features_by_hand(source / path, VIEWS), atol=1e-5)
    plain = run(source, tmp_path / "plain", None).store.features()[:]
    assert np.array_equal(report.store.features()[:], plain)
    again = run(source, tmp_path / "c")
    assert (again.num_extracted, again.num_cached) == (0, 12)


def test_any_batch_size_and_number_of_threads(make_folder: Make, tmp_path: Path) -> None:
    source = make_folder(per_class=3)
    reference = run(source, tmp_path / "a").store.features(views=3)[:]
    for batch_size, workers in ((1, 4), (2, 1), (5, 4), (64, 1)):
        options = {"batch_size": batch_size, "num_workers": workers, "shard_rows": 4}
        other = run(source, tmp_path / f"{batch_size}", **options).store
        assert np.allclose(other.features(views=3)[:], reference, atol=1e-5)


def test_order_and_names_do_not_matter(make_folder: Make, tmp_path: Path) -> None:
    source = make_folder(per_class=3)
    a = run(source, tmp_path / "a").store
    before = a.listings.load(source).row_of
    (tmp_path / "other").mkdir()
    for number, path in enumerate(sorted(before, reverse=True)):
        shutil.copy(source / path, tmp_path / "other" / f"{number}.png")
    b = run(tmp_path / "other", tmp_path / "b").store
    rows = b.samples.rows_of(a.samples.ids[:])
    assert not np.array_equal(rows, np.arange(9))
    assert np.allclose(b.features(views=3).read(rows), a.features(views=3)[:], atol=1e-5)


def test_a_resumed_run_is_byte_for_byte_the_uninterrupted_one(make_folder: Make, tmp_path: Path) -> None:
    source = make_folder(per_class=5)
    run(source, tmp_path / "a", shard_rows=4)
    whole = files_of(tmp_path / "a")
    (tmp_path / "b").mkdir()
    store = run(source, tmp_path / "b", shard_rows=4).store
    folder = store.find(views=3).folder
    for commit in folder.commits()[1:3]:
        (folder.path / "commits" / f"{commit.key}.json").unlink()  # as if the run had been killed before these
    assert run(source, tmp_path / "b", shard_rows=4).num_extracted == 8
    assert files_of(tmp_path / "b") == whole


def test_new_files_add_rows_to_both(make_folder: Make, tmp_path: Path) -> None:
    source = make_folder(per_class=2)
    run(source, tmp_path / "c")
    write_image(source / "red" / "new.png", COLOURS["red"], seed=77)
    assert run(source, tmp_path / "c").num_extracted == 2
    write_image(source / "red" / "newer.png", COLOURS["red"], seed=78)
    assert run(source, tmp_path / "c", None).num_extracted == 1  # the views are not asked for
    assert len(FeatureStore.open(tmp_path / "c").features(views=3)) == 7


def test_bad_inputs_keep_their_row(make_folder: Make, tmp_path: Path) -> None:
    source = make_folder(per_class=2)
    (source / "green" / "000a.jpg").write_bytes(b"")
    (source / "red" / "cut.png").write_bytes((source / "red" / "000.png").read_bytes()[:300])
    report = run(source, tmp_path / "c")
    assert {path: status for path, (status, _) in report.bad.items()} == {
        "green/000a.jpg": "empty",
        "red/cut.png": "undecodable",
    }
    features, listing = report.store.features(views=3), report.store.listings.load(source)
    assert len(features) == 8
    assert sorted(features.bad) == sorted(report.store.features().bad)
    for path, row in listing.row_of.items():
        if row not in features.bad:  # the neighbours of a bad input have their own views, not its places
            assert np.allclose(features.read(np.array([row]))[0], features_by_hand(source / path, VIEWS), atol=1e-5)


def test_smaller_types_agree_within_their_precision(make_folder: Make, tmp_path: Path) -> None:
    source, taps = make_folder(per_class=2), ["pre_logits:none", "body:none"]
    exact = run(source, tmp_path / "c", taps=taps).store
    for dtype in ("float16", "bfloat16", "int8"):
        stored = run(source, tmp_path / "d", taps=taps, dtype=dtype).store
        for tap in taps:
            values = exact.features(tap, views=3, dtype="float32")[:]
            found = stored.features(tap, views=3, dtype=dtype)[:]
            step = np.ptp(values) / 255 if dtype == "int8" else 1e-2 * np.abs(values).max()
            assert np.abs(found - values).max() <= step
            convert_features(exact, exact.find(tap=tap, views=3, dtype="float32"), dtype)
            assert np.allclose(exact.features(tap, views=3, dtype=dtype)[:], found, atol=1e-6)


def test_int8_steps_are_per_channel_also_with_views(make_folder: Make, tmp_path: Path) -> None:
    store = run(make_folder(per_class=2), tmp_path / "c", taps=["body:none"], dtype="int8").store
    commit = store.find(views=3).folder.commits()[0]
    assert commit.shard.arrays["features"].shape == (6, 3, 16, 8, 8)
    assert commit.shard.arrays["scale"].shape == (1, 16, 1, 1)


def test_the_plain_features_are_meant_unless_views_are_asked_for(make_folder: Make, tmp_path: Path) -> None:
    source = make_folder(per_class=2)
    store = run(source, tmp_path / "c").store
    assert store.features().shape == (6, 16)
    assert store.features(views=0).shape == (6, 16)
    with pytest.raises(UnknownNameError, match="unknown cached number of views '4'.*extract --views 4"):
        store.features(views=4)
    run(source, tmp_path / "c", replace(VIEWS, seed=1))
    with pytest.raises(
        RequestError, match="2 feature sets fit, choose by tap, backbone, fingerprint or dtype.*3 views"
    ):
        store.features(views=3)


def test_a_spec_that_does_not_fit_its_shards_is_refused(make_folder: Make, tmp_path: Path) -> None:
    store = run(make_folder(per_class=2), tmp_path / "c").store
    views = store.find(views=3)
    lying = replace(views, identity=replace(views.identity, views=replace(VIEWS, count=5)))
    with pytest.raises(CorruptError, match="instead of 5 views; restore"):
        _ = lying.open().shape


def test_python_takes_a_number_or_a_spec(make_folder: Make, tmp_path: Path) -> None:
    settings = ExtractionSettings(runtime="torch")
    store = fc.extract(make_folder(per_class=1), tmp_path / "c", backbone=TINY, views=2, settings=settings)
    assert store.find(views=2).identity.views == ViewSpec(count=2)
    with pytest.raises(RequestError, match="views count must be a whole number from 1 to 256, got 0"):
        fc.extract(tmp_path / "photos", tmp_path / "none", backbone=TINY, views=0)
    assert not (tmp_path / "none").exists()


def test_verification_and_repair_know_views(make_folder: Make, tmp_path: Path) -> None:
    source = make_folder(per_class=4)
    (source / "red" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    store = run(source, tmp_path / "c", shard_rows=6).store
    convert_features(store, store.find(views=3), "int8")
    inputs = Inputs(source=source, backbone=TINY)
    found = verify_deep(store, inputs, num_rows=100)
    assert (found.num_rows, found.problems) == (3 * 13, [])
    assert found.num_identical >= 2 * 13
    assert not verify(store).problems
    folder, before = store.find(views=3, dtype="float32").folder, files_of(store.path)
    shard = folder.path / "shards" / folder.commits()[1].file_name
    shard.write_bytes(shard.read_bytes()[:-9] + b"\0\1\2\3\4\5\6\7\x08")
    repair(store)
    store = FeatureStore.open(store.path)
    assert recompute_set_aside(store, inputs) == 6
    assert [part.state for part in compare_set_aside(store)] == ["identical"]
    assert {name: data for name, data in files_of(store.path).items() if "quarantine" not in name} == before


def test_a_change_of_the_transforms_is_noticed(
    make_folder: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_folder(per_class=2)
    run(source, tmp_path / "c")
    write_image(source / "red" / "new.png", COLOURS["red"], seed=77)
    monkeypatch.setattr(augmentation, "seed_of_view", lambda views, sample, number: number)
    with pytest.raises(DriftError, match="the first stage that changed is: preprocessed pixels"):
        run(source, tmp_path / "c")
    assert len(FeatureStore.open(tmp_path / "c").features(views=3)) == 6
