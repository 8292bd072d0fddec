"""Exported programs as backbones, from the command line to the answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, RUNTIME, TINY, need
from tiny_backbones import TinyNet

from featurecache.code_notice import notice_code_of_others
from featurecache.store.store import FeatureStore

pytestmark = pytest.mark.usefixtures("few_settings")

PREPROCESS = ["--resize", 32, "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5"]
TAPS = ["--tap", "default", "--tap", "stem:none"]


def written(network: TinyNet, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dynamic = ({0: torch.export.Dim("batch")},)
        program = torch.export.export(network.eval(), (torch.zeros(2, 3, 32, 32),), dynamic_shapes=dynamic)
        torch.export.save(program, path)
    return path


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return written(TinyNet(), tmp_path / "tiny.pt2")


@pytest.fixture
def cache(program: Path, make_folder: Callable[..., Path], tmp_path: Path, call: Callable) -> Path:
    source, cache = make_folder(per_class=20), tmp_path / "c"
    options = ["--backbone", f"file:{program}", *PREPROCESS, *TAPS, *RUNTIME]
    status, _, err = call("extract", source, "--cache", cache, *options)
    assert status == 0, err
    assert call("task", "add", cache, "colours", "--from-folders")[0] == 0
    return cache


def test_features_are_those_of_the_network_itself(cache: Path, tmp_path: Path, call: Callable) -> None:
    assert (
        call("extract", tmp_path / "photos", "--cache", tmp_path / "own", "--backbone", TINY, *TAPS, *RUNTIME)[0] == 0
    )
    for tap in ("pre_logits:none", "stem:none"):
        found, expected = (FeatureStore.open(each).find(tap=tap).open() for each in (cache, tmp_path / "own"))
        # That network's batch norms are folded, and float16 rounds.
        np.testing.assert_allclose(found[:], expected[:], rtol=2e-3, atol=1e-5)


def test_an_unchanged_folder_is_known_by_the_content_of_the_program(
    cache: Path, program: Path, tmp_path: Path, call: Callable
) -> None:
    command = ["extract", tmp_path / "photos", "--cache", cache, *PREPROCESS, *TAPS, *RUNTIME, "--json"]
    before = json.loads(call(*command, "--backbone", f"file:{program}")[1])
    assert before["extracted"] == 0
    exported = program.read_bytes()
    written(TinyNet(), program.with_name("again.pt2")).replace(program)
    assert program.read_bytes() != exported
    assert json.loads(call(*command, "--backbone", f"file:{program}")[1])["extracted"] == 0
    written(TinyNet(seed=1), program)
    after = json.loads(call(*command, "--backbone", f"file:{program}")[1])
    assert after["extracted"] == after["samples"]
    assert not {s["fingerprint"] for s in after["features"]} & {s["fingerprint"] for s in before["features"]}


NOTICED = """
import sys, warnings
from featurecache.cli import main
warnings.simplefilter("ignore")
for name in sys.argv[1:]:
    for _ in range(2):
        assert main(["inspect", name, "--json"]) == 0
"""


def test_a_line_on_stderr_says_whose_code_runs(program: Path, tmp_path: Path) -> None:
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "hubconf.py").write_text("from tiny_backbones import tiny\n")
    names = [TINY, f"hub:{tmp_path / 'nets'}:tiny", f"file:{program}"]
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", NOTICED, *names], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [
        f"{TINY} imports tiny_backbones and runs its code",
        f"{names[1]} imports hubconf.py of that folder and runs its code",
        f"{names[2]} is opened by torch.export.load, which can run code that is in the file",
    ]
    decoder, documents, rest = json.JSONDecoder(), [], done.stdout
    while rest := rest.lstrip():
        document, end = decoder.raw_decode(rest)
        documents, rest = [*documents, document], rest[end:]
    assert len(documents) == 2 * len(names)


@pytest.mark.parametrize("quiet", [True, False])
def test_a_quiet_command_leaves_that_line_out(
    quiet: bool, make_folder: Callable[..., Path], tmp_path: Path, call: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    notice_code_of_others.cache_clear()
    options = ["--cache", tmp_path / "c", "--backbone", TINY, *(RUNTIME if quiet else RUNTIME[:-1])]
    assert RUNTIME[-1] == "--quiet"
    assert call("extract", make_folder(per_class=2), *options)[0] == 0
    assert (f"{TINY} imports tiny_backbones and runs its code" in caplog.messages) != quiet


def test_a_head_finds_its_program_by_content_wherever_it_lies(
    cache: Path, program: Path, tmp_path: Path, call: Callable
) -> None:
    options = ["--task", "colours", "--tap", "pre_logits", "--head", "logistic", "--quiet"]
    assert call("train", cache, *options, "--save", "kept")[0] == 0
    image = next((tmp_path / "photos" / "red").iterdir())
    command = ["predict", cache / "heads" / "kept", image, "--json"]
    status, _, err = call(*command)
    assert status == 2
    assert (
        "needs the backbone 'file:tiny.pt2', a program that can run code, wherever it lies now (file:PROGRAM.pt2)"
        in err
    )
    (tmp_path / "elsewhere").mkdir()
    moved = program.rename(tmp_path / "elsewhere" / "tiny.pt2")
    status, out, err = call(*command, "--backbone", f"file:{moved}")
    assert status == 0, err
    assert json.loads(out)["predictions"][0]["label"] == "red"
    written(TinyNet(seed=1), moved)
    status, _, err = call(*command, "--backbone", f"file:{moved}")
    assert (status, "cannot be reproduced here" in err) == (2, True)


@pytest.mark.parametrize("format", ["torch", "onnx", "safetensors"])
def test_the_rest_of_a_program_is_trained_and_leaves_as_one_file(
    format: str, cache: Path, program: Path, tmp_path: Path, call: Callable
) -> None:
    if format == "onnx":
        need("onnxscript")
    options = ["--task", "colours", "--backbone", f"file:{program}", "--head", "tail", "--from-tap", "stem:none"]
    settings = ["--epochs", 3, "--learning-rate", 0.01, "--quiet"]
    status, _, err = call("train", cache, *options, *settings, "--save", "deeper")
    assert status == 0, err
    place, agreed = tmp_path / {"torch": "out.pt2", "onnx": "out.onnx"}.get(format, "out"), f"file:{program}"
    command = ["export", cache / "heads" / "deeper", "--out", place, "--format", format, "--backbone", agreed]
    status, out, err = call(*command, "--json")
    assert status == 0, err
    assert json.loads(out)["largest_difference"] < 1e-4
    if format == "torch":  # whose input is bytes
        status, _, err = call("inspect", f"file:{place}")
        assert (status, "its input is torch.uint8 (any, 32, 32, 3)" in err) == (2, True)


def test_inspect_shows_the_layers_that_the_network_had(program: Path, call: Callable) -> None:
    status, out, err = call("inspect", f"file:{program}", "--json")
    assert status == 0, err
    (_, expected, _) = call("inspect", TINY, "--json")
    mine, theirs = ({n["name"]: n for n in json.loads(text)["nodes"]} for text in (out, expected))
    assert mine == {name: theirs[name] for name in mine}
    assert set(theirs) == set(mine)
    status, out, err = call("inspect", f"file:{program}", "--tails")
    assert status == 0, err
    assert "stem:none" in out
    assert "a program has no preprocess" in call("inspect", f"file:{program}")[1]
