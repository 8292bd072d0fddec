"""What a format is, and which there are."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch.export import ExportedProgram

from featurecache.deployment.exporting.network import ExportedNetwork
from featurecache.errors import MissingExtraError

Predict = Callable[[NDArray[Any]], NDArray[Any]]
"""Loaded inputs (B, ...) to outputs (B, K)."""

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
    """How a network is written to a file or folder and read again; the two functions are in the module of that name."""

    module: str
    packages: tuple[str, ...] = ()
    """Needed besides torch."""
    extra: str = ""
    """What installs them."""
    suffix: str
    """By which people know such a file."""
    files: tuple[str, ...] = ()
    """Of a folder; empty for a format of a single file."""

    def check_packages(self) -> None:
        """Raise `MissingExtraError` where one is not installed."""
        for package in self.packages:
            if find_spec(package) is None:
                raise MissingExtraError(package, self.extra)

    def write(self, exported: Exported, path: Path) -> None:
        """Write to a file, or into a folder that is there."""
        self._functions().write(exported, path)

    def read(self, exported: Exported, path: Path) -> Predict:
        """Return what was written as a function of arrays."""
        read: Callable[[Exported, Path], Predict] = self._functions().read
        return read(exported, path)

    def _functions(self) -> Any:
        return importlib.import_module(f"featurecache.deployment.exporting.{self.module}")


# By name.
FORMATS = {
    "onnx": Format(module="onnx_file", suffix=".onnx", packages=("onnx", "onnxscript", "onnxruntime"), extra="export"),
    "torch": Format(module="torch_program", suffix=".pt2"),
    "openvino": Format(
        module="openvino_folder",
        suffix=".xml",
        packages=("openvino",),
        extra="cpu",
        files=("model.xml", "model.bin"),
    ),
    "safetensors": Format(module="weights_folder", suffix=".safetensors", files=("model.safetensors", "config.json")),
}
