"""An exported program as it is understood: one batch of images goes in, calls follow each other, tensors come out.

Axes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from msgspec import UNSET
from torch import Tensor

from featurecache.backbones.programs.archive import Archive, read_archive
from featurecache.backbones.programs.operations import Call, Value, understood
from featurecache.backbones.programs.schemas import DTYPES, ProgramError, Signature, TensorMeta
from featurecache.errors import shortened

_DYNAMIC = 'dynamic_shapes=({0: torch.export.Dim("batch")},)'
# Of a network in training mode, or one that counts what it sees.
_WRITES = {"buffer_mutation", "parameter_mutation", "user_input_mutation"}
# Names end up in source that torch.fx writes when such a network is traced, so nothing else is let in.
_PATH = re.compile(r"[A-Za-z0-9_]{1,200}(\.[A-Za-z0-9_]{1,200}){0,50}")
_REPEATED = re.compile(r"@\d+")
_NO_ORIGIN = "_empty_nn_module_stack_from_metadata_hook"


@dataclass(frozen=True)
class Scope:
    """A call of one of the network's modules."""

    key: str
    """The same for all that happens in one call, and for nothing else."""
    path: str
    layer: str
    """Name of the class that the module had."""


@dataclass(frozen=True)
class Step:
    """A call, and the modules' calls that it happened in, outermost first; the network's own is left out."""

    call: Call
    scopes: tuple[Scope, ...]


@dataclass(frozen=True)
class Program:
    """What a file says, understood."""

    images: str
    """Name of the input (B, 3, H, W)."""
    side: int | None
    """Height and width of the images; ``None`` where any will do."""
    steps: tuple[Step, ...]
    outputs: tuple[str, ...]
    """Names of the tensors that come out."""
    state: Mapping[str, Tensor]
    """Parameters (as such), buffers and constants by path."""
    lasting: frozenset[str]
    """Paths of what belongs to the state dict."""
    paths: Mapping[str, str]
    """Which name in the graph stands for which path."""


def read_program(path: Path) -> Program:
    """Read a file of ``torch.export.save``.

    Raises
    ------
    ProgramError
        It is damaged, does what is not known here, or is no function of one batch of images.
    """
    archive = read_archive(path)
    _check_signature(archive.signature)
    images, paths, state = _inputs(archive)
    side = _side(archive.graph.tensor_values.get(images))
    steps = tuple(_steps(archive, Value(images)))
    outputs = tuple(_outputs(archive))
    _check_names({images, *paths}, steps, outputs)
    lasting = frozenset(archive.state)
    return Program(
        images=images, side=side, steps=steps, outputs=outputs, state=state, lasting=lasting, paths=paths
    )  # fmt: skip


def _check_signature(signature: Signature) -> None:
    kinds = [spec.kind() for spec in signature.input_specs]
    if kinds.count("user_input") != 1 or "constant_input" in kinds:
        given = kinds.count("user_input") + kinds.count("constant_input")
        raise ProgramError(f"it takes {given} inputs; export a network that takes one batch of images")
    if unknown := sorted({"custom_obj", "token"} & set(kinds)):
        raise ProgramError(f"it holds objects of other kinds than tensors ({unknown[0]}), and those are not read here")
    results = [spec.kind() for spec in signature.output_specs]
    if written := sorted(_WRITES & set(results)):
        raise ProgramError(
            f"it writes to its own buffers or its input ({written[0]}), as in training mode; call .eval() on the "
            "network, then export it again"
        )
    if other := sorted(set(results) - {"user_output"}):
        raise ProgramError(f"it has an output of the kind {other[0]}, which is not known here")


def _inputs(archive: Archive) -> tuple[str, dict[str, str], dict[str, Tensor]]:
    """Return the name of the images, the paths behind the names of all other inputs, and the tensors by path."""
    images = ""
    paths: dict[str, str] = {}
    state: dict[str, Tensor] = dict(archive.state)
    for spec in archive.signature.input_specs:
        if spec.user_input is not UNSET:
            argument = spec.user_input.arg
            if argument.as_tensor is UNSET:
                raise ProgramError(f"its input is {argument.kind()}, not a batch of images")
            images = argument.as_tensor.name
        elif spec.parameter is not UNSET:
            paths[spec.parameter.arg.name] = spec.parameter.parameter_name
        elif spec.buffer is not UNSET:
            paths[spec.buffer.arg.name] = spec.buffer.buffer_name
        elif spec.tensor_constant is not UNSET:
            paths[spec.tensor_constant.arg.name] = spec.tensor_constant.tensor_constant_name
    for path in paths.values():
        if path not in state:
            if path not in archive.constants:
                raise ProgramError(f"it is damaged: the tensor {shortened(path)} is missing")
            state[path] = archive.constants[path]
    if bad := [path for path in state if not _PATH.fullmatch(path)]:
        raise ProgramError(f"a tensor in it is named {shortened(bad[0])!r}; letters, digits, _ and dots are known here")
    return images, paths, state


def _side(form: TensorMeta | None) -> int | None:
    """Return the side of the images that a program takes."""
    if form is None:
        raise ProgramError("it is damaged: its input has no form")
    if DTYPES.get(form.dtype) != torch.float32 or len(form.sizes) != 4 or form.sizes[1].as_int != 3:
        sizes = ", ".join("any" if size.as_int is UNSET else str(size.as_int) for size in form.sizes)
        raise ProgramError(
            f"its input is {DTYPES.get(form.dtype, 'of an unknown type')} ({sizes}); export a network that takes "
            "float32 images (batch, 3, height, width), normalised"
        )
    if form.sizes[0].as_int is not UNSET:
        raise ProgramError(
            f"it takes batches of {form.sizes[0].as_int} images only; export it for any number: "
            f"torch.export.export(network, (torch.zeros(2, 3, 224, 224),), {_DYNAMIC})"
        )
    sides = {size.as_int for size in form.sizes[2:] if size.as_int is not UNSET}
    if len(sides) > 1:
        raise ProgramError(f"it takes images of {form.sizes[2].as_int}x{form.sizes[3].as_int} pixels, not squares")
    return next(iter(sides), None)  # type: ignore[arg-type]


def _steps(archive: Archive, images: Value) -> list[Step]:
    steps: list[Step] = []
    before, scopes = images, tuple[Scope, ...]()
    for node in archive.graph.nodes:
        call = understood(node, before)
        if call is None:
            continue
        # What torch has put in by itself, mostly sizes, is part of what it stands in.
        scopes = _scopes(node.metadata.nn_module_stack) if _has_origin(node.metadata.nn_module_stack) else scopes
        steps.append(Step(call, scopes))
        if made := [name for name in call.results if name in call.tensors]:
            before = Value(made[-1])  # type: ignore[arg-type]
    return _without_interrupted(steps)


def _has_origin(stack: str) -> bool:
    return bool(stack) and not stack.startswith(_NO_ORIGIN)


def _scopes(stack: str) -> tuple[Scope, ...]:
    """Read ``key,path,class;key,path,class``, as far as each module is inside the one before it."""
    scopes: list[Scope] = []
    outer = ""
    for item in stack.split(";"):
        key, _, rest = item.partition(",")
        path, _, layer = rest.partition(",")
        path = _REPEATED.sub("", path)
        if not path:
            continue
        if not _PATH.fullmatch(path):
            raise ProgramError(
                f"a layer in it is named {shortened(path)!r}; letters, digits, _ and dots are known here"
            )  # fmt: skip
        if outer and not path.startswith(f"{outer}."):
            break
        scopes.append(Scope(key, path, re.split(r"\W", layer)[-1]))
        outer = path
    return tuple(scopes)


def _without_interrupted(steps: list[Step]) -> list[Step]:
    """Leave out the calls of modules that something else happens in the middle of: their outputs are no longer one."""
    ended: set[str] = set()
    interrupted: set[str] = set()
    running: set[str] = set()
    for step in steps:
        keys = {scope.key for scope in step.scopes}
        ended |= running - keys
        interrupted |= ended & keys
        running = keys
    return [Step(step.call, tuple(s for s in step.scopes if s.key not in interrupted)) for step in steps]


def _outputs(archive: Archive) -> list[str]:
    outputs = [output.as_tensor.name for output in archive.graph.outputs if output.as_tensor is not UNSET]
    if not outputs:
        raise ProgramError("it puts out no tensor")
    return outputs


def _check_names(given: set[str], steps: tuple[Step, ...], outputs: tuple[str, ...]) -> None:
    """Refuse a graph that uses what is not there yet, or gives two things one name."""
    known = set(given)
    for step in steps:
        if missing := [name for name in names_in([step.call.args, step.call.kwargs]) if name not in known]:
            raise ProgramError(f"it is damaged: {step.call.text} takes {shortened(missing[0])}, which is not there yet")
        made = [name for name in step.call.results if name is not None]
        if len(set(made)) < len(made) or known & set(made):
            raise ProgramError(f"it is damaged: {shortened(made[0])} occurs twice")
        known |= set(made)
    if missing := [name for name in outputs if name not in known - given]:
        raise ProgramError(f"its output {shortened(missing[0])} is nothing that it computes")


def names_in(value: object) -> list[str]:
    """Return the names of the values in an argument, in their order."""
    if isinstance(value, Value):
        return [value.name]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [name for item in value for name in names_in(item)]
    tensor = getattr(value, "tensor", None)  # DeviceOf
    return [tensor.name] if isinstance(tensor, Value) else []
