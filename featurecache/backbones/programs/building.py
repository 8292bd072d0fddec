"""From the calls of a program to a tree of modules, by the places that torch noted where it exported the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from featurecache.backbones.programs.modules import Body, Line, Local, Own, ProgramModule
from featurecache.backbones.programs.operations import DeviceOf, Value
from featurecache.backbones.programs.program import Program, Step, names_in
from featurecache.backbones.programs.schemas import ProgramError


def build(program: Program) -> ProgramModule:
    """Make the tree of modules; its tensors are those of the program.

    Raises
    ------
    ProgramError
        Names in it cannot be those of modules and tensors.
    """
    try:
        return _Builder(program).build()
    except KeyError as error:  # of torch, about a name that every module has already
        raise ProgramError(f"it names a layer or tensor as no network can: {error.args[0]}") from None


def check_side(images_BCHW: Tensor, *, side: int) -> None:
    """Refuse images of another size than the one that a program was exported for: it may have kept its own sizes."""
    height, width = images_BCHW.shape[2], images_BCHW.shape[3]
    torch._assert(height == side, f"it was exported for images of {side} pixels a side")
    torch._assert(width == side, f"it was exported for images of {side} pixels a side")


@dataclass
class _Frame:
    """One call of a module: where it begins and ends among the steps, and what happens in it."""

    key: str
    path: str
    layer: str
    first: int
    last: int
    items: list[Step | _Frame] = field(default_factory=list)
    """Steps with their places, and calls of modules inside."""

    def holds(self, path: str) -> bool:
        """Tell whether a tensor belongs to the module."""
        return not self.path or path.startswith(f"{self.path}.")


class _Builder:
    def __init__(self, program: Program) -> None:
        self._program = program
        self._tensors = {program.images, *(name for step in program.steps for name in step.call.tensors)}
        self._made = {name: place for place, step in enumerate(program.steps) for name in step.call.results if name}
        self._last_use = {name: place for place, step in enumerate(program.steps) for name in _used(step)}
        self._last_use |= dict.fromkeys(program.outputs, len(program.steps))
        self._steps = list(program.steps)
        self.root = ProgramModule("")

    def build(self) -> ProgramModule:
        whole = self._frames()
        self._make_modules(whole)
        self._place_state()
        body = self._body(whole, [self._program.images], list(self._program.outputs))
        if self._program.side is not None:
            check = partial(check_side, side=self._program.side)
            text = f"check that images have {self._program.side} pixels a side"
            body = replace(body, lines=(Line(text, check, (Local(0),), {}, (), False), *body.lines))
        self.root.bodies_of_program.append(body)
        return self.root

    def _frames(self) -> _Frame:
        """Gather the steps of each call of a module, and those calls in the calls that they happened in."""
        whole = _Frame("", "", "", 0, len(self._steps) - 1)
        running = [whole]
        for place, step in enumerate(self._steps):
            depth = 0
            while depth < min(len(step.scopes), len(running) - 1) and running[depth + 1].key == step.scopes[depth].key:
                depth += 1
            del running[depth + 1 :]
            for scope in step.scopes[depth:]:
                frame = _Frame(scope.key, scope.path, scope.layer, place, place)
                running[-1].items.append(frame)
                running.append(frame)
            for frame in running[1:]:
                frame.last = place
            running[-1].items.append(step)
        return whole

    def _make_modules(self, whole: _Frame) -> None:
        layers = {frame.path: frame.layer for frame in _all_frames(whole)}
        for path in layers:
            self._module_at(path, layers)

    def _module_at(self, path: str, layers: Mapping[str, str]) -> nn.Module:
        module: nn.Module = self.root
        parts = path.split(".") if path else []
        for count, part in enumerate(parts, 1):
            if part not in module._modules:
                here = ".".join(parts[:count])
                module.add_module(part, ProgramModule(layers[here]) if here in layers else _container(parts[count:]))
            child = module._modules[part]
            assert child is not None
            module = child
        return module

    def _place_state(self) -> None:
        for path, tensor in self._program.state.items():
            owner, _, name = path.rpartition(".")
            module = self._module_at(owner, {})
            if isinstance(tensor, nn.Parameter):
                module.register_parameter(name, tensor)
            else:
                module.register_buffer(name, tensor, persistent=path in self._program.lasting)

    def _inputs(self, frame: _Frame) -> list[str]:
        """Return what a call of a module needs from outside: tensors before numbers, and others' parameters last."""
        used = dict.fromkeys(name for step in self._steps[frame.first : frame.last + 1] for name in _used(step))
        outside = [name for name in used if not self._is_inside(frame, name)]
        return sorted(outside, key=lambda name: 2 * (name in self._program.paths) + (name not in self._tensors))

    def _is_inside(self, frame: _Frame, name: str) -> bool:
        if name in self._program.paths:
            return frame.holds(self._program.paths[name])
        return self._made.get(name, -1) >= frame.first

    def _outputs(self, frame: _Frame) -> list[str | None]:
        """Return what others use of a call: tensors before numbers.

        Which of several tensors the original put out first is not known, and a tap is the first: nothing comes first.
        """
        made = [name for step in self._steps[frame.first : frame.last + 1] for name in step.call.results if name]
        used = [name for name in made if self._last_use.get(name, -1) > frame.last]
        tensors = [name for name in used if name in self._tensors]
        numbers = [name for name in used if name not in self._tensors]
        return [*([None] if len(tensors) > 1 else []), *tensors, *numbers]

    def _body(self, frame: _Frame, inputs: Sequence[str], outputs: Sequence[str | None]) -> Body:
        numbers: dict[str, int] = {}

        def number(name: str | None) -> int | None:
            return None if name is None else numbers.setdefault(name, len(numbers))

        def local(value: Any) -> Any:
            match value:
                case Value(name):
                    path = self._program.paths.get(name)
                    if path is not None and frame.holds(path):
                        return Own(path.removeprefix(f"{frame.path}.") if frame.path else path)
                    return Local(numbers[name])
                case DeviceOf(tensor):
                    return DeviceOf(local(tensor))
                case tuple() | list():
                    return type(value)(local(item) for item in value)
                case Mapping():
                    return {name: local(item) for name, item in value.items()}
            return value

        for name in inputs:
            number(name)
        lines: list[Line] = []
        for item in frame.items:
            if isinstance(item, Step):
                call = item.call
                args, kwargs = local(call.args), local(call.kwargs)
                results = tuple(number(name) for name in call.results)
                lines.append(Line(call.text, call.function, args, kwargs, results, call.is_tuple))
            else:
                lines.append(self._call_of(item, frame, local, number))
        ends = tuple(None if name is None else numbers[name] for name in outputs)
        return Body(len(inputs), tuple(_with_ends(lines, ends)), ends)

    def _call_of(
        self, inner: _Frame, frame: _Frame, local: Callable[[Any], Any], number: Callable[[str | None], Any]
    ) -> Line:
        """Add a body to a module, and return the line that runs it."""
        inputs, outputs = self._inputs(inner), self._outputs(inner)
        module = self.root.get_submodule(inner.path)
        assert isinstance(module, ProgramModule)
        module.bodies_of_program.append(self._body(inner, inputs, outputs))
        call = len(module.bodies_of_program) - 1
        args = tuple(local(Value(name)) for name in inputs)
        path = inner.path.removeprefix(f"{frame.path}.") if frame.path else inner.path
        results = tuple(number(name) for name in outputs)
        return Line(path, None, args, {"call": call} if call else {}, results, len(results) > 1)


def _with_ends(lines: Sequence[Line], outputs: Sequence[int | None]) -> list[Line]:
    """Note for each line the values that nobody needs after it, so that their memory is free."""
    needed = {number for number in outputs if number is not None}
    ended: list[Line] = []
    for line in reversed(lines):
        mine = {
            *_numbers([*line.args, *line.kwargs.values()]),
            *(number for number in line.results if number is not None),
        }
        ended.append(replace(line, done=tuple(sorted(mine - needed))))
        needed |= mine
    return ended[::-1]


def _numbers(value: Any) -> list[int]:
    match value:
        case Local(number):
            return [number]
        case DeviceOf(tensor):
            return _numbers(tensor)
        case tuple() | list():
            return [number for item in value for number in _numbers(item)]
    return []


def _container(parts: Sequence[str]) -> nn.Module:
    """Make a module that is never called, only holds others or tensors."""
    return nn.ModuleList() if parts and parts[0].isdigit() else nn.Module()


def _used(step: Step) -> list[str]:
    return names_in([step.call.args, step.call.kwargs])


def _all_frames(frame: _Frame) -> Iterator[_Frame]:
    for item in frame.items:
        if isinstance(item, _Frame):
            yield item
            yield from _all_frames(item)
