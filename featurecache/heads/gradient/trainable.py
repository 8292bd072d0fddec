"""What is trained: layers, which of them were trained before, and how fast each learns.

Axes: B batch, D features, K classes or other outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

_NONE: Mapping[str, int] = {}


class TrainableLayers(nn.Module):
    """What is trained: a body and, where that ends in features, an output layer.

    Parameters
    ----------
    body
        From activations (B, ...) to features (B, ...), or to outputs (B, K).
    output
        From flattened features to outputs; none where the body puts out outputs.
    pretrained
        Names of the body's parameters that were trained before, each with the number of its group of layers: the first
        groups learn slowest where the learning rate falls from layer to layer.
    pool
        From what the body puts out to what is flattened, where that is not the same.
    joined
        The body ends in what a network makes of the inputs of several output layers.
    """

    def __init__(
        self,
        body: nn.Module,
        output: nn.Linear | None,
        pretrained: Mapping[str, int] = _NONE,
        *,
        pool: Callable[[Tensor], Tensor] | None = None,
        joined: bool = False,
    ) -> None:
        super().__init__()
        self.body, self.output, self._pool, self.joined = body, output, pool, joined
        self.pretrained = {f"body.{name}": group for name, group in pretrained.items()}

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
    factors = layer_factors(layers, layer_decay)
    alike: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, p in layers.named_parameters():
        if p.requires_grad:
            rate = learning_rate * (pretrained_factor * factors[name] if name in factors else 1.0)
            alike.setdefault((rate, weight_decay if p.ndim > 1 else 0.0), []).append(p)
    # One group for each, in the order of the parameters, is not needed: their state is kept by the parameter.
    for (rate, decay), parameters in alike.items():
        yield {"params": parameters, "lr": rate, "weight_decay": decay}


def layer_factors(layers: TrainableLayers, layer_decay: float) -> dict[str, float]:
    """Return by what the learning rate of each pretrained parameter is multiplied: the last group's by one."""
    trained = {name for name, p in layers.named_parameters() if p.requires_grad}
    groups = {name: group for name, group in layers.pretrained.items() if name in trained}
    steps = {group: number for number, group in enumerate(sorted(set(groups.values()), reverse=True))}
    return {name: layer_decay ** steps[group] for name, group in groups.items()}
