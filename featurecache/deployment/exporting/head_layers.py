"""A fitted head as the last layers of a network: the arithmetic of its ``predict_proba`` or ``predict``."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor, nn

from featurecache.deployment.saved import SavedHead
from featurecache.errors import HeadError
from featurecache.heads.modules import Clip, Layer, Logarithm, Softmax
from featurecache.heads.probability import LEAST_PROBABILITY, has_margins, needs_temperature
from featurecache.heads.registry import list_heads


class SelectClasses(Layer):
    """Put the classes that the head was trained on among all; the others have probability zero."""

    formula = "x @ columns"
    columns: Tensor

    def forward(self, x_BK: Tensor) -> Tensor:
        """Return (B, n_classes)."""
        return x_BK @ self.columns


def head_layers(saved: SavedHead) -> nn.Sequential:
    """Return layers that turn features ``(B, n_features)`` into what `predict` returns.

    Returns
    -------
    layers
        To probabilities of classes, or of each label by itself, or to numbers: (B, K) float32.

    Raises
    ------
    HeadError
        A head that states no network.
    """
    head = saved.estimator
    if not hasattr(head, "to_module"):
        able = ", ".join(list_heads(tokens=True, kind=saved.kind))
        raise HeadError(
            f"a {type(head).__name__} cannot be exported: it states no network (to_module); heads for {saved.kind} "
            f"that do: {able}. Train one of those, or use `featurecache predict`"
        )
    layers = list(_flat(head.to_module()))
    temperature = 1.0 if saved.temperature is None else saved.temperature
    if needs_temperature(head):
        layers.append(Softmax(temperature=temperature))
    elif saved.kind == "classification" and temperature != 1.0:
        # A softmax of margins is divided by another temperature; of other probabilities the logarithms are.
        if has_margins(head) and isinstance(layers[-1], Softmax):
            layers[-1] = Softmax(temperature=float(layers[-1].temperature) * temperature)
        else:
            layers += [Logarithm(least=LEAST_PROBABILITY), Softmax(temperature=temperature)]
    if saved.kind == "multilabel":
        # A regression of labels may give more than 1 and less than 0; see `SavedHead.probabilities`.
        layers.append(Clip())
    if saved.kind == "classification" and len(head.classes_) < len(saved.classes):
        layers.append(SelectClasses(columns=np.eye(len(saved.classes))[head.classes_]))
    return nn.Sequential(*layers)


def _flat(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers of nested sequences one after the other."""
    if isinstance(module, nn.Sequential):
        for layer in module:
            yield from _flat(layer)
    else:
        yield module
