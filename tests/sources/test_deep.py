"""More than 8 bits for a channel: the range decides what is seen, and what became flat is told."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from featurecache.errors import InputError, RequestError
from featurecache.sources.decoding.deep import to_eight_bits
from featurecache.sources.decoding.images import decode, load_image
from featurecache.specs import FeatureIdentity, PreprocessSpec

pytestmark = pytest.mark.quick

SPEC = PreprocessSpec(resize=64, crop=64)
RNG = np.random.default_rng(0)
RAMP = np.clip(np.linspace(0, 1, 64)[None].repeat(64, 0) + RNG.normal(0, 0.01, (64, 64)), 0, 1)


def png16(pixels: np.ndarray) -> bytes:
    """A PNG of 16 bits for a channel, (H, W, C): grey, grey and alpha, colours, colours and alpha."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff16(pixels: np.ndarray, order: str) -> bytes:
    """An uncompressed TIFF of three times 16 bits, in one of the two byte orders."""
    height, width, _ = pixels.shape
    data = pixels.astype(f"{order}u2").tobytes()
    bits = 8 + 2 + 9 * 12 + 4
    tags = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, bits), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [(273, 4, 1, bits + 6), (277, 3, 1, 3), (278, 3, 1, height), (279, 4, 1, len(data))]
    entries = b"".join(
        struct.pack(f"{order}HHI", tag, kind, count)
        + (struct.pack(f"{order}HH", value, 0) if kind == 3 and count == 1 else struct.pack(f"{order}I", value))
        for tag, kind, count, value in tags
    )
    start = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(tags))
    return start + entries + struct.pack(f"{order}I3H", 0, 16, 16, 16) + data


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def grey16(values: np.ndarray) -> bytes:
    return saved(Image.fromarray(values.astype(np.uint16)), "PNG")


def tiff(values: np.ndarray) -> bytes:
    return saved(Image.fromarray(values), "TIFF")


def palette(values: np.ndarray) -> Image.Image:
    image = Image.fromarray(values).convert("P")
    image.putdata(values.reshape(-1).tolist())
    image.putpalette([0, 0, 0, 90, 0, 0, 0, 90, 0, 0, 0, 90])
    return image


def rgba(colours: np.ndarray, alpha: np.ndarray) -> bytes:
    return saved(Image.fromarray(np.dstack([colours, alpha]).astype(np.uint8)), "PNG")


def with_one(values: np.ndarray, value: float) -> np.ndarray:
    return np.where(np.arange(values.size).reshape(values.shape) == 99, value, values)


WHITE, BLACK = np.full((64, 64, 3), 255), np.zeros((64, 64, 3))
COLOURS = np.dstack([RAMP, RAMP[::-1], 1 - RAMP])
FLATTENED = {
    "9 bits in 16": grey16(RAMP * 511),
    "12 bits in 16": grey16(RAMP * 4095),
    "9 bits and a hot pixel": grey16(with_one(RAMP * 511, 65535)),
    "a mask of 0 and 1": grey16(RAMP > 0.999),
    "a label image": grey16(RAMP * 20),
    "32 bits": tiff((RAMP * 400).astype(np.int32)),
    "32 bits below 0": tiff((RAMP * 1000 - 1000).astype(np.int32)),
    "32 bits beyond 16": tiff((RAMP * 1e6).astype(np.int32)),
    "floats up to 1": tiff(RAMP.astype(np.float32)),
    "floats around 0": tiff((RAMP - 0.5).astype(np.float32)),
    "floats up to 4000": tiff((RAMP * 4000).astype(np.float32)),
    "tiny floats": tiff((RAMP * 1e-20).astype(np.float32)),
    "9 bits in colours of 16": png16((COLOURS * 511).astype(np.uint16)),
    "9 bits in colours and alpha": png16(np.dstack([COLOURS * 511, np.full((64, 64), 65535)]).astype(np.uint16)),
    "9 bits in grey and alpha": png16(np.dstack([RAMP * 511, np.full((64, 64), 65535)]).astype(np.uint16)),
    "9 bits in a TIFF of colours": tiff16((COLOURS * 511).astype(np.uint16), "<"),
    "9 bits in a TIFF of the other order": tiff16((COLOURS * 511).astype(np.uint16), ">"),
    "a JPEG 2000 of 12 bits in 16": saved(Image.fromarray((RAMP * 4095).astype(np.uint16)), "JPEG2000"),
}
HIDDEN = {
    "transparent everywhere": rgba(COLOURS * 255, np.zeros((64, 64))),
    "transparent and black": rgba(BLACK, np.zeros((64, 64))),
    "nearly transparent": rgba(COLOURS * 255, np.full((64, 64), 1)),
    "a white drawing": rgba(WHITE, RAMP * 255),
    "a transparent palette": saved(palette((RAMP * 3).astype(np.uint8)), "PNG", transparency=bytes(4)),
}
AS_THEY_ARE = {
    "16 bits": grey16(RAMP * 65535),
    "14 bits in 16": grey16(RAMP * 16383),
    "a mask of all bits": grey16((RAMP > 0.5) * 65535),
    "fog": grey16(40000 + RAMP * 8000),
    "one value": grey16(np.full((64, 64), 300)),
    "stars": grey16(np.where(RNG.random((64, 64)) < 0.004, 65535, RNG.integers(0, 400, (64, 64)))),
    "floats up to 255": tiff((RAMP * 255).astype(np.float32)),
    "floats of one value": tiff(np.full((64, 64), 0.5, np.float32)),
    "colours of 16 bits": png16((COLOURS * 65535).astype(np.uint16)),
    "an 8-bit mask of 0 and 1": saved(Image.fromarray((RAMP > 0.5).astype(np.uint8)), "PNG"),
    "an empty 8-bit image": saved(Image.fromarray(WHITE.astype(np.uint8)), "PNG"),
    "a black drawing": rgba(BLACK, RAMP * 255),
    "an opaque empty one": rgba(WHITE, np.full((64, 64), 255)),
}


@pytest.mark.parametrize("name", [*FLATTENED, *HIDDEN, *AS_THEY_ARE])
def test_what_became_flat_is_told(name: str) -> None:
    data = {**FLATTENED, **HIDDEN, **AS_THEY_ARE}[name]
    assert decode(data, SPEC).remark == ("deep" if name in FLATTENED else "transparent" if name in HIDDEN else "")


@pytest.mark.parametrize("name", [name for name in FLATTENED if "hot pixel" not in name])
def test_range_image_shows_what_the_full_range_hides(name: str) -> None:
    shown, remark = decode(FLATTENED[name], SPEC.override(range="image"))
    assert (remark, shown.size) == ("", (64, 64))
    assert max(high - low for low, high in shown.getextrema()) == 255


def test_a_range_of_two_numbers_shows_what_lies_between() -> None:
    narrow = SPEC.override(range=(0, 511))
    expected = np.rint((RAMP * 511).astype(np.uint16) * (255 / 511)).astype(np.uint8)
    for data in (FLATTENED["9 bits in 16"], FLATTENED["9 bits in grey and alpha"]):
        assert np.array_equal(load_image(data, narrow)[..., 1], expected)
    hot = decode(FLATTENED["9 bits and a hot pixel"], narrow)
    assert (hot.remark, hot.image.getpixel((35, 1))) == ("", (255, 255, 255))
    assert decode(AS_THEY_ARE["16 bits"], SPEC.override(range=(70000, 80000))).remark == "deep"  # a window beside it
    window = SPEC.override(range=(-200, 300))
    values = (RAMP * 1500 - 1000).astype(np.int32)
    seen = np.rint(np.clip((values + 200.0) * (255 / 500), 0, 255))
    assert np.array_equal(load_image(tiff(values), window)[..., 0], seen)


@pytest.mark.parametrize("make", [png16, lambda p: tiff16(p, "<"), lambda p: tiff16(p, ">")], ids=["png", "<", ">"])
def test_colours_of_all_bits_keep_their_proportions(make: Any) -> None:
    pixels = (COLOURS * 700 + 50).astype(np.uint16)
    for chosen in ("image", (50, 750)):
        shown = np.asarray(decode(make(pixels), SPEC.override(range=chosen)).image)
        assert np.array_equal(shown, to_eight_bits(pixels, chosen))
    assert np.array_equal(np.asarray(decode(make(pixels), SPEC).image), pixels >> 8)


def test_alpha_of_deep_colours_still_shows_the_background() -> None:
    alpha = np.where(RAMP < 0.5, 0, 65535)
    pixels = np.dstack([COLOURS * 511, alpha]).astype(np.uint16)
    shown = np.asarray(decode(png16(pixels), SPEC.override(range="image", background=(9, 8, 7))).image)
    assert (shown[alpha == 0] == [9, 8, 7]).all()
    assert np.array_equal(shown[alpha > 0], to_eight_bits(pixels[..., :3], "image")[alpha > 0])


@pytest.mark.parametrize("name", ["an 8-bit mask of 0 and 1", "a black drawing"])
def test_eight_bits_are_left_as_they_are(name: str) -> None:
    plain = load_image(AS_THEY_ARE[name], SPEC)
    for chosen in ("image", (0, 4095)):
        assert np.array_equal(load_image(AS_THEY_ARE[name], SPEC.override(range=chosen)), plain)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("chosen", ["full", "image", (0, 1)])
def test_what_is_no_number_is_a_bad_input(value: float, chosen: Any) -> None:
    data = tiff(with_one(RAMP, value).astype(np.float32))
    with pytest.raises(InputError, match="1 of 4096 pixels are NaN or infinite; fill them in") as caught:
        decode(data, SPEC.override(range=chosen))
    assert caught.value.status == "undecodable"


@given(
    values=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=2, max_size=20),
    bounds=st.tuples(st.floats(-1e9, 1e9), st.floats(1e-3, 1e9)),
)
def test_a_range_maps_in_order_and_its_ends_to_black_and_white(values: list[int], bounds: tuple[float, float]) -> None:
    pixels = np.array([sorted(values)], np.int32)
    for chosen in ("full", "image", (bounds[0], bounds[0] + bounds[1])):
        shown = to_eight_bits(pixels, chosen).astype(int)  # type: ignore[arg-type]
        assert (np.diff(shown) >= 0).all()
        low, high = (0, 65535) if chosen == "full" else (pixels.min(), pixels.max()) if chosen == "image" else chosen
        assert (shown[pixels <= float(low)] == 0).all()  # type: ignore[arg-type]
        assert low == high or (shown[pixels >= float(high)] == 255).all()  # type: ignore[arg-type]


def test_the_range_is_identity_and_full_is_left_out_of_it() -> None:
    def identity(**changes: Any) -> FeatureIdentity:
        return FeatureIdentity(backbone="b", architecture="a", weights="w", preprocess=SPEC.override(**changes))

    assert "range" not in identity().to_json()["preprocess"]
    chosen = [identity(), identity(range="image"), identity(range=(0, 1)), identity(range=(0, 2))]
    assert len({each.fingerprint for each in chosen}) == 4
    assert identity(range=[0, 1]).fingerprint == identity(range=(0.0, 1.0)).fingerprint
    assert [FeatureIdentity.from_json(each.to_json()) for each in chosen] == chosen


@pytest.mark.parametrize("wrong", ["half", (1, 0), (1, 1), (0,), (0, float("nan")), ("0", "1"), 5])
def test_an_impossible_range_is_refused(wrong: Any) -> None:
    with pytest.raises(RequestError, match="range"):
        SPEC.override(range=wrong)
