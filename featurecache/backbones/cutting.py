"""Cutting a network in two: the rest of it after a tap, to be trained on cached activations.

What is cached is the whole output of a layer (``layer3:none``). The rest takes that and computes the features before
the output layer, exactly as the whole network would with everything before the cut frozen. So a cut is valid only where
the output of its layer is all that the later layers see of an image; inside a residual branch it is not.

Whatever is claimed here about a cut has been tried: the rest was run on made-up images and compared with the network.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from featurecache.backbones.backbone import Backbone, copy_sharing_tensors
from featurecache.backbones.depth import depth_groups
from featurecache.backbones.dry_run import (
    INPUT,
    PRE_LOGITS,
    DryRun,
    dry_run,
    example_inputs,
    first_tensor,
    layer_of,
    node_modules,
    watching,
)
from featurecache.backbones.input_kinds import input_kind_of, is_text
from featurecache.backbones.inspection import bytes_per_sample
from featurecache.backbones.suggestions import suggested_nodes
from featurecache.backbones.tapped import Tap
from featurecache.backbones.taps import resolve_taps
from featurecache.backbones.tracing import Trace, UncuttableError
from featurecache.errors import BackboneError, first_line

_log = logging.getLogger(__name__)
# Of the largest value: the same kernels run on the same numbers, so that mostly nothing differs at all.
_SAME = 1e-6
# What the network puts out, among outputs of its layers.
_WHOLE = ""
# Backward, gradients of the activations and of the parameters each cost about what forward costs.
_TRAINING_PASSES = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Cut:
    """A network cut in two after a tap."""

    tap: Tap
    """What has to be cached: a layer's output, unpooled."""
    tail: nn.Module
    """From cached activations (B, ...) to the input of the output layer (B, ...), or what the network makes of the
    inputs of several output layers. A copy, in eval mode; its parameters and buffers are called as in the backbone, and
    gradients reach ``trainable`` only."""
    trainable: Mapping[str, int]
    """Names of the parameters that belong to the tail alone, in the order in which their layers are used, each with the
    number of its group of layers; see `featurecache.backbones.depth`."""
    shared: tuple[str, ...]
    """Names of parameters that layers before the cut use too: training them would belie what is cached."""
    shape: tuple[int, ...]
    """What the tail makes of one sample."""
    joined: bool
    """The network has several output layers on different inputs, and the tail ends in what it makes of all of them."""

    @property
    def num_trainable(self) -> int:
        """How many numbers training changes."""
        return sum(p.numel() for p in self.tail.parameters() if p.requires_grad)


@dataclass(frozen=True, kw_only=True)
class CutInfo:
    """What a valid cut costs and saves."""

    tap: str
    """What to cache."""
    shape: tuple[int, ...]
    """Of one sample's activations."""
    num_trainable: int
    """Parameters after the cut, without an output layer."""
    bytes_float16: int
    """On disk for one sample, its id included."""
    bytes_float32: int
    flops_before: int
    """Floating-point operations of one sample, forward, two for each multiply-add."""
    flops_after: int
    speedup: float | None
    """An epoch with the layers before the cut recomputed, in units of an epoch from the cache: (before + 3 after) /
    (3 after) operations. ``None`` where no operation after the cut is counted."""


def cut(backbone: Backbone, name: str, *, joined: bool = True) -> Cut:
    """Cut a network in two.

    Parameters
    ----------
    backbone
        The network; it stays as it is.
    name
        A layer, or the tap of its whole output: ``layer3`` or ``layer3:none``; ``input`` to have all of the network.
    joined
        A network with output layers on different inputs, as distilled ones have on two tokens, ends in what it makes of
        them all without these layers: the mean, mostly. False: in the input of the first.

    Raises
    ------
    UnknownNameError
        No such layer.
    BackboneError
        The network cannot be cut there; the message names the nearest cuts that are valid.
    """
    if is_text(backbone.preprocess):
        raise BackboneError(
            f"{backbone.name} cannot be cut: it reads texts, and later layers need to know which tokens are padding"
        )
    seen = dry_run(backbone)
    tap = _unpooled(backbone, seen, name)
    outputs = _watch_layers(backbone, seen, [tap.node])
    blocks = suggested_nodes(backbone, seen)["blocks"]
    try:
        found = _cut(backbone, _copy_of(backbone), tap, outputs, joined=joined)
    except UncuttableError as error:
        near = _nearest(seen, tap.node, [found.tap.node for found in each_cut(backbone, seen)])
        raise BackboneError(f"{backbone.name} cannot be cut at {tap.node}: {error}; {near}") from error
    return replace(found, trainable=depth_groups(seen, blocks, found.trainable))


def each_cut(backbone: Backbone, seen: DryRun | None = None) -> Iterator[Cut]:
    """Cut a network after each stage and block where that is valid, one after another.

    Every cut holds a copy of the layers after it, so don't keep them all.
    """
    if is_text(backbone.preprocess):
        return
    seen = seen or dry_run(backbone)
    groups = suggested_nodes(backbone, seen)
    suggested = {node for nodes in groups.values() for node in nodes} - {_end_of(backbone)}
    # One copy and one pass serve all cuts.
    network, outputs = _copy_of(backbone), _watch_layers(backbone, seen, suggested)
    for node in sorted(suggested, key=seen.order.__getitem__):
        shape = seen.per_sample(node)
        assert shape is not None
        try:
            found = _cut(backbone, network, Tap(node=node, pooling="none", shape=shape), outputs)
        except UncuttableError as error:
            _log.debug("%s cannot be cut at %s: %s", backbone.name, node, error)
            continue
        yield replace(found, trainable=depth_groups(seen, groups["blocks"], found.trainable))


def valid_cuts(backbone: Backbone, seen: DryRun | None = None) -> list[CutInfo]:
    """Return the stages and blocks after which a network can be cut, in the order in which they run.

    Parameters
    ----------
    backbone
        The network.
    seen
        An earlier dry run that counted operations; without it, one is made.

    Notes
    -----
    The speed-up counts operations, those of convolutions, products of matrices and attention. It leaves out reading
    inputs and activations, the output layer, and that a layer may be slower than its operations say. Every cut is
    tried, which takes about half a forward pass of two images each.
    """
    seen, end = seen or dry_run(backbone, with_costs=True), _end_of(backbone)
    flops_until_end = seen.flops[layer_of(end, seen.modules) or end]
    infos = []
    for found in each_cut(backbone, seen):
        before = seen.flops[found.tap.node]
        after = flops_until_end - before
        infos.append(
            CutInfo(
                tap=found.tap.name,
                shape=found.tap.shape,
                num_trainable=found.num_trainable,
                bytes_float16=bytes_per_sample(found.tap),
                bytes_float32=bytes_per_sample(found.tap, itemsize=4),
                flops_before=before,
                flops_after=after,
                speedup=(before + _TRAINING_PASSES * after) / (_TRAINING_PASSES * after) if after else None,
            )
        )
    return infos


def _end_of(backbone: Backbone) -> str:
    """Return the node of the features that heads on the last layer have: where the rest of a network ends."""
    return (backbone.default.tap or PRE_LOGITS).partition(":")[0]


def _unpooled(backbone: Backbone, seen: DryRun, name: str) -> Tap:
    node, _, pooling = name.partition(":")
    (tap,) = resolve_taps(backbone, [f"{node}:{pooling or 'none'}"], seen=seen)
    if tap.pooling != "none":
        raise BackboneError(f"tap {name!r} is pooled, and the layers after it need all of it: cache '{node}:none'")
    if tap.num_calls > 1:
        raise BackboneError(f"{backbone.name} cannot be cut at {node}: it runs {tap.num_calls} times; cut at a layer "
                            "that runs once, see `featurecache inspect --tails`")  # fmt: skip
    return tap


def _watch_layers(backbone: Backbone, seen: DryRun, nodes: Iterable[str]) -> dict[str, Tensor]:
    """Run the network once and return what layers and it itself put out, (B, ...), and the output layer's input."""
    outputs: dict[str, Tensor] = {}

    def keep(node: str, output: object) -> None:
        tensor = first_tensor(output)
        assert tensor is not None
        outputs[node] = tensor.clone()

    watched = {node: seen.modules[layer_of(node, seen.modules) or node] for node in (*nodes, _end_of(backbone))}
    with watching(backbone, watched, keep), torch.inference_mode():
        end = first_tensor(input_kind_of(backbone.preprocess).call(backbone.module, example_inputs(backbone)))
    return outputs if end is None else outputs | {_WHOLE: end}


def _cut(
    backbone: Backbone, network: nn.Module, tap: Tap, outputs: Mapping[str, Tensor], *, joined: bool = True
) -> Cut:
    """Cut, and try it; groups of layers are not known yet.

    Raises
    ------
    UncuttableError
        It cannot be done there.
    """
    # Followed twice: code between the layers may ask for `self.training`, as dropout and stochastic depth do.
    in_training = _follow(backbone, network, tap.node, training=True, joined=joined).rest.graph
    trace, start, rest, is_joined = _follow(backbone, network, tap.node, training=False, joined=joined)
    if str(rest.graph) != str(in_training):
        raise UncuttableError("the code between its layers does other things in training mode")
    modules, single = trace.before(start)
    _check_statistics(modules, rest)
    frozen = {id(p) for p in (*single, *(p for module in modules for p in module.parameters(recurse=False)))}
    # Whole numbers, as quantised weights are, do not learn.
    own = {name: p for name, p in rest.named_parameters() if p.is_floating_point()}
    # In the order of their first use: a module holds its layers in another one.
    targets = [str(node.target) for node in rest.graph.nodes if node.op in ("call_module", "get_attr")]
    names = [name for target in targets for name in own if f"{name}.".startswith(f"{target}.")]
    trainable = dict.fromkeys((name for name in names if id(own[name]) not in frozen), 0)
    if not trainable:
        raise UncuttableError("no parameters come after it; cache it pooled and train a head")
    # A copy of its own: training the tail must leave the backbone as the cache knows it.
    tail = copy.deepcopy(rest).eval().requires_grad_(False)
    expected = outputs[_WHOLE if is_joined else _end_of(backbone)]
    _try(tail, outputs[tap.node], expected)
    for name in trainable:
        tail.get_parameter(name).requires_grad_(True)
    shared = tuple(name for name in own if name not in trainable)
    shape = tuple(expected.shape[1:])
    return Cut(tap=tap, tail=tail, trainable=trainable, shared=shared, shape=shape, joined=is_joined)


class _Rest(NamedTuple):
    """The part of a network after a node, as a graph."""

    trace: Trace
    start: fx.Node
    rest: fx.GraphModule
    is_joined: bool


def _follow(backbone: Backbone, network: nn.Module, node: str, *, training: bool, joined: bool) -> _Rest:
    last = _end_of(backbone)
    into = backbone.classifier if last == PRE_LOGITS else layer_of(last, node_modules(backbone))
    if node == last or (into is not None and f"{into}.".startswith(f"{node}.")):
        raise UncuttableError("it is or holds the output layer")
    call = input_kind_of(backbone.preprocess).call
    layers = _output_layers(backbone, network) if joined and last == PRE_LOGITS else [into] if into is not None else []
    through = [path for path in (node, *(layers or [last])) if path not in (INPUT, PRE_LOGITS)]
    try:
        trace = Trace(
            network, call, through=through, batch=lambda count: example_inputs(backbone, count), training=training
        )
        ends = {calls[-1].args[0] for path in layers if (calls := trace.calls_of(path))}
        is_joined = len(ends) > 1
        if len(ends) == 1:
            end = ends.pop()
        else:
            end = trace.output() if is_joined or last == PRE_LOGITS else trace.calls_of(last)[-1]
        assert isinstance(end, fx.Node)
        start = trace.input if node == INPUT else trace.calls_of(node)[-1]
        return _Rest(trace, start, trace.between(start, end), is_joined)
    except UncuttableError:
        raise
    # Following a forward pass runs somebody else's code with something that is no tensor: anything can happen.
    except Exception as error:
        raise UncuttableError(f"its forward pass cannot be followed ({first_line(error)})") from error


def _output_layers(backbone: Backbone, network: nn.Module) -> list[str]:
    """Return the output layers whose inputs the network joins: all, where all have been taken out of it."""
    if backbone.classifier is None:
        return []
    every = [backbone.classifier, *(path for path in backbone.output_layers if path != backbone.classifier)]
    known = dict(network.named_modules())
    return every if all(isinstance(known.get(path), nn.Identity) for path in every) else every[:1]


def _copy_of(backbone: Backbone) -> nn.Module:
    try:
        return copy_sharing_tensors(backbone.module)
    # A network may object to being copied with any exception at all.
    except Exception as error:
        raise BackboneError(f"{backbone.name} cannot be cut: it cannot be copied ({first_line(error)})") from error


def _check_statistics(before: list[nn.Module], rest: nn.Module) -> None:
    """Refuse a norm on both sides: in training it would change its statistics, and so what should have been cached."""
    known = {id(module) for module in before}
    for path, module in rest.named_modules():
        if id(module) in known and getattr(module, "track_running_stats", False):
            raise UncuttableError(f"{path} runs before and after it, and keeps statistics")


def _try(tail: nn.Module, activations: Tensor, expected: Tensor) -> None:
    try:
        with torch.inference_mode():
            found = tail(activations)
    # A part of a network on its own may object with any exception at all.
    except Exception as error:
        raise UncuttableError(f"the rest of the network does not run alone ({first_line(error)})") from error
    if found.shape != expected.shape or (found - expected).abs().max() > _SAME * expected.abs().max():
        raise UncuttableError("the rest of the network alone computes something else")


def _nearest(seen: DryRun, node: str, valid: list[str]) -> str:
    before = [other for other in valid if seen.order[other] < seen.order[node]]
    after = [other for other in valid if seen.order[other] > seen.order[node]]
    near = [f"{nodes[index]} ({word})" for nodes, index, word in ((before, -1, "before"), (after, 0, "after")) if nodes]
    return f"nearest cuts: {', '.join(near)}" if near else "it cannot be cut after any stage or block"
