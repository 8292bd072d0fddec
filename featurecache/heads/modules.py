"""Layers of a network with the arithmetic of fitted heads, in float32.

Axes: B rows, D features, K classes or other outputs, N kept rows, T tokens, Q queries, V features pooled by a query,
P pairs of classes.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn


class Layer(nn.Module):
    """A step whose arrays are buffers; ``formula`` says to readers of a file what is done with them."""

    formula: ClassVar[str]

    def __init__(self, **arrays: ArrayLike) -> None:
        super().__init__()
        for name, array in arrays.items():
            # Buffers, not parameters: they travel with the weights, and nothing trains them.
            self.register_buffer(name, torch.from_numpy(np.array(array, np.float32, order="C")))


class Standardise(Layer):
    """Subtract a mean and divide by a scale."""

    formula = "(x - mean) / scale"
    mean: Tensor
    scale: Tensor

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return (B, D)."""
        return (x_BD - self.mean) / self.scale


class UnitLength(Layer):
    """Divide rows by their length; a row of zeros stays."""

    formula = "x / |x|, and 0 where |x| = 0"

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return (B, D)."""
        # As scikit-learn's `normalize`, which divides a row of zeros by one.
        length_B1 = x_BD.square().sum(dim=1, keepdim=True).sqrt()
        return x_BD / torch.where(length_B1 == 0, 1.0, length_B1)


class Linear(Layer):
    """A linear map."""

    formula = "x @ weight + bias"
    weight: Tensor
    bias: Tensor

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return (B, K)."""
        return x_BD @ self.weight + self.bias


class Rectify(Layer):
    """A rectifier."""

    formula = "max(x, 0)"

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return (B, D)."""
        return x_BD.relu()


class Rescale(Layer):
    """Multiply by a scale and add a mean."""

    formula = "x * scale + mean"
    mean: Tensor
    scale: Tensor

    def forward(self, x_BK: Tensor) -> Tensor:
        """Return (B, K)."""
        return x_BK * self.scale + self.mean


class AttentionPool(Layer):
    """Each query attends to all tokens, and pools its slice of their features."""

    formula = "tokens = x as (T, Q, V); sum over T of softmax over T of (tokens @ queries) * tokens, flattened"
    queries: Tensor

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return (B, Q * V)."""
        width, num_queries = self.queries.shape
        tokens_BTD = x_BD.unflatten(1, (-1, width))
        weights_BTQ = (tokens_BTD @ self.queries).softmax(dim=1)
        return (weights_BTQ.unsqueeze(3) * tokens_BTD.unflatten(2, (num_queries, -1))).sum(dim=1).flatten(1)


class TrainedLayers(Layer):
    """The rest of a network, or other layers in its place, as they were trained."""

    formula = "the network's own layers after the tap, or those that are named, with these weights; x as (B, *shape)"

    def __init__(self, layers: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layers, self._shape = layers, shape

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return (B, K)."""
        # Cached features are flat; convolutions need their axes back.
        outputs_BK: Tensor = self.layers(x_BD.unflatten(1, self._shape) if len(self._shape) > 1 else x_BD)
        return outputs_BK


class Neighbours(Layer):
    """The weighted mean of the targets of the nearest rows; which of equally near ones count is not defined."""

    formula = (
        "the rows of `says` of the `count` greatest similarities x @ directions.T, averaged with the weights "
        "softmax(similarity / temperature)"
    )
    directions: Tensor
    says: Tensor
    temperature: Tensor
    count: Tensor

    def __init__(self, count: int, **arrays: ArrayLike) -> None:
        super().__init__(count=count, **arrays)
        # `topk` takes a plain number; the buffer is for readers of a file, who find `count` in the formula.
        self._count = count

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return (B, K)."""
        closest = (x_BD @ self.directions.T).topk(self._count, dim=1)
        weights_BN = (closest.values / self.temperature).softmax(dim=1)
        return (weights_BN.unsqueeze(2) * self.says[closest.indices]).sum(dim=1)


class SupportVectors(Layer):
    """Decision values of a support vector machine with a Gaussian kernel.

    Of more than two classes, those of pairs become votes for each class, and confidences that break ties, as in
    scikit-learn's ``_ovr_decision_function``.
    """

    formula = (
        "decisions = exp(-gamma * |x - vectors|^2) @ duals + bias, of pairs of classes; of two classes decision / 2, "
        "-decision / 2; of more, votes for the winner of each pair + s / (3 * (|s| + 1)) "
        "with s = decisions @ (first - second)"
    )
    vectors: Tensor
    gamma: Tensor
    duals: Tensor
    bias: Tensor
    first: Tensor
    second: Tensor

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return (B, K)."""
        # By products: the differences of all pairs would be (B, N, D).
        square_BN = (
            x_BD.square().sum(dim=1, keepdim=True) - 2 * x_BD @ self.vectors.T + self.vectors.square().sum(dim=1)
        )
        decisions_BP = torch.exp(-self.gamma * square_BN) @ self.duals + self.bias
        if self.first.shape[1] == 2:
            return torch.cat([decisions_BP / 2, -decisions_BP / 2], dim=1)
        confidence_BK = decisions_BP @ (self.first - self.second)
        # A decision of zero goes to the first of a pair, as in scikit-learn.
        lost_BP = (decisions_BP < 0).float()
        votes_BK = (1 - lost_BP) @ self.first + lost_BP @ self.second
        return votes_BK + confidence_BK / (3 * (confidence_BK.abs() + 1))


class Constant(Layer):
    """The same for every row."""

    formula = "value"
    value: Tensor

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return (B, K)."""
        # How many rows there are is known only when an exported network runs.
        return self.value + torch.zeros_like(x_BD[:, :1])


class Softmax(Layer):
    """Decision values to probabilities of classes that exclude each other."""

    formula = "softmax(x / temperature)"
    temperature: Tensor

    def forward(self, x_BK: Tensor) -> Tensor:
        """Return (B, K)."""
        return (x_BK / self.temperature).softmax(dim=1)


class Logarithm(Layer):
    """Probabilities to what a softmax makes them of."""

    formula = "log(max(x, least))"
    least: Tensor

    def forward(self, x_BK: Tensor) -> Tensor:
        """Return (B, K)."""
        return torch.maximum(x_BK, self.least).log()


class Sigmoid(Layer):
    """Decision values to the probability of each label by itself."""

    formula = "1 / (1 + exp(-x))"

    def forward(self, x_BK: Tensor) -> Tensor:
        """Return (B, K)."""
        return x_BK.sigmoid()


class Clip(Layer):
    """A regression may say more than one, or less than nothing."""

    formula = "min(max(x, 0), 1)"

    def forward(self, x_BK: Tensor) -> Tensor:
        """Return (B, K)."""
        return x_BK.clamp(0, 1)
