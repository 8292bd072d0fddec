"""Models of one shape, stacked: batched matrix products take a step of all of them at once.

Axes: F folds, B batch, D features, S settings, C classes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from featurecache.heads.gradient.losses import losses_of_rows
from featurecache.specs import TaskKind

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8


class Setting(NamedTuple):
    """What one model differs in from the others beside it."""

    shape: tuple[int, ...]
    """Models of one shape are stacked."""
    learning_rate: float
    weight_decay: float


class Layers(NamedTuple):
    """Of one model: weights (inputs, outputs) and intercepts (outputs,) of its layers."""

    weights: list[Tensor]
    intercepts: list[Tensor]


class Sizes(NamedTuple):
    """What the data say of all models alike."""

    folds: int
    features: int
    classes: int
    """Or labels, or numbers."""
    tokens: int = 1
    outcome: TaskKind = "classification"


@dataclass(eq=False)
class Parameter:
    """One tensor of all models, the folds along its first axis, with the moments of AdamW."""

    value: Tensor
    axis: int
    """Along which the settings are."""
    decays: bool

    def __post_init__(self) -> None:
        self.value.requires_grad_(True)
        self.first, self.second = torch.zeros_like(self.value), torch.zeros_like(self.value)

    def step(self, rate_S: Tensor, decay_S: Tensor, number: int) -> None:
        """Take one step of AdamW (Loshchilov & Hutter, ICLR 2019, algorithm 2), each setting at its own rate."""
        gradient = self.value.grad
        assert gradient is not None
        with torch.no_grad():
            rate = self._along(rate_S)
            self.first.lerp_(gradient, 1 - _BETA_1)
            self.second.mul_(_BETA_2).addcmul_(gradient, gradient, value=1 - _BETA_2)
            scale = self.second.sqrt().div_(math.sqrt(1 - _BETA_2**number)).add_(_EPSILON)
            if self.decays:
                self.value.mul_(1 - rate * self._along(decay_S))
            self.value.sub_(torch.div(self.first, scale, out=scale).mul_(rate / (1 - _BETA_1**number)))
        self.value.grad = None

    def keep(self, places: Tensor) -> None:
        """Let all other settings leave."""
        self.first, self.second = (t.index_select(self.axis, places) for t in (self.first, self.second))
        self.value = self.value.detach().index_select(self.axis, places).requires_grad_(True)

    def of(self, fold: int, place: int) -> Tensor:
        """Return a copy of one model's part."""
        return self.value.detach()[fold].select(self.axis - 1, place).clone()

    def _along(self, values_S: Tensor) -> Tensor:
        shape = [1] * self.value.ndim
        shape[self.axis] = -1
        return values_S.view(shape)


class Bank(ABC):
    """Models of one shape: every setting without each fold.

    Parameters
    ----------
    settings
        With the number that each goes by; all of one shape.
    sizes
    generator
        Draws the first weights: all models of one shape start alike, so that each is what it would be alone.
    dtype, device
    """

    def __init__(
        self,
        settings: Sequence[tuple[int, Setting]],
        sizes: Sizes,
        *,
        generator: torch.Generator,
        dtype: torch.dtype,
        device: str,
    ) -> None:
        self.numbers = [number for number, _ in settings]
        """Of the settings that are still trained."""
        self.sizes = sizes
        self._generator, self._dtype, self._device = generator, dtype, device
        self._rate_S = torch.tensor([s.learning_rate for _, s in settings], dtype=dtype, device=device)
        self._decay_S = torch.tensor([s.weight_decay for _, s in settings], dtype=dtype, device=device)
        self._parameters = self._first_parameters(settings[0][1].shape)

    @abstractmethod
    def _first_parameters(self, shape: tuple[int, ...]) -> list[Parameter]:
        """Return the parameters of all models before any step."""

    @abstractmethod
    def logits(self, X_FBD: Tensor) -> Tensor:
        """Return what each model says of the rows, (F, S, B, C)."""

    @abstractmethod
    def layers(self, fold: int, place: int, mean_D: Tensor, scale_D: Tensor) -> Layers:
        """Return a copy of the model of one fold at one place of `numbers`, for features as they come."""

    def step(self, X_FBD: Tensor, y_B: Tensor, weight_FB: Tensor, *, part: float, number: int) -> None:
        """Take one step on a batch.

        Parameters
        ----------
        X_FBD
            The rows, standardised for each fold.
        y_B
            Class indices; labels or numbers (B, C).
        weight_FB
            Of the rows in the loss; rows that a fold must not see have none.
        part
            Of the learning rate, by the schedule.
        number
            Of the step, from 1.
        """
        # The sum over the models: none of them has a part in another's gradient.
        self.losses(X_FBD, y_B, weight_FB).sum().backward()
        for parameter in self._parameters:
            parameter.step(self._rate_S * part, self._decay_S, number)

    def losses(self, X_FBD: Tensor, y_B: Tensor, weight_FB: Tensor) -> Tensor:
        """Return each model's mean loss (F, S); zero where no row has a weight."""
        logits_FSBC = self.logits(X_FBD)
        losses_FSB = losses_of_rows(logits_FSBC, y_B, self.sizes.outcome)
        share_FB = weight_FB / weight_FB.sum(1, keepdim=True).clamp(min=torch.finfo(weight_FB.dtype).tiny)
        # Not a product with zero weights: what a model says of rows that it must not see may be infinite.
        return torch.where(share_FB[:, None] > 0, losses_FSB * share_FB[:, None], 0.0).sum(2)

    def keep(self, places: Sequence[int]) -> None:
        """Go on with the settings at some places of `numbers` only."""
        index = torch.tensor(places, dtype=torch.long, device=self._rate_S.device)
        self._rate_S, self._decay_S = self._rate_S[index], self._decay_S[index]
        for parameter in self._parameters:
            parameter.keep(index)
        self.numbers = [self.numbers[place] for place in places]

    def _stacked(self, one: Tensor, axis: int = 1, *, decays: bool) -> Parameter:
        """Return the same first values for all models, with the settings along ``axis``."""
        shape = list(one.shape)
        shape.insert(axis - 1, len(self.numbers))
        values = one.to(self._device, self._dtype).unsqueeze(axis - 1)
        return Parameter(values.expand(self.sizes.folds, *shape).clone(), axis, decays)

    def _drawn(self, *shape: int, scale: float) -> Tensor:
        return torch.randn(*shape, generator=self._generator, dtype=torch.float64) * scale
