"""All blocks of a network, compared on a sample that is computed once and not kept, or cached where that is asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, write_cache

import featurecache as fc
from featurecache.advice import layers_scan
from featurecache.advice.arms import ArmSource
from featurecache.advice.evidence import gather
from featurecache.advice.layers_scan import LayersScan, scan_layers
from featurecache.errors import NotAgreedError, RequestError
from featurecache.store.store import FeatureStore
from featurecache.store.tasks import read_views

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return write_cache(tmp_path, per_class=20)


def test_layers_are_what_extraction_gives_and_nothing_is_kept(cache: Path) -> None:
    store, photos = FeatureStore.open(cache), cache.parent / "photos"
    before = {path.name: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}
    (finding,) = fc.advise(cache, "colour", only=["what"], source=photos, layers_scan=True, backbone=TINY)
    assert finding.details["scanned"]
    ranked = {row["name"].partition(" of ")[0]: row["score"] for row in finding.details["ranking"]}
    assert set(ranked) == {*finding.details["scanned"], store.feature_sets()[0].tap}
    assert "not kept" in finding.basis
    probes = {path for path in cache.rglob("*") if "probes" in path.parts}
    after = {path.name: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file() and path not in probes}
    assert after == before
    evidence = gather(store.task("colour"), store.feature_sets())
    (feature_set,) = store.feature_sets()
    found = scan_layers(store, evidence, feature_set, LayersScan(ArmSource(photos), backbone=TINY))
    assert found.index.tolist() == list(range(len(evidence.rows)))
    kept = fc.advise(cache, "colour", only=["what"], source=photos, layers_scan=True, keep_layers=True, backbone=TINY)[
        0
    ]
    assert "scanned" not in kept.details
    for cached in FeatureStore.open(cache).feature_sets():
        if cached.tap in found.features:
            expected = read_views(cached.open(), evidence.rows)[:, 0]
            scale = np.abs(expected).max()
            np.testing.assert_allclose(found.features[cached.tap], expected, atol=2e-3 * scale)
    assert {row["name"].partition(" of ")[0] for row in kept.details["ranking"]} == set(ranked)
    for row in kept.details["ranking"]:
        assert row["score"] == pytest.approx(ranked[row["name"].partition(" of ")[0]], abs=0.05)


def test_more_inputs_than_it_takes_are_sampled(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers_scan, "MAX_INPUTS", 30)
    (finding,) = fc.advise(
        cache, "colour", only=["what"], source=cache.parent / "photos", layers_scan=True, backbone=TINY
    )
    assert finding.n == 30


def test_the_command_that_is_named_caches_the_layer(cache: Path, call: Call) -> None:
    scan = ["--layers-scan", "--source", cache.parent / "photos", "--backbone", TINY]
    status, out, err = call("advise", cache, "--task", "colour", "--only", "what", *scan, "--json", "--quiet")
    assert status == 0, err
    (finding,) = json.loads(out)["findings"]
    assert finding["next_command"].startswith("featurecache ")
    assert str(cache) in finding["next_command"]


def test_requests_that_make_no_sense_are_one_line(cache: Path, call: Call, tmp_path: Path) -> None:
    photos = cache.parent / "photos"
    with pytest.raises(NotAgreedError, match="the scan of layers needs the backbone"):
        fc.advise(cache, "colour", source=photos, layers_scan=True)
    with pytest.raises(RequestError, match="--layers-scan computes layers of the samples themselves; say with --sou"):
        fc.advise(cache, "colour", layers_scan=True)
    with pytest.raises(RequestError, match="holds no samples from .*; name the source that it was made of"):
        fc.advise(cache, "colour", source=photos / "red", layers_scan=True, backbone=TINY)
    for option in (["--keep-layers"], ["--weights", "w.pth"]):
        status, _, err = call("advise", cache, "--task", "colour", *option)
        assert status == 2
        assert f"{option[0]} is about --layers-scan; add that, or leave {option[0]} out" in err
    status, _, err = call("advise", cache, "--layers-scan", "--source", photos, "--unlabelled")
    assert status == 2
    assert "--layers-scan are for questions about a task; name it with --task" in err
