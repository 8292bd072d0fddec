"""What a format is, and which there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray
from torch.export import ExportedProgram

from featurecache.deployment.exporting.network import ExportedNetwork

# Under which a file keeps its metadata, as JSON.
KEY = "featurecache"


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What is written."""

    network: ExportedNetwork
    program: ExportedProgram
    about: dict[str, Any]
    """JSON values that travel along; ``input`` and ``output`` name what goes in and comes out."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """What a format needs and makes."""

    module: str
    """Of this folder, with the functions of `Converter`; imported late, as its packages may not be installed."""
    packages: tuple[str, ...] = ()
    """Needed besides torch."""
    extra: str = ""
    """What installs them."""
    suffix: str
    """By which people know such a file."""
    files: tuple[str, ...] = ()
    """Of a folder; empty for a format of a single file."""


class Converter(Protocol):
    """The functions in the module of a format."""

    def write(self, exported: Exported, path: Path) -> None:
        """Write to a file, or into a folder that is there."""

    def run(self, exported: Exported, path: Path, batches: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Return the outputs (B, K) of what was written for some batches of loaded inputs (B, ...)."""


# By name.
FORMATS = {
    "onnx": Format(module="onnx_file", suffix=".onnx", packages=("onnx", "onnxscript", "onnxruntime"), extra="export"),
    "torch": Format(module="torch_program", suffix=".pt2"),
    "openvino": Format(
        module="openvino_folder", suffix=".xml", packages=("openvino",), extra="cpu", files=("model.xml", "model.bin")
    ),
    "safetensors": Format(module="weights_folder", suffix=".safetensors", files=("model.safetensors", "config.json")),
}
