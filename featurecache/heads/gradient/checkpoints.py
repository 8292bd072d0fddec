"""How far a training is, kept in a file whose name says which training it belongs to."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from featurecache.atomic import make_folder, publish_bytes

SUFFIX = ".safetensors"


class Checkpoint:
    """One training's place.

    Parameters
    ----------
    folder : Path
        Made when something is written.
    digest : str
        Of everything that the result depends on: another training has another file.
    every : float
        Seconds between writing.
    resume : bool
        Go on from what is there; otherwise it is replaced.
    """

    def __init__(self, folder: Path, digest: str, *, every: float, resume: bool) -> None:
        self._path = folder / f"{digest[:32]}{SUFFIX}"
        self._every, self._resume, self._last, self._written = every, resume, time.monotonic(), False

    def due(self, *, last: bool) -> bool:
        """Tell whether to write now."""
        return last or time.monotonic() - self._last >= self._every

    def write(self, tensors: dict[str, Tensor], said: dict[str, Any]) -> None:
        """Keep tensors and JSON values, all or nothing."""
        make_folder(self._path.parent)
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        publish_bytes(self._path, safetensors.torch.save(plain, {"progress": json.dumps(said)}))
        self._last, self._written = time.monotonic(), True

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return what was kept; None where nothing can be gone on from."""
        if not self._resume or not self._path.is_file():
            return None
        try:
            with safe_open(self._path, framework="pt") as file:
                said = json.loads((file.metadata() or {})["progress"])
                return {name: file.get_tensor(name) for name in file.keys()}, said  # noqa: SIM118 (no mapping)
        except (SafetensorError, KeyError, ValueError):  # a name is complete, so somebody else wrote this
            return None

    def said(self) -> str:
        """Say where the last good place is, for the end of a message."""
        return f" (how far it was is kept in {self._path})" if self._written else ""
