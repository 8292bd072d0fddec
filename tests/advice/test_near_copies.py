"""``task add --group-near-copies``: what is nearly the same stays in one split and one fold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import RUNTIME, TINY
from PIL import Image

import featurecache as fc
from featurecache.advice import unlabelled
from featurecache.errors import RequestError
from featurecache.evaluation.near_copies import near_copies
from featurecache.store.store import FeatureStore

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 patterns of their own, each in four copies with a little noise, and coin-flip labels."""
    folder = tmp_path_factory.mktemp("copies")
    rng = np.random.default_rng(0)
    for number in range(40):
        pattern = rng.integers(0, 256, (5, 6, 3)).repeat(8, axis=0).repeat(8, axis=1)
        for copy in range(4):
            path = folder / "photos" / ("heads", "tails")[number // 3 % 2] / f"{number:02}-{copy}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noisy = np.clip(pattern + rng.integers(-3, 4, pattern.shape), 0, 255)
            Image.fromarray(noisy.astype(np.uint8)).save(path)
    extract = ["extract", str(folder / "photos"), "--cache", str(folder / "c"), "--backbone", TINY, *RUNTIME]
    from featurecache.cli import main

    assert main([*extract, "--tap", "stem.0:avg", "--tap", "pre_logits:none", "--quiet"]) == 0
    return folder / "c"


def test_copies_share_a_split_and_a_group(cache: Path, call: Call) -> None:
    status, out, err = call("task", "add", cache, "coin", "--from-folders", "--group-near-copies", "--json")
    assert status == 0, err
    task = FeatureStore.open(cache).task("coin")
    assert json.loads(out)["groups"] == task.groups.max() + 1 <= 40
    assert task.samples is not None
    names = task.samples.uris_of(task.samples.rows_of(task.ids))
    photos: dict[str, set[tuple[int, int]]] = {}
    for name, group, split in zip(names, task.groups.tolist(), task.splits.tolist(), strict=True):
        photos.setdefault(Path(name).name[:2], set()).add((group, split))
    assert all(len(places) == 1 for places in photos.values())
    # The same table says the same groups again, whatever rows they have.
    assert call("task", "add", cache, "again", "--from-folders", "--group-near-copies")[0] == 0
    np.testing.assert_array_equal(FeatureStore.open(cache).task("again").groups, task.groups)


def test_the_score_of_coin_flips_is_that_of_a_coin(cache: Path, call: Call) -> None:
    for name, options in {"apart": [], "together": ["--group-near-copies"]}.items():
        assert call("task", "add", cache, name, "--from-folders", *options)[0] == 0
    apart, together = (
        fc.advise(cache, name, only=["what"])[0].details["ranking"][0]["score"] for name in ("apart", "together")
    )
    assert apart > together + 0.1
    assert together < 0.65
    found = fc.advise(cache, "apart", only=["soundness"], source=cache.parent / "photos")
    (copies,) = [finding for finding in found if finding.verdict == "near-copies"]
    assert copies.is_fatal
    assert copies.next_command is not None
    assert "--group-near-copies" in copies.next_command


def test_too_many_to_compare_is_said(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert near_copies(np.ones((1, 4))).group.tolist() == [0]
    assert near_copies(np.empty((0, 4))).group.tolist() == []
    monkeypatch.setattr(unlabelled, "_MOST_COMPARED", 100)
    with pytest.raises(RequestError, match="160 samples are too many to compare each with all others"):
        unlabelled.near_copy_groups(FeatureStore.open(cache))
