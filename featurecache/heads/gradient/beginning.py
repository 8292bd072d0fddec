"""What a training of layers begins with: the layers, their output layer if that is a linear head, weights of rows.

Axes: B batch, D features, K classes or other outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featurecache.heads.checks import checked_class_weight
from featurecache.heads.gradient.trainable import TrainableLayers
from featurecache.heads.preparation import balanced_weights


def made_layers(
    make: Callable[[int], TrainableLayers] | None, num_outputs: int, shape: tuple[int, ...], seed: int
) -> TrainableLayers:
    """Make layers, new ones drawn by a seed, and try them on two rows of activations of a shape.

    Raises
    ------
    ValueError
        There are none to make, or they do not take such activations, or make something else of them.
    """
    if make is None:
        raise ValueError("there are no layers to train; pass a function that makes them")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = make(num_outputs)
    with torch.no_grad():
        try:
            found = tuple(layers.eval()(torch.zeros(2, *shape)).shape)
        except Exception as error:  # somebody's own layers may object in any way
            raise ValueError(f"the layers do not take activations of shape {shape}: {error}") from error
    if found != (2, num_outputs):
        raise ValueError(
            f"the layers make {found} of two rows, and should make (2, {num_outputs}): one number for each class, "
            "label or number"
        )
    return layers


def row_weights(
    targets: NDArray[Any],
    weight: NDArray[np.float64] | None,
    class_weight: str | Mapping[Any, float] | None,
    labels: NDArray[Any],
) -> NDArray[np.float64]:
    """Return the weight of each row, (n,): one on average, so that a batch of heavy rows counts more than a light one.

    Parameters
    ----------
    targets
        Class indices (n,); or labels or numbers (n, K).
    weight
        As it was given, (n,).
    class_weight, labels
        Of classes, as scikit-learn takes it, and what they are called.
    """
    weights = np.ones(len(targets)) if weight is None else weight.astype(np.float64)
    if class_weight is not None:
        given = checked_class_weight(class_weight, labels)
        if isinstance(given, str):
            given = balanced_weights(np.bincount(targets, weights, minlength=len(labels)).astype(np.float64))
        assert given is not None
        weights = weights * given[targets]
    return np.asarray(weights / weights.mean())


def features_of(layers: TrainableLayers, activations: Iterable[Tensor], device: str) -> NDArray[np.float32]:
    """Return what the output layer sees of all activations, (n, D), which come some at a time.

    Raises
    ------
    ValueError
        There is no output layer.
    """
    if layers.output is None:
        raise ValueError("start='probe' needs layers that end in an output layer; use start='fresh'")
    layers = layers.to(device).eval()
    with torch.no_grad():
        return np.concatenate([layers.features(some.to(device)).float().cpu().numpy() for some in activations])


def set_output(layers: TrainableLayers, coef_KD: NDArray[np.float64], intercept_K: NDArray[np.float64]) -> None:
    """Let the output layer be a linear head."""
    assert layers.output is not None
    with torch.no_grad():
        layers.output.weight.copy_(torch.from_numpy(coef_KD))
        layers.output.bias.copy_(torch.from_numpy(intercept_K))
