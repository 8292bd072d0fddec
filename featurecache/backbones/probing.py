"""One forward pass of zeros that tells what every layer of a backbone puts out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from featurecache.backbones.backbone import Backbone
from featurecache.errors import BackboneError

PRE_LOGITS = "pre_logits"
# Two images, so that an output whose first axis does not count images gives itself away.
_NUM_PROBES = 2


@dataclass
class Probe:
    """What a dry run saw, by node name."""

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Shape of a node's last output, batch axis included; absent if it is no tensor."""
    num_calls: Counter[str] = field(default_factory=Counter)

    def per_sample(self, node: str) -> tuple[int, ...] | None:
        """Return the shape for one image, or ``None`` if the output is not one row per image."""
        shape = self.shapes.get(node)
        return shape[1:] if shape and len(shape) > 1 and shape[0] == _NUM_PROBES else None


def first_tensor(output: Any) -> Tensor | None:
    """Return a layer's output; of a tuple (attention returns its weights too) the first part."""
    while isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


def node_modules(backbone: Backbone) -> dict[str, nn.Module]:
    """Return every module that can be tapped, ``pre_logits`` last."""
    modules = {path: module for path, module in backbone.module.named_modules() if path}
    return modules | {PRE_LOGITS: pre_logits_module(backbone)}


def pre_logits_module(backbone: Backbone) -> nn.Module:
    """Return the module whose input (or output, where there is no classifier) are the final features."""
    return backbone.module if backbone.classifier is None else backbone.module.get_submodule(backbone.classifier)


def probe(backbone: Backbone) -> Probe:
    """Run two images of zeros through the backbone and note every layer's output."""
    seen = Probe()
    handles: list[RemovableHandle] = []
    try:
        for node, module in node_modules(backbone).items():
            handles.append(watch(module, node, backbone, lambda output, node=node: _note(seen, node, output)))
        _run_zeros(backbone)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def watch(module: nn.Module, node: str, backbone: Backbone, see: Any) -> RemovableHandle:
    """Call ``see`` with a node's output at every call of its module; for ``pre_logits`` with the classifier's input."""
    if node == PRE_LOGITS and backbone.classifier is not None:
        return module.register_forward_pre_hook(lambda _module, inputs: see(inputs))
    return module.register_forward_hook(lambda _module, _inputs, output: see(output))


def _note(seen: Probe, node: str, output: Any) -> None:
    seen.num_calls[node] += 1
    tensor = first_tensor(output)
    if tensor is None:
        seen.shapes.pop(node, None)
    else:
        seen.shapes[node] = tuple(tensor.shape)


def _run_zeros(backbone: Backbone) -> None:
    crop = backbone.preprocess.crop
    device = next((p.device for p in backbone.module.parameters()), torch.device("cpu"))
    backbone.module.eval()
    try:
        with torch.inference_mode():
            backbone.module(torch.zeros(_NUM_PROBES, 3, crop, crop, device=device))
    # A network may object to its input with any exception at all.
    except Exception as error:
        message = f"{backbone.name} rejects images of {crop}x{crop} pixels: {first_line(error)}"
        raise BackboneError(message) from error


def first_line(error: Exception) -> str:
    """Return the first line of an error: networks and converters tell stories."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
