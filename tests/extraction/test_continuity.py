"""A cache that was begun before a default changed is continued as it was, and says what the default is now."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_backbones import PREPROCESS, TinyNet

from featurecache.backbones import registry
from featurecache.backbones.provider import EarlierDefault, Provided
from featurecache.extraction.extract import make_request, run_extraction
from featurecache.extraction.reproduction import reproduce_backbone
from featurecache.extraction.run import ExtractionReport
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
    again = reproduce_backbone(begun.identity, "none", needed_by="this test")
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
