"""The network of a program of ``torch.export``: its modules under the paths that they had when it was exported.

Axes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from operator import getitem
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.unflatten import InterpreterModule, InterpreterModuleDispatcher, UnflattenedModule

from featurecache.errors import BackboneError, first_line
from featurecache.wording import counted

_DYNAMIC = 'dynamic_shapes=({0: torch.export.Dim("batch")},)'
# What the root keeps of the program besides graph and tensors: it is needed to unflatten, and hard to copy.
_LEFTOVERS = ("meta", "module_call_graph", "graph_signature", "ivals", "range_constraints", "input_placeholders")
# What goes through a network here may be laid out in another way (channels last), which a view does not take.
_VIEWS = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)


class ExportedNetwork(UnflattenedModule):
    """A program as a tree of modules that can be hooked, replaced, copied and moved to another device.

    Parameters
    ----------
    program
        Takes one batch of images.
    side
        Of the images in pixels; ``None`` where any will do.
    """

    def __init__(self, program: ExportedProgram, side: int | None) -> None:
        super().__init__(program)
        self.side = side
        for name in _LEFTOVERS:
            vars(self).pop(name, None)
        _hide_order_of_outputs(self)
        for module in self.modules():
            for name, value in list(vars(module).items()):
                if isinstance(value, Tensor):  # a constant: only buffers move with the network
                    delattr(module, name)
                    module.register_buffer(name, value, persistent=False)
        _join_calls(self, set())
        for graph in chain.from_iterable(map(_graphs_of, self.modules())):
            for node in graph.nodes:
                node.meta.clear()  # symbolic shapes and stand-ins for tensors
                if node.target in _VIEWS:
                    node.target = torch.ops.aten.reshape.default

    def forward(self, images_BCHW: Tensor) -> Any:
        """Return what the program puts out, several tensors as a tuple."""
        if self.side is not None:
            # One by one: a tracer cannot go through sizes in a loop.
            for size in (images_BCHW.shape[2], images_BCHW.shape[3]):
                torch._assert(size == self.side, f"it was exported for images of {self.side} pixels a side")
        outputs = fx.Interpreter(self, graph=self.graph).run(images_BCHW, enable_io_processing=False)
        several = isinstance(outputs, (tuple, list))
        return outputs[0] if several and len(outputs) == 1 else tuple(outputs) if several else outputs

    def digest(self) -> str:
        """SHA-256 (hex) of what the program computes, but for the numbers in its tensors.

        The bytes of the file would not do: they hold the file's name, and for each operation the line of Python that
        it was traced from, so that the same network exported again makes another file.
        """
        hasher = hashlib.sha256()
        first: dict[int, str] = {}
        # Shared tensors under every name: two layers of equal graphs are told apart by whose weights they use.
        for name, tensor in (*self.named_parameters(remove_duplicate=False), *self.named_buffers()):
            hasher.update(f"{name} is {first.setdefault(id(tensor), name)}\n".encode())
        for path, module in self.named_modules():
            # Blocks of operations, as those without gradients, are graphs of torch's own kind.
            for graph in [module.graph] if isinstance(module, fx.GraphModule) else _graphs_of(module):
                hasher.update(f"{path} {getattr(module, '_ty', '')}\n{_text_of(graph)}\n".encode())
        return hasher.hexdigest()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move tensors, and let those that the program creates be made where they are now."""
        super()._apply(fn, recurse)
        device = fn(torch.empty(0)).device
        for graph in chain.from_iterable(map(_graphs_of, self.modules())):
            for node in graph.nodes:
                if "device" in node.kwargs:
                    node.update_kwarg("device", device)
        return self


class LayerOfSeveralGraphs(InterpreterModule):
    """A layer whose calls differ, by the shapes or arguments that they get: each kind of call has its own graph.

    torch makes modules ``act`` and ``act@1`` of these, with the weights twice. Here the layer is one again, so that its
    tap is what its last call puts out, as for any other network, and a weights file has each tensor once.

    Parameters
    ----------
    calls
        The modules that torch made, by the number of the first call that each is for.
    """

    def __init__(self, calls: Mapping[int, InterpreterModule]) -> None:
        first = calls[0]
        super().__init__(first.graph, first.type_name())
        # By number of the call, because torch leaves gaps where a later call equals an earlier one: act, act@2.
        self.graphs = {number: call.graph for number, call in calls.items()}
        for call in calls.values():
            self._parameters.update(call._parameters)
            self._buffers.update(call._buffers)
            self._non_persistent_buffers_set |= call._non_persistent_buffers_set
            self._modules.update(call._modules)

    def forward(self, *args: Any, call: int = 0) -> Any:
        """Run the graph of a call, whose number stands in the graph that calls."""
        return fx.Interpreter(self, graph=self.graphs[call]).run(*args, enable_io_processing=False)


def _graphs_of(module: nn.Module) -> list[fx.Graph]:
    if isinstance(module, LayerOfSeveralGraphs):
        return list(module.graphs.values())
    # What was exported with a preserved signature has a module of torch's in front of its calls.
    calls = module.call_modules() if isinstance(module, InterpreterModuleDispatcher) else [module]
    return [call.graph for call in calls if isinstance(call, InterpreterModule | UnflattenedModule)]


def _text_of(graph: fx.Graph) -> str:
    """Write a graph down, its nodes numbered: their names are torch's affair, and so is how it prints a graph."""
    numbers = {node: f"%{number}" for number, node in enumerate(graph.nodes)}
    lines = []
    for node in graph.nodes:
        target = node.target if isinstance(node.target, str) else fx.node._get_qualified_name(node.target)
        arguments = fx.node.map_arg((node.args, node.kwargs), numbers.__getitem__)
        lines.append(f"{node.op} {'' if node.op == 'placeholder' else target} {arguments}")
    return "\n".join(lines)


def _join_calls(module: nn.Module, joined: set[nn.Module]) -> None:
    """Make one layer of each group ``act``, ``act@1``, ... beneath a module, and have the graphs name it."""
    # Layers may be shared by several parents.
    if module in joined:
        return
    joined.add(module)
    for graph in _graphs_of(module):
        for node in graph.nodes:
            if node.op == "call_module" and "@" in node.target:
                path, _, number = node.target.rpartition("@")
                node.target, node.kwargs = path, {**node.kwargs, "call": int(number)}
    calls: dict[str, dict[int, Any]] = {}
    for name, child in module._modules.items():
        base, _, number = name.partition("@")
        calls.setdefault(base, {})[int(number or 0)] = child
    for base, by_number in calls.items():
        if len(by_number) > 1:
            module._modules[base] = LayerOfSeveralGraphs(by_number)
            for number in by_number.keys() - {0}:
                del module._modules[f"{base}@{number}"]
    for child in module.children():
        _join_calls(child, joined)


def _hide_order_of_outputs(network: UnflattenedModule) -> None:
    """Let modules that put out several tensors put out ``None`` first, so that they are no taps.

    A program does not say which of them the original put out first, and a tap is the first.
    """
    changed: set[nn.Module] = set()
    for module in network.modules():
        for node in module.graph.nodes if isinstance(module, InterpreterModule | UnflattenedModule) else ():
            child = module.get_submodule(node.target) if node.op == "call_module" else None
            if not isinstance(child, InterpreterModule) or any(user.target is not getitem for user in node.users):
                continue
            output_node = child.graph.output_node()
            outputs: Any = output_node.args[0]
            several = outputs if isinstance(outputs, (tuple, list)) else ()
            if child not in changed and sum(isinstance(output.meta.get("val"), Tensor) for output in several) > 1:
                output_node.args = ((None, *outputs),)
                changed.add(child)
            if child in changed:
                for user in list(node.users):
                    user.update_arg(1, user.args[1] + 1)


def load_program(name: str, path: Path) -> ExportedNetwork:
    """Read a program by ``torch.export.load``, which can run code that is in the file.

    Parameters
    ----------
    name
        Of the backbone, for messages.
    path
        What ``torch.export.save`` wrote.

    Raises
    ------
    BackboneError
        torch cannot read it, or it is no function of one batch of images of any number.
    """
    # Tensors that are made in inference mode take no gradients.
    with torch.inference_mode(False), _quiet_torch():
        try:
            program = torch.export.load(path)
        # Whatever is wrong with the file comes to light somewhere inside torch.
        except Exception as error:
            raise BackboneError(
                f"{name} cannot be used: torch.export.load of torch {torch.__version__} fails "
                f"({type(error).__name__}: {first_line(error)}); bring what torch.export.save wrote"
            ) from error
        side = _side_of_images(name, program)
        try:
            return ExportedNetwork(program, side)
        except Exception as error:
            raise BackboneError(
                f"{name} cannot be used: torch {torch.__version__} does not find its layers "
                f"({type(error).__name__}: {first_line(error)})"
            ) from error


@contextmanager
def _quiet_torch() -> Iterator[None]:
    """Keep torch from printing the traceback of what it raises, and from warnings about its own code."""
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)


def _side_of_images(name: str, program: ExportedProgram) -> int | None:
    """Return the side of the images that a program takes; ``None`` where any will do."""
    signature = program.graph_signature
    if signature.buffers_to_mutate or signature.user_inputs_to_mutate:
        raise BackboneError(f"{name} writes into its own buffers or its input, as networks in training mode do; call "
                            ".eval() on the network, then export it again")  # fmt: skip
    inputs = [node.meta["val"] for node in program.graph.nodes if node.name in signature.user_inputs]
    if len(inputs) != 1 or not isinstance(inputs[0], Tensor):
        found = counted(len(signature.user_inputs), "input")
        raise BackboneError(f"{name} takes {found}; export a network that takes one batch of images")
    shape: list[Any] = list(inputs[0].shape)  # symbols stand for what may vary
    sizes = [size if isinstance(size, int) else None for size in shape]
    if inputs[0].dtype != torch.float32 or len(sizes) != 4 or sizes[1] != 3:
        shown = ", ".join("any" if size is None else str(size) for size in sizes)
        raise BackboneError(
            f"{name} cannot be used: its input is {inputs[0].dtype} ({shown}); export a network that takes float32 "
            "images (batch, 3, height, width), normalised"
        )
    batch, _, height, width = sizes
    if batch is not None:
        raise BackboneError(
            f"{name} takes batches of {counted(batch, 'image')} only; export it for any number: "
            f"torch.export.export(network, (torch.zeros(2, 3, 224, 224),), {_DYNAMIC})"
        )
    if height and width and height != width:
        raise BackboneError(f"{name} takes images of {height}x{width} pixels, not squares")
    return height or width
