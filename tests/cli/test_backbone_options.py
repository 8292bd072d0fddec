"""From the command line: suggested taps, random weights, and `inspect` against what lies on the disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY

pytestmark = pytest.mark.usefixtures("few_settings")

RUNTIME = ["--runtime", "torch", "--batch-size", "32"]


def test_inspect_shows_cost_bytes_and_suggestions(call: Callable) -> None:
    _, out, _ = call("inspect", TINY)
    assert "GFLOP until here" in out
    assert "--tap blocks: 2 taps, stem.2:avg to body.2:avg" in out
    document = json.loads(call("inspect", TINY, "--json")[1])
    assert document["suggested_taps"] == {
        "default": ["pre_logits:none"],
        "stages": ["stem:avg", "body:avg"],
        "blocks": ["stem.2:avg", "body.2:avg"],
    }
    nodes = {node["name"]: node for node in document["nodes"]}
    convolution = 2 * 3 * 9 * 8 * 16 * 16
    assert nodes["stem.0"]["flops"] == convolution
    assert nodes["pre_logits"]["flops"] == convolution + 2 * 8 * 9 * 16 * 8 * 8
    assert nodes["pre_logits"]["bytes_per_sample"] == 16 * 2 + 32


def test_inspect_shows_where_a_network_can_be_cut(call: Callable) -> None:
    _, out, _ = call("inspect", TINY, "--tails")
    assert "cut after" in out
    assert f"cache one of them: featurecache extract SOURCE --cache DIR --backbone {TINY} --tap stem:none" in out
    block, tail = json.loads(call("inspect", TINY, "--tails", "--json")[1])["tails"]
    assert block == {**tail, "tap": "stem.2:none"}  # where the stage ends
    before, after = 2 * 3 * 9 * 8 * 16 * 16, 2 * 8 * 9 * 16 * 8 * 8
    assert tail == {
        "tap": "stem:none",
        "shape": [8, 16, 16],
        "num_trainable": 8 * 9 * 16 + 3 * 16,
        "bytes_float16": 8 * 16 * 16 * 2 + 32,
        "bytes_float32": 8 * 16 * 16 * 4 + 32,
        "flops_before": before,
        "flops_after": after,
        "speedup": (before + 3 * after) / (3 * after),
    }
    assert "tails" not in json.loads(call("inspect", TINY, "--json")[1])


def test_inspect_says_when_a_network_cannot_be_cut(call: Callable) -> None:
    _, out, _ = call("inspect", "python:tests.backbones.networks:headless", "--tails")
    assert "headless cannot be cut after any of its stages and blocks" in out


def test_bytes_on_disk_are_what_inspect_predicted(make_folder: Callable, tmp_path: Path, call: Callable) -> None:
    source = make_folder(per_class=100)
    command = ["extract", source, "--cache", tmp_path / "c", "--backbone", TINY, "--tap", "stem:flatten", *RUNTIME]
    # One shard: each has 8 KB of its own.
    assert call(*command, "--tap", "body:none", "--shard-rows", 300)[0] == 0
    taps = json.loads(call("inspect", TINY, "--tap", "stem:flatten", "--tap", "body:none", "--json")[1])["taps"][1:]
    assert [tap["bytes_per_sample"] for tap in taps] == [8 * 16 * 16 * 2 + 32, 16 * 8 * 8 * 2 + 32]
    for tap in taps:
        (folder,) = (tmp_path / "c" / "features").glob(f"*/{tap['name'].replace(':', '=')}")
        sizes = [file.stat().st_size for file in folder.rglob("shards/*.h5")]
        assert sum(sizes) == pytest.approx(300 * tap["bytes_per_sample"], rel=0.01)


def test_suggested_taps_are_extracted_by_name_and_a_tap_is_added_alone(
    make_folder: Callable, tmp_path: Path, call: Callable
) -> None:
    command = ["extract", make_folder(), "--cache", tmp_path / "c", "--backbone", TINY, *RUNTIME, "--json"]
    first = json.loads(call(*command, "--tap", "blocks")[1])
    assert first["extracted"] == 24
    again = json.loads(call(*command, "--tap", "blocks", "--tap", "default")[1])
    assert again["extracted"] == 24
    taps = {path.name for path in (tmp_path / "c" / "features").glob("*/*") if path.is_dir()}
    assert {"stem.2=avg", "body.2=avg", "pre_logits=none"} <= taps
    assert call(*command, "--tap", "body:gem", "--tap", "body:grid2", "--tap", "body:avgmax")[0] == 0


def test_random_weights_have_a_fingerprint_of_their_own_and_predict_finds_them_again(
    make_folder: Callable, tmp_path: Path, call: Callable
) -> None:
    source, backbone = make_folder(per_class=12), "torchvision:squeezenet1_1"
    small = ["--resize", "64", "--crop", "64"]
    random = ["--backbone", backbone, "--init", "random", "--weights-seed", "3", *small]
    assert call("extract", source, "--cache", tmp_path / "c", *random, *RUNTIME)[0] == 0
    assert "random initialisation, seed 3" in call("info", tmp_path / "c")[1]
    assert "0 extracted" in call("extract", source, "--cache", tmp_path / "c", *random, *RUNTIME)[1]
    call("task", "add", tmp_path / "c", "colour", "--from-folders")
    assert call("train", tmp_path / "c", "--task", "colour", "--head", "logistic", "--save", "h")[0] == 0
    head, image = tmp_path / "c" / "heads" / "h", next(source.rglob("*.png"))
    status, out, err = call("predict", head, image, *RUNTIME, "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)


def test_requests_that_exclude_each_other(tmp_path: Path, call: Callable) -> None:
    command = ["inspect", "torchvision:resnet18", "--init", "random"]
    status, _, err = call(*command, "--weights", tmp_path / "w.pth")
    assert status == 2
    assert "exclude each other" in err
    status, _, err = call("inspect", "torchvision:resnet18", "--weights-seed", "3")
    assert (status, "add --init random" in err) == (2, True)


def test_a_head_on_a_checkout_is_used_only_with_a_checkout_that_is_named(
    make_folder: Callable, tmp_path: Path, call: Callable
) -> None:
    checkout = tmp_path / "nets"
    checkout.mkdir()
    (checkout / "hubconf.py").write_text("from tiny_backbones import other_seed, tiny\n")
    source, backbone = make_folder(per_class=12), f"hub:{checkout}:tiny"
    assert call("extract", source, "--cache", tmp_path / "c", "--backbone", backbone, *RUNTIME)[0] == 0
    call("task", "add", tmp_path / "c", "colour", "--from-folders")
    assert call("train", tmp_path / "c", "--task", "colour", "--head", "logistic", "--save", "h")[0] == 0
    command = ["predict", tmp_path / "c" / "heads" / "h", next(source.rglob("*.png")), *RUNTIME]
    status, _, err = call(*command)
    assert (status, "needs the backbone 'hub:nets:tiny', a checkout with code" in err) == (2, True)
    moved = checkout.rename(tmp_path / "moved")
    (tmp_path / "elsewhere").mkdir()
    moved = moved.rename(tmp_path / "elsewhere" / "nets")
    assert call(*command, "--backbone", f"hub:{moved}:tiny")[0] == 0
    status, _, err = call(*command, "--backbone", f"hub:{moved}:other_seed")
    assert (status, "cannot be reproduced here" in err) == (2, True)


def test_a_run_says_what_bound_it_and_what_was_tried(make_folder: Callable, tmp_path: Path, call: Callable) -> None:
    pytest.importorskip("openvino")
    command = ["extract", make_folder(), "--cache", tmp_path / "c", "--backbone", TINY]
    out = call(*command)[1]
    assert "runtimes tried: torch " in out
    assert "; the limit: " in out
    assert "; to speed up: " in out
    report = json.loads(call(*command, "--precision", "bfloat16", "--json")[1])
    assert (report["runtime"], report["trial"], report["extracted"]) == ("torch", {}, 24)
    assert report["usage"][0]["inputs"] == 24
    assert report["startup_seconds"] <= report["seconds"]


def test_decoding_is_part_of_the_fingerprint(make_folder: Callable, tmp_path: Path, call: Callable) -> None:
    command = ["extract", make_folder(), "--cache", tmp_path / "c", "--backbone", TINY, *RUNTIME]
    assert call(*command)[0] == call(*command, "--jpeg-decoding", "full")[0] == 0
    assert len(list((tmp_path / "c" / "features").iterdir())) == 2
    status, _, err = call(*command, "--jpeg-decoding", "half")
    assert (status, "invalid choice: 'half'" in err) == (2, True)
