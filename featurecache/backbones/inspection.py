"""The tree of a backbone's modules as possible taps: shapes, parameters, cost, and bytes on disk."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from featurecache.backbones.backbone import Backbone
from featurecache.backbones.dry_run import INPUT, PRE_LOGITS, DryRun, dry_run, layer_of
from featurecache.backbones.suggestions import GROUPS, class_name, suggested_nodes
from featurecache.backbones.tapped import Tap
from featurecache.backbones.taps import DEFAULT, usual_tap

_FLOAT16_BYTES = 2
# Beside every row lies the id of its sample (store/FORMAT.md).
_ID_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class NodeInfo:
    """One node as `inspect` shows it."""

    name: str
    class_name: str
    output_shape: tuple[int, ...] | None
    """For one sample; ``None`` if the node does not run or its output is not one tensor row per image."""
    num_parameters: int
    num_calls: int
    """How often it runs in one forward pass."""
    flops: int | None
    """Floating-point operations of one sample until the node has run, two for each multiply-add."""
    tap: str | None
    """The node with its usual pooling; ``None`` if it cannot be tapped."""
    feature_shape: tuple[int, ...] | None
    """Of that tap, for one sample."""
    bytes_per_sample: int | None
    """On disk, if that tap is cached in float16: the features and the sample's id."""
    suggested: tuple[str, ...]
    """Names under which the node can be asked for with others: ``default``, ``stages``, ``blocks``."""


@dataclass(frozen=True)
class CostedDryRun:
    """A dry run that also counted operations: enough to list the nodes, and to resolve taps without another run."""

    seen: DryRun
    flops: dict[str, int]
    """Operations of one sample until a node's last call has ended, by node."""


def list_nodes(backbone: Backbone, costed: CostedDryRun | None = None) -> list[NodeInfo]:
    """Return every module as a possible tap, in the order of the network's definition, ``pre_logits`` last."""
    costed = costed or dry_run_with_costs(backbone)
    seen, flops = costed.seen, costed.flops
    default = (backbone.default.tap or "").partition(":")[0]
    groups = {DEFAULT: [default], **suggested_nodes(backbone, seen)}
    nodes = [*seen.modules] if default in seen.modules or not default else [*seen.modules, default]
    return [_describe(backbone, seen, node, flops.get(node), groups) for node in nodes]


def dry_run_with_costs(backbone: Backbone) -> CostedDryRun:
    """Make a dry run under torch's counter; a node's count is what the counter shows when its last call has ended."""
    counter = FlopCounterMode(display=False)
    flops: dict[str, int] = {}

    def note(node: str) -> None:
        flops[node] = counter.get_total_flops()

    with counter, _slow_attention():
        seen = dry_run(backbone, also=note)
    # The counter counts the whole batch, and every operation here is linear in its size.
    num_images = next(iter(seen.shapes.values()))[0] if seen.shapes else 1
    return CostedDryRun(seen, {node: count // num_images for node, count in flops.items()})


def bytes_per_sample(tap: Tap, *, itemsize: int = _FLOAT16_BYTES) -> int:
    """Return what one sample of a tap takes on disk, in float16 unless told, its id included."""
    return math.prod(tap.shape) * itemsize + _ID_BYTES


def suggested_taps(nodes: list[NodeInfo]) -> dict[str, list[str]]:
    """Return the taps behind each suggestion, by its name."""
    return {group: [node.tap for node in nodes if group in node.suggested and node.tap] for group in (DEFAULT, *GROUPS)}


def _describe(backbone: Backbone, seen: DryRun, node: str, flops: int | None, groups: dict[str, list[str]]) -> NodeInfo:
    layer, tap = layer_of(node, seen.modules), usual_tap(backbone, seen, node)
    what = _NO_LAYERS.get(node) or (f"input of {layer}" if layer else None)
    return NodeInfo(
        name=node,
        class_name=what or class_name(seen.modules[node]),
        output_shape=seen.per_sample(node),
        num_parameters=0 if what else sum(p.numel() for p in seen.modules[node].parameters()),
        num_calls=seen.num_calls[node],
        flops=flops,
        tap=tap.name if tap else None,
        feature_shape=tap.shape if tap else None,
        bytes_per_sample=bytes_per_sample(tap) if tap else None,
        suggested=tuple(group for group, nodes in groups.items() if node in nodes),
    )


_NO_LAYERS = {PRE_LOGITS: "input of the output layer", INPUT: "images, normalised"}


@contextmanager
def _slow_attention() -> Iterator[None]:
    """Keep transformers from their fused kernels, which the counter takes for one operation that costs nothing."""
    # Two switches: nn.TransformerEncoder has its own fast path, before scaled dot-product attention is asked.
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
