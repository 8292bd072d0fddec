"""A program of ``torch.export``: runs wherever torch does."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from featurecache.deployment.exporting.format import KEY, Exported, Predict


def write(exported: Exported, path: Path) -> None:
    """Write the program, and what is known of it as an extra file."""
    buffer = io.BytesIO()
    torch.export.save(exported.program, buffer, extra_files={f"{KEY}.json": json.dumps(exported.about)})
    path.write_bytes(buffer.getvalue())


def read(exported: Exported, path: Path) -> Predict:
    """Return the program as a function; only for a file just written here, because loading can run what is in it."""
    module = torch.export.load(io.BytesIO(path.read_bytes())).module()

    def predict(batch: NDArray[Any]) -> NDArray[Any]:
        with torch.no_grad():
            found: NDArray[Any] = module(torch.from_numpy(batch)).numpy()
        return found

    return predict
