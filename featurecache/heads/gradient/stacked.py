"""Models of one shape, stacked: batched matrix products take a step of all of them at once.

Axes: F folds, B batch, D features, S settings, C classes.

Attention pooling with learned queries, stacked.

Axes: F folds, B batch, T tokens, D features of a token, S settings, Q queries, V features pooled by a query, C classes.

Multilayer perceptrons of one shape, stacked: one matrix product for the first layer of all settings of a fold.

Axes: F folds, B batch, D features, S settings, H hidden units, C classes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from featurecache.heads.gradient.training import row_losses
from featurecache.specs import TaskKind

# As Adam's authors and torch have them.
_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8


class ModelSetting(NamedTuple):
    """How one model differs from the others that are trained with it."""

    shape: tuple[int, ...]
    """Models of one shape are stacked."""
    learning_rate: float
    weight_decay: float


class RawFeatures(NamedTuple):
    """How features as they come become those that the models of a fold are trained on."""

    mean_D: Tensor
    scale_D: Tensor
    axes_DR: Tensor | None
    """Along which they are taken then; None: as they are."""


class Layers(NamedTuple):
    """Layers of one model: weights (inputs, outputs) and intercepts (outputs,)."""

    weights: list[Tensor]
    intercepts: list[Tensor]


class DataSizes(NamedTuple):
    """What is the same for all models, as they have the same data."""

    folds: int
    features: int
    square: float
    """Mean of the squared length of a row: as many as there are features, where these are standardised."""
    outputs: int
    """Classes, labels or numbers."""
    tokens: int
    kind: TaskKind


@dataclass(eq=False)
class Parameter:
    """One tensor of all models, the folds along its first axis, with the moments of AdamW.

    Not ``torch.optim.AdamW``: that has one learning rate for a tensor, and here each setting has its own.
    """

    value: Tensor
    first: Tensor
    """Moment of AdamW, as the second."""
    second: Tensor
    axis: int
    """Of the settings."""
    decays: bool

    def step(self, rate_S: Tensor, decay_S: Tensor, number: int) -> None:
        """Take one step of AdamW (Loshchilov & Hutter, ICLR 2019, algorithm 2).

        Parameters
        ----------
        rate_S, decay_S : Tensor
            Learning rate and weight decay of each setting.
        number : int
            Of the step, from 1.
        """
        gradient = self.value.grad
        assert gradient is not None
        shape = [1] * self.value.ndim
        shape[self.axis] = -1
        with torch.no_grad():
            rate = rate_S.view(shape)
            self.first.lerp_(gradient, 1 - _BETA_1)
            self.second.mul_(_BETA_2).addcmul_(gradient, gradient, value=1 - _BETA_2)
            scale = self.second.sqrt().div_(math.sqrt(1 - _BETA_2**number)).add_(_EPSILON)
            if self.decays:
                self.value.mul_(1 - rate * decay_S.view(shape))
            self.value.sub_(torch.div(self.first, scale, out=scale).mul_(rate / (1 - _BETA_1**number)))
        self.value.grad = None

    def of(self, fold: int, index: int) -> Tensor:
        """Return a copy of the tensor of one model."""
        return self.value.detach()[fold].select(self.axis - 1, index).clone()


class StackedModels(ABC):
    """Models of one shape: every setting without each fold.

    Parameters
    ----------
    settings : sequence of (int, ModelSetting)
        With the number that each goes by; all of one shape.
    sizes : DataSizes
    seed : int
        Of the first weights: all models of one shape start alike, so that each is what it would be alone.
    dtype : torch.dtype
    device : str

    Attributes
    ----------
    numbers : list of int
        Of the settings that are still trained.
    rate_S, decay_S : Tensor
        Their learning rates and weight decays.
    parameters : list of Parameter
    """

    takes_any_axes: ClassVar[bool] = False
    """Features may be taken along other axes, those of the space of few rows."""

    def __init__(
        self,
        settings: Sequence[tuple[int, ModelSetting]],
        sizes: DataSizes,
        *,
        seed: int,
        dtype: torch.dtype,
        device: str,
    ) -> None:
        self.numbers, self.sizes = [number for number, _ in settings], sizes
        self._dtype, self._device, self._generator = dtype, device, torch.Generator().manual_seed(seed)
        self.rate_S = torch.tensor([s.learning_rate for _, s in settings], dtype=dtype, device=device)
        self.decay_S = torch.tensor([s.weight_decay for _, s in settings], dtype=dtype, device=device)
        self.parameters = self._first_parameters(settings[0][1].shape)

    @abstractmethod
    def _first_parameters(self, shape: tuple[int, ...]) -> list[Parameter]:
        """Return the parameters of all models before any step."""

    @abstractmethod
    def logits(self, X_FBD: Tensor) -> Tensor:
        """Return the logits of all models, (F, S, B, C)."""

    @abstractmethod
    def layers(self, fold: int, index: int, raw: RawFeatures) -> Layers:
        """Return a copy of one model, for features as they come.

        Parameters
        ----------
        fold, index : int
            Of the model; the setting by its index in `numbers`.
        raw : RawFeatures
            Of the fold.
        """

    def losses(self, X_FBD: Tensor, y_B: Tensor, weight_FB: Tensor) -> Tensor:
        """Return each model's mean loss (F, S); zero where no row has a weight.

        Parameters
        ----------
        X_FBD : Tensor
            Features, standardised for each fold.
        y_B : Tensor
            Class indices; labels or numbers (B, C).
        weight_FB : Tensor
            Of the rows in the loss; 0 for rows that a fold must not see.
        """
        losses_FSB = row_losses(self.logits(X_FBD), y_B, self.sizes.kind)
        share_FB = weight_FB / weight_FB.sum(1, keepdim=True).clamp(min=torch.finfo(weight_FB.dtype).tiny)
        # Not a product with zero weights: the loss of rows that a model must not see may be infinite.
        return torch.where(share_FB[:, None] > 0, losses_FSB * share_FB[:, None], 0.0).sum(2)

    def keep(self, indices: Sequence[int]) -> None:
        """Go on with some of the settings, by their indices in `numbers`."""
        index_S = torch.tensor(indices, dtype=torch.long, device=self._device)
        self.rate_S, self.decay_S = self.rate_S[index_S], self.decay_S[index_S]
        for p in self.parameters:
            # Moments too: the others go on as if nothing had happened.
            p.first, p.second = (moment.index_select(p.axis, index_S) for moment in (p.first, p.second))
            p.value = p.value.detach().index_select(p.axis, index_S).requires_grad_(True)
        self.numbers = [self.numbers[index] for index in indices]

    def _stacked(self, *shape: int, scale: float | None = None, axis: int = 1, decays: bool) -> Parameter:
        """Return the same first values for all models: normal ones of a scale, or zeros.

        Parameters
        ----------
        *shape : int
            For one model.
        scale : float, optional
            Standard deviation; zeros when left out.
        axis : int
            That the settings are stacked along.
        decays : bool
            The values are subject to weight decay.
        """
        if scale is None:
            one = torch.zeros(shape)
        else:
            # Drawn in float64 whatever is computed in, so that both types start from the same values.
            one = torch.randn(shape, generator=self._generator, dtype=torch.float64) * scale
        stacked = [self.sizes.folds, *shape]
        stacked.insert(axis, len(self.numbers))
        # Copies of the same values, not views of them: each model goes its own way.
        values = one.to(self._device, self._dtype).unsqueeze(axis - 1).expand(stacked).clone()
        return Parameter(
            values.requires_grad_(True), torch.zeros_like(values), torch.zeros_like(values), axis=axis, decays=decays
        )


class StackedAttention(StackedModels):
    """Queries that pool tokens, and a linear layer; the shape is the number of queries."""

    def _first_parameters(self, shape: tuple[int, ...]) -> list[Parameter]:
        width = self.sizes.features // self.sizes.tokens
        # From zero they would all stay alike; this small, the first step still sees nearly the mean of the tokens.
        self._queries = self._stacked(width, shape[0], scale=0.1 / math.sqrt(width), decays=True)
        self._weights = self._stacked(width, self.sizes.outputs, decays=True)
        self._intercepts = self._stacked(self.sizes.outputs, decays=False)
        return [self._queries, self._weights, self._intercepts]

    def logits(self, X_FBD: Tensor) -> Tensor:
        """Return the logits of all models, (F, S, B, C)."""
        folds, batch, numbers = X_FBD.shape
        width, queries = numbers // self.sizes.tokens, self._queries.value.shape[-1]
        tokens_FBTD = X_FBD.view(folds, batch, self.sizes.tokens, width)
        scores_FSBTQ = torch.einsum("fbtd,fsdq->fsbtq", tokens_FBTD, self._queries.value)
        weights_FSBTQ = scores_FSBTQ.softmax(dim=3)
        values_FBTQV = tokens_FBTD.unflatten(3, (queries, width // queries))
        pooled_FSBQV = torch.einsum("fsbtq,fbtqv->fsbqv", weights_FSBTQ, values_FBTQV)
        return torch.matmul(pooled_FSBQV.flatten(3), self._weights.value) + self._intercepts.value.unsqueeze(2)

    def layers(self, fold: int, index: int, raw: RawFeatures) -> Layers:
        """See `StackedModels.layers`.

        Parameters
        ----------
        fold, index, raw
            As there.
        """
        width = self.sizes.features // self.sizes.tokens
        mean_D, scale_D = raw.mean_D[:width], raw.scale_D[:width]
        # The mean needs no correction here: a constant added to all scores changes no weight.
        queries = self._queries.of(fold, index).double() / scale_D[:, None]
        weights = self._weights.of(fold, index).double() / scale_D[:, None]
        return Layers([queries, weights], [self._intercepts.of(fold, index).double() - mean_D @ weights])


class StackedPerceptrons(StackedModels):
    """Perceptrons with rectifiers; the shape is the number of hidden layers and their width."""

    takes_any_axes: ClassVar[bool] = True

    def _first_parameters(self, shape: tuple[int, ...]) -> list[Parameter]:
        hidden_layers, width = shape
        sizes = list(pairwise([self.sizes.features, *[width] * hidden_layers, self.sizes.outputs]))
        weights, intercepts = [], []
        for layer, (fan_in, fan_out) in enumerate(sizes):
            # He et al., ICCV 2015, equation 10, for layers before a rectifier; the last one starts at zero, so that
            # the first step sees equal probabilities whatever the features are.
            last = layer == len(sizes) - 1
            square = self.sizes.square if layer == 0 else fan_in
            scale = 0.0 if last else math.sqrt(2 / square)
            # (F, D, S, H) for the first layer, which all settings of a fold compute in one product; (F, S, H, H).
            weights.append(self._stacked(fan_in, fan_out, scale=scale, axis=2 if layer == 0 else 1, decays=True))
            intercepts.append(self._stacked(fan_out, decays=False))
        self._weights, self._intercepts = weights, intercepts
        return [*weights, *intercepts]

    def logits(self, X_FBD: Tensor) -> Tensor:
        """Return the logits of all models, (F, S, B, C)."""
        first_FDSH = self._weights[0].value
        folds, _, settings, width = first_FDSH.shape
        product = torch.bmm(X_FBD, first_FDSH.flatten(2)).view(folds, -1, settings, width)
        values_FSBH = product.transpose(1, 2) + self._intercepts[0].value.unsqueeze(2)
        for weights, intercepts in zip(self._weights[1:], self._intercepts[1:], strict=True):
            values_FSBH = torch.matmul(values_FSBH.relu(), weights.value) + intercepts.value.unsqueeze(2)
        return values_FSBH

    def layers(self, fold: int, index: int, raw: RawFeatures) -> Layers:
        """See `StackedModels.layers`.

        Parameters
        ----------
        fold, index, raw
            As there.
        """
        first = self._weights[0].of(fold, index).double()
        first = (first if raw.axes_DR is None else raw.axes_DR @ first) / raw.scale_D[:, None]
        shifted = self._intercepts[0].of(fold, index).double() - raw.mean_D @ first
        # Only the first layer sees features, whose units are taken into its weights.
        rest = [weights.of(fold, index) for weights in self._weights[1:]]
        return Layers([first, *rest], [shifted, *(intercept.of(fold, index) for intercept in self._intercepts[1:])])
