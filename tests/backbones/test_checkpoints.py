"""Files of weights: what they are is told from their bytes, and nothing in them is run."""

from __future__ import annotations

import argparse
import collections
import datetime
import gzip
import io
import json
import pathlib
import pickle
import subprocess
import sys
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file

from featurecache.backbones.weights.checkpoints import read_checkpoint
from featurecache.errors import WeightsError

TENSORS = {"0.weight": torch.arange(6.0).reshape(2, 3), "0.bias": torch.ones(2)}


class Thing:
    """An object that has no place in a weights file."""


class Hostile:
    """Runs a command where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return pathlib.Path.touch, (self.mark,)


class HostileSystem(Hostile):
    """As above, by a function of the blocked modules."""

    def __reduce__(self) -> Any:
        import os

        return os.system, (f"touch {self.mark}",)


def torch_bytes(content: Any, **options: Any) -> bytes:
    out = io.BytesIO()
    torch.save(content, out, **options)
    return out.getvalue()


def zip_bytes(**files: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def tar_bytes(name: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    return out.getvalue()


def hdf5_bytes() -> bytes:
    out = io.BytesIO()
    with h5py.File(out, "w") as file:
        file["kernel"] = np.ones(3)
    return out.getvalue()


def torchscript_bytes() -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch advises against it, and people have such files
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), out)
    return out.getvalue()


def program_bytes() -> bytes:
    out = io.BytesIO()
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),)), out)
    return out.getvalue()


def npz_bytes() -> bytes:
    out = io.BytesIO()
    np.savez(out, a=np.ones(3))
    return out.getvalue()


NOT_WEIGHTS: dict[str, tuple[bytes | Callable[[], bytes], str]] = {
    "empty": (b"", r"is empty \(0 bytes\)"),
    "text": (b"/somewhere/else/resnet.pth\n", "is a text file"),
    "web page": (b"\n<!DOCTYPE html>\n<html><body>Log in</body></html>", "is a web page"),
    "error of a server": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is an XML text"),
    "answer of a server": (b'{"detail": "Unauthorized"}', "is a JSON text"),
    "index of shards": (json.dumps({"metadata": {}, "weight_map": {"a": "b"}}).encode(), "index of weights in several"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 99\n", "Git LFS pointer"),
    "annex pointer": (b"/annex/objects/SHA256E-s99--4d7a.pth\n", "git-annex pointer"),
    "zeros": (bytes(9000), "begins with 4,096 zeros"),
    "gzip": (gzip.compress(b"weights"), "compressed by gzip; unpack it"),
    "HDF5": (hdf5_bytes, "is an HDF5 file"),
    "GGUF": (b"GGUF\x03\0\0\0" + bytes(99), "is a GGUF file"),
    "TensorFlow Lite": (b"\x1c\0\0\0TFL3" + bytes(99), "TensorFlow Lite"),
    "SavedModel": (b"\x08\x01\x12\xe2\x97\x01\x0a\xf2" + bytes(99), "TensorFlow SavedModel"),
    "ONNX": (b"\x08\x08\x12\x07pytorch\x1a\x031.0:\x02g" + bytes(9), "is an ONNX model"),
    "NumPy": (npz_bytes(), "archive of NumPy arrays"),
    "zip": (zip_bytes(**{"notes.txt": b"x"}), r"no checkpoint \(it holds notes.txt\)"),
    "empty zip": (zip_bytes(), "holds nothing"),
    "tar": (tar_bytes("notes.txt"), "is a tar archive; unpack it"),
    "checkpoint of 2016": (tar_bytes("sys_info"), "as PyTorch wrote them before 2017"),
    "TorchScript": (torchscript_bytes, r"TorchScript archive, .*state_dict\(\)"),
    "torch.export": (program_bytes, "name it as a network, --backbone file:"),
    "pickle": (pickle.dumps({"weight": np.ones(2)}), "is a pickle that torch.save did not write"),
    "old pickle": (pickle.dumps({"a" * 30: 1}, protocol=2), "is a pickle that torch.save did not write"),
    "image": (b"\xff\xd8\xff\xe0" + bytes(50), "is a JPEG image"),
    "anything": (bytes(range(200, 256)) * 9, "is not a checkpoint: it begins with c8 c9"),
    "cut safetensors": (save(TENSORS)[:-5], r"is cut off or damaged \([0-9,]+ bytes\)"),
    "cut header of safetensors": (save(TENSORS)[:20], "is cut off or damaged"),
    "cut checkpoint": (torch_bytes(TENSORS)[:700], "is cut off or damaged"),
    "cut old checkpoint": (torch_bytes(TENSORS, _use_new_zipfile_serialization=False)[:-8], "is cut off or damaged"),
    "other protocol": (torch_bytes(TENSORS, pickle_protocol=4), "only by running code"),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", NOT_WEIGHTS)
def test_each_file_is_called_by_its_true_name(name: str, suffix: str, tmp_path: Path) -> None:
    content, message = NOT_WEIGHTS[name]
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content() if callable(content) else content)
    with pytest.raises(WeightsError, match=message) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "weights.bin", "weights"])
@pytest.mark.parametrize("old", [False, True])
def test_a_suffix_is_only_a_name(name: str, old: bool, tmp_path: Path) -> None:
    path = tmp_path / name
    for write in (save_file, partial(torch.save, _use_new_zipfile_serialization=not old)):
        path.unlink(missing_ok=True)
        write(TENSORS, path)
        tensors = read_checkpoint(path).tensors
        assert all(torch.equal(TENSORS[key], tensors[key]) for key in TENSORS)


def test_a_byte_that_changed_is_damage(tmp_path: Path) -> None:
    """torch.load itself does not look at the checksums of an archive."""
    path = tmp_path / "flipped.pth"
    data = bytearray(torch_bytes({"weight": torch.full((999,), 7.0)}))
    place = data.index(np.full(3, 7.0, np.float32).tobytes())
    data[place + 402] ^= 0x40
    path.write_bytes(data)
    assert not torch.equal(torch.load(path, weights_only=True)["weight"], torch.full((999,), 7.0))
    with pytest.raises(WeightsError, match="cut off or damaged"):
        read_checkpoint(path)


def test_an_archive_without_checksums_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(TENSORS, tmp_path / "unsummed.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert set(read_checkpoint(tmp_path / "unsummed.pth").tensors) == set(TENSORS)


BESIDE: dict[str, Any] = {
    "numpy scalars": {"best": np.float64(0.7), "step": np.int64(3), "flag": np.bool_(True), "name": np.str_("x")},
    "numpy arrays": {"confusion": np.eye(3), "half": np.ones(2, np.float16)},
    "a namespace": argparse.Namespace(
        lr=0.1, data=pathlib.PurePosixPath("/data"), nested=argparse.Namespace(x=np.int32(1))
    ),
    "a default dict": collections.defaultdict(list, {"loss": [1.0, 2.0]}),
    "times": [datetime.datetime(2026, 1, 2), datetime.timedelta(3)],
    "plain values": {"epoch": 3, "classes": ("a", "b"), "none": None, "set": {1, 2}},
}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("name", BESIDE)
def test_settings_and_counters_beside_the_weights_are_passed_over(name: str, old: bool, tmp_path: Path) -> None:
    path = tmp_path / "trained.pth"
    torch.save({"state_dict": TENSORS, "beside": BESIDE[name]}, path, _use_new_zipfile_serialization=not old)
    before = set(torch.serialization.get_safe_globals())
    tensors = read_checkpoint(path).tensors
    assert set(tensors) == {"state_dict.0.weight", "state_dict.0.bias"}
    assert torch.equal(tensors["state_dict.0.weight"], TENSORS["0.weight"])
    assert set(torch.serialization.get_safe_globals()) == before


def test_other_objects_are_refused_by_name(tmp_path: Path) -> None:
    torch.save({"model": TENSORS, "config": Thing()}, tmp_path / "object.pth")
    with pytest.raises(WeightsError, match=r"not tensors \(\S*test_checkpoints.Thing\), and those are not unpickled"):
        read_checkpoint(tmp_path / "object.pth")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "network.pth")
    with pytest.raises(WeightsError, match=r"not tensors \(torch.nn.modules.linear.Linear\)"):
        read_checkpoint(tmp_path / "network.pth")


@pytest.mark.parametrize("kind", [Hostile, HostileSystem])
@pytest.mark.parametrize("old", [False, True])
def test_nothing_in_a_file_is_run(kind: type[Hostile], old: bool, tmp_path: Path) -> None:
    torch.save({"state_dict": TENSORS, "x": kind(tmp_path / "mark")}, tmp_path / "hostile.pth",
               _use_new_zipfile_serialization=not old)  # fmt: skip
    with pytest.raises(WeightsError, match="not unpickled"):
        read_checkpoint(tmp_path / "hostile.pth")
    assert not (tmp_path / "mark").exists()


def test_files_without_tensors(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="does not exist"):
        read_checkpoint(tmp_path / "absent.pth")
    with pytest.raises(WeightsError, match="is a folder; name the file in it"):
        read_checkpoint(tmp_path)
    for content, found in (({"epoch": 3}, "epoch"), (torch.ones(2), "Tensor"), ([], "list"), (np.float64(1), "object")):
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(WeightsError, match=rf"holds no tensors by name \(found .*{found}"):
            read_checkpoint(tmp_path / "other.pth")


def test_broken_material_is_refused(material: Path) -> None:
    files = sorted((material / "weights" / "broken").iterdir())
    assert len(files) == 3
    for file in files:
        with pytest.raises(WeightsError, match=r"(before 2017|damaged|a text file).*; its name promises sha256"):
            read_checkpoint(file)


def deflated(path: Path, out: Path, **others: int) -> Path:
    """Pack a checkpoint again, compressed, with records of so many zeros beside or in the place of its own."""
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as after:
        folder = before.namelist()[0].partition("/")[0]
        for name in before.namelist():
            if name.removeprefix(f"{folder}/data/") not in others:
                after.writestr(name, before.read(name))
        for name, count in others.items():
            with after.open(f"{folder}/data/{name}", "w", force_zip64=True) as file:
                for start in range(0, count, 1 << 24):
                    file.write(bytes(min(1 << 24, count - start)))
    return out


def test_records_are_bounded_before_they_are_inflated(tmp_path: Path) -> None:
    """A compressed record of 160 MB in a file of 1 MB costs no memory: it is never inflated."""
    torch.save(TENSORS, tmp_path / "plain.pth")
    bombs = [deflated(tmp_path / "plain.pth", tmp_path / f"{n}.pth", **{n: 160 << 20}) for n in ("0", "unused")]
    assert max(bomb.stat().st_size for bomb in bombs) < 2 << 20
    code = (
        "import resource, sys, torch\n"
        "from pathlib import Path\n"
        "from featurecache.backbones.weights.checkpoints import read_checkpoint\n"
        "from featurecache.errors import WeightsError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n"
        "        read_checkpoint(Path(path))\n"
        "    except WeightsError as error:\n"
        "        print(error)\n"
        "sys.exit(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before > 80 << 10)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *map(str, bombs)], capture_output=True, text=True, check=False)
    assert done.stdout.count("is compressed, and its") == 2, done.stderr
    assert done.returncode == 0, done.stderr


def test_a_checkpoint_that_was_packed_again_is_read(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "plain.pth")
    packed = deflated(tmp_path / "plain.pth", tmp_path / "packed.pth")
    found = read_checkpoint(packed).tensors
    assert found.keys() == read_checkpoint(tmp_path / "plain.pth").tensors.keys()


def test_records_that_share_their_bytes_are_damage(tmp_path: Path) -> None:
    """A list of contents may name the same bytes many times over."""
    path = tmp_path / "shared.pth"
    torch.save({"a": torch.zeros(100_000)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        for number in range(40):
            copy = zipfile.ZipInfo(f"shared/data/x{number}")
            original = archive.getinfo(next(name for name in archive.namelist() if name.endswith("data/0")))
            for field in ("header_offset", "compress_size", "file_size", "CRC"):
                setattr(copy, field, getattr(original, field))
            archive.filelist.append(copy)
            archive._didModify = True
    with pytest.raises(WeightsError, match="is cut off or damaged"):
        read_checkpoint(path)


class Inflated:
    """Unpickled, zeros by the gigabyte: torch calls this without asking."""

    def __reduce__(self) -> Any:
        return bytearray, (1 << 33,)


@pytest.mark.parametrize("old", [False, True])
def test_a_pickle_cannot_ask_for_memory_by_a_number(tmp_path: Path, old: bool) -> None:
    path = tmp_path / "net.pth"
    torch.save({"state_dict": TENSORS, "beside": Inflated()}, path, _use_new_zipfile_serialization=not old)
    with pytest.raises(WeightsError, match="holds Python objects that are not tensors .bytearray."):
        read_checkpoint(path)
