"""Settings that cannot be built wrong, and fingerprints that notice what matters."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from featurecache.errors import RequestError
from featurecache.specs import ExtractionSettings, FeatureIdentity, PreprocessSpec, TextPreprocessSpec, ViewSpec

pytestmark = pytest.mark.quick

IDENTITY = FeatureIdentity(backbone="a:b", architecture="0" * 64, weights="1" * 64, preprocess=PreprocessSpec())


def test_fingerprint_is_pinned() -> None:
    # Changing these lines orphans every cache in the world.
    full = replace(IDENTITY, preprocess=PreprocessSpec(jpeg_decoding="full"))
    assert full.fingerprint == "7392ea0c905a317f70540cc91b47dd45808a489e552f800b6a5a9ce81ede7c95"
    views = replace(full, views=ViewSpec())
    assert views.fingerprint == "3ecea98300e8429e27ee838fca13428f975a00db23b8a7baadfd99e1ae55994d"
    assert IDENTITY.fingerprint == "9b47ea6cf8cc46cbf3dacba5da79ed9494656a037c9e0f5279126009cd38b426"


def test_records_older_than_scaled_decoding_mean_full_decoding() -> None:
    full = replace(IDENTITY, preprocess=PreprocessSpec(jpeg_decoding="full"))
    assert "jpeg_decoding" not in full.to_json()["preprocess"]
    assert FeatureIdentity.from_json(json.loads(json.dumps(full.to_json()))) == full
    assert FeatureIdentity.from_json(json.loads(json.dumps(IDENTITY.to_json()))) == IDENTITY
    with pytest.raises(RequestError, match="unknown jpeg decoding 'half'; known: scaled, full"):
        PreprocessSpec(jpeg_decoding="half")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"crop": (200, 224)},
        {"resize": (256, 260)},
        {"resize_mode": "squash"},
        {"resize_rounding": "nearest"},
        {"crop_rounding": "down"},
        {"padding": "corner"},
        {"padding": "center", "resize_mode": "longest", "fill_color": (1, 2, 3)},
        {"channel_order": "bgr"},
        {"trim_margin": True},
        {"first_resize": 300},
        {"first_resize": 300, "first_interpolation": "bicubic"},
        {"crop_first": True},
        {"alignment": "corners", "antialias": False},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_field_of_a_preprocess_is_identity_unless_it_is_as_before(change: dict) -> None:
    changed = replace(IDENTITY, preprocess=PreprocessSpec(**change))
    assert changed.fingerprint != IDENTITY.fingerprint
    assert FeatureIdentity.from_json(json.loads(json.dumps(changed.to_json()))) == changed
    assert set(changed.to_json()["preprocess"]) - set(IDENTITY.to_json()["preprocess"]) <= set(change)
    # A head that was trained with the fields as they were brings them back, whatever the provider says today.
    assert changed.preprocess.override(**IDENTITY.preprocess.choices()) == IDENTITY.preprocess


def test_two_equal_sides_are_one() -> None:
    assert PreprocessSpec(resize=[256, 256], crop=(224, 224)) == PreprocessSpec()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop": (224, 300)}, r"crop \(\(224, 300\) px\) must not exceed resize \(256 px\)"),
        ({"crop": (1, 2, 3)}, "crop must be a whole number, or height and width"),
        ({"resize": 2.5}, "resize must be a whole number, or height and width"),
        ({"resize": (0, 4)}, "resize must be at least 1"),
        ({"resize_mode": "longest"}, "crop .* must not exceed|needs padding"),
        ({"resize_mode": "fill"}, "unknown resize mode 'fill'"),
        ({"crop_rounding": "up"}, "unknown rounding 'up'|unknown crop rounding 'up'"),
        ({"padding": "left"}, "unknown padding 'left'"),
        ({"fill_color": (0, 0, 256)}, "fill_color must be whole numbers from 0 to 255"),
        ({"channel_order": "grb"}, "unknown channel order 'grb'"),
        ({"trim_margin": "no"}, "trim_margin must be true or false"),
        ({"crop_first": 1}, "crop_first must be true or false"),
        ({"crop_first": True, "resize_mode": "squash"}, "crop_first needs resize mode 'shortest', and no padding"),
        ({"crop_first": True, "padding": "center"}, "crop_first needs resize mode 'shortest', and no padding"),
        ({"first_resize": -1}, "first_resize must be 0 or a side in pixels"),
        ({"first_resize": True}, "first_resize must be 0 or a side in pixels"),
        ({"first_interpolation": "bicubic"}, "first_interpolation is of no effect without first_resize"),
        ({"first_resize": 9, "first_interpolation": "box"}, "unknown first interpolation 'box'"),
        ({"first_resize": 9, "first_interpolation": "lanczos", "antialias": False}, "'lanczos' always filters"),
        ({"alignment": "corners"}, "alignment 'corners' does not filter; set antialias to false"),
        ({"alignment": "centre"}, "unknown alignment 'centre'"),
    ],
)
def test_a_preprocess_cannot_be_built_wrong(settings: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        PreprocessSpec(**settings)


def test_without_views_the_json_is_what_it_was() -> None:
    assert list(IDENTITY.to_json()) == ["backbone", "architecture", "weights", "preprocess", "precision"]
    assert replace(IDENTITY, views=ViewSpec()).plain == IDENTITY


@pytest.mark.parametrize(
    "change",
    [
        {"count": 9},
        {"seed": 1},
        {"scale": (0.3, 1.0)},
        {"ratio": (0.7, 1.333)},
        {"flip": 0.4},
        {"brightness": 0.3},
        {"contrast": 0.3},
        {"saturation": 0.3},
        {"hue": 0.1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_field_of_views_is_identity(change: dict) -> None:
    views = replace(IDENTITY, views=ViewSpec())
    changed = replace(IDENTITY, views=ViewSpec(**change))
    assert len({changed.fingerprint, views.fingerprint, IDENTITY.fingerprint}) == 3
    (difference,) = views.differences(changed)
    assert difference.startswith(f"views.{next(iter(change))} ")
    assert f"views.{next(iter(change))} None -> " in "; ".join(IDENTITY.differences(changed))
    assert FeatureIdentity.from_json(json.loads(json.dumps(changed.to_json()))) == changed


def test_equal_views_have_equal_fingerprints() -> None:
    whole = replace(IDENTITY, views=ViewSpec(scale=(1, 1), ratio=[1, 2], hue=0))
    assert whole.fingerprint == replace(IDENTITY, views=ViewSpec(scale=(1.0, 1.0), ratio=(1.0, 2.0))).fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 0}, "views count must be a whole number from 1 to 256, got 0"),
        ({"count": 1000}, "views count must be a whole number from 1 to 256, got 1000"),
        ({"count": 2.0}, "views count must be a whole number"),
        ({"seed": -1}, "views seed must be a whole number from 0"),
        ({"scale": (0, 1)}, "views scale must be two shares with 0 < least <= greatest <= 1"),
        ({"scale": (0.5, 0.4)}, "views scale must be two shares"),
        ({"scale": 0.5}, "views scale needs two numbers .least, greatest., got 0.5"),
        ({"ratio": (1.2, 2)}, "views ratio must be two numbers with 0 < least <= 1 <= greatest"),
        ({"ratio": (0.5, "2")}, "views ratio must be a finite number, got '2'"),
        ({"flip": 1.5}, "views flip must be from 0 to 1, got 1.5"),
        ({"brightness": -0.1}, "views brightness must be from 0 to 10"),
        ({"hue": 0.6}, "views hue must be from 0 to 0.5"),
        ({"contrast": float("nan")}, "views contrast must be a finite number"),
        ({"rules": 2}, "view rules 2 are not known to this release; upgrade featurecache"),
    ],
)
def test_impossible_views_are_refused(change: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        ViewSpec(**change)


@pytest.mark.parametrize(
    "change",
    [
        {"resize": 257},
        {"crop": 223},
        {"interpolation": "bicubic"},
        {"antialias": False},
        {"orientation": "stored"},
        {"background": (0, 0, 0)},
        {"mean": (0.5, 0.5, 0.5)},
        {"std": (0.5, 0.5, 0.5)},
        {"max_pixels": 10},
        {"max_bytes": 10},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_preprocess_field_is_identity(change: dict) -> None:
    changed = replace(IDENTITY, preprocess=IDENTITY.preprocess.override(**change))
    assert changed.fingerprint != IDENTITY.fingerprint
    (difference,) = IDENTITY.differences(changed)
    assert difference.startswith(f"preprocess.{next(iter(change))} ")


@pytest.mark.parametrize("field", ["backbone", "architecture", "weights", "precision"])
def test_every_identity_field_counts(field: str) -> None:
    assert replace(IDENTITY, **{field: "other"}).fingerprint != IDENTITY.fingerprint


def test_identity_survives_json() -> None:
    again = FeatureIdentity.from_json(json.loads(json.dumps(IDENTITY.to_json())))
    assert again == IDENTITY
    assert again.fingerprint == IDENTITY.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop": 0}, "crop must be at least 1"),
        ({"crop": 300, "resize": 200}, "crop .300 px. must not exceed resize .200 px."),
        ({"interpolation": "cubic"}, "unknown interpolation 'cubic'; known: nearest"),
        ({"std": (1, 0, 1)}, "std must be positive"),
        ({"mean": (0.5,)}, "mean needs three numbers"),
        ({"interpolation": "lanczos", "antialias": False}, "lanczos' always filters"),
        ({"decoding_rules": 2}, "upgrade featurecache"),
        ({"sharpness": 2}, "unknown preprocess setting 'sharpness'"),
    ],
)
def test_impossible_preprocess_is_refused(change: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        PreprocessSpec().override(**change)


TEXT = replace(IDENTITY, preprocess=TextPreprocessSpec(tokenizer="2" * 64))


def test_fingerprint_of_texts_is_pinned() -> None:
    assert TEXT.fingerprint == "75693e72c1b97b5a86221a115552ab865d5afd7e1fd3731d6d08dbc41af2d562"


@pytest.mark.parametrize("change", [{"max_tokens": 9}, {"max_bytes": 9}], ids=lambda change: next(iter(change)))
def test_every_text_setting_is_identity(change: dict) -> None:
    changed = replace(TEXT, preprocess=TEXT.preprocess.override(**change))
    (difference,) = TEXT.differences(changed)
    assert difference.startswith(f"preprocess.{next(iter(change))} ")
    other = replace(TEXT, preprocess=replace(TEXT.preprocess, tokenizer="3" * 64))
    assert len({TEXT.fingerprint, changed.fingerprint, other.fingerprint}) == 3


def test_identity_of_texts_survives_json_and_is_none_of_images() -> None:
    again = FeatureIdentity.from_json(json.loads(json.dumps(TEXT.to_json())))
    assert again == TEXT
    assert any(difference.startswith("preprocess.crop 224 -> None") for difference in IDENTITY.differences(TEXT))
    value = TEXT.to_json()
    value["preprocess"]["kind"] = "audio"
    with pytest.raises(RequestError, match="preprocess of kind 'audio' is not known to this release"):
        FeatureIdentity.from_json(value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"text_rules": 2}, "upgrade featurecache"),
        ({"tokenizer": "4" * 64}, "unknown preprocess setting 'tokenizer'; for text inputs there are: max_tokens"),
    ],
)
def test_impossible_text_preprocess_is_refused(change: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        TEXT.preprocess.override(**change)


def test_views_of_texts_are_refused() -> None:
    with pytest.raises(RequestError, match="--views is for images only, and the backbone a:b is of texts; leave"):
        replace(TEXT, views=ViewSpec())


def test_override_keeps_crop_within_resize() -> None:
    assert PreprocessSpec().override(crop=300).resize == 300
    assert PreprocessSpec().override(resize=100).crop == 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch size must be at least 1"),
        ({"shard_rows": 0}, "shard rows must be at least 1"),
        ({"num_workers": 0}, "num workers must be at least 1"),
        ({"dtype": "float8"}, "unknown dtype 'float8'; known: auto, float16"),
        ({"runtime": "tvm"}, "unknown runtime 'tvm'"),
    ],
)
def test_impossible_settings_are_refused(change: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        ExtractionSettings(**change)
