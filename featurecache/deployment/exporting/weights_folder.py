"""A folder with ``model.safetensors`` and ``config.json``: numbers and words, for readers who bring their own code."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from numpy.typing import NDArray

from featurecache.deployment.exporting.format import Exported
from featurecache.deployment.exporting.network import BACKBONE_PATH

_WEIGHTS, _CONFIG = "model.safetensors", "config.json"
_PREFIX, _HEAD = "backbone.", "head."


def write(exported: Exported, folder: Path) -> None:
    """Write the weights that are used, the backbone's under its own names, and how the head's are applied."""
    used = exported.program.state_dict
    weights = {
        name.replace(BACKBONE_PATH, _PREFIX, 1): tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in exported.network.state_dict().items()
        if name in used or name.startswith(_HEAD)
    }
    (folder / _WEIGHTS).write_bytes(safetensors.torch.save(weights))
    layers = [
        {
            "layer": type(layer).__name__,
            # A head that somebody brought along may be made of any layers.
            "formula": getattr(layer, "formula", f"as {type(layer).__module__}.{type(layer).__name__} computes"),
            "arrays": list(layer.state_dict(prefix=f"{_HEAD}{n}.")),
        }
        for n, layer in enumerate(exported.network.head)
    ]
    (folder / _CONFIG).write_text(json.dumps({**exported.about, "head_layers": layers}, indent=1))


def run(exported: Exported, folder: Path, batches: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """Run the network with nothing but these weights."""
    # Zeros show what was not written: with its own weights the network would predict right without the file.
    twin = copy.deepcopy(exported.network)
    for tensor in twin.state_dict().values():
        tensor.zero_()
    weights = safetensors.torch.load((folder / _WEIGHTS).read_bytes())
    twin.load_state_dict({name.replace(_PREFIX, BACKBONE_PATH, 1): w for name, w in weights.items()}, strict=False)
    with torch.no_grad():
        return [twin(torch.from_numpy(batch)).numpy() for batch in batches]
