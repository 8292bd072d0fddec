"""Taps: named points of a backbone and how their output becomes features.

A tap is written ``node:pooling``. The node is a module's path, ``fc.input`` for what goes into the layer ``fc``, or
``pre_logits``, the input of the removed output layer.
Where a module runs several times in one forward pass (shared activations, mostly), its last call counts. Features
before and after a final norm are different nodes: ``blocks.11:cls`` and ``norm:cls``.

``default``, ``stages`` and ``blocks`` stand for the taps that are suggested for the architecture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from featurecache.backbones.backbone import Backbone
from featurecache.backbones.determinism import check_determinism
from featurecache.backbones.dry_run import PRE_LOGITS, DryRun, dry_run, layer_of
from featurecache.backbones.input_kinds import input_kind_of
from featurecache.backbones.layout import is_square, layout_of, prefix_tokens_at
from featurecache.backbones.pooling import POOLINGS, Layout, grid_side, is_pooling, pooled_shape, takes
from featurecache.backbones.suggestions import GROUPS, suggested_nodes
from featurecache.backbones.tapped import Tap as Tap
from featurecache.backbones.tapped import TappedBackbone as TappedBackbone
from featurecache.errors import BackboneError, ReportWarning, UnknownNameError, command_line, nearest_layers

DEFAULT = "default"


def resolve_taps(backbone: Backbone, names: Sequence[str], *, seen: DryRun | None = None) -> tuple[Tap, ...]:
    """Turn tap names into taps of a backbone, by a dry run.

    Parameters
    ----------
    backbone
        The network.
    names
        ``node:pooling``, or ``node`` alone for the usual pooling of its shape, or ``default``, ``stages``, ``blocks``.
        Repetitions count once. A node that is itself named ``blocks`` is asked for with its pooling: ``blocks:mean``.
    seen
        What an earlier dry run saw; without it, one is made.

    Returns
    -------
    taps
        In the order asked for.

    Raises
    ------
    UnknownNameError
        No such node or pooling.
    BackboneError
        The pooling does not fit the node, or the network does not give an image the same features every time.
    """
    # By a pass and not by the code: only a pass tells what a layer puts out, and how often it runs.
    seen = seen or dry_run(backbone)
    taps = [tap for name in names for tap in _expand(backbone, seen, name)]
    unique = tuple({tap.name: tap for tap in taps}.values())
    check_determinism(backbone, unique)
    return unique


def default_of(backbone: Backbone) -> str:
    """Return the tap that ``default`` stands for.

    Raises
    ------
    BackboneError
        Two are as good; the message lists them.
    """
    default = backbone.default
    if default.tap is None:
        others = ", ".join(choices(backbone))
        raise BackboneError(f"{backbone.name} has no default tap: {default.doubt}; name one with --tap: {others}")
    return default.tap


def with_default_warning(backbone: Backbone, names: Sequence[str]) -> Backbone:
    """Return a backbone that says it if the default tap is asked for, and is not certain."""
    default, kinds = backbone.default, {warning.kind for warning in backbone.warnings}
    is_output = backbone.classifier is None and (default.doubt or default.tap != PRE_LOGITS)
    if is_output and any(name.partition(":")[0] == PRE_LOGITS for name in names):
        text = f"pre_logits of {backbone.name} is the network's output, as no output layer was removed; "
        text += f"the default tap is {default.tap}" if default.tap is not None else "--tap takes another layer"
        count = 1
    elif DEFAULT in names and default.doubt and default.tap is not None:
        others = choices(backbone)
        text = f"the default tap of {backbone.name} is {default.tap}, which may not be what is wanted: {default.doubt}"
        text += f"; --tap takes another: {', '.join(others)}" if others else ""
        count = len(others)
    else:
        return backbone
    warning = ReportWarning(kind="default_tap", count=count, text=text)
    return backbone if "default_tap" in kinds else replace(backbone, warnings=(*backbone.warnings, warning))


def choices(backbone: Backbone) -> list[str]:
    """Return the taps to choose from where the default is not certain, with what each gives."""
    output = "the network's output, "
    return [f"{tap} ({output if tap == PRE_LOGITS else ''}{size} numbers)" for tap, size in backbone.default.candidates]


def usual_tap(backbone: Backbone, seen: DryRun, node: str) -> Tap | None:
    """Return the tap of a node with the pooling that its shape suggests; ``None`` if it cannot be tapped.

    Parameters
    ----------
    backbone, seen
        The network, and a dry run of it.
    node
        Name of the node.
    """
    try:
        return _resolve(backbone, seen, node)
    except BackboneError:
        return None


def _expand(backbone: Backbone, seen: DryRun, name: str) -> list[Tap]:
    if name == DEFAULT:
        return [_resolve(backbone, seen, default_of(backbone))]
    if name not in GROUPS:
        return [_resolve(backbone, seen, name)]
    taps = [_resolve(backbone, seen, node) for node in suggested_nodes(backbone, seen)[name]]
    if not taps:
        raise BackboneError(f"{backbone.name} has no {name} that are known here; see `featurecache inspect`")
    return taps


def _resolve(backbone: Backbone, seen: DryRun, name: str) -> Tap:
    node, colon, pooling = name.partition(":")
    known = seen.modules
    # `fc.input` is no module, and exists where `fc` does.
    if node not in known and layer_of(node, known) is None:
        words = [DEFAULT, *GROUPS]
        stages = [node for nodes in suggested_nodes(backbone, seen).values() for node in nodes]
        advice = f"see `{command_line('inspect', backbone.name)}`"
        near = nearest_layers(node, [*words, *known])
        raise UnknownNameError("tap", node, [*words, *stages], near=near, advice=advice)
    if colon and not is_pooling(pooling):
        raise UnknownNameError("pooling", pooling, POOLINGS)
    if not seen.num_calls[node]:
        raise BackboneError(f"tap {node!r}: this layer does not run in a forward pass of {backbone.name}")
    shape = seen.per_sample(node)
    if shape is None:
        found = seen.shapes.get(node, "no tensor")
        noun = input_kind_of(backbone.preprocess).noun
        raise BackboneError(f"tap {node!r} does not give one row per {noun[:-1]} (two {noun} gave {found})")
    layout = layout_of(backbone, seen, node)
    pooling = pooling or _usual_pooling(backbone, layout, shape)
    if (problem := _misfit(backbone, node, pooling, layout, shape)) is not None:
        fitting = ", ".join(name for name in POOLINGS if _misfit(backbone, node, name, layout, shape) is None)
        raise BackboneError(f"tap '{node}:{pooling}' does not fit: {problem}; poolings that fit: {fitting}")
    layout = layout or "other"
    num_prefix = prefix_tokens_at(backbone, shape[0]) if layout == "BTD" else 0
    return Tap(
        node=node,
        pooling=pooling,
        shape=pooled_shape(pooling, layout, shape),
        num_calls=seen.num_calls[node],
        layout=layout,
        num_prefix_tokens=num_prefix or 0,
    )


def _usual_pooling(backbone: Backbone, layout: Layout | None, shape: tuple[int, ...]) -> str:
    # Sentence encoders say how they were trained; others are averaged, as sentence-transformers does by default.
    if layout == "text":
        return backbone.token_pooling or "mean"
    if layout == "BTD":
        # Before the class token is joined, as after a patch embedding, there is none.
        return "cls" if backbone.has_class_token and prefix_tokens_at(backbone, shape[0]) else "mean"
    if layout == "other":
        # One position, as before a convolution over a sequence: channels are all there is.
        return "flatten" if len(shape) == 2 and 1 in shape else "none"
    return "avg"


def _misfit(backbone: Backbone, node: str, pooling: str, layout: Layout | None, shape: tuple[int, ...]) -> str | None:
    layouts = takes(pooling)
    if layouts is None:
        return None
    if layout is None:
        return f"{node} gives {shape}, which does not tell channels from positions"
    if layout not in layouts:
        maps, tokens = "maps (channels, height, width)", "tokens (tokens, features)"
        both = tokens if "BCHW" not in layouts else maps if "BTD" not in layouts else f"{maps} or {tokens}"
        return f"{pooling} pools {both}, {node} gives {shape}"
    side = shape[1]
    if layout in ("BTD", "text"):
        num_tokens = shape[0]
        num_prefix = prefix_tokens_at(backbone, num_tokens)
        if num_prefix is None:
            return f"{node} gives {num_tokens} tokens, not known how many are patches"
        # Of texts, the class token is one of the positions.
        if "cls" in pooling and not (backbone.has_class_token and (layout == "text" or num_prefix)):
            return f"{node} has no class token"
        if grid_side(pooling) and not is_square(num_tokens - num_prefix):
            return f"{node} gives {num_tokens - num_prefix} patch tokens, which fill no square"
        side = round((num_tokens - num_prefix) ** 0.5)
    if (grid := grid_side(pooling)) and grid > side:
        return f"{node} has only {side}x{side} positions"
    return None
