"""``attentive``: attention over tokens, for taps that keep tokens or positions: ``blocks.11:none``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from featurecache.errors import HeadError
from featurecache.heads.checks import check_whole_number
from featurecache.heads.gradient.estimators import StackedEstimator
from featurecache.heads.gradient.options import MAX_ROWS_EVALUATED
from featurecache.heads.gradient.outputs import ClassOutputs
from featurecache.heads.head import ANY_FIT_BYTES, NUM_FOLDS
from featurecache.specs import TaskKind
from featurecache.wording import counted

if TYPE_CHECKING:
    from torch import nn

    from featurecache.heads.gradient.stacked import Layers, StackedModels

# Some rows at a time: all tokens of all rows are far larger than pooled features.
_BLOCK_BYTES = 64 << 20


@dataclass(kw_only=True, eq=False, repr=False)
class AttentiveClassifier(ClassOutputs, StackedEstimator):
    """Attention pooling with learned queries, and a linear layer on what they pool.

    Every query attends to all tokens and pools a slice of their features, as one head of an attention layer does; keys
    and values are the standardised tokens themselves. It is the attentive probe of Chen et al., "Context Autoencoder
    for Self-Supervised Representation Learning" (IJCV 2024), without its projections. Other parameters are those of
    `StackedOptions` and `ClassOutputs`.

    Parameters
    ----------
    num_tokens : int
        Tokens in a row: features are (n_samples, num_tokens * width), token by token, as a cached ``none`` tap is
        flattened. With 1 it is multinomial logistic regression by gradient steps.
    num_queries : int
        As many as possible up to this number; the features of a token are divided among them evenly.

    Attributes
    ----------
    queries_ : ndarray (width, num_queries)
        For tokens that are not standardised.
    coef_ : ndarray (width, n_classes)
    intercept_ : ndarray (n_classes,)
    """

    kinds: ClassVar[frozenset[TaskKind]] = frozenset({"classification"})
    grid: ClassVar[dict[str, list[Any]]] = {"weight_decay": [1.0, 0.01]}
    arrays: ClassVar[tuple[str, ...]] = ("classes_", "queries_", "coef_", "intercept_")
    optional_arrays: ClassVar[tuple[str, ...]] = ("n_iter_", "multilabel_")
    earlier_names: ClassVar[tuple[str, ...]] = ("AttentiveProbe",)
    needs_tokens: ClassVar[bool] = True
    relative_seconds: ClassVar[float] = 300.0
    path_params: ClassVar[frozenset[str]] = frozenset({"num_queries", "learning_rate", "weight_decay"})

    num_tokens: int = field(default=1, kw_only=False)
    num_queries: int = 8
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    batch_size: int = 64
    queries_: NDArray[Any] = field(init=False)
    coef_: NDArray[Any] = field(init=False)
    intercept_: NDArray[Any] = field(init=False)

    def attention(self, X: NDArray[Any]) -> NDArray[Any]:
        """Return the weight of each token for each query, (n_samples, num_tokens, num_queries); sums to one."""
        tokens = X.reshape(len(X), self.num_tokens, -1)
        return np.asarray(softmax(tokens @ self.queries_.astype(tokens.dtype), axis=1))

    @classmethod
    def memory_needed(cls, n_samples: int, n_features: int, n_outputs: int) -> int:
        """Return bytes for n_samples rows, n_features and n_outputs; see `HeadMixin.memory_needed`."""
        return (
            ANY_FIT_BYTES
            + 12 * NUM_FOLDS * min(n_samples, MAX_ROWS_EVALUATED) * n_features
            + 4 * n_samples * n_features
        )

    def check_arrays(self) -> None:
        """Refuse tokens, queries and weights that do not belong together."""
        tokens, found = self.num_tokens, (self.queries_, self.coef_, self.intercept_)
        if any(array.dtype.kind != "f" for array in found):
            raise HeadError("the weights of its AttentiveClassifier are not numbers")
        if type(tokens) is not int or tokens < 1 or self.n_features_in_ % tokens or self.queries_.ndim != 2:
            raise HeadError(f"its AttentiveClassifier has {tokens!r} tokens, which do not fit its features")
        width, queries, n_classes = self.n_features_in_ // tokens, self.queries_.shape[1], np.size(self.classes_)
        expected = [(width, queries), (width, n_classes), (n_classes,)]
        if [array.shape for array in found] != expected or queries < 1 or width % queries:
            raise HeadError(f"the weights of its AttentiveClassifier have shapes {[array.shape for array in found]}")

    def to_module(self) -> nn.Module:
        """Return probabilities, (B, n_classes)."""
        from torch import nn

        from featurecache.heads.modules import AttentionPool, Linear

        linear = Linear(weight=self.coef_, bias=self.intercept_)
        return self._with_probabilities(nn.Sequential(AttentionPool(queries=self.queries_), linear))

    def check_options(self) -> None:
        """Raise `ValueError` for parameters that make no sense."""
        check_whole_number("num_tokens", self.num_tokens, 1)
        check_whole_number("num_queries", self.num_queries, 1)
        if self.n_features_in_ % self.num_tokens:
            raise ValueError(
                f"{counted(self.n_features_in_, 'feature')} are not {self.num_tokens} tokens of one width; set "
                "num_tokens"
            )
        super().check_options()

    def _stack(self) -> tuple[type[StackedModels], tuple[int, ...], int]:
        from featurecache.heads.gradient.stacked import StackedAttention

        width = self.n_features_in_ // self.num_tokens
        # As many as divide the width: each query pools a slice of its own.
        num_queries = max(k for k in range(1, min(self.num_queries, width) + 1) if width % k == 0)
        return StackedAttention, (num_queries,), self.num_tokens

    def _keep(self, layers: Layers, dtype: type[np.floating[Any]]) -> None:
        self.queries_, self.coef_ = (layer.cpu().numpy().astype(dtype) for layer in layers.weights)
        self.intercept_ = layers.intercepts[0].cpu().numpy().astype(dtype)

    def _logits(self, rows: NDArray[Any]) -> NDArray[Any]:
        # At least one row, however many tokens it has.
        step = max(_BLOCK_BYTES // max(rows.shape[1] * rows.itemsize, 1), 1)
        pooled = np.empty((len(rows), len(self.coef_)), rows.dtype)
        for start in range(0, len(rows), step):
            some = rows[start : start + step]
            values = some.reshape(len(some), self.num_tokens, self.queries_.shape[1], -1)
            mean = np.einsum("ntq,ntqv->nqv", self.attention(some), values)
            pooled[start : start + step] = mean.reshape(len(some), -1)
        return pooled @ self.coef_.astype(rows.dtype) + self.intercept_.astype(rows.dtype)
