"""A cache that was begun before a default changed is continued as it was, and says what the default is now."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import need
from tiny_backbones import PREPROCESS, TinyNet

from featurecache.backbones import registry
from featurecache.backbones.provider import EarlierDefault, Provided
from featurecache.backbones.torchvision_compat import import_torchvision
from featurecache.errors import BackboneError
from featurecache.extraction.extract import make_request, run_extraction
from featurecache.extraction.report import ExtractionReport
from featurecache.extraction.reproduction import reproduce_backbone
from featurecache.specs import ExtractionSettings, PreprocessSpec

SETTINGS = ExtractionSettings(runtime="torch", batch_size=8)
NOW = "the default of this test is another one now"


class ChangingProvider:
    """A provider whose releases differ in a default."""

    packages = ()
    provided: Provided

    def list_names(self) -> list[str]:
        return []

    def build(self, name: str, *, pretrained: bool, weights: Path | None, keep_classifier: bool) -> Provided:
        return replace(self.provided, module=TinyNet().eval())

    def own_weights_digest(self, name: str) -> str | None:
        return f"{len(self.provided.earlier)} changes"

    def reproducible(self, name: str) -> bool:
        return True


BEFORE = Provided(module=TinyNet(), preprocess=PreprocessSpec().override(**PREPROCESS), classifiers=())
RELEASES = {
    "output layer": replace(
        BEFORE,
        classifiers=("fc",),
        earlier=(EarlierDefault(kind="default_tap", now=NOW, classifiers=()),),
    ),
    "preprocess": replace(
        BEFORE,
        preprocess=BEFORE.preprocess.override(mean=(0.4, 0.5, 0.6)),
        earlier=(EarlierDefault(kind="preprocess", now=NOW, preprocess=BEFORE.preprocess),),
    ),
}


@pytest.fixture
def provider() -> Iterator[ChangingProvider]:
    made = ChangingProvider()
    registry.register_provider("changing:", made)
    yield made
    del registry._PROVIDERS["changing:"]


def extract(source: Path, cache: Path, *taps: str) -> ExtractionReport:
    return run_extraction(source, cache, make_request("changing:net"), taps=taps or ("default",), settings=SETTINGS)


@pytest.mark.parametrize("changed", RELEASES)
def test_a_cache_is_continued_as_it_was_begun(
    changed: str, provider: ChangingProvider, make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    source, cache = make_folder(per_class=2), tmp_path / "cache"
    provider.provided = BEFORE
    begun = extract(source, cache)
    assert begun.warnings == []
    provider.provided = RELEASES[changed]
    make_folder(per_class=3)  # one more of each
    continued = extract(source, cache)
    assert [s.key for s in continued.sets] == [s.key for s in begun.sets]
    assert (continued.num_extracted, continued.num_cached) == (3, 6)
    (warning,) = continued.warnings
    assert warning.kind == RELEASES[changed].earlier[0].kind
    assert NOW in warning.text
    again = extract(source, cache)
    assert (again.num_extracted, again.warnings) == (0, [warning])
    assert len(continued.store.feature_sets()) == 1


@pytest.mark.parametrize("changed", RELEASES)
def test_a_new_cache_has_the_new_default_in_silence_and_keeps_it(
    changed: str, provider: ChangingProvider, make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    source = make_folder(per_class=2)
    provider.provided = BEFORE
    old = extract(source, tmp_path / "old")
    provider.provided = RELEASES[changed]
    new = extract(source, tmp_path / "new")
    assert new.warnings == []
    assert new.sets[0].fingerprint != old.sets[0].fingerprint
    assert extract(source, tmp_path / "new").num_extracted == 0


@pytest.mark.parametrize("changed", RELEASES)
def test_what_was_made_by_an_earlier_default_can_be_made_again(
    changed: str, provider: ChangingProvider, make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    provider.provided = BEFORE
    (begun,) = extract(make_folder(per_class=1), tmp_path / "cache").sets
    provider.provided = RELEASES[changed]
    again = reproduce_backbone(begun.identity, "none", needed_by="this test", backbone="changing:net")
    assert again.identity == begun.identity


def test_a_default_tap_of_then_is_continued_and_another_tap_is_free(
    provider: ChangingProvider, make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    source, cache = make_folder(per_class=2), tmp_path / "cache"
    provider.provided = BEFORE
    extract(source, cache, "body:avg")
    earlier = EarlierDefault(kind="default_tap", now=NOW, default_tap="body:avg")
    provider.provided = replace(BEFORE, earlier=(earlier,))
    (continued,) = extract(source, cache).sets
    assert continued.tap == "body:avg"
    assert [w.kind for w in continued.warnings()] == ["default_tap"]
    (named,) = extract(source, cache, "stem:avg").sets
    assert named.tap == "stem:avg"
    assert named.warnings() == []


def vit_folder(folder: Path, **settings: object) -> str:
    """Write a small network of transformers with its preprocessor; return its name as a backbone."""
    need("transformers")
    import_torchvision()
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTModel(ViTConfig(image_size=32, patch_size=16, **sizes), add_pooling_layer=False).save_pretrained(folder)
    preprocessor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}, **settings}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return f"hf:{folder}"


BEFORE_HF = {"resize": 32, "crop": 32, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
"""What releases made of such a folder that obeyed neither squashing nor the means that a class has by itself."""


def as_earlier_releases_did() -> dict[str, object]:
    return PreprocessSpec(**BEFORE_HF).choices()  # type: ignore[arg-type]


def test_a_cache_made_before_the_rules_of_transformers_were_followed_is_continued(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    name, source, cache = vit_folder(tmp_path / "vit"), make_folder(per_class=1), tmp_path / "cache"
    request = make_request(name, preprocess=as_earlier_releases_did())
    (begun,) = run_extraction(source, cache, request, settings=SETTINGS).sets
    make_folder(per_class=2)
    continued = run_extraction(source, cache, make_request(name), settings=SETTINGS)
    assert [s.key for s in continued.sets] == [begun.key]
    (warning,) = [each for each in continued.warnings if each.kind == "preprocess"]
    assert "resize_mode squash" in warning.text
    (new,) = run_extraction(source, tmp_path / "new", make_request(name), settings=SETTINGS).sets
    assert new.identity.preprocess.choices()["resize_mode"] == "squash"
    assert "preprocess" not in {each.kind for each in new.warnings()}


def test_so_is_one_whose_preprocess_is_refused_now(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    name = vit_folder(tmp_path / "vit", sharpen=0.5)
    source, cache = make_folder(per_class=1), tmp_path / "cache"
    with pytest.raises(BackboneError, match="sharpen 0.5 in its preprocessor_config.json"):
        run_extraction(source, cache, make_request(name), settings=SETTINGS)
    request = make_request(name, preprocess=as_earlier_releases_did())
    (begun,) = run_extraction(source, cache, request, settings=SETTINGS).sets
    make_folder(per_class=2)
    continued = run_extraction(source, cache, make_request(name), settings=SETTINGS)
    assert [s.key for s in continued.sets] == [begun.key]
    (warning,) = [each for each in continued.warnings if each.kind == "preprocess"]
    assert "sharpen" in warning.text
    assert reproduce_backbone(begun.identity, "none", needed_by="this test", backbone=name).identity == begun.identity
