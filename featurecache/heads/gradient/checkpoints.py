"""How far a training is, kept in a file named by the training that it belongs to."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from featurecache.atomic import make_folder, publish_bytes


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


@dataclass(kw_only=True, eq=False)
class Checkpoint:
    """The file of one training.

    Parameters
    ----------
    path : Path
        Named by everything that the result depends on: another training has another file. Its folder is made when
        something is written.
    every : float
        Seconds between writing.
    resume : bool
        Go on from what is there; otherwise it is replaced.

    Attributes
    ----------
    last : float
        When it was written, or else made, by ``time.monotonic``.
    is_written : bool
    """

    path: Path
    every: float
    resume: bool
    last: float = field(default_factory=time.monotonic, init=False)
    is_written: bool = field(default=False, init=False)

    def write(self, tensors: dict[str, Tensor], progress: TrainingState) -> None:
        """Keep tensors and progress, all or nothing."""
        make_folder(self.path.parent)
        # safetensors takes no tensors on another device, and none with gaps.
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        publish_bytes(self.path, safetensors.torch.save(plain, {"progress": json.dumps(asdict(progress))}))
        self.last, self.is_written = time.monotonic(), True

    def read(self) -> tuple[dict[str, Tensor], TrainingState] | None:
        """Return what was kept; None where nothing can be gone on from."""
        if not self.resume or not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                progress = TrainingState(**json.loads((file.metadata() or {})["progress"]))
                return {name: file.get_tensor(name) for name in file.keys()}, progress  # noqa: SIM118 (no mapping)
        # A name is complete, and so another program wrote this, or a release that kept something else.
        except (SafetensorError, KeyError, TypeError, ValueError):
            return None
