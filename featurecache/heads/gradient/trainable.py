"""What is trained: layers, which of them were trained before, and how fast each learns.

Axes: B batch, D features, K classes or other outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from featurecache.heads.gradient.options import LayerSetting

_NONE: Mapping[str, int] = {}
LayerFactory = Callable[[int], "TrainableLayers"]
"""Takes the number of outputs, and returns layers that are not shared, on the CPU; new ones are drawn from torch's
generator, which is seeded."""


class TrainableLayers(nn.Module):
    """What is trained: a body and, where that ends in features, an output layer.

    Parameters
    ----------
    body : nn.Module
        From activations (B, ...) to features (B, ...), or to outputs (B, K).
    output : nn.Linear or None
        From flattened features to outputs; none where the body puts out outputs.
    pretrained : mapping of str to int
        Names of the body's parameters that were trained before, each with the number of its group of layers: the first
        groups learn slowest where the learning rate falls from layer to layer.
    pool : callable, optional
        From what the body puts out to what is flattened, where that is not the same.
    joined : bool
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
        self.is_own = output is None
        """These are a user's own layers, all of them new: their norms have no statistics to keep."""
        self.pretrained = {f"body.{name}": group for name, group in pretrained.items()}

    def features(self, activations: Tensor) -> Tensor:
        """Return what the output layer sees, (B, D)."""
        features = self.body(activations)
        return torch.flatten(features if self._pool is None else self._pool(features), 1)

    def forward(self, activations: Tensor) -> Tensor:
        """Return (B, K)."""
        if self.output is None:
            outputs: Tensor = self.body(activations)
            return outputs
        return self.output(self.features(activations))

    def set_training(self, *, statistics: bool) -> None:
        """Switch to training mode; pretrained norms that keep statistics only if these shall change."""
        self.train()
        if not (statistics or self.is_own):
            # In eval mode they neither use nor update the statistics of a batch.
            for module in self.modules():
                if isinstance(module, _NormBase) and module.track_running_stats:
                    module.eval()


def parameter_groups(layers: TrainableLayers, setting: LayerSetting) -> Iterator[dict[str, Any]]:
    """Yield parameters that are trained alike; the first layers slower, and biases and norms without weight decay."""
    factors = layer_factors(layers, setting.layer_decay)
    alike: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, p in layers.named_parameters():
        if p.requires_grad:
            rate = setting.learning_rate * (setting.pretrained_factor * factors[name] if name in factors else 1.0)
            alike.setdefault((rate, setting.weight_decay if p.ndim > 1 else 0.0), []).append(p)
    for (rate, decay), parameters in alike.items():
        yield {"params": parameters, "lr": rate, "weight_decay": decay}


def layer_factors(layers: TrainableLayers, layer_decay: float) -> dict[str, float]:
    """Return by what the learning rate of each pretrained parameter is multiplied: the last group's by one."""
    trained = {name for name, p in layers.named_parameters() if p.requires_grad}
    groups = {name: group for name, group in layers.pretrained.items() if name in trained}
    steps = {group: number for number, group in enumerate(sorted(set(groups.values()), reverse=True))}
    return {name: layer_decay ** steps[group] for name, group in groups.items()}


def make_layers(factory: LayerFactory | None, num_outputs: int, shape: tuple[int, ...], seed: int) -> TrainableLayers:
    """Make layers, new ones drawn by a seed, and try them on two rows of activations.

    Parameters
    ----------
    factory : callable or None
    num_outputs : int
    shape : tuple of int
        Of one row's activations.
    seed : int

    Raises
    ------
    ValueError
        There is no factory, or its layers do not take such activations, or make something else of them.
    """
    if factory is None:
        raise ValueError("there are no layers to train; pass a function that makes them")
    # On the CPU, so that the same seed draws the same layers for every device.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = factory(num_outputs)
    # Two rows: layers that mix them up would not be noticed on one.
    with torch.no_grad():
        try:
            outputs = tuple(layers.eval()(torch.zeros(2, *shape)).shape)
        except Exception as error:  # a user's own layers may object in any way
            raise ValueError(f"the layers do not take activations of shape {shape}: {error}") from error
    if outputs != (2, num_outputs):
        raise ValueError(
            f"the layers make {outputs} of two rows, and should make (2, {num_outputs}): one number for each class, "
            "label or number"
        )
    return layers
