"""Multilayer perceptrons of one shape, stacked: one matrix product for the first layer of all settings of a fold.

Axes: F folds, B batch, D features, S settings, H hidden units, C classes.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from featurecache.heads.gradient.stacked import Layers, Parameter, RawFeatures, StackedModels


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
