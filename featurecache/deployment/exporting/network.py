"""Preprocessed inputs to outputs as one network, and as a program that needs none of our code.

Axes: B batch, D features, K classes or other outputs.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

from featurecache.backbones.backbone import Backbone
from featurecache.backbones.tapped import Normalized
from featurecache.backbones.taps import Tap, TappedBackbone
from featurecache.deployment.exporting.head_layers import head_layers
from featurecache.deployment.rounding import round_as
from featurecache.deployment.saved import SavedHead
from featurecache.errors import BackboneError, first_line

# Where the backbone's own parameters are in an `ExportedNetwork`.
BACKBONE_PATH = "features.tapped.network."


class ExportedNetwork(nn.Module):
    """What `predict` does with loaded inputs: normalise, backbone up to the tap, round as the cache does, head.

    Parameters
    ----------
    backbone : Backbone
    tap : Tap
    saved : SavedHead
    """

    def __init__(self, backbone: Backbone, tap: Tap, saved: SavedHead) -> None:
        super().__init__()
        self.features = Normalized(TappedBackbone(backbone, [tap]), backbone.preprocess)
        self.head = head_layers(saved)
        self._rounded_to = saved.rounded_to
        # The runtime that made the features keeps weights with their channels last; files keep them in the plain order.
        self.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (B, K) float32 for inputs as the loader makes them."""
        features_BD = self.features(inputs)[0].flatten(1)
        outputs_BK: Tensor = self.head(round_as(features_BD, self._rounded_to))
        return outputs_BK


def trace(network: ExportedNetwork, example: Tensor, name: str) -> ExportedProgram:
    """Return the network as a program for batches of any size, without the weights that it does not use.

    Parameters
    ----------
    network : ExportedNetwork
    example : Tensor
        A batch of inputs.
    name : str
        Of the backbone, for messages.

    Raises
    ------
    BackboneError
        The network does what a program cannot, such as deciding by the numbers in its inputs.
    """
    try:
        with torch.no_grad(), warnings.catch_warnings(action="ignore"):
            program = torch.export.export(network, (example,), dynamic_shapes=({0: Dim("batch")},), strict=False)
    # Tracing runs somebody's own module with stand-ins for numbers; it may object in any way.
    except Exception as error:
        raise BackboneError(
            f"{name} cannot be exported, torch.export says: {first_line(error)}; use `featurecache predict` instead"
        ) from error
    return _without_unused_weights(program)


def _without_unused_weights(program: ExportedProgram) -> ExportedProgram:
    """Drop the layers after the tap; those stay that work in place, and what they work on."""
    program.graph.eliminate_dead_code(_has_effect)
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    for node in list(program.graph.nodes):
        spec = specs.get(node.name) if node.op == "placeholder" and not node.users else None
        if spec is not None and spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            program.graph.erase_node(node)
            program.graph_signature.input_specs.remove(spec)
            program.state_dict.pop(spec.target, None)
    program.graph_module.recompile()
    return program


def _has_effect(node: Node) -> bool:
    """Tell whether a step changes something in place; that of an eval-mode dropout or an assertion is none."""
    schema = getattr(node.target, "_schema", None)
    return node.op in ("placeholder", "output") or (schema is not None and schema.is_mutable)
