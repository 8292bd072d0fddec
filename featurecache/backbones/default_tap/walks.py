"""Walks over the values of a forward pass, from what it ends with back to what that was made of."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from featurecache.backbones.default_tap import operations as ops
from featurecache.backbones.default_tap.recording import Constant, Value


@dataclass(frozen=True)
class Ends:
    """Where the walk back from a value ends."""

    products: frozenset[Value] = frozenset()
    """Products with weights."""
    stops: frozenset[Value] = frozenset()
    """Values that the walk does not go through: sums with something else, activations, products of activations."""
    marks: frozenset[str] = frozenset()
    """What was met on the way: ``norm``, ``relu``, ``norm of rows``, ``unknown``."""


def is_product(value: Value) -> bool:
    """Tell whether a value is a product of activations with weights."""
    # Quantised layers keep their weights in an object of their own, which is no tensor.
    if not value.constants or not value.sources:
        return value.op == "linear_dynamic"
    if value.op in ops.CONVOLUTIONS:
        return any(constant.learned for constant in value.constants)
    if value.op in ops.MATRIX_PRODUCTS:
        # A fixed matrix sums probabilities of classes up; without a softmax before it, it holds embeddings of classes.
        learned = any(constant.learned for constant in value.constants)
        return learned or not any(_is_probability(source) for source in value.sources)
    return value.op in ops.OUTER and any(_is_outer(value, constant) for constant in value.constants)


def width_of(value: Value) -> int:
    """Return how many outputs a product makes."""
    return value.shape[1] if value.op in ops.CONVOLUTIONS else value.shape[-1] if len(value.shape) > 1 else 1


def kernel_of(value: Value) -> int:
    """Return the number of positions that a convolution sees at once."""
    return math.prod(max(value.constants, key=lambda constant: len(constant.shape)).shape[2:])


def base_of(value: Value) -> Value:
    """Return the value that holds the same numbers, before they were reshaped or copied."""
    while value.op in ops.SAME_NUMBERS and len(value.sources) == 1:
        value = value.sources[0]
    return value


def is_open(value: Value) -> bool:
    """Tell whether a walk goes through a value: it only reshapes, pools, squashes, normalises or sums."""
    if is_product(value):
        return False
    # A fixed matrix after a softmax, or a fixed filter, makes no features: see `is_product`.
    is_fixed = value.op in ops.MATRIX_PRODUCTS | ops.CONVOLUTIONS and bool(value.constants) and len(value.sources) == 1
    return is_fixed or value.op in ops.OPEN


def ends_of(value: Value, known: dict[Value, Ends] | None = None) -> Ends:
    """Walk back from an output to the products that made it; ``known`` holds what was found on the way."""
    # Without a memory a network of dense connections takes a time that doubles with every layer.
    known = {} if known is None else known
    if value not in known:
        known[value] = _step(value, known)
    return known[value]


def _step(value: Value, known: dict[Value, Ends]) -> Ends:
    stop = Ends(stops=frozenset({value}))
    if is_product(value):
        return Ends(products=frozenset({value}))
    # An output may be cut off at zero (counts, prices), or this may be a hidden layer: see `_before_relu`.
    if value.op == "relu":
        return _before_relu(value, ends_of(value.sources[0], known)) or stop
    if value.op in ops.ACTIVATIONS or not value.sources:
        return stop
    if value.op in ops.MATRIX_PRODUCTS | ops.CONVOLUTIONS:
        return ends_of(value.sources[0], known) if value.constants and len(value.sources) == 1 else stop
    if value.op not in ops.OPEN and not value.elementwise:
        return Ends(stops=frozenset({value}), marks=frozenset({"unknown"}))
    found = [ends_of(source, known) for source in value.sources]
    marks = frozenset(mark for ends in found for mark in ends.marks) | _marks(value)
    products = frozenset(product for ends in found for product in ends.products)
    stops = frozenset(stop for ends in found for stop in ends.stops)
    # Concatenated outputs of linear layers are several output layers; of convolutions, branches of one block.
    joins = len(value.sources) > 1 and (value.op != "cat" or any(p.op in ops.CONVOLUTIONS for p in products))
    # Asked last, and only where values join: it walks through all of the network between two products.
    in_order = sorted(products, key=lambda product: product.index) if joins else []
    if joins and ((products and stops) or any(is_ancestor(a, b) for a, b in combinations(in_order, 2))):
        # A connection past a layer, or a gate: what comes out are activations of a hidden layer.
        return Ends(stops=frozenset({value}), marks=frozenset({"unknown"} & marks))
    return Ends(products, stops, marks) if products or len(value.sources) == 1 else Ends(stops=frozenset({value}))


def _before_relu(value: Value, ends: Ends) -> Ends | None:
    """Go through a ReLU where the layer before it may be an output layer: linear, or a plain 1x1 convolution."""
    if ends.stops or not ends.products or ends.marks & {"norm"}:
        return None
    # A 3x3 convolution, or one without a bias because a norm follows, belongs to a hidden layer.
    plain = all(p.op not in ops.CONVOLUTIONS or (kernel_of(p) == 1 and len(p.constants) > 1) for p in ends.products)
    return Ends(ends.products, marks=ends.marks | {"relu"}) if plain else None


def _marks(value: Value) -> frozenset[str]:
    if value.op in ops.NORMS:
        return frozenset({"norm"})
    if value.op in ops.ROW_NORMS:
        return frozenset({"norm of rows"})
    return frozenset() if value.op in ops.OPEN else frozenset({"unknown"})


def is_ancestor(ancestor: Value, value: Value) -> bool:
    """Tell whether a value was made of another, or is it."""
    waiting, seen = [value], set()
    while waiting:
        value = waiting.pop()
        if value is ancestor:
            return True
        # Values are made of earlier ones only.
        if value not in seen and value.index > ancestor.index:
            seen.add(value)
            waiting += value.sources
    return False


def common_ancestor(values: Sequence[Value], heads: set[Value]) -> tuple[Value, list[Value]]:
    """Return the last value that everything else here was made of, alone.

    Parameters
    ----------
    values
        What was made of it; a single value is its own.
    heads
        Output layers; other products on the way are counted.

    Returns
    -------
    ancestor, between
        And the products between, without the output layers.
    """
    between: list[Value] = []
    for value, is_alone in _latest_first({base_of(value) for value in values}):
        if is_alone:
            return value, between
        if is_product(value) and value not in heads:
            between.append(value)
    raise AssertionError("of no values")


def layers_between(start: Value, value: Value) -> list[Value] | None:
    """Return the products between two values; ``None`` unless the later one was made of the earlier alone."""
    between: list[Value] = []
    for each, is_alone in _latest_first([value]):
        if is_alone and each is start:
            return between
        if each.index < start.index or not each.sources:
            return None
        between += [each] if is_product(each) else []
    return None


def _latest_first(values: Iterable[Value]) -> Iterator[tuple[Value, bool]]:
    """Yield values and all that they were made of, the latest first, and whether all else before was made of it."""
    waiting = [(-value.index, value) for value in values]
    heapq.heapify(waiting)
    seen = {value for _, value in waiting}
    while waiting:
        _, value = heapq.heappop(waiting)
        yield value, not waiting
        for source in map(base_of, value.sources):
            if source not in seen:
                seen.add(source)
                heapq.heappush(waiting, (-source.index, source))


def depends_only_on(head: Value, start: Value, heads: set[Value]) -> bool:
    """Tell whether an output layer's product depends on one value alone, without another layer between.

    Parameters
    ----------
    head
        The product.
    start
        The value.
    heads
        Output layers, which may lie between.
    """
    target, waiting, seen = base_of(start), [base_of(source) for source in head.sources], set()
    while waiting:
        value = waiting.pop()
        if value is target or value in seen:
            continue
        if not value.sources or value.index < target.index or (is_product(value) and value not in heads):
            return False
        seen.add(value)
        waiting += map(base_of, value.sources)
    return True


def is_slice_of(value: Value, whole: Value) -> bool:
    """Tell whether a value is a slice of another: one token of all, half of the channels."""
    while value is not whole:
        if value.op not in ops.SLICES | ops.SAME_NUMBERS or len(value.sources) != 1:
            return False
        value = value.sources[0]
    return True


def step_back(value: Value) -> Value | None:
    """Return what a value was made of by pooling, scaling, normalising or an activation; ``None`` by a layer."""
    if not value.sources or is_product(value) or not (is_open(value) or value.op in ops.ACTIVATIONS):
        return None
    start, between = common_ancestor(value.sources, set())
    return None if between else start


def _is_probability(value: Value) -> bool:
    value = base_of(value)
    while value.op in ops.SHAPES | ops.SAME_NUMBERS and len(value.sources) == 1:
        value = value.sources[0]
    return value.op in ("softmax", "log_softmax", "safe_softmax")


def _is_outer(value: Value, constant: Constant) -> bool:
    """Tell whether a matrix of weights meets every row of activations: a product written with broadcasting."""
    ndim = len(value.shape)
    own = [size > 1 and stride != 0 for size, stride in zip(constant.shape, constant.strides, strict=True)]
    own = [False] * (ndim - len(own)) + own
    if len(own) != ndim or sum(own) < 2 or not constant.learned:
        return False
    return any(here and not there for here, there in zip(own, _own_axes(value.sources[0], ndim), strict=True))


def _own_axes(value: Value, ndim: int) -> list[bool]:
    """Tell along which axes the numbers of a value differ, others being repetitions of them."""
    sizes = [size > 1 for size in value.shape]
    inside = [_own_axes(source, len(sizes)) for source in value.sources if len(source.shape) <= len(sizes)]
    repeats = value.op in ops.SUMS | ops.SQUASHES | {"expand", "clone"} or value.elementwise
    reduces = value.op in ops.POOLS | ops.ROW_NORMS and len(value.sources[0].shape) == len(sizes)
    if inside and (repeats or reduces):
        sizes = [own and any(axes) for own, axes in zip(sizes, zip(*inside, strict=True), strict=True)]
    return [False] * (ndim - len(sizes)) + sizes
