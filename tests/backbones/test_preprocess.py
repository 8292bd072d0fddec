"""What a network sees is what the library that published it would show it, to 2 % of the spread, or is refused.

Of transformers, the law is about every image processor that can be made without settings, and that makes of each of
three ordinary images (wide, tall, square) one array (3, height, width) of the same shape. That counts some classes that
would give other images another shape, which are refused; of all, at most 15 % may be.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import need
from PIL import Image, ImageDraw, ImageFilter

from featurecache.backbones.providers import image_processors, open_clip_models, timm_models
from featurecache.backbones.providers.reference_transform import prepared, relative_error
from featurecache.backbones.torchvision_compat import import_torchvision
from featurecache.errors import BackboneError
from featurecache.specs import PreprocessSpec

TOLERANCE = 0.02
NEVER_REFUSED = ("ViT", "CLIP", "Siglip", "Bit", "ConvNext", "Beit", "DeiT")  # Bit: DINOv2 and BiT; ViT: Swin too
MOST_REFUSED = 0.15
SIZES = ((340, 251), (233, 400))


@cache
def scene(width: int, height: int) -> Image.Image:
    """A made-up photograph: a gradient behind blurred shapes and thin lines."""
    rng = np.random.default_rng(width)
    sky = np.linspace(0, 200, height)[:, None, None] + rng.integers(0, 50, (1, 1, 3))
    image = Image.fromarray(np.broadcast_to(sky, (height, width, 3)).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for number in range(12):
        x, y, side = rng.integers(0, width), rng.integers(0, height), rng.integers(8, max(width // 4, 9))
        colour = tuple(rng.integers(0, 256, 3).tolist())
        draw.rectangle((x, y, x + side, y + side // 2), fill=colour)
        draw.line((x, 0, number * width // 12, height), fill=colour, width=2)
    return image.filter(ImageFilter.GaussianBlur(1))  # photographs have no edges of less than a pixel


@cache
def page() -> Image.Image:
    """A picture on a page with a margin."""
    paper = Image.new("RGB", (500, 640), (250, 248, 245))
    paper.paste(scene(300, 400), (80, 100))
    return paper


@pytest.fixture(scope="module")
def transformers() -> Iterator[ModuleType]:
    need("transformers")
    import_torchvision()
    import transformers as package

    before = package.utils.logging.get_verbosity()
    package.utils.logging.set_verbosity(50)
    yield package
    package.utils.logging.set_verbosity(before)


def output_of(processor: Any, image: Image.Image) -> Any:
    """Return the one array of shape (3, H, W) that a processor makes of an image, if that is what it does."""
    try:
        output = processor(images=image, return_tensors="pt")
    except Exception:  # one that needs more than an image
        return None
    if not hasattr(output, "keys"):
        return None
    pixels = [name for name in output.keys() if "pixel_values" in name]  # noqa: SIM118
    values = output[pixels[0]] if pixels == ["pixel_values"] else None
    return values[0].numpy() if getattr(values, "shape", ())[:2] == (1, 3) and values.ndim == 4 else None


def outputs_of_one_shape(processor: Any) -> list[Any]:
    """Return what a wide, a tall and a square image become, if that is one array of each, and all of the same shape."""
    arrays: list[Any] = []
    for size in (*SIZES, (300, 300)):
        array = output_of(processor, scene(*size))
        if array is None or (arrays and array.shape != arrays[0].shape):
            return []
        arrays.append(array)
    return arrays


def small(kind: Any) -> Any:
    """Make a processor as its class is, but without sides of thousands of pixels: they take seconds by equal rules."""
    processor, sizes = kind(), {}
    for field in ("size", "crop_size", "pad_size"):
        if (size := getattr(processor, field, None)) is not None and not isinstance(size, int):
            items = size if isinstance(size, dict) else vars(size)
            sizes[field] = {key: side for key, side in items.items() if side is not None}
    factor = -(-max((side for size in sizes.values() for side in size.values()), default=0) // 512)
    if factor <= 1:
        return processor
    return kind(**{field: {key: side // factor for key, side in size.items()} for field, size in sizes.items()})


def processors(backend: str) -> dict[str, Any]:
    """Return every image processor of transformers that can be made without settings, by its class."""
    from transformers.models.auto import image_processing_auto as auto

    names = {kinds[backend] for kinds in auto.IMAGE_PROCESSOR_MAPPING_NAMES.values() if backend in kinds}
    made = {}
    for name in sorted(names):
        try:
            made[name] = small(auto.get_image_processor_class_from_name(name))
        except (ImportError, TypeError):  # needs another package, or settings
            continue
    return made


def check_law(backend: str) -> None:
    refused, obeyed = {}, []
    for name, processor in processors(backend).items():
        if not (theirs := outputs_of_one_shape(processor)):
            continue
        try:
            preprocess = image_processors.preprocess_of(processor, "hf:any")
        except BackboneError as error:
            refused[name] = str(error)
            continue
        obeyed.append(name)
        images = [*(scene(*size) for size in SIZES), page()]
        for image, expected in zip(images, [*theirs[:2], output_of(processor, page())], strict=True):
            error = relative_error(prepared(image, preprocess), expected)
            assert error <= TOLERANCE, f"{name}, image of {image.size}: {error:.1%}"
    assert len(obeyed) > 20
    assert len(refused) <= MOST_REFUSED * (len(refused) + len(obeyed)), refused
    wrong = [name for name in refused if name.startswith(NEVER_REFUSED)]
    assert not wrong
    for message in refused.values():
        assert "in its preprocessor_config.json" in message


def test_every_image_processor_of_transformers_is_obeyed_or_refused(transformers: ModuleType) -> None:
    check_law("torchvision")


@pytest.mark.slow
def test_so_is_every_one_that_works_with_pillow(transformers: ModuleType) -> None:
    check_law("pil")


def test_processors_whose_shape_depends_on_the_image_are_refused_by_name(transformers: ModuleType) -> None:
    for kind, field in (("Detr", "size"), ("GLPN", "size_divisor"), ("ZoeDepth", "keep_aspect_ratio")):
        processor = getattr(transformers, f"{kind}ImageProcessor")()
        with pytest.raises(BackboneError, match=f"hf:any: {field} "):
            image_processors.preprocess_of(processor, "hf:any")


def folder_with(tmp_path: Path, settings: dict[str, Any], model_type: str = "vit") -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    return tmp_path


CLIP = {"image_processor_type": "CLIPImageProcessor"}
VIT = {"image_processor_type": "ViTImageProcessor"}
OBEYED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "size is a number": {"size": 96},
    "size is a number, an old name": {"size": 96, "feature_extractor_type": "ViTFeatureExtractor", "resample": 3},
    "not square": {**VIT, "size": {"height": 64, "width": 96}},
    "no mean": {**VIT, "size": {"height": 64, "width": 64}},
    "one mean for all": {**VIT, "size": 64, "image_mean": 0.4, "image_std": 0.2},
    "not normalised": {**VIT, "size": 64, "do_normalize": False},
    "not rescaled": {**VIT, "size": 64, "do_rescale": False},
    "neither": {**VIT, "size": 64, "do_rescale": False, "do_normalize": False},
    "rescaled to two": {**VIT, "size": 64, "rescale_factor": 1 / 127.5},
    "crop is a number": {**CLIP, "size": 75, "crop_size": 64},
    "crop by an odd margin": {**CLIP, "size": {"shortest_edge": 75}, "crop_size": {"height": 64, "width": 64}},
    "crop beyond the image": {**CLIP, "size": {"shortest_edge": 64}, "crop_size": {"height": 80, "width": 70}},
    "lanczos": {**CLIP, "size": 64, "crop_size": 64, "resample": 1},
    "a share of the crop": {"image_processor_type": "ConvNextImageProcessor", "size": 96, "crop_pct": 0.8},
    "the share of older releases": {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 96},
    "no crop of large images": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}},
    "an own share": {"image_processor_type": "LevitImageProcessor", "size": {"shortest_edge": 64}, "crop_size": 64},
    "BGR": {"image_processor_type": "MobileViTImageProcessor", "size": {"shortest_edge": 80}, "crop_size": 64},
    "RGB after all": {"image_processor_type": "MobileViTImageProcessor", "do_flip_channel_order": False},
    "minus one": {"image_processor_type": "EfficientNetImageProcessor", "size": 64, "rescale_offset": True},
    "divided once": {"image_processor_type": "EfficientNetImageProcessor", "size": 64, "include_top": False},
    "filled after normalising": {
        "image_processor_type": "SamImageProcessor",
        "size": {"longest_edge": 96},
        "pad_size": {"height": 96, "width": 96},
    },
    "another share before resizing": {
        "image_processor_type": "PerceiverImageProcessor",
        "size": {"height": 64, "width": 80},
        "crop_size": {"height": 90, "width": 100},
    },
    "no crop before resizing": {"image_processor_type": "PerceiverImageProcessor", "do_center_crop": False},
    "twice, a wide frame": {"image_processor_type": "DonutImageProcessor", "size": {"height": 60, "width": 100}},
    "a margin": {"image_processor_type": "NougatImageProcessor", "size": {"height": 100, "width": 60}},
    "no margin": {
        "image_processor_type": "NougatImageProcessor",
        "size": {"height": 64, "width": 64},
        "do_crop_margin": False,
    },
    "corner to corner": {"image_processor_type": "UVDocImageProcessor", "size": {"height": 64, "width": 50}},
    "normalised before BGR": {
        "image_processor_type": "UVDocImageProcessor",
        "size": {"height": 64, "width": 50},
        "do_normalize": True,
        "image_mean": [0.2, 0.5, 0.7],
        "image_std": [0.2, 0.3, 0.4],
    },
    "labels are another matter": {"image_processor_type": "BeitImageProcessor", "size": 64, "do_reduce_labels": True},
}


@pytest.mark.parametrize("case", OBEYED)
def test_fields_of_any_edition_are_obeyed(case: str, transformers: ModuleType, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, OBEYED[case])
    preprocess = image_processors.read_preprocess(transformers, str(folder), "hf:any")
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    for image in (*(scene(*size) for size in (*SIZES, (50, 41))), page()):
        theirs = processor(images=image, return_tensors="pt")["pixel_values"][0].numpy()
        assert relative_error(prepared(image, preprocess), theirs) <= TOLERANCE


REFUSED: dict[str, dict[str, Any]] = {
    "sharpen": {**VIT, "sharpen": 0.5},
    "crop_pct": {**VIT, "crop_pct": 0.9},
    "resample": {**VIT, "resample": 4},
    "do_resize": {**VIT, "do_resize": False},
    "size": {**CLIP, "do_center_crop": False},
    "do_pad": {"image_processor_type": "DonutImageProcessor", "do_pad": False},
    "do_thumbnail": {"image_processor_type": "NougatImageProcessor", "do_thumbnail": False},
    "do_align_long_axis": {"image_processor_type": "DonutImageProcessor", "do_align_long_axis": True},
    "crop_size": {"image_processor_type": "PerceiverImageProcessor", "crop_size": {"height": 200, "width": 256}},
    "size_divisor": {"image_processor_type": "BridgeTowerImageProcessor"},
    "do_grayscale": {"image_processor_type": "SuperPointImageProcessor", "do_grayscale": True},
    "keep_aspect_ratio": {"image_processor_type": "DPTImageProcessor", "keep_aspect_ratio": True},
    "ensure_multiple_of": {"image_processor_type": "DPTImageProcessor", "ensure_multiple_of": 32, "size": 100},
    "image_std": {**VIT, "image_std": [0.5, 0.5, 0.0]},
    "rescale_factor": {**VIT, "rescale_factor": -1.0},
    "image_mean": {**VIT, "image_mean": [0.5], "image_std": [0.5]},
}


def test_a_mean_that_is_null_is_refused_as_transformers_does(transformers: ModuleType, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, {**VIT, "image_mean": None})
    with pytest.raises(BackboneError, match="image_mean None .* is absent, and do_normalize is on"):
        image_processors.read_preprocess(transformers, str(folder), "hf:any")


@pytest.mark.parametrize("field", REFUSED)
def test_what_cannot_be_obeyed_is_refused_by_its_name(field: str, transformers: ModuleType, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, REFUSED[field])
    with pytest.raises(BackboneError, match=f"^hf:any: {field} .*in its preprocessor_config.json") as caught:
        image_processors.read_preprocess(transformers, str(folder), "hf:any")
    assert "\n" not in str(caught.value)


def test_a_processor_with_a_rule_that_nobody_knows_is_found_out(transformers: ModuleType) -> None:
    class Mirrored(transformers.ViTImageProcessor):  # type: ignore[misc, name-defined]
        def resize(self, image: Any, *args: Any, **kwargs: Any) -> Any:
            return super().resize(image, *args, **kwargs).flip(-1)

    with pytest.raises(BackboneError, match="image_processor_type Mirrored .* has a rule that is not known here"):
        image_processors.preprocess_of(Mirrored(), "hf:any")


def test_a_processor_that_transformers_does_not_know(transformers: ModuleType, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, {"image_processor_type": "NobodysImageProcessor"}, model_type="bert")
    with pytest.raises(BackboneError, match=r"^hf:any: transformers cannot read its preprocessor_config.json"):
        image_processors.read_preprocess(transformers, str(folder), "hf:any")


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"crop_mode": "border", "interpolation": "bilinear"},
        {"crop_mode": "squash", "input_size": [3, 64, 96]},
        {"crop_pct": 1.1, "mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]},
    ],
)
def test_networks_of_timm_by_transformers_see_what_timm_shows_them(
    change: dict[str, Any], transformers: ModuleType, tmp_path: Path
) -> None:
    need("timm")
    folder = folder_of_timm(tmp_path, change)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    assert type(processor).__name__.startswith("TimmWrapper")
    preprocess = image_processors.read_preprocess(transformers, str(folder), "hf:any")
    for size in SIZES:
        image = scene(*size)
        assert relative_error(prepared(image, preprocess), output_of(processor, image)) <= TOLERANCE
    with pytest.raises(BackboneError, match="^hf:any has input_size 1x64x64"):
        gray = folder_of_timm(tmp_path, {"input_size": [1, 64, 64], "mean": [0.5], "std": [0.5]})
        image_processors.read_preprocess(transformers, str(gray), "hf:any")


def test_a_data_config_that_timm_cannot_read_is_one_line(transformers: ModuleType, tmp_path: Path) -> None:
    need("timm")
    folder = folder_of_timm(tmp_path, {"mean": [0.5, 0.5]})
    with pytest.raises(BackboneError, match=r"^hf:any: transformers cannot read .* \(AssertionError"):
        image_processors.read_preprocess(transformers, str(folder), "hf:any")


def folder_of_timm(folder: Path, change: dict[str, Any]) -> Path:
    """Write the settings of a network of timm as its page on the hub has them."""
    usual = {
        "input_size": [3, 64, 64],
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": [0.5] * 3,
        "std": [0.4] * 3,
    }
    config = {"architecture": "resnet10t", "num_classes": 10, "pretrained_cfg": {**usual, **change}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@cache
def timm_configs() -> tuple[Any, list[dict[str, Any]]]:
    """Return timm, and the data configs of all of its weights without repetition, rare crop modes first."""
    need("timm")
    import_torchvision()
    import timm

    found = {}
    for name in timm.list_pretrained():
        config = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
        found[str(sorted(config.items()))] = config
    return timm, sorted(found.values(), key=lambda config: (config["crop_mode"] == "center", str(config)))


def check_timm(timm: Any, config: dict[str, Any]) -> None:
    preprocess = timm_models.preprocess_of(timm, config, "timm:any")
    own = timm.data.create_transform(**config, is_training=False)
    for size in SIZES:
        image = scene(*size)
        assert relative_error(prepared(image, preprocess), own(image).numpy()) <= TOLERANCE, config


def test_the_data_config_of_timm_is_obeyed() -> None:
    timm, configs = timm_configs()
    assert {config["crop_mode"] for config in configs} == {"center", "squash", "border"}
    for config in configs[::15]:
        check_timm(timm, config)
    usual = timm.data.resolve_data_config({"img_size": 224})
    for change in (
        {"crop_mode": "border"},
        {"crop_mode": "squash", "crop_pct": 1.0},
        {"crop_pct": 1.1},
        {"input_size": (3, 64, 96)},
        {"input_size": (3, 96, 64), "crop_mode": "squash"},
        {"input_size": (3, 96, 64), "crop_mode": "border", "interpolation": "bilinear"},
    ):
        check_timm(timm, {**usual, **change})


@pytest.mark.slow
def test_all_data_configs_of_timm_are_obeyed() -> None:
    timm, configs = timm_configs()
    assert len(configs) > 100
    for config in configs:
        check_timm(timm, config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_size": (1, 64, 64)}, "timm:any has input_size 1x64x64"),
        ({"crop_mode": "corner"}, "timm:any has crop_mode 'corner'"),
        ({"interpolation": "box"}, "timm:any has interpolation 'box'"),
    ],
)
def test_data_configs_that_cannot_be_obeyed(change: dict[str, Any], message: str) -> None:
    timm, _ = timm_configs()
    with pytest.raises(BackboneError, match=message):
        timm_models.preprocess_of(timm, {**timm.data.resolve_data_config({"img_size": 224}), **change}, "timm:any")


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [64, (48, 80)])
def test_the_preprocess_of_open_clip_is_obeyed(mode: str, size: Any) -> None:
    need("open_clip")
    import_torchvision()
    from open_clip.transform import PreprocessCfg, image_transform_v2

    for interpolation, fill in (("bilinear", 0), ("bicubic", 100), ("random", 0)):
        settings = {"size": size, "resize_mode": mode, "interpolation": interpolation, "fill_color": fill}
        settings |= {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.2)}
        preprocess = open_clip_models._preprocess("any", settings)
        own = image_transform_v2(PreprocessCfg(**settings), is_train=False)
        for each in SIZES:
            image = scene(*each)
            assert relative_error(prepared(image, preprocess), own(image).numpy()) <= TOLERANCE


def test_what_is_prepared_usually_has_no_new_field() -> None:
    """Most networks of timm keep the fingerprint that they had."""
    timm, configs = timm_configs()
    usual = timm.data.resolve_data_config({"img_size": 224})
    expected = PreprocessSpec(resize=256, crop=224, interpolation="bicubic")
    assert timm_models.preprocess_of(timm, usual, "timm:any") == expected
    kept = [timm_models._preprocess_before(c) == timm_models.preprocess_of(timm, c, "timm:any") for c in configs[::30]]
    assert np.mean(kept) > 0.5
