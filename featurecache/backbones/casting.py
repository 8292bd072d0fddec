"""Weights in the type of autocast, cast once: autocast itself casts those of a frozen network anew in every pass.

Its cache holds casts of leaves that require gradients, outside of inference mode (torch's
``aten/src/ATen/autocast_mode.cpp``, ``cached_cast``), so neither kind of context that is kept open would help.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from featurecache.backbones.backbone import copy_sharing_tensors
from featurecache.backbones.tapped import Normalized

# Autocast runs these, and hardly anything else that has weights, in its lower type. What is left out is cast as before.
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)


def cast_once(module: Normalized, device: str, dtype: torch.dtype, inputs: Tensor) -> Normalized:
    """Return a copy of a network whose features under autocast are the same to the bit, or the network itself.

    Parameters
    ----------
    module : Normalized
        Stays as it is.
    device : str
        Type of its device.
    dtype : torch.dtype
        What autocast computes in.
    inputs : Tensor (B, ...)
        What both are compared on, as a `TappedBackbone` takes it. Layers may use their weights in other ways too, of
        which autocast casts none.
    """
    if has_own_methods(module):
        return module
    try:
        copied = cast(Normalized, copy_sharing_tensors(module))
        for layer in copied.modules():
            if isinstance(layer, _LAYERS):
                _cast_parameters(layer, dtype)
        with torch.inference_mode(), torch.autocast(device, dtype=dtype):
            expected, found = module.tapped(inputs), copied.tapped(inputs)
    # Somebody's own layers may object to weights of another type, or to copies, in any way.
    except Exception:
        return module
    return copied if all(torch.equal(found[tap], expected[tap]) for tap in expected) else module


def has_own_methods(module: nn.Module) -> bool:
    """Tell whether any layer has hooks or methods of its own, which may be closures over the original of a copy."""
    return any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in module.modules())


def _cast_parameters(layer: nn.Module, dtype: torch.dtype) -> None:
    # Its own: a weight that is computed anew in each pass has another name.
    for name in ("weight", "bias"):
        parameter = layer._parameters.get(name)
        if parameter is not None and parameter.dtype == torch.float32:
            layer._parameters[name] = nn.Parameter(parameter.to(dtype), requires_grad=False)
