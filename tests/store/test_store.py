"""A cache folder: made once, recognised, and refused when it is something else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import features_body

from featurecache.errors import FormatVersionError, ReportWarning, RequestError, StoreError, UnknownNameError
from featurecache.specs import FeatureIdentity, PreprocessSpec
from featurecache.store.naming import check_name
from featurecache.store.schemas import BackboneAbout, RequestBody
from featurecache.store.soundness import feature_warnings
from featurecache.store.store import FeatureStore

pytestmark = pytest.mark.quick

ABOUT = BackboneAbout(
    num_parameters=1,
    num_trainable=0,
    weights_source="",
    license=None,
    classifier="fc",
    notes=[],
)


def add_features(
    store: FeatureStore,
    tap: str,
    *,
    weights: str = "w",
    dtype: str = "float16",
    value: float = 0,
    backbone: str = "my:net",
) -> None:
    identity = FeatureIdentity(backbone=backbone, architecture="a", weights=weights, preprocess=PreprocessSpec())
    folder = store.add_feature_set(identity, ABOUT, tap, dtype).folder
    stored = np.full((3, 2), value, np.float16 if dtype == "float16" else np.float32)
    ids = np.arange(96, dtype=np.uint8).reshape(3, 32)
    store.samples.append(ids, ["a", "b", "c"], np.ones(3))
    body = features_body(tap, identity.fingerprint, 3)
    folder.publish("000000000000", {"features": (dtype, stored), "id": ("uint8", ids)}, body, kind="features")


def test_create_then_open(tmp_path: Path) -> None:
    FeatureStore.create(tmp_path / "c")
    marker = json.loads((tmp_path / "c" / "FORMAT.json").read_text())
    assert marker == {"format": "featurecache", "version": [1, 0], "required": [], "optional": []}
    assert len(FeatureStore.open(tmp_path / "c").samples) == 0
    FeatureStore.create(tmp_path / "c")


def test_a_killed_creation_can_be_repeated(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / ".FORMAT.json.0123.partial").write_bytes(b"{")
    assert FeatureStore.create(tmp_path / "c").feature_sets() == []


def test_other_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no such folder; make one with `featurecache extract`"):
        FeatureStore.open(tmp_path / "none")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "x.jpg").write_bytes(b"x")
    with pytest.raises(StoreError, match=r"is not a featurecache cache \(it has no FORMAT.json\)"):
        FeatureStore.create(tmp_path / "photos")
    with pytest.raises(StoreError, match="is a file, a cache is a folder"):
        FeatureStore.create(tmp_path / "photos" / "x.jpg")
    (tmp_path / "photos" / "FORMAT.json").write_text('{"format": "zarr"}')
    with pytest.raises(StoreError, match="FORMAT.json says 'zarr'"):
        FeatureStore.open(tmp_path / "photos")


@pytest.mark.parametrize("change", [{"version": [2, 0]}, {"required": ["encryption"]}, {"version": "new"}])
def test_newer_formats_are_refused_with_advice(tmp_path: Path, change: dict) -> None:
    FeatureStore.create(tmp_path / "c")
    path = tmp_path / "c" / "FORMAT.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FormatVersionError, match="Upgrade featurecache"):
        FeatureStore.open(tmp_path / "c")


def test_minor_versions_and_optional_features_still_read(tmp_path: Path) -> None:
    FeatureStore.create(tmp_path / "c")
    marker = {"format": "featurecache", "version": [1, 7], "required": [], "optional": ["thumbnails"]}
    (tmp_path / "c" / "FORMAT.json").write_text(json.dumps(marker))
    FeatureStore.open(tmp_path / "c")


@pytest.mark.parametrize("tap", ["layer4:avg", "blocks.11:cls+mean", "odd/na me=%:none", "a.b:flatten"])
def test_tap_names_survive_the_file_system(tmp_path: Path, tap: str) -> None:
    store = FeatureStore.create(tmp_path / "c")
    add_features(store, tap)
    assert [s.tap for s in FeatureStore.open(store.path).feature_sets()] == [tap]
    assert store.features(tap).shape == (3, 2)


def test_a_choice_must_be_made_where_there_is_one(tmp_path: Path) -> None:
    store = FeatureStore.create(tmp_path / "c")
    with pytest.raises(StoreError, match="holds no features yet; run `featurecache extract`"):
        store.features()
    add_features(store, "a:avg", value=1)
    add_features(store, "a:avg", weights="other", value=2)
    add_features(store, "a:avg", dtype="float32", value=3)
    with pytest.raises(RequestError, match="3 feature sets fit, choose by tap, backbone, fingerprint or dtype"):
        store.features("a:avg")
    assert float(store.features(dtype="float32")[0][0]) == 3
    for feature_set in store.feature_sets():
        chosen = store.features(fingerprint=feature_set.fingerprint[:8], dtype=feature_set.dtype)
        assert np.array_equal(chosen[:], feature_set.open()[:])
    with pytest.raises(UnknownNameError, match="unknown cached tap 'a:average'; did you mean 'a:avg'.*--tap a:average"):
        store.features("a:average")
    with pytest.raises(UnknownNameError, match="unknown cached backbone 'other:net'"):
        store.features(backbone="other:net")
    for backbone in ("my:net", "net"):  # without its provider, as `extract` takes it
        assert float(store.features(backbone=backbone, dtype="float32")[0][0]) == 3


def test_a_warning_stands_once_and_names_what_it_is_about(tmp_path: Path) -> None:
    store = FeatureStore.create(tmp_path / "c")
    for backbone in ("my:net", "other:net"):
        for tap in ("a:avg", "b:avg"):
            add_features(store, tap, backbone=backbone)
    sets = store.feature_sets()
    about_sets = {
        "all": sets,
        "one backbone": [s for s in sets if s.identity.backbone == "other:net"],
        "one set": sets[:1],
        "a set of each": [s for s in sets if s.tap == "b:avg"],
    }
    for text, held in about_sets.items():
        for feature_set in held:
            feature_set.keep_warning(ReportWarning(kind=text.replace(" ", "_"), count=1, text=text))
    shown = sorted(warning.text for warning in feature_warnings(sets) if warning.kind.replace("_", " ") in about_sets)
    each = [f"{s}: a set of each" for s in about_sets["a set of each"]]
    assert shown == sorted(["all", "other:net: one backbone", f"{sets[0]}: one set", *each])
    alone = [warning.text for warning in feature_warnings(sets[:1]) if warning.kind.replace("_", " ") in about_sets]
    assert sorted(alone) == ["all", "one set"]


def test_requests_are_remembered(tmp_path: Path) -> None:
    store = FeatureStore.create(tmp_path / "c")
    assert store.recall(RequestBody, "0" * 64) is None
    store.remember_request("0" * 64, "f", ["a:avg"])
    assert store.recall(RequestBody, "0" * 64) == RequestBody("f", ["a:avg"])


@pytest.mark.parametrize("name", ["", "..", "a/b", "a b", "-x", "x" * 101])
def test_names_are_plain(name: str) -> None:
    with pytest.raises(RequestError, match="cannot be the name of a task; use letters, digits"):
        check_name("task", name)
