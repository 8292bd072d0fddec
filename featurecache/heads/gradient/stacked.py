"""Models of one shape, stacked: batched matrix products take a step of all of them at once.

Axes: F folds, B batch, D features, S settings, C classes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from featurecache.heads.gradient.losses import row_losses
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
