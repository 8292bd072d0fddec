"""Compiled networks are kept for their user: opened again they compute the same, and nothing else is ever opened."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest

from featurecache.backbones import compiled_networks
from featurecache.backbones.registry import load_backbone
from featurecache.backbones.runtimes import open_runtime
from featurecache.backbones.taps import resolve_taps
from featurecache.specs import BackboneRequest

pytest.importorskip("openvino")
from featurecache.backbones import openvino_runtime  # needs openvino

NETWORK = "python:tests.backbones.networks:small"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take a tiny network for one of an installed library: theirs take seconds to compile."""
    monkeypatch.setattr(compiled_networks, "_CODE_OF_OTHERS", ())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(compiled_networks.FOLDER_VARIABLE, str(tmp_path / "compiled"))
    return tmp_path / "compiled"


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What was converted, each time that it is not taken from the folder."""
    seen: list[object] = []
    convert = openvino_runtime._convert_quickly
    monkeypatch.setattr(openvino_runtime, "_convert_quickly", lambda *args: seen.append(args) or convert(*args))
    return seen


def features(tap: str = "default", *, batch_size: int = 4) -> np.ndarray:
    backbone = load_backbone(BackboneRequest(name=NETWORK))
    taps = resolve_taps(backbone, [tap])
    runtime = open_runtime(backbone, taps, runtime="openvino", batch_size=batch_size)
    images = np.random.default_rng(0).integers(0, 256, (batch_size, 32, 32, 3), dtype=np.uint8)
    try:
        # The second batch: the first is compared with the reference.
        results = list(runtime.map([images, images]))
    finally:
        runtime.close()
    assert runtime.name == "openvino"
    return results[1][taps[0].name]


@pytest.mark.usefixtures("installed")
def test_a_kept_network_computes_the_same_bytes(folder: Path, conversions: list[object]) -> None:
    first = features()
    assert np.array_equal(features(), first)
    assert len(conversions) == 1
    features("body:avg")  # another tap, and another batch, are other programs
    features(batch_size=2)
    assert len(conversions) == len(list(folder.glob("*.blob"))) == 3


@pytest.mark.usefixtures("installed")
@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no owners of files here")
def test_only_its_user_can_write_it_and_only_then_it_is_read(folder: Path, conversions: list[object]) -> None:
    features()
    (blob,) = folder.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(blob.stat().st_mode) == 0o600
    blob.chmod(0o666)
    assert compiled_networks.read(blob) is None
    features()
    assert len(conversions) == 2


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("content", [b"", b"nothing that was compiled", "half"])
def test_what_cannot_be_opened_is_compiled_anew(folder: Path, conversions: list[object], content: bytes | str) -> None:
    expected = features()
    (blob,) = folder.iterdir()
    whole = blob.read_bytes()
    blob.write_bytes(whole[: len(whole) // 2] if isinstance(content, str) else content)
    assert np.array_equal(features(), expected)
    assert len(conversions) == 2
    assert np.array_equal(features(), expected)
    assert len(conversions) == 2


def test_code_of_others_is_compiled_each_time(folder: Path, conversions: list[object]) -> None:
    for _ in range(2):
        backbone = load_backbone(BackboneRequest(name=NETWORK))
        open_runtime(backbone, resolve_taps(backbone, ["default"]), runtime="openvino").close()
    assert len(conversions) == 2
    assert not folder.exists()


def test_the_oldest_go_and_a_folder_that_cannot_be_written_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled_networks, "_MOST_FILES", 3)
    for number in range(5):
        path = tmp_path / "c" / f"{number}.blob"
        compiled_networks.keep(path, bytes(10))
        os.utime(path, (number, number))
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["2.blob", "3.blob", "4.blob"]
    monkeypatch.setattr(compiled_networks, "_MOST_BYTES", 25)
    compiled_networks.keep(tmp_path / "c" / "5.blob", bytes(10))
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["4.blob", "5.blob"]
    (tmp_path / "file").touch()
    compiled_networks.keep(tmp_path / "file" / "folder" / "a.blob", b"data")
    assert compiled_networks.read(tmp_path / "file" / "folder" / "a.blob") is None


def test_an_empty_variable_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compiled_networks.FOLDER_VARIABLE, "")
    assert compiled_networks.folder() is None
    monkeypatch.delenv(compiled_networks.FOLDER_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    monkeypatch.setattr(compiled_networks.platform, "system", lambda: "Linux")
    assert compiled_networks.folder() == Path("/somewhere/featurecache/compiled")
