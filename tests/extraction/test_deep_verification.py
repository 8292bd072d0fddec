"""A cache that is whole and wrong is found out by its inputs; what was set aside comes back as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import tiny_backbones
from conftest import TINY, write_image

from featurecache.cli import main
from featurecache.errors import BackboneMismatchError, RequestError
from featurecache.extraction.deep_verification import verify_deep
from featurecache.extraction.extract import make_request, run_extraction
from featurecache.extraction.recomputation import Inputs, recompute_set_aside
from featurecache.records import encode_record
from featurecache.specs import ExtractionSettings
from featurecache.store.convert import convert_features
from featurecache.store.repair import compare_set_aside, repair
from featurecache.store.shards import ShardWriter
from featurecache.store.store import FeatureStore
from featurecache.store.verify import verify

SETTINGS = ExtractionSettings(runtime="torch", batch_size=4, shard_rows=6)
TAPS = ("stem:avg", "default")


@pytest.fixture
def made(make_folder: Callable[..., Path], tmp_path: Path) -> tuple[Path, FeatureStore]:
    source = make_folder(per_class=5)
    (source / "red" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return source, run_extraction(source, tmp_path / "c", make_request(TINY), taps=TAPS, settings=SETTINGS).store


def inputs(source: Path) -> Inputs:
    return Inputs(source=source, backbone=TINY)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def replace_shard(store: FeatureStore, number: int, change: Callable[[dict, dict], None]) -> None:
    """Put another shard in the place of one, whole in itself: its checksums are right, its content is not."""
    (feature_set,) = store.select_sets(tap="stem:avg")
    commit = feature_set.folder.commits()[number]
    shard = feature_set.folder.open(commit)
    arrays = {name: (array.dtype, shard.read(name).copy()) for name, array in commit.shard.arrays.items()}
    body = json.loads(json.dumps(commit.body))
    change(arrays, body)
    layout = {name: (dtype, values.shape) for name, (dtype, values) in arrays.items()}
    with ShardWriter(feature_set.folder.path, layout, {}) as writer:
        for name, (_, values) in arrays.items():
            writer.append(name, values)
        record = writer.finish(commit.key)
    content = {**msgspec.to_builtins(record), "body": body}
    feature_set.folder.record(commit.key).write_bytes(encode_record("commit", content))


def test_a_right_cache_is_confirmed_and_not_touched(made: tuple) -> None:
    source, store = made
    convert_features(store, store.find(tap="stem:avg"), "int8")
    before = files_of(store.path)
    found = verify_deep(store, inputs(source), num_rows=1000)
    assert (found.num_rows, found.num_identical, found.num_close, found.problems) == (48, 48 - 15, 15, [])  # int8
    assert files_of(store.path) == before
    some = verify_deep(store, inputs(source), num_rows=4, random_state=0)
    assert (some.num_rows, some.problems) == (12, [])


def test_rows_that_are_whole_and_wrong_are_found(made: tuple) -> None:
    source, store = made

    def swap(arrays: dict, body: dict) -> None:
        values = arrays["features"][1]
        values[[0, 1]] = values[[1, 0]]

    replace_shard(store, 1, swap)
    store = FeatureStore.open(store.path)
    assert verify(store, level="hdf5").problems == ()  # nothing else can tell
    found = verify_deep(store, inputs(source), num_rows=1000)
    assert found.num_rows - found.num_identical == 2
    (problem,) = found.problems
    assert "stem=avg/float16" in problem.where
    assert "2 of 16 rows computed again are not as stored, first: " in problem.what
    assert "What has changed on this machine since: no library" in problem.what


def test_a_status_that_is_not_true_is_found(made: tuple) -> None:
    source, store = made

    def blame(arrays: dict, body: dict) -> None:
        body["bad"].append([body["rows"][0][0], "undecodable", "so somebody said"])
        arrays["features"][1][0] = np.nan

    replace_shard(store, 0, blame)
    found = verify_deep(FeatureStore.open(store.path), inputs(source), num_rows=1000)
    (problem,) = found.problems
    assert "is stored as undecodable, and is good now" in problem.what


def test_inputs_that_are_edited_or_gone_are_not_compared(made: tuple) -> None:
    source, store = made
    write_image(source / "red" / "000.png", (1, 2, 3), seed=5)
    (source / "blue" / "001.png").unlink()
    found = verify_deep(store, inputs(source), num_rows=1000)
    assert (found.num_rows, found.num_identical, found.problems) == (28, 28, [])


def test_what_is_needed_is_said(made: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, store = made
    (problem,) = verify_deep(store, Inputs(source=source)).problems
    assert "not computed again: " in problem.what
    assert f"if you trust it, pass --backbone {TINY}" in problem.what
    write_image(tmp_path / "other" / "x.png", (0, 0, 0), seed=9)
    with pytest.raises(RequestError, match="holds none of the samples whose features are cached"):
        verify_deep(store, inputs(tmp_path / "other"))
    with pytest.raises(RequestError, match="rows to compute again must be at least 1, got 0"):
        verify_deep(store, inputs(source), num_rows=0)
    monkeypatch.setattr(tiny_backbones, "tiny", tiny_backbones.other_seed)
    (problem,) = verify_deep(store, inputs(source)).problems
    assert "cannot be reproduced here: weights" in problem.what


def test_what_was_set_aside_comes_back_identical(made: tuple) -> None:
    source, store = made
    before = {path: data for path, data in files_of(store.path).items() if path.startswith("features")}
    shards = sorted(store.path.glob("features/*/*/*/shards/*.h5"))
    for shard in (shards[1], shards[2], shards[4]):  # two neighbours among them
        shard.write_bytes(shard.read_bytes()[:-5])
    write_image(source / "red" / "new.png", (9, 9, 9), seed=99)  # left to the next extraction
    assert len(repair(FeatureStore.open(store.path))) == 3
    store = FeatureStore.open(store.path)
    assert [r.state for r in compare_set_aside(store)] == ["missing"] * 3
    with pytest.raises(BackboneMismatchError, match="if you trust it, pass --backbone"):
        recompute_set_aside(store, Inputs(source=source))
    assert recompute_set_aside(store, inputs(source)) == 16 - 6 + 6
    assert [r.state for r in compare_set_aside(store)] == ["identical"] * 3
    after = {path: data for path, data in files_of(store.path).items() if path.startswith("features")}
    assert after == before
    assert recompute_set_aside(store, inputs(source)) == 0
    shards[1].write_bytes(b"")  # damaged once more
    assert len(repair(FeatureStore.open(store.path))) == 1
    assert recompute_set_aside(FeatureStore.open(store.path), inputs(source)) == 6
    assert {r.state for r in compare_set_aside(store)} == {"identical"}
    assert sorted(path.name for path in (store.path / "quarantine").iterdir()) == ["0001", "0002"]


def test_a_shard_whose_inputs_are_gone_in_part(made: tuple) -> None:
    source, store = made
    sorted(store.path.glob("features/*/*/*/shards/*.h5"))[0].unlink()
    (source / "blue" / "002.png").unlink()
    repair(FeatureStore.open(store.path))
    assert recompute_set_aside(FeatureStore.open(store.path), inputs(source)) == 5
    assert [r.state for r in compare_set_aside(store)] == ["other rows"]


def test_the_verbs(made: tuple, capsys: pytest.CaptureFixture) -> None:
    source, store = made
    cache = str(store.path)
    assert main(["verify", cache, "--deep"]) == 2
    assert f"with --source (the cache says it was made from {source}" in (capsys.readouterr().err)
    deep = ["verify", cache, "--deep", "--source", str(source), "--rows", "5"]
    assert main(deep) == 1
    assert "not computed again" in capsys.readouterr().out.replace("\n", " ")
    assert main([*deep, "--backbone", TINY]) == 0
    assert "10 rows computed again: 10 identical, 0 within tolerance, 0 different" in capsys.readouterr().out
    assert main([*deep, "--backbone", TINY, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["deep"]["num_identical"] == 10
    shard = next(store.path.glob("features/*/*/*/shards/*.h5"))
    shard.unlink()
    assert main([*deep, "--backbone", TINY]) == 1
    assert "nothing was computed again: mend these problems first" in capsys.readouterr().out
    assert main(["repair", cache]) == 1
    capsys.readouterr()
    assert main(["repair", cache, "--source", str(source), "--backbone", TINY, "--json"]) == 0
    assert [r["state"] for r in json.loads(capsys.readouterr().out)["recomputed"]] == ["identical"]
    assert main([*deep, "--backbone", TINY]) == 0
