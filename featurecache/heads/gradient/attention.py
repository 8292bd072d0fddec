"""Attention pooling with learned queries, stacked.

Axes: F folds, B batch, T tokens, D features of a token, S settings, Q queries, V features pooled by a query, C classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from featurecache.heads.gradient.stacked import Layers, Parameter, RawFeatures, StackedModels


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
