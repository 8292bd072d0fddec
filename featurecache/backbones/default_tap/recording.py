"""A forward pass as a graph of single operations: which values were made of which, and by which layers.

Recorded while the network runs, below its code and whatever that is written in: unlike symbolic tracing, this works for
every network that runs at all, and sees bare parameters (``x @ W.t()``) as well as layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

# Relative. Normalising in float32 leaves about 1e-7; in bfloat16, 4e-3, which is not recognised.
_SAME_LENGTH = 1e-4


@dataclass(eq=False)
class Call:
    """One call of a layer."""

    path: str
    input: Value | None = None
    """Its first input that depends on the batch."""
    output: Value | None = None
    """Its first output."""


@dataclass(eq=False)
class Value:
    """A tensor that depends on the batch."""

    index: int
    """Values are numbered in the order in which they were made."""
    op: str
    """The operation that made it, without underscores and overload: ``addmm``; ``input`` for the batch."""
    shape: tuple[int, ...]
    sources: tuple[Value, ...] = ()
    """What it was made of."""
    constants: tuple[Constant, ...] = ()
    """Tensors that do not depend on the batch and had a part in it."""
    calls: tuple[Call, ...] = ()
    """Layers that were running, the innermost last; the network itself is left out."""
    floating: bool = True
    elementwise: bool = False
    unit: bool = False
    """Of outputs: all rows have one length, as rows that were normalised."""


@dataclass(frozen=True)
class Constant:
    """A tensor that does not depend on the batch."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    learned: bool
    """A parameter, or made of one."""


@dataclass
class Dataflow:
    """What one forward pass did."""

    input: Value
    outputs: dict[str, Value]
    """What the network puts out, by position, key or field (``0``, ``logits``, ``0.1``); a single tensor: ``""``."""
    calls: list[Call] = field(default_factory=list)
    """All calls of layers, in the order in which they ended."""


def record(network: nn.Module, call: Callable[[nn.Module, Tensor], Any], inputs: Tensor) -> Dataflow:
    """Run a network once and record what it does.

    Parameters
    ----------
    network
        In eval mode.
    call
        Calls it with a batch.
    inputs
        The batch (B, ...).
    """
    if any(isinstance(parameter, nn.parameter.UninitializedParameter) for parameter in network.parameters()):
        with torch.no_grad():
            call(network, inputs.clone())  # lazy layers learn their sizes
    recorder = _Recorder({id(tensor) for tensor in network.parameters()}, inputs)
    # Not inference mode, in which composite operations would stay whole.
    with torch.no_grad(), _watched(network, recorder), recorder:
        result = call(network, inputs)
    outputs: dict[str, Value] = {}
    for name, tensor in named_tensors(result):
        if (value := recorder.value_of(tensor)) is not None:
            value.unit = _has_rows_of_one_length(tensor)
            outputs[name] = value
    return Dataflow(recorder.source, outputs, recorder.ended)


def named_tensors(result: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Return every tensor in what a network puts out: of tuples, lists, mappings and dataclasses."""
    if isinstance(result, Tensor):
        yield name, result
        return
    if isinstance(result, Mapping):
        items = list(result.items())
    elif isinstance(result, (tuple, list)):
        names = getattr(result, "_fields", range(len(result)))
        items = list(zip(names, result, strict=True))
    elif is_dataclass(result):
        items = [(item.name, getattr(result, item.name)) for item in fields(result)]
    else:
        return
    for key, item in items:
        yield from named_tensors(item, f"{name}.{key}" if name else str(key))


def _has_rows_of_one_length(tensor: Tensor) -> bool:
    if tensor.ndim != 2 or tensor.shape[1] < 2 or not tensor.is_floating_point():
        return False
    lengths = tensor.norm(dim=1)
    return bool((lengths - lengths[0]).abs().max() <= _SAME_LENGTH * lengths[0])


@dataclass(eq=False)
class _Memory:
    """Numbers that several tensors may be views of."""

    written: Value | None = None


@dataclass
class _Known:
    """What is known of a tensor: a value of the batch, or a constant (``None``)."""

    value: Value | None
    memory: _Memory
    learned: bool = False


class _Recorder(TorchDispatchMode):
    def __init__(self, parameters: set[int], inputs: Tensor) -> None:
        super().__init__()
        self._parameters = parameters
        self._known: Any = WeakTensorKeyDictionary()
        self._count = 0
        self.running: list[Call] = []
        self.ended: list[Call] = []
        # What everything is made of.
        self.source = self._make("input", inputs)
        self._known[inputs] = _Known(self.source, _Memory())

    def value_of(self, tensor: Tensor) -> Value | None:
        """Return the value that a tensor holds now."""
        known = self._find(tensor)
        written = known.memory.written
        if written is None or (known.value is not None and written.index <= known.value.index):
            return known.value
        # Somebody wrote into the memory through another view.
        sources = (written,) if known.value is None else (known.value, written)
        known.value = self._make("written", tensor, sources)
        return known.value

    # Below autograd and below `nn.Module`: every operation comes through here, whoever calls it.
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        operands = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self._note(func, operands, results, list(_written(func, args, kwargs or {})))
        return result

    def _find(self, tensor: Tensor) -> _Known:
        known: _Known | None = self._known.get(tensor)
        if known is None:
            learned = id(tensor) in self._parameters or isinstance(tensor, nn.Parameter)
            known = self._known[tensor] = _Known(None, _Memory(), learned)
        return known

    def _note(self, func: Any, operands: list[Tensor], results: list[Tensor], written: list[Tensor]) -> None:
        values = [self.value_of(tensor) for tensor in operands]
        sources = tuple(dict.fromkeys(value for value in values if value is not None))
        fixed = [tensor for tensor, value in zip(operands, values, strict=True) if value is None]
        learned = any(self._find(tensor).learned for tensor in fixed)
        constants = tuple(
            Constant(
                shape=tuple(tensor.shape),
                # Sparse tensors have no strides.
                strides=tensor.stride() if tensor.layout == torch.strided else (1,) * tensor.ndim,
                learned=self._find(tensor).learned,
            )
            for tensor in fixed
        )
        for tensor in {id(value): value for value in [*written, *results]}.values():
            value = self._make(func, tensor, sources, constants) if sources else None
            memory = self._memory_of(tensor, operands)
            if any(tensor is other for other in written):
                memory.written = value or memory.written
            self._known[tensor] = _Known(value, memory, learned and not sources)

    def _make(
        self, op: Any, tensor: Tensor, sources: tuple[Value, ...] = (), constants: tuple[Constant, ...] = ()
    ) -> Value:
        self._count += 1
        return Value(
            index=self._count,
            op=op if isinstance(op, str) else op.overloadpacket.__name__.strip("_"),
            shape=tuple(tensor.shape),
            sources=sources,
            constants=constants,
            calls=tuple(self.running),
            floating=tensor.is_floating_point(),
            elementwise=not isinstance(op, str) and torch.Tag.pointwise in op.tags,
        )

    def _memory_of(self, tensor: Tensor, operands: list[Tensor]) -> _Memory:
        # Views share their storage, and so what is written through one of them. Sparse tensors have none of their own.
        if tensor.layout == torch.strided:
            address = tensor.untyped_storage()._cdata
            for other in operands:
                if other.layout == torch.strided and other.untyped_storage()._cdata == address:
                    return self._find(other).memory
        return _Memory()


def _written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """Return the tensors that an operation writes into."""
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[index] if index < len(args) else kwargs.get(argument.name)
            yield from (leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor))


@contextmanager
def _watched(network: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Tell the recorder when a layer's call begins and ends."""

    def begin(path: str, _module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        recorder.running.append(Call(path, _first_value(recorder, (args, kwargs))))

    def end(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        call = recorder.running.pop()
        call.output = _first_value(recorder, output)
        recorder.ended.append(call)

    with ExitStack() as hooks:
        for path, module in network.named_modules():
            # TorchScript takes no hooks.
            if path and not isinstance(module, torch.jit.ScriptModule):
                hooks.enter_context(module.register_forward_pre_hook(partial(begin, path), with_kwargs=True))
                hooks.enter_context(module.register_forward_hook(end))
        yield


def _first_value(recorder: _Recorder, given: Any) -> Value | None:
    values = (recorder.value_of(tensor) for _, tensor in named_tensors(given))
    return next((value for value in values if value is not None), None)
