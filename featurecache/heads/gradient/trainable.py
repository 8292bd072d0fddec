"""What is trained: layers, which of them were trained before, and how fast each learns.

Axes: B batch, D features, K classes or other outputs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

# The part of a name that says to which layer a parameter belongs: `blocks.9`, `layer4.0`, `stages.3.blocks.1`.
_LAYER = re.compile(r"(?:[^.]+\.)*?\d+(?:\.\d+|\.(?:blocks|layers?)\.\d+)?(?=\.)")


class TrainableLayers(nn.Module):
    """What is trained: a body and, where that ends in features, an output layer.

    Parameters
    ----------
    body
        From activations (B, ...) to features (B, ...), or to outputs (B, K).
    output
        From flattened features to outputs; none where the body puts out outputs.
    pretrained
        Names of the body's parameters that were trained before, in the order in which they are used.
    pool
        From what the body puts out to what is flattened, where that is not the same.
    """

    def __init__(
        self,
        body: nn.Module,
        output: nn.Linear | None,
        pretrained: Sequence[str] = (),
        *,
        pool: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.body, self.output, self._pool = body, output, pool
        self.pretrained = tuple(f"body.{name}" for name in pretrained)

    def features(self, activations: Tensor) -> Tensor:
        """Return what the output layer sees, (B, D)."""
        found = self.body(activations)
        return torch.flatten(found if self._pool is None else self._pool(found), 1)

    def forward(self, activations: Tensor) -> Tensor:
        """Return (B, K)."""
        if self.output is None:
            outputs: Tensor = self.body(activations)
            return outputs
        return self.output(self.features(activations))

    @property
    def is_own(self) -> bool:
        """Tell whether these are somebody's own layers, all of them new: their norms have no statistics to keep."""
        return self.output is None

    def set_training(self, *, statistics: bool) -> None:
        """Switch to training mode; pretrained norms that keep statistics only if these shall change."""
        self.train()
        if not (statistics or self.is_own):
            for module in self.modules():
                if isinstance(module, _NormBase) and module.track_running_stats:
                    module.eval()


def parameter_groups(
    layers: TrainableLayers, *, learning_rate: float, pretrained_factor: float, layer_decay: float, weight_decay: float
) -> Iterator[dict[str, Any]]:
    """Yield parameters that are trained alike; the first layers slower, and biases and norms without weight decay."""
    trained = {name: p for name, p in layers.named_parameters() if p.requires_grad}
    layer_of = {name: layer_name(name.removeprefix("body.")) for name in layers.pretrained if name in trained}
    order = {layer: place for place, layer in enumerate(dict.fromkeys(layer_of.values()))}
    alike: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, p in trained.items():
        rate = learning_rate
        if name in layer_of:
            rate *= pretrained_factor * layer_decay ** (len(order) - 1 - order[layer_of[name]])
        alike.setdefault((rate, weight_decay if p.ndim > 1 else 0.0), []).append(p)
    # One group for each, in the order of the parameters, is not needed: their state is kept by the parameter.
    for (rate, decay), parameters in alike.items():
        yield {"params": parameters, "lr": rate, "weight_decay": decay}


def layer_name(parameter: str) -> str:
    """Return the layer that a parameter belongs to: ``blocks.9`` of ``blocks.9.attn.qkv.weight``."""
    found = _LAYER.match(parameter)
    return found.group() if found else parameter.partition(".")[0]
