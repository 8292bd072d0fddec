"""The forward pass of a network as a graph of layer calls, and the part of it that follows one of them.

Only as much of the network is opened as leads to the layers in question: every other module stays one node, with its
own code, so that dropout, batch norm and whatever else depends on ``train()`` and ``eval()`` work as they always did.

Axes: B batch.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Collection, Iterable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

# Two sizes of batch tell a number that counts inputs from one that does not.
_FEW, _MORE = 2, 3
_PREFIX = "network."


class UncuttableError(Exception):
    """The rest of a network cannot be computed from the cut alone; says why, of ``it``."""


class Trace:
    """One symbolic run of a network.

    Parameters
    ----------
    network
        From `copy_sharing_tensors`: a trace leaves things behind, in it and not in the network.
    call
        Calls a network with a batch.
    through
        Paths of the modules whose calls shall be seen.
    batch
        Makes a batch of a given number of inputs, to find out sizes that the network computes.
    training
        Follow the network's own code as it runs in training mode.
    """

    def __init__(
        self,
        network: nn.Module,
        call: Callable[[nn.Module, Tensor], Any],
        *,
        through: Iterable[str],
        batch: Callable[[int], Tensor],
        training: bool = False,
    ) -> None:
        self._whole = _Whole(network, call).train(training)
        self._batch = batch
        self._graph = self._follow({_PREFIX + path for path in through}, training=training)
        # Sizes are found by running it, and a norm in training mode would learn from that.
        self._whole.eval()
        (self.input,) = (node for node in self._graph.nodes if node.op == "placeholder")

    def _follow(self, paths: Collection[str], *, training: bool) -> fx.Graph:
        """Trace, and find out what the network asks of sizes: how large its input is, it is to go on as for its own."""
        decisions: list[bool] = []
        while True:
            tracer = _Tracer(paths, decisions)
            try:
                return tracer.trace(self._whole)
            except _UndecidedError as undecided:
                self._whole.eval()
                found = [
                    _Sizes(self._whole, graph=tracer.graph).of(self._batch(n)).get(undecided.node)
                    for n in (_FEW, _MORE)
                ]
                self._whole.train(training)
                if not all(isinstance(value, bool) for value in found) or found[0] != found[1]:
                    raise
                decisions.append(bool(found[0]))

    def calls_of(self, path: str) -> list[fx.Node]:
        """Return the calls of a module, in their order."""
        return [node for node in self._graph.nodes if node.op == "call_module" and node.target == _PREFIX + path]

    def output(self) -> fx.Node:
        """Return what the network puts out: of several things the first, as `first_tensor` does."""
        (node,) = (node for node in self._graph.nodes if node.op == "output")
        value = node.args[0]
        while not isinstance(value, fx.Node):
            value = next(iter(value.values() if isinstance(value, dict) else value))
        return value

    def before(self, node: fx.Node) -> tuple[list[nn.Module], list[Tensor]]:
        """Return the modules that a value was made with, those inside them included, and the single parameters."""
        paths = {str(node.target) for node in _ancestors(node, set()) if node.op in ("call_module", "get_attr")}
        layers = [operator.attrgetter(path)(self._whole) for path in paths]
        modules = [module for layer in layers if isinstance(layer, nn.Module) for module in layer.modules()]
        return modules, [layer for layer in layers if isinstance(layer, Tensor)]

    def between(self, start: fx.Node, end: fx.Node) -> fx.GraphModule:
        """Return the part that makes ``end`` from ``start``, with layers that the traced network shares.

        Raises
        ------
        UncuttableError
            The end cannot be made from the start alone.
        """
        starts = _starts(start)
        constants: dict[fx.Node, tuple[Any, Any]] = {}
        if self.input in _ancestors(end, starts):
            # Sizes are the one thing that may pass by the cut: the same for each image, or a multiple of the batch.
            after = _descendants(self._graph, starts)
            # A size that was made from the cut itself is computed there, and needs no constant.
            constants = {node: sizes for node, sizes in self._sizes.items() if node not in after}
        needed = _ancestors(end, starts | set(constants))
        self._check(needed - set(constants), starts, end)
        return self._build([node for node in self._graph.nodes if node in needed], starts, constants, end)

    def _check(self, needed: set[fx.Node], starts: set[fx.Node], end: fx.Node) -> None:
        """Refuse a cut that leaves something out, and name what."""
        if self.input not in needed:
            return
        before = _descendants(self._graph, {self.input}) - _descendants(self._graph, starts)
        for node in self._graph.nodes:
            if node in needed & before and (node is end or any(user in needed - before for user in node.users)):
                raise UncuttableError(f"{_name(node)} is used after it as well")

    def _build(
        self, needed: list[fx.Node], starts: set[fx.Node], constants: dict[fx.Node, tuple[Any, Any]], end: fx.Node
    ) -> fx.GraphModule:
        graph = fx.Graph()
        activations = graph.placeholder("activations")
        # The first layer may write into its input, which is the caller's.
        start = graph.call_method("clone", (activations,))
        length = graph.call_method("size", (activations, 0)) if constants else None
        copies: dict[fx.Node, Any] = {}
        layers: dict[str, nn.Module | Tensor] = {}
        for node in needed:
            if node in starts:
                copies[node] = start
            elif node in constants:
                copies[node] = _size(graph, length, *constants[node])
            else:
                # What stood for a node may be a plain number here, which `Graph.node_copy` does not take.
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), copies.__getitem__)
                target = node.target
                if node.op in ("call_module", "get_attr"):
                    path = str(node.target)
                    target = path.removeprefix(_PREFIX)
                    layers[target] = operator.attrgetter(path)(self._whole)
                copies[node] = graph.create_node(node.op, target, args, kwargs, name=node.name)
        graph.output(copies[end])
        return fx.GraphModule(layers, graph, class_name="Tail")

    @cached_property
    def _sizes(self) -> dict[fx.Node, tuple[Any, Any]]:
        few, more = (_Sizes(self._whole, graph=self._graph).of(self._batch(count)) for count in (_FEW, _MORE))
        return {node: (value, more[node]) for node, value in few.items()}


class _Whole(nn.Module):
    """Gives every network the same signature: whatever else its forward takes keeps its default."""

    def __init__(self, network: nn.Module, call: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.network, self._call = network, call

    def forward(self, batch: Tensor) -> Any:
        return self._call(self.network, batch)


class _Tracer(fx.Tracer):
    def __init__(self, paths: Iterable[str], decisions: Iterable[bool]) -> None:
        super().__init__(param_shapes_constant=True)
        self._decisions = deque(decisions)
        # Only what holds a layer in question is opened, so that code elsewhere is never followed symbolically.
        self._open = {path[:end] for path in paths for end, sign in enumerate(path) if sign == "."}

    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        return path not in self._open

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Decide as was found out before, or stop where nothing was."""
        if not self._decisions:
            raise _UndecidedError(obj.node)
        return self._decisions.popleft()


class _UndecidedError(Exception):
    """The network asks whether something holds."""

    def __init__(self, node: fx.Node) -> None:
        super().__init__("symbolically traced variables cannot be used as inputs to control flow")
        self.node = node


class _Sizes(fx.Interpreter):
    """Runs a graph and keeps what is no tensor."""

    _kept: dict[fx.Node, Any]

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        if node.op not in ("placeholder", "output") and _is_plain(value):
            self._kept[node] = value
        return value

    def of(self, batch: Tensor) -> dict[fx.Node, Any]:
        """Return the numbers, sizes and the like that a batch leads to, by node."""
        self._kept = {}
        with torch.inference_mode():
            self.run(batch)
        return self._kept


def _ancestors(node: fx.Node, stop: set[fx.Node]) -> set[fx.Node]:
    """Return what a value is made of, itself included; nothing behind ``stop``."""
    found: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += [] if node in stop else node.all_input_nodes
    return found


def _descendants(graph: fx.Graph, sources: set[fx.Node]) -> set[fx.Node]:
    """Return the sources and every value that depends on one of them."""
    found = set(sources)
    for node in graph.nodes:
        if any(other in found for other in node.all_input_nodes):
            found.add(node)
    return found


def _starts(start: fx.Node) -> set[fx.Node]:
    """Return the values that the cached activations stand for: of a layer that puts out several things, the first."""
    indices = [user.args[1] if user.target is operator.getitem else None for user in start.users]
    if indices and all(isinstance(index, int) for index in indices):
        return {user for user, index in zip(start.users, indices, strict=True) if index == 0}
    return {start}


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device))


def _size(graph: fx.Graph, length: fx.Node | None, few: Any, more: Any) -> Any:
    """Write a size, known for two sizes of batch, for a batch of any length."""
    if isinstance(few, (tuple, list)):
        return tuple(_size(graph, length, *pair) for pair in zip(few, more, strict=True))
    if few == more:
        return few
    if isinstance(few, int) and few % _FEW == 0 and few // _FEW * _MORE == more:
        return graph.call_function(operator.mul, (length, few // _FEW))
    raise UncuttableError(f"a number that is {few} for {_FEW} inputs and {more} for {_MORE} is used after it")


def _name(node: fx.Node) -> str:
    is_layer = node.op in ("call_module", "get_attr")
    if node.op == "placeholder":
        return "the input"
    return f"the output of {str(node.target).removeprefix(_PREFIX)}" if is_layer else f"what {node.name} gives"
