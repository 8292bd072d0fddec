"""Images that torch resizes: by one rule wherever it does it, and nearly as Pillow does."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, write_image
from PIL import Image

import featurecache as fc
from featurecache.backbones.packed_images import empty_slots, headers_of, is_packed, packed, packs, unpacked
from featurecache.deployment.export import export_head
from featurecache.deployment.kept import keep_head
from featurecache.errors import InputError, RequestError
from featurecache.extraction.extract import make_request, run_extraction
from featurecache.extraction.modality import PackedImages, modality_of, without_resizing
from featurecache.resizing import resize_and_crop
from featurecache.specs import ExtractionSettings, FeatureIdentity, PreprocessSpec, ViewSpec

SETTINGS = ExtractionSettings(runtime="torch", batch_size=4, dtype="float32", device="cpu")
SPEC = PreprocessSpec(resize=40, crop=32, resize_on="device")


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """An image with large and small structures."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), np.uint8)).resize((width, height))
    noisy = np.asarray(coarse, float) + rng.normal(0, 12, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def weights_of(before: int, after: int) -> np.ndarray:
    """Of a triangle as wide as two pixels of the smaller side, at each pixel: a matrix (after, before)."""
    scale = before / after
    support = max(scale, 1.0)
    centres = (np.arange(after)[:, None] + 0.5) * scale
    weights = np.maximum(1 - np.abs((np.arange(before) + 0.5 - centres) / support), 0)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("size", [(97, 64), (64, 97), (40, 40), (23, 31), (400, 41)])
def test_resizing_is_a_triangle_filter_rounded_once(size: tuple[int, int]) -> None:
    image = photograph(*size)
    found = np.asarray(resize_and_crop(image, SPEC.override(crop=40, resize=40, resize_mode="squash")), int)
    rows, columns = weights_of(size[1], 40), weights_of(size[0], 40)
    exact = np.einsum("ij,jkc,lk->ilc", rows, np.asarray(image, float), columns)
    assert np.abs(found - exact).max() < 0.5 + 1e-3


@pytest.mark.parametrize(("interpolation", "most"), [("bilinear", 1), ("bicubic", 4)])
def test_it_differs_from_pillow_by_roundings(interpolation: str, most: int) -> None:
    """Pillow rounds, and cuts off what overshoots, after each direction."""
    spec = SPEC.override(interpolation=interpolation, resize=256, crop=224)
    pillow = spec.override(resize_on="cpu")
    for seed, size in enumerate([(500, 375), (333, 700), (200, 150)]):
        image = photograph(*size, seed=seed)
        difference = np.abs(
            np.asarray(resize_and_crop(image, spec), int) - np.asarray(resize_and_crop(image, pillow), int)
        )
        assert difference.max() <= most
        assert difference.mean() < 0.25


@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_a_batch_of_packed_images_becomes_what_each_becomes_alone(mode: str) -> None:
    """Of any sizes: several of one, some too large for their slot, and black ones where there are none."""
    spec = SPEC.override(resize_mode=mode)
    images = [photograph(*size, seed=i) for i, size in enumerate([(60, 50), (90, 41), (60, 50), (32, 32), (700, 500)])]
    batch = empty_slots(spec, len(images) + 1)
    for slot, image in zip(batch, images, strict=False):
        array = packed(image, spec)
        slot[:] = 255  # of an earlier batch
        slot[: len(array)] = array
    assert is_packed(batch)
    assert [done for _, _, done in headers_of(batch)] == [0, 0, 0, 0, 1, 1]
    found = unpacked(torch.from_numpy(batch), headers_of(batch), spec).numpy()
    assert found.dtype == np.uint8
    for index, image in enumerate(images):
        assert np.array_equal(found[index], np.asarray(resize_and_crop(image, spec))), index
    assert not found[-1].any()


def test_a_line_of_pixels_is_refused_before_it_is_drawn_out() -> None:
    data = io.BytesIO()
    Image.new("RGB", (1000, 1)).save(data, "PNG")
    for modality in (modality_of(SPEC.override(max_pixels=1500)), PackedImages(SPEC.override(max_pixels=1500), None)):
        with pytest.raises(InputError, match="too_large: 1000x1 pixels become 40000x40"):
            modality.load(data.getvalue())


def test_what_is_resized_once_and_cropped_is_packed() -> None:
    assert packs(SPEC)
    for change in ({"resize_on": "cpu"}, {"first_resize": 50}, {"crop_first": True}, {"padding": "center"}):
        assert not packs(SPEC.override(**change)), change
    assert isinstance(without_resizing(modality_of(SPEC)), PackedImages)
    for spec, views in ((SPEC.override(resize_on="cpu"), None), (SPEC, ViewSpec(count=2))):
        modality = modality_of(spec, views=views)
        assert without_resizing(modality) is modality


@pytest.mark.parametrize("trim", [False, True])
def test_digests_do_not_tell_where_an_image_was_resized(trim: bool) -> None:
    data = io.BytesIO()
    page = Image.new("RGB", (90, 70), "white")
    page.paste(photograph(60, 50), (10, 10))
    page.save(data, "PNG")
    spec = SPEC.override(trim_margin=trim)
    here, there = (
        modality.load(data.getvalue(), digested=True) for modality in (modality_of(spec), PackedImages(spec, None))
    )
    assert here.digests == there.digests
    slots = empty_slots(spec, 1)
    slots[0, : there.arrays.shape[1]] = there.arrays[0]
    assert np.array_equal(unpacked(torch.from_numpy(slots), headers_of(slots), spec).numpy(), here.arrays)


def test_it_is_part_of_the_fingerprint_and_left_out_at_its_old_value() -> None:
    plain, on_device = (
        FeatureIdentity(backbone="b", architecture="a", weights="w", preprocess=spec)
        for spec in (SPEC.override(resize_on="cpu"), SPEC)
    )
    assert "resize_on" not in plain.to_json()["preprocess"]
    assert on_device.to_json()["preprocess"]["resize_on"] == "device"
    assert FeatureIdentity.from_json(json.loads(json.dumps(on_device.to_json()))) == on_device
    assert plain.fingerprint != on_device.fingerprint
    assert plain.differences(on_device) == ["preprocess.resize_on None -> device"]


@pytest.mark.parametrize("change", [{"interpolation": "lanczos"}, {"interpolation": "nearest"}, {"antialias": False}])
def test_filters_that_torch_lacks_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(RequestError, match="resize_on 'device' needs antialias, and interpolation bilinear or bicubic"):
        SPEC.override(**change)


def test_heads_predict_by_it_and_are_not_exported(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    source = make_folder(per_class=6)
    write_image(source / "red" / "large.png", (200, 0, 0), seed=9, size=(300, 90))
    request = make_request(TINY, preprocess={"resize_on": "device"})
    report = run_extraction(source, tmp_path / "c", request, settings=SETTINGS)
    assert run_extraction(source, tmp_path / "c", request, settings=SETTINGS).num_extracted == 0
    plain = run_extraction(source, tmp_path / "c", make_request(TINY), settings=SETTINGS)
    assert plain.sets[0].fingerprint != report.sets[0].fingerprint
    store = fc.FeatureStore.open(tmp_path / "c")
    task = store.add_task("colour", fc.labels_from_folders())
    best = fc.train_heads(store, task, [report.sets[0]], ["ridge"], n_jobs=1).best
    head = keep_head(store, "best", best)
    found = list(fc.predict(head, [source / "red"], backbone=TINY, settings=SETTINGS))
    assert [prediction.label for prediction in found] == ["red"] * 7
    with pytest.raises(RequestError, match="images that Pillow has resized; extract with --resize-on cpu"):
        export_head(head, tmp_path / "out.onnx", backbone=TINY)
