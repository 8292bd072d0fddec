"""One forward pass that brings every tap and ends at the deepest.

Axes: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from featurecache.backbones.backbone import Backbone
from featurecache.backbones.dry_run import first_tensor, layer_of, node_modules, watching
from featurecache.backbones.input_kinds import input_kind_of
from featurecache.backbones.packed_images import unpacked
from featurecache.backbones.pooling import Layout, pool
from featurecache.errors import BackboneError
from featurecache.specs import AnyPreprocess, PreprocessSpec

Features = dict[str, np.ndarray]
"""Tap name -> float32 (B, ...)."""


@dataclass(frozen=True, kw_only=True)
class Tap:
    """A node of a backbone, pooled."""

    node: str
    pooling: str
    shape: tuple[int, ...]
    """Shape of the features of one sample."""
    num_calls: int = 1
    """How often the node runs in one forward pass."""
    layout: Layout = "other"
    """Which axes of the node's output are positions, and which are channels."""
    num_prefix_tokens: int = 0
    """Tokens in front of the patch tokens at this node."""

    @property
    def name(self) -> str:
        """The tap as people write it."""
        return f"{self.node}:{self.pooling}"

    def pool(self, output: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """Turn a node's output (B, ...) into float features (B, ...)."""
        # A mean over many positions would lose digits in half precision.
        return pool(
            output.float(),
            pooling=self.pooling,
            layout=self.layout,
            num_prefix_tokens=self.num_prefix_tokens,
            mask_BT=mask_BT,
        )


class TappedBackbone(nn.Module):
    """One forward pass, all taps.

    Parameters
    ----------
    backbone
        The frozen network. It stays in eval mode whatever is asked.
    taps
        From `resolve_taps`.

    Notes
    -----
    The forward pass ends once the deepest tap has been seen, but for tracing, which needs the whole of it.
    """

    def __init__(self, backbone: Backbone, taps: Sequence[Tap]) -> None:
        super().__init__()
        self.network = backbone.module
        self.taps = tuple(taps)
        self._backbone = backbone
        modules = node_modules(backbone)
        self._watched = {tap.node: modules[layer_of(tap.node, modules) or tap.node] for tap in taps}
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: batch statistics of the inputs must never reach a frozen backbone."""
        return super().train(False)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        """Return the features (B, ...) of every tap, by tap name. Not for several threads at once."""
        self.train(False)
        kind = input_kind_of(self._backbone.preprocess)
        # An exception ends the pass early, and no tracer could record that.
        traced = torch.jit.is_tracing() or torch.compiler.is_exporting()  # type: ignore[attr-defined]
        mask_BT = None if kind.mask is None else kind.mask(inputs)
        features: dict[str, Tensor] = {}
        calls_left = {tap.node: tap.num_calls for tap in self.taps}

        def see(node: str, output: Any) -> None:
            calls_left[node] -= 1
            # Of a layer that runs several times the last call counts.
            if calls_left[node] <= 0:
                tensor = first_tensor(output)
                assert tensor is not None
                features.update({tap.name: tap.pool(tensor, mask_BT) for tap in self.taps if tap.node == node})
            if not traced and all(left <= 0 for left in calls_left.values()):
                raise _DeepestTapSeen

        with suppress(_DeepestTapSeen), watching(self._backbone, self._watched, see):
            kind.call(self.network, inputs)
        for tap in self.taps:
            if tap.name not in features:
                raise BackboneError(
                    f"tap {tap.name!r}: the layer ran {tap.num_calls - calls_left[tap.node]} times in this forward "
                    f"pass instead of {tap.num_calls}: what the network runs depends on its input; tap a layer that "
                    "always runs"
                )
        return {tap.name: features[tap.name] for tap in self.taps}


class _DeepestTapSeen(Exception):
    """Ends a forward pass of which all taps have been seen."""


class Normalized(nn.Module):
    """Loaded inputs in, features out: the last step of the preprocess happens on the device.

    Parameters
    ----------
    tapped
        The backbone.
    preprocess
        Of images, mean and standard deviation.
    """

    def __init__(self, tapped: TappedBackbone, preprocess: AnyPreprocess) -> None:
        super().__init__()
        self.tapped = tapped
        self.prepare = input_kind_of(preprocess).prepare(preprocess)
        self._preprocess = preprocess

    def forward(self, batch: Tensor, headers: list[tuple[int, int, int]] | None = None) -> tuple[Tensor, ...]:
        """Return the features in the order of the taps; a tuple, because tracing knows no other order.

        Parameters
        ----------
        batch : Tensor
        headers : list, optional
            Of packed images; see `packed_images.headers_of`.
        """
        if headers is not None:
            assert isinstance(self._preprocess, PreprocessSpec)
            batch = unpacked(batch, headers, self._preprocess)
        features = self.tapped(self.prepare(batch))
        return tuple(features[tap.name] for tap in self.tapped.taps)
