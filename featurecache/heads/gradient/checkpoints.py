"""How far a training is, kept in a file named by the training that it belongs to."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from featurecache.atomic import make_folder, publish_bytes

SUFFIX = ".safetensors"


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """How far a training is, apart from tensors."""

    step: int
    losses: list[float]
    """Of each step, on its batch before it."""
    best: float | None
    """Least loss of an epoch on held-out rows."""
    rounds: int
    """Epochs since the best."""
    done: bool


class Checkpoint:
    """The file of one training.

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
        # 128 bits: enough that no two trainings share a file.
        self._path = folder / f"{digest[:32]}{SUFFIX}"
        self._every, self._resume, self._last, self._written = every, resume, time.monotonic(), False

    def is_due(self, *, last: bool) -> bool:
        """Tell whether to write now."""
        return last or time.monotonic() - self._last >= self._every

    def write(self, tensors: dict[str, Tensor], progress: TrainingState) -> None:
        """Keep tensors and progress, all or nothing."""
        make_folder(self._path.parent)
        # safetensors takes no tensors on another device, and none with gaps.
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        publish_bytes(self._path, safetensors.torch.save(plain, {"progress": json.dumps(asdict(progress))}))
        self._last, self._written = time.monotonic(), True

    def read(self) -> tuple[dict[str, Tensor], TrainingState] | None:
        """Return what was kept; None where nothing can be gone on from."""
        if not self._resume or not self._path.is_file():
            return None
        try:
            with safe_open(self._path, framework="pt") as file:
                progress = TrainingState(**json.loads((file.metadata() or {})["progress"]))
                return {name: file.get_tensor(name) for name in file.keys()}, progress  # noqa: SIM118 (no mapping)
        # A name is complete, and so another program wrote this, or a release that kept something else.
        except (SafetensorError, KeyError, TypeError, ValueError):
            return None

    def __str__(self) -> str:
        """Name the last good checkpoint, for the end of a message."""
        return f" (how far it was is kept in {self._path})" if self._written else ""
