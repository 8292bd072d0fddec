"""Taps: named points of a backbone and how their output becomes features.

A tap is written ``node:pooling``. The node is a module's path, or ``pre_logits``, the input of the output layer.
Where a module runs several times in one forward pass (shared activations, mostly), its last call counts.

Axes: B batch, C channels, H height, W width, T tokens, D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from featurecache.backbones.backbone import Backbone
from featurecache.backbones.probing import PRE_LOGITS, Probe, first_tensor, node_modules, probe, watch
from featurecache.errors import BackboneError, UnknownNameError

DEFAULT = "default"
POOLINGS = ("avg", "cls", "flatten", "max", "mean", "none")
_CHANNELS_FIRST_LAYERS = (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)


@dataclass(frozen=True, kw_only=True)
class Tap:
    """A node of a backbone, pooled."""

    node: str
    pooling: str
    shape: tuple[int, ...]
    """Shape of the features of one sample."""
    num_calls: int = 1
    """How often the node runs in one forward pass."""
    channels_last: bool = False
    """The node's map is BHWC."""
    num_prefix_tokens: int = 0
    """Tokens in front of the patch tokens at this node."""

    @property
    def name(self) -> str:
        """The tap as people write it."""
        return f"{self.node}:{self.pooling}"

    def pool(self, output: Tensor) -> Tensor:
        """Turn a node's output into float features."""
        # A mean over many places would lose digits in half precision.
        return _POOL[self.pooling](output.float(), self)


@dataclass(frozen=True, kw_only=True)
class NodeInfo:
    """One node as `inspect` shows it."""

    name: str
    class_name: str
    output_shape: tuple[int, ...] | None
    """For one sample; ``None`` if the node does not run or its output is not one tensor row per image."""
    num_parameters: int


class TappedBackbone(nn.Module):
    """One forward pass, all taps.

    Parameters
    ----------
    backbone
        The frozen network. It stays in eval mode whatever is asked.
    taps
        From `resolve_taps`.
    stop_early
        End the forward pass once the deepest tap has been seen. Tracing needs the whole pass.
    """

    def __init__(self, backbone: Backbone, taps: Sequence[Tap], *, stop_early: bool = True) -> None:
        super().__init__()
        self.network = backbone.module
        self.taps = tuple(taps)
        self._backbone = backbone
        self._stop_early = stop_early
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: batch statistics of the inputs must never reach a frozen backbone."""
        return super().train(False)

    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Return the features of every tap, by tap name. Not for several threads at once."""
        self.train(False)
        catch = _Catch(self.taps, stop_early=self._stop_early)
        modules = node_modules(self._backbone)
        handles = [watch(modules[node], node, self._backbone, catch.hook(node)) for node in catch.nodes]
        try:
            self.network(images_BCHW)
        except _DeepestTapSeen:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return {tap.name: catch.features[tap.name] for tap in self.taps}


def resolve_taps(backbone: Backbone, names: Sequence[str]) -> tuple[Tap, ...]:
    """Turn tap names into taps of a backbone, by a dry run.

    Parameters
    ----------
    backbone
        The network.
    names
        ``node:pooling``, or ``node`` alone for the usual pooling of its shape, or ``default``. Repetitions count once.

    Returns
    -------
    taps
        In the order asked for.
    """
    seen = probe(backbone)
    taps = [_resolve(backbone, seen, name) for name in names]
    return tuple({tap.name: tap for tap in taps}.values())


def list_nodes(backbone: Backbone) -> list[NodeInfo]:
    """Return every module as a possible tap, in the order of the network's definition, ``pre_logits`` last."""
    seen = probe(backbone)
    return [
        NodeInfo(
            name=node,
            class_name=type(module).__name__ if node != PRE_LOGITS else "input of the output layer",
            output_shape=seen.per_sample(node),
            num_parameters=sum(p.numel() for p in module.parameters()) if node != PRE_LOGITS else 0,
        )
        for node, module in node_modules(backbone).items()
    ]


class _DeepestTapSeen(Exception):
    """Ends a forward pass whose rest nobody wants."""


class _Catch:
    """What one forward pass has brought so far."""

    def __init__(self, taps: Sequence[Tap], *, stop_early: bool) -> None:
        self.nodes: dict[str, list[Tap]] = {}
        for tap in taps:
            self.nodes.setdefault(tap.node, []).append(tap)
        self.features: dict[str, Tensor] = {}
        self._calls_left = {node: at_node[0].num_calls for node, at_node in self.nodes.items()}
        self._stop_early = stop_early

    def hook(self, node: str) -> Callable[[Any], None]:
        def see(output: Any) -> None:
            self._calls_left[node] -= 1
            if self._calls_left[node] <= 0:
                tensor = first_tensor(output)
                assert tensor is not None
                self.features |= {tap.name: tap.pool(tensor) for tap in self.nodes[node]}
            if self._stop_early and all(left <= 0 for left in self._calls_left.values()):
                raise _DeepestTapSeen

        return see


def _resolve(backbone: Backbone, seen: Probe, name: str) -> Tap:
    node, colon, pooling = (PRE_LOGITS, "", "") if name == DEFAULT else name.partition(":")
    known = node_modules(backbone)
    if node not in known:
        raise UnknownNameError("tap", node, known, advice=f"see `featurecache inspect {backbone.name}`")
    if colon and pooling not in POOLINGS:
        raise UnknownNameError("pooling", pooling, POOLINGS)
    if not seen.num_calls[node]:
        raise BackboneError(f"tap {node!r}: this layer does not run in a forward pass of {backbone.name}")
    shape = seen.per_sample(node)
    if shape is None:
        found = seen.shapes.get(node, "no tensor")
        raise BackboneError(f"tap {node!r} does not give one row per image (two images gave {found})")
    return _with_layout(backbone, seen, node, pooling or _usual_pooling(backbone, node, shape), shape)


def _usual_pooling(backbone: Backbone, node: str, shape: tuple[int, ...]) -> str:
    if len(shape) == 3:
        return "avg"
    if len(shape) == 2:
        return "cls" if _prefix_tokens_at(backbone, shape[0]) else "mean"
    return "none"


def _with_layout(backbone: Backbone, seen: Probe, node: str, pooling: str, shape: tuple[int, ...]) -> Tap:
    """Check that the pooling makes sense for the node's output, and find out which axes it pools."""
    wanted = {"avg": 3, "max": 3, "cls": 2, "mean": 2}.get(pooling, len(shape))
    if len(shape) != wanted:
        kind = "maps (channels, height, width)" if wanted == 3 else "tokens (tokens, features)"
        raise BackboneError(f"tap '{node}:{pooling}' does not fit: {pooling} pools {kind}, {node} gives {shape}")
    common: dict[str, Any] = {"node": node, "pooling": pooling, "num_calls": seen.num_calls[node]}
    if pooling in ("avg", "max"):
        last = _is_channels_last(backbone, seen, node, shape)
        return Tap(shape=(shape[-1] if last else shape[0],), channels_last=last, **common)
    if pooling in ("cls", "mean"):
        num_prefix = _prefix_tokens_at(backbone, shape[0])
        if num_prefix is None or (pooling == "cls" and num_prefix == 0):
            what = (
                "has no class token" if num_prefix == 0 else f"gives {shape[0]} tokens, not known how many are patches"
            )
            raise BackboneError(
                f"tap '{node}:{pooling}' does not fit: {node} {what}; other poolings: mean, flatten, none"
            )
        return Tap(shape=shape[1:], num_prefix_tokens=num_prefix, **common)
    return Tap(shape=(math.prod(shape),) if pooling == "flatten" else shape, **common)


def _prefix_tokens_at(backbone: Backbone, num_tokens: int) -> int | None:
    """Count the class and register tokens at a node: before they are joined, the patch tokens are alone.

    Images are square, so patches make a square number. ``None`` if neither reading fits.
    """
    num_prefix = backbone.num_prefix_tokens
    if num_prefix == 0 or _is_square(num_tokens):
        return 0
    return num_prefix if num_tokens > num_prefix and _is_square(num_tokens - num_prefix) else None


def _is_square(number: int) -> bool:
    return math.isqrt(number) ** 2 == number


def _is_channels_last(backbone: Backbone, seen: Probe, node: str, shape: tuple[int, ...]) -> bool:
    """Tell BHWC from BCHW, for a map with as many channels as rows by what the network does elsewhere."""
    modules = node_modules(backbone)
    reading = _layout(shape, modules[node] if node != PRE_LOGITS else None)
    if reading is None and len(set(shape)) == 1:
        maps = {other: whole[1:] for other, whole in seen.shapes.items() if len(whole) == 4}
        readings = {_layout(maps[other], modules[other]) for other in maps if other != PRE_LOGITS} - {None}
        reading = readings.pop() if len(readings) == 1 else None
    if reading is None:
        raise BackboneError(
            f"tap {node!r} gives {shape}, which does not tell channels from places; use flatten or none"
        )
    return reading


def _layout(shape: tuple[int, ...], module: nn.Module | None) -> bool | None:
    """Return whether a map is BHWC: images are square, so the two equal axes are height and width."""
    first, middle, last = shape
    if (middle == last) != (first == middle):
        return first == middle
    return False if first == middle == last and isinstance(module, _CHANNELS_FIRST_LAYERS) else None


def _map_axes(tap: Tap) -> tuple[int, int]:
    return (1, 2) if tap.channels_last else (2, 3)


def _copy(output: Tensor, tap: Tap) -> Tensor:
    # The next layer may write into this tensor (in-place activations).
    return output.clone()


_POOL: dict[str, Callable[[Tensor, Tap], Tensor]] = {
    "avg": lambda maps_BCHW, tap: maps_BCHW.mean(dim=_map_axes(tap)),
    "max": lambda maps_BCHW, tap: torch.amax(maps_BCHW, dim=_map_axes(tap)),
    "cls": lambda tokens_BTD, tap: tokens_BTD[:, 0].clone(),
    "mean": lambda tokens_BTD, tap: tokens_BTD[:, tap.num_prefix_tokens :].mean(dim=1),
    "flatten": lambda output, tap: output.flatten(1).clone(),
    "none": _copy,
}
