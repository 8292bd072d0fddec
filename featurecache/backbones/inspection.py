"""The tree of a backbone's modules as possible taps: shapes, parameters, cost, and bytes on disk."""

from __future__ import annotations

import math
from dataclasses import dataclass

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


def list_nodes(backbone: Backbone, seen: DryRun | None = None) -> list[NodeInfo]:
    """Return every module as a possible tap, in the order of the network's definition, ``pre_logits`` last."""
    seen = seen or dry_run(backbone, with_costs=True)
    default = (backbone.default.tap or "").partition(":")[0]
    groups = {DEFAULT: [default], **suggested_nodes(backbone, seen)}
    nodes = [*seen.modules] if default in seen.modules or not default else [*seen.modules, default]
    return [_describe(backbone, seen, node, groups) for node in nodes]


def bytes_per_sample(tap: Tap, *, itemsize: int = _FLOAT16_BYTES) -> int:
    """Return what one sample of a tap takes on disk, in float16 unless told, its id included."""
    return math.prod(tap.shape) * itemsize + _ID_BYTES


def suggested_taps(nodes: list[NodeInfo]) -> dict[str, list[str]]:
    """Return the taps behind each suggestion, by its name."""
    return {group: [node.tap for node in nodes if group in node.suggested and node.tap] for group in (DEFAULT, *GROUPS)}


def _describe(backbone: Backbone, seen: DryRun, node: str, groups: dict[str, list[str]]) -> NodeInfo:
    layer, tap = layer_of(node, seen.modules), usual_tap(backbone, seen, node)
    what = _NO_LAYERS.get(node) or (f"input of {layer}" if layer else None)
    if node == PRE_LOGITS and backbone.classifier is None:
        what = "the network's output"
    return NodeInfo(
        name=node,
        class_name=what or class_name(seen.modules[node]),
        output_shape=seen.per_sample(node),
        num_parameters=0 if what else sum(p.numel() for p in seen.modules[node].parameters()),
        num_calls=seen.num_calls[node],
        flops=seen.flops.get(node),
        tap=tap.name if tap else None,
        feature_shape=tap.shape if tap else None,
        bytes_per_sample=bytes_per_sample(tap) if tap else None,
        suggested=tuple(group for group, nodes in groups.items() if node in nodes),
    )


_NO_LAYERS = {PRE_LOGITS: "input of the output layer", INPUT: "images, normalised"}
