"""A program of ``torch.export``: runs wherever torch does."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from featurecache.deployment.exporting.format import KEY, Exported


def write(exported: Exported, path: Path) -> None:
    """Write the program, and what is known of it as an extra file."""
    buffer = io.BytesIO()
    torch.export.save(exported.program, buffer, extra_files={f"{KEY}.json": json.dumps(exported.about)})
    path.write_bytes(buffer.getvalue())


def run(exported: Exported, path: Path, batches: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """Run the program."""
    # Only of a file just written here: loading can run what is in it.
    module = torch.export.load(io.BytesIO(path.read_bytes())).module()
    with torch.no_grad():
        return [module(torch.from_numpy(batch)).numpy() for batch in batches]
