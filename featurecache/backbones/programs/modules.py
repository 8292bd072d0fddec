"""A program as a tree of modules, with the paths of the network that it was exported from.

Each module runs the calls that happened in the one of its name, and hands on what others use of it, so that it can be
tapped, replaced and trained like the original. The unflattening of torch does the same with graphs of ``torch.fx``;
those are executed as source code made of names in the file, so here a list of calls is interpreted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

from torch import nn

from featurecache.backbones.programs.operations import DeviceOf

_PARTS_OF_LINEAR = {"aten.linear.default", "aten.t.default", "aten.permute.default", "aten.transpose.int",
                    "aten.addmm.default", "aten.mm.default", "aten.matmul.default", "aten.add.Tensor"}  # fmt: skip


@dataclass(frozen=True)
class Local:
    """A value in one body, by its number there."""

    number: int


@dataclass(frozen=True)
class Own:
    """A parameter, buffer or constant, by its path inside the module."""

    path: str


@dataclass(frozen=True)
class Line:
    """One call in a body: of a function, or of a module inside this one."""

    text: str
    """Name of the function, or path of the module."""
    function: Callable[..., Any] | None
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    results: tuple[int | None, ...]
    is_tuple: bool
    done: tuple[int, ...] = ()
    """Values that nobody needs any more."""


@dataclass(frozen=True)
class Body:
    """What one call of a module does: the inputs are values 0, 1, ..."""

    num_inputs: int
    lines: tuple[Line, ...]
    outputs: tuple[int | None, ...]

    def __deepcopy__(self, memo: object) -> Body:
        """Return itself: nothing in it changes, and copies of modules run the same."""
        return self

    def __str__(self) -> str:
        lines = [f"{', '.join(f'%{n}' for n in line.results)} = {line.text}{_written(line)}" for line in self.lines]
        return "\n".join([f"{self.num_inputs} in", *lines, f"out {', '.join(f'%{n}' for n in self.outputs)}"])


class ProgramModule(nn.Module):
    """A module of a program.

    Parameters
    ----------
    layer
        Name of the class that the original had.
    """

    def __init__(self, layer: str) -> None:
        super().__init__()
        self.layer_of_program = layer
        self.bodies_of_program: list[Body] = []

    def forward(self, *values: Any, call: int = 0) -> Any:
        """Do what one of the module's calls did. With several, the caller says which one is meant."""
        body = self.bodies_of_program[call]
        known: dict[int, Any] = dict(enumerate(values))
        del values
        for line in body.lines:
            function = self.get_submodule(line.text) if line.function is None else line.function
            found = function(*self._fill(line.args, known), **self._fill(line.kwargs, known))
            for place, number in enumerate(line.results):
                if number is not None:
                    known[number] = found[place] if line.is_tuple else found
            del found
            for number in line.done:
                del known[number]
        outputs = [None if number is None else known[number] for number in body.outputs]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def extra_repr(self) -> str:
        """Return the whole of what it does: the digest of the architecture must tell programs apart."""
        return "\n".join([self.layer_of_program, *map(str, self.bodies_of_program)])

    def _get_name(self) -> str:
        return self.layer_of_program or super()._get_name()

    def _fill(self, value: Any, known: Mapping[int, Any]) -> Any:
        match value:
            case Local(number):
                return known[number]
            case Own(path):
                return reduce(getattr, path.split("."), self)
            case DeviceOf(tensor):
                return self._fill(tensor, known).device
            case tuple() | list():
                return type(value)(self._fill(item, known) for item in value)
            case Mapping():
                return {name: self._fill(item, known) for name, item in value.items()}
        return value


def output_layer(network: ProgramModule) -> str | None:
    """Return the path of the linear layer whose output is the network's, and which nothing else is part of."""
    path, module = "", network
    above: list[ProgramModule] = []
    while len(module.bodies_of_program) == 1:
        (body,) = module.bodies_of_program
        if path and _is_linear(module, body):
            return path if not any(_uses(outer, module) for outer in above) else None
        last = body.lines[-1] if body.lines else None
        if last is None or last.function is not None or last.results != body.outputs or len(body.outputs) != 1:
            return None
        above.append(module)
        path = f"{path}.{last.text}" if path else last.text
        inner = module.get_submodule(last.text)
        assert isinstance(inner, ProgramModule)
        module = inner
    return None


def _is_linear(module: ProgramModule, body: Body) -> bool:
    weight = module._parameters.get("weight")
    return (
        weight is not None
        and weight.ndim == 2
        and body.num_inputs == len(body.outputs) == 1
        and all(line.text in _PARTS_OF_LINEAR for line in body.lines)
    )


def _uses(module: ProgramModule, layer: ProgramModule) -> bool:
    """Tell whether a module has a tensor of the layer for other calls than the layer's own."""
    lines = [line for body in module.bodies_of_program for line in body.lines]
    paths = [value.path for line in lines for value in _owns([*line.args, *line.kwargs.values()])]
    inside = {id(tensor) for tensor in layer.parameters()}
    return any(id(reduce(getattr, path.split("."), module)) in inside for path in paths)


def _owns(value: Any) -> Iterator[Own]:
    if isinstance(value, Own):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _owns(item)


def _written(line: Line) -> str:
    items = [*map(_text, line.args), *(f"{name}={_text(value)}" for name, value in line.kwargs.items())]
    return f"({', '.join(items)})"


def _text(value: Any) -> str:
    match value:
        case Local(number):
            return f"%{number}"
        case Own(path):
            return path
        case DeviceOf(tensor):
            return f"device of {_text(tensor)}"
        case tuple() | list():
            return f"[{', '.join(map(_text, value))}]"
    return repr(value)
