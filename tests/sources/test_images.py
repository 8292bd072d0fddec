"""Images become the same pixels by stated rules, whatever their mode; what cannot is refused with a reason."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps
from torch.nn.functional import interpolate

from featurecache.errors import InputError
from featurecache.resizing import trimmed
from featurecache.sources.decoding.images import _upright, decode, load_image, pillow_defaults, resize_and_crop
from featurecache.specs import PreprocessSpec

SPEC = PreprocessSpec(resize=32, crop=32)


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def smooth(width: int, height: int) -> Image.Image:
    return noise(6, 6).resize((width, height), Image.Resampling.BICUBIC)


def slow_resize_and_crop(image: Image.Image, spec: PreprocessSpec) -> np.ndarray:
    """What torchvision's Resize and CenterCrop do, in the obvious way."""
    width, height = image.size
    if width <= height:
        new = (spec.resize, int(spec.resize * height / width))
    else:
        new = (int(spec.resize * width / height), spec.resize)
    whole = image.resize(new, getattr(Image.Resampling, spec.interpolation.upper()))
    left, top = round((new[0] - spec.crop) / 2.0), round((new[1] - spec.crop) / 2.0)
    return np.asarray(whole.crop((left, top, left + spec.crop, top + spec.crop)))


@given(
    width=st.integers(1, 150),
    height=st.integers(1, 150),
    crop=st.integers(1, 40),
    extra=st.integers(0, 12),
    interpolation=st.sampled_from(["bilinear", "bicubic", "lanczos"]),
)
def test_equals_the_obvious_way(width: int, height: int, crop: int, extra: int, interpolation: Any) -> None:
    spec = PreprocessSpec(resize=crop + extra, crop=crop, interpolation=interpolation)
    image = noise(width, height)
    fast = np.asarray(resize_and_crop(image, spec))
    assert np.array_equal(fast, slow_resize_and_crop(image, spec))


@given(
    width=st.integers(1, 200),
    height=st.integers(1, 200),
    sides=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    mode=st.sampled_from(["shortest", "longest", "squash"]),
    padding=st.sampled_from(["center", "corner"]),
    rounding=st.sampled_from(["nearest", "down"]),
)
def test_every_mode_makes_the_shape_that_was_asked_for(
    width: int, height: int, sides: tuple[int, int], mode: Any, padding: Any, rounding: Any
) -> None:
    spec = PreprocessSpec(
        resize=sides,
        crop=sides,
        resize_mode=mode,
        padding=padding,
        fill_color=(9, 8, 7),
        resize_rounding=rounding,
        crop_rounding=rounding,
    )
    white = Image.new("RGB", (width, height), (255, 255, 255))
    pixels = np.asarray(resize_and_crop(white, spec))
    assert pixels.shape == (*sides, 3)
    filled = (pixels == (9, 8, 7)).all(axis=2)
    assert ((pixels == 255).all(axis=2) | filled).all()
    if mode == "longest":
        rows, columns = (~filled).any(axis=1), (~filled).any(axis=0)
        assert rows.all() or columns.all()
        ratio = (rows.sum() + 1) / max(columns.sum() - 1, 0.5), max(rows.sum() - 1, 0.5) / (columns.sum() + 1)
        assert ratio[1] <= height / width * (1 + 1e-9) or rows.sum() == 1
        assert ratio[0] >= height / width * (1 - 1e-9) or columns.sum() == 1
        assert not filled[0, 0] or padding == "center"
    else:
        assert not filled.any()


@pytest.mark.parametrize(("rounding", "left"), [("nearest", 2), ("down", 1)])
def test_half_a_pixel_before_the_crop_is_rounded_as_it_says(rounding: Any, left: int) -> None:
    image = noise(11, 8)
    spec = PreprocessSpec(resize=8, crop=8, crop_rounding=rounding)
    pixels = np.asarray(resize_and_crop(image, spec))
    assert np.array_equal(pixels, np.asarray(image)[:, left : left + 8])


@pytest.mark.parametrize(("rounding", "width"), [("nearest", 17), ("down", 16)])
def test_the_side_that_follows_is_rounded_as_it_says(rounding: Any, width: int) -> None:
    spec = PreprocessSpec(
        resize=32, crop=32, resize_mode="longest", padding="corner", resize_rounding=rounding, fill_color=(0, 0, 255)
    )
    pixels = np.asarray(resize_and_crop(Image.new("RGB", (33, 64)), spec))
    assert int((pixels[0, :, 2] == 0).sum()) == width


def test_a_light_margin_is_cut_off() -> None:
    part = noise(60, 40)
    part.putpixel((0, 0), (0, 0, 0))
    page = Image.new("RGB", (100, 90), (250, 250, 245))
    page.paste(part, (13, 21))
    spec = PreprocessSpec(trim_margin=True, resize=(40, 60), crop=(40, 60), resize_mode="squash")
    found = resize_and_crop(page, spec)
    assert found.size == (60, 40)
    assert np.array_equal(np.asarray(found), np.asarray(trimmed(page, spec)))
    assert np.array_equal(np.asarray(found)[0, 0], (0, 0, 0))
    for colour in (0, 128, 255):  # nothing is margin where all is of one colour
        plain = Image.new("RGB", (30, 20), (colour,) * 3)
        assert trimmed(plain, spec).size == (30, 20)
    assert trimmed(page, PreprocessSpec()) is page


@pytest.mark.parametrize("size", [(200, 100), (99, 301), (64, 64), (3, 500)])
def test_what_is_cropped_first_is_the_part_that_would_be_left(size: tuple[int, int]) -> None:
    usual = PreprocessSpec(resize=64, crop=(48, 40))
    ramp = np.add.outer(np.linspace(0, 120, size[1]), np.linspace(0, 120, size[0])).astype(np.uint8)
    image = Image.fromarray(ramp).convert("RGB")
    after, before = (
        np.asarray(resize_and_crop(image, spec), float) for spec in (usual, replace(usual, crop_first=True))
    )
    assert before.shape == after.shape
    # Grey ramps differ by what half a pixel of the image is, which is a step of the ramp.
    step = 120 / (min(size) - 1)
    assert np.abs(before - after).max() <= max(2 * step, 3)


def test_the_first_resizing_is_one_more() -> None:
    image = noise(150, 90)
    spec = PreprocessSpec(resize=32, crop=24, interpolation="bicubic", first_resize=200)
    twice = image.resize((200 * 150 // 90, 200), Image.Resampling.BILINEAR)
    usual = replace(spec, first_resize=0)
    assert np.array_equal(np.asarray(resize_and_crop(image, spec)), np.asarray(resize_and_crop(twice, usual)))
    with pytest.raises(InputError, match="150x90 pixels become 333x200, the limit is 60000 pixels"):
        resize_and_crop(image, replace(spec, max_pixels=60_000))


@pytest.mark.parametrize("sides", [(1, 1), (7, 13), (50, 20), (1, 5)])
def test_corners_stay_where_they_are(sides: tuple[int, int]) -> None:
    image = noise(31, 17)
    spec = PreprocessSpec(resize=sides, crop=sides, resize_mode="squash", alignment="corners", antialias=False)
    expected = interpolate(
        torch.from_numpy(np.asarray(image, np.float32)).permute(2, 0, 1)[None],
        sides,
        mode="bilinear",
        align_corners=True,
    )
    found = np.asarray(resize_and_crop(image, spec), np.float32)
    assert np.abs(found - expected[0].permute(1, 2, 0).numpy()).max() <= 2


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (250, 250), (37, 411), (224, 256)])
def test_equals_torchvision(size: tuple[int, int]) -> None:
    from featurecache.backbones.torchvision_compat import import_torchvision

    transforms = import_torchvision().transforms
    image = noise(*size)
    reference = transforms.Compose(
        [transforms.Resize(256, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(224)]
    )(image)
    ours = resize_and_crop(image, PreprocessSpec(interpolation="bicubic"))
    assert np.array_equal(np.asarray(reference), np.asarray(ours))


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_give_equal_pixels(format: str) -> None:
    image = smooth(40, 32)
    options = {"lossless": True} if format == "WEBP" else {}
    assert np.array_equal(load_image(encoded(image, format, **options), SPEC), load_image(encoded(image), SPEC))


def test_jpeg_and_gif_decode() -> None:
    for data in (encoded(smooth(40, 32), "JPEG"), encoded(smooth(40, 32).quantize(64), "GIF")):
        assert load_image(data, SPEC).shape == (32, 32, 3)


def test_orientation_is_applied_or_left() -> None:
    image = smooth(60, 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned: show rotated 90 degrees clockwise
    turned = encoded(image, "PNG", exif=exif)
    upright = encoded(image.rotate(-90, expand=True))
    assert np.array_equal(load_image(turned, SPEC), load_image(upright, SPEC))
    stored = SPEC.override(orientation="stored")
    assert np.array_equal(load_image(turned, stored), load_image(encoded(image), stored))


def test_sixteen_bits_keep_their_upper_half() -> None:
    ramp = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    pixels = load_image(encoded(Image.fromarray(ramp)), SPEC)
    assert np.array_equal(pixels, np.repeat((ramp >> 8).astype(np.uint8)[..., None], 3, axis=2))


def test_transparency_shows_the_background_not_hidden_colours() -> None:
    hidden = np.zeros((32, 32, 4), np.uint8)
    hidden[..., 0] = 255  # red, but entirely transparent
    assert (load_image(encoded(Image.fromarray(hidden)), SPEC) == 255).all()
    assert (load_image(encoded(Image.fromarray(hidden)), SPEC.override(background=(1, 2, 3))) == [1, 2, 3]).all()


def test_palette_with_transparency() -> None:
    image = Image.new("P", (32, 32), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    assert (load_image(encoded(image), SPEC) == [10, 20, 30]).all()
    assert (load_image(encoded(image, transparency=0), SPEC) == 255).all()


@pytest.mark.parametrize("mode", ["L", "1", "LA", "RGBA", "P", "CMYK", "I", "F", "YCbCr", "LAB"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = Image.new("RGB", (40, 32), (128, 128, 128)).convert(mode) if mode != "LAB" else Image.new("LAB", (40, 32))
    data = encoded(image, "TIFF")
    assert load_image(data, SPEC).shape == (32, 32, 3)


def test_animations_give_their_first_frame() -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "lime", "blue")]
    for format in ("GIF", "WEBP", "TIFF", "PNG"):
        options = {"lossless": True} if format == "WEBP" else {}
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert (load_image(data, SPEC) == [255, 0, 0]).all()


def test_without_antialias_pixels_differ() -> None:
    image = noise(256, 256)
    assert not np.array_equal(
        load_image(encoded(image), SPEC), load_image(encoded(image), SPEC.override(antialias=False))
    )


def bomb(width: int, height: int) -> bytes:
    """A PNG of zeros: hundreds of megapixels in some tens of kilobytes."""
    compressor = zlib.compressobj(9)
    row = b"\0" * (1 + width // 8)
    data = b"".join([compressor.compress(row * 1000) for _ in range(height // 1000)]) + compressor.flush()

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "status", "reason"),
    [
        (b"", "empty", "no bytes"),
        (b"not an image at all", "not_an_image", "no JPEG, PNG, WEBP, BMP, GIF, TIFF.* image in 19 bytes"),
        (encoded(noise(64, 64), "JPEG")[:1500], "undecodable", "truncated"),
        (encoded(noise(64, 64))[:1500], "undecodable", "truncated|broken"),
        (encoded(noise(64, 64), "WEBP")[:500], "undecodable", "decod|WebP|truncated"),
        (encoded(noise(64, 64), "ICO"), "not_an_image", "no JPEG"),
    ],
    ids=["empty", "text", "cut jpeg", "cut png", "cut webp", "ico"],
)
def test_bad_bytes_have_status_and_reason(data: bytes, status: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        load_image(data, SPEC)
    assert caught.value.status == status


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    data = bomb(20_000, 20_000)
    assert len(data) < 60_000
    with (
        pillow_defaults(),
        pytest.raises(InputError, match="20000x20000 pixels, the limit is 100000000 pixels") as caught,
    ):
        load_image(data, SPEC)
    assert caught.value.status == "too_large"


def test_a_line_of_pixels_is_refused_before_it_is_drawn_out() -> None:
    with pytest.raises(InputError, match="60000x1 pixels become 15360000x256, the limit is") as caught:
        load_image(encoded(Image.new("L", (60_000, 1))), PreprocessSpec())
    assert caught.value.status == "too_large"


def test_a_giant_file_is_refused() -> None:
    with pytest.raises(InputError, match="the file has 4000 bytes, the limit is 100"):
        load_image(b"x" * 4000, SPEC.override(max_bytes=100))


def test_flags_of_other_libraries_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = encoded(noise(64, 64), "JPEG")[:1500]
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pillow_defaults():
        assert load_image(encoded(noise(64, 64)), SPEC).shape == (32, 32, 3)
        with pytest.raises(InputError):
            load_image(cut, SPEC)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True
    assert Image.MAX_IMAGE_PIXELS == 10


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_mutated_files_never_crash(format: str) -> None:
    rng = np.random.default_rng(0)
    data = np.frombuffer(encoded(noise(24, 24).quantize(32) if format == "GIF" else noise(24, 24), format), np.uint8)
    good = bad = 0
    with pillow_defaults():
        for _ in range(60):
            mutant = data.copy()
            places = rng.integers(0, len(mutant), rng.integers(1, 12))
            mutant[places] = rng.integers(0, 256, len(places))
            try:
                good += load_image(mutant.tobytes(), SPEC).shape == (32, 32, 3)
            except InputError as error:
                bad += bool(error.reason)
    assert good + bad == 60


def test_the_real_trap_decodes(real_material: Path) -> None:
    data = (real_material / "images/hymenoptera/train/ants/imageNotFound.gif").read_bytes()
    assert decode(data, SPEC).image.mode == "RGB"


@pytest.mark.parametrize("size", [(2100, 1700), (1700, 2100), (1023, 4097), (512, 600), (64, 64)])
def test_a_large_jpeg_is_decoded_no_finer_than_needed(size: tuple[int, int]) -> None:
    """The least scale that leaves both sides at least twice as long as they will be, and pixels that hardly differ."""
    smooth = noise(9, 9).resize(size, Image.Resampling.BICUBIC)
    data = encoded(smooth, "JPEG", quality=90)
    scaled, full = PreprocessSpec(resize=128, crop=112), PreprocessSpec(resize=128, crop=112, jpeg_decoding="full")
    allowed = [s for s in (8, 4, 2, 1) if min(size) // s >= 2 * 128 or s == 1]
    assert decode(data, scaled).image.size == tuple(-(-side // allowed[0]) for side in size)
    assert decode(data, full).image.size == size
    difference = np.abs(load_image(data, scaled).astype(int) - load_image(data, full).astype(int))
    assert difference.mean() < 1
    assert difference.max() <= 12
    plain = encoded(smooth, "BMP")  # which has no scales
    assert np.array_equal(load_image(plain, scaled), load_image(plain, full))


@pytest.mark.parametrize("change", [{"antialias": False}, {"interpolation": "nearest"}])
def test_where_resizing_does_not_filter_nothing_is_scaled(change: Any) -> None:
    data = encoded(noise(900, 900), "JPEG")
    assert decode(data, PreprocessSpec(resize=64, crop=48, **change)).image.size == (900, 900)


@pytest.mark.parametrize("orientation", [None, 1, 0, 9])
def test_an_image_that_is_upright_is_not_copied(orientation: int | None) -> None:
    """A copy of 4000x3000 pixels takes 34 ms."""
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    image = Image.open(io.BytesIO(encoded(smooth(64, 48), "PNG", exif=exif)))
    assert _upright(image, SPEC) is image
    assert image.tobytes() == ImageOps.exif_transpose(image).tobytes()


def test_orientation_and_colours_of_a_scaled_jpeg_are_those_of_the_full_one() -> None:
    corners = Image.fromarray(np.array([[[250, 0, 0], [0, 250, 0]], [[0, 0, 250], [250, 250, 0]]], np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    for mode in ("RGB", "L", "CMYK"):
        image = corners.resize((900, 700), Image.Resampling.NEAREST).convert(mode)
        data = encoded(image, "JPEG", quality=95, exif=exif)
        scaled = load_image(data, PreprocessSpec(resize=64, crop=48)).astype(int)
        full = load_image(data, PreprocessSpec(resize=64, crop=48, jpeg_decoding="full")).astype(int)
        assert np.abs(scaled - full).mean() < 2, mode
