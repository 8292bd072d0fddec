"""What a file of ``torch.export.save`` holds: a graph as JSON, and the raw bytes of its tensors.

`torch.export.load` is not used. It unpickles without limit what says that it is pickled, hands strings of the file to
`sympy.sympify`, which evaluates them, looks up any attribute of ``torch``, ``math`` and ``operator`` as what a node
calls, and puts the names in the file into Python source that ``torch.fx`` executes. Here nothing of a file is
evaluated, unpickled or imported: zipfile finds its records, msgspec compares the JSON with the schemas below, which
have room for the kinds of values that are known here and for no other, and weights are raw numbers, as many as their
records hold. What else is in a file (sample inputs, guards, shapes as expressions, compiled parts) is not looked at.
"""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import torch
from msgspec import UNSET, Meta, Raw, Struct, UnsetType
from torch import Tensor, nn

from featurecache.errors import shortened

_SCHEMA = 8
_OPSET = 10
"""Edition of the meaning of ``aten`` operators; it has been this one since 2022."""
_MAX_JSON_BYTES = 256 << 20
_AGAIN = "save it again with torch 2.10 or newer"

Text = Annotated[str, Meta(max_length=1 << 20)]
Number = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
Count = Annotated[int, Meta(ge=0, le=1 << 48)]
Real = float | Literal["Infinity", "-Infinity", "NaN"]

DTYPES = dict(
    enumerate([torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32], 1)
)
DTYPES |= {8: torch.float64, 12: torch.bool, 13: torch.bfloat16}
"""Types by their numbers in a file. Complex, quantised and 8-bit ones are not known here."""


class ProgramError(Exception):
    """A program that is not read here; says why, of ``it``."""


class Named(Struct, forbid_unknown_fields=True):
    """A tensor by its name in the graph."""

    name: Text


class Either(Struct, forbid_unknown_fields=True):
    """One of several kinds of values: just one field is there."""

    def kind(self) -> str:
        """Return the name of the field that is there."""
        there = [name for name in self.__struct_fields__ if getattr(self, name) is not UNSET]
        if len(there) != 1:
            raise ProgramError(f"it is damaged: a value is {' and '.join(there) or 'of no kind'}")
        return there[0]


class SymNumber(Either):
    """A number, or the name of one that the graph computes."""

    as_name: Text | UnsetType = UNSET
    as_int: Number | UnsetType = UNSET
    as_float: Real | UnsetType = UNSET
    as_bool: bool | UnsetType = UNSET


class OptionalTensor(Either):
    """A tensor or nothing."""

    as_tensor: Named | UnsetType = UNSET
    as_none: bool | UnsetType = UNSET


class Argument(Either):
    """What a call takes or gives."""

    as_none: bool | UnsetType = UNSET
    as_tensor: Named | UnsetType = UNSET
    as_tensors: list[Named] | UnsetType = UNSET
    as_optional_tensor: OptionalTensor | UnsetType = UNSET
    as_optional_tensors: list[OptionalTensor] | UnsetType = UNSET
    as_int: Number | UnsetType = UNSET
    as_ints: list[Number] | UnsetType = UNSET
    as_float: Real | UnsetType = UNSET
    as_floats: list[Real] | UnsetType = UNSET
    as_bool: bool | UnsetType = UNSET
    as_bools: list[bool] | UnsetType = UNSET
    as_string: Text | UnsetType = UNSET
    as_sym_int: SymNumber | UnsetType = UNSET
    as_sym_ints: list[SymNumber] | UnsetType = UNSET
    as_sym_float: SymNumber | UnsetType = UNSET
    as_sym_floats: list[SymNumber] | UnsetType = UNSET
    as_sym_bool: SymNumber | UnsetType = UNSET
    as_scalar_type: Count | UnsetType = UNSET
    as_memory_format: Count | UnsetType = UNSET
    as_layout: Count | UnsetType = UNSET
    as_device: Raw | UnsetType = UNSET
    # Kinds that are not known here, so that they are refused by their names.
    as_strings: Raw | UnsetType = UNSET
    as_sym_bools: Raw | UnsetType = UNSET
    as_complex: Raw | UnsetType = UNSET
    as_graph: Raw | UnsetType = UNSET
    as_custom_obj: Raw | UnsetType = UNSET
    as_operator: Raw | UnsetType = UNSET
    as_nested_tensors: Raw | UnsetType = UNSET
    as_int_lists: Raw | UnsetType = UNSET
    as_float_lists: Raw | UnsetType = UNSET
    as_string_to_argument: Raw | UnsetType = UNSET


class NamedArgument(Struct, forbid_unknown_fields=True):
    """What a call takes, by the name in the operator's schema."""

    name: Text
    arg: Argument
    kind: Count | None = None


class Origin(Struct):
    """Where in the original network a call was made; the rest of what torch notes there is not looked at."""

    nn_module_stack: Text = ""


class Node(Struct, forbid_unknown_fields=True):
    """A call."""

    target: Text
    inputs: list[NamedArgument]
    outputs: list[Argument]
    metadata: Origin
    is_hop_single_tensor_return: bool | None = None
    name: Text | None = None


class Hint(Struct):
    """What a size was when the network was exported."""

    as_int: Count | UnsetType = UNSET


class Expression(Struct):
    """A size that depends on the input. How it does is for the graph to compute, and not looked at."""

    hint: Hint | None = None


class Size(Either):
    """A fixed size, or one that depends on the input."""

    as_expr: Expression | UnsetType = UNSET
    as_int: Count | UnsetType = UNSET


class TensorMeta(Struct):
    """Form of a tensor. The device is not looked at: bytes are bytes."""

    dtype: Count
    sizes: list[Size]
    strides: list[Size]
    storage_offset: Size
    layout: Count = 7


class Graph(Struct):
    """Calls in their order."""

    inputs: list[Argument]
    outputs: list[Argument]
    nodes: list[Node]
    tensor_values: dict[Text, TensorMeta]


class UserInput(Struct):
    """What a caller passes, or gets."""

    arg: Argument


class ParameterInput(Struct):
    """A parameter by its path."""

    arg: Named
    parameter_name: Text


class BufferInput(Struct):
    """A buffer by its path."""

    arg: Named
    buffer_name: Text
    persistent: bool


class ConstantInput(Struct):
    """A tensor that the code made, by a path of its own."""

    arg: Named
    tensor_constant_name: Text


class InputSpec(Either):
    """Where an input of the graph comes from."""

    user_input: UserInput | UnsetType = UNSET
    parameter: ParameterInput | UnsetType = UNSET
    buffer: BufferInput | UnsetType = UNSET
    tensor_constant: ConstantInput | UnsetType = UNSET
    constant_input: Raw | UnsetType = UNSET
    custom_obj: Raw | UnsetType = UNSET
    token: Raw | UnsetType = UNSET


class OutputSpec(Either):
    """Where an output of the graph goes to."""

    user_output: UserInput | UnsetType = UNSET
    loss_output: Raw | UnsetType = UNSET
    buffer_mutation: Raw | UnsetType = UNSET
    parameter_mutation: Raw | UnsetType = UNSET
    user_input_mutation: Raw | UnsetType = UNSET
    gradient_to_parameter: Raw | UnsetType = UNSET
    gradient_to_user_input: Raw | UnsetType = UNSET
    token: Raw | UnsetType = UNSET


class Signature(Struct):
    """What the inputs and outputs of the graph are."""

    input_specs: list[InputSpec]
    output_specs: list[OutputSpec]


class GraphModule(Struct):
    """A graph and what surrounds it."""

    graph: Graph
    signature: Signature


class SchemaVersion(Struct):
    """Edition of the file's format; a new major one means that old readers fail."""

    major: Count
    minor: Count


class Version(Struct):
    """The one part that is read of editions that are not known here."""

    schema_version: SchemaVersion


class Model(Struct):
    """A program without its weights."""

    graph_module: GraphModule
    opset_version: dict[Text, Count]


class Payload(Struct):
    """Where the bytes of a tensor are, and what they mean."""

    path_name: Text
    is_param: bool
    use_pickle: bool
    tensor_meta: TensorMeta | None


class Payloads(Struct):
    """The tensors of a program by their paths in it."""

    config: dict[Text, Payload]


T = TypeVar("T")


@dataclass(frozen=True)
class Archive:
    """A program as its file has it, well-formed but not understood yet."""

    graph: Graph
    signature: Signature
    state: Mapping[str, Tensor]
    """Parameters and persistent buffers by path. Names of one tensor have one object."""
    constants: Mapping[str, Tensor]
    """Buffers that are not persistent, and tensors that the code made."""


def read_archive(path: Path) -> Archive:
    """Read a program.

    Parameters
    ----------
    path
        A file that ``torch.export.save`` wrote.

    Raises
    ------
    ProgramError
        Anything that it would not have written, or that is not known here.
    """
    if not path.is_file():
        raise ProgramError("it does not exist; check the path")
    if not zipfile.is_zipfile(path):
        raise ProgramError("it is cut off, or no program that torch.export.save wrote")
    try:
        with zipfile.ZipFile(path) as file:
            records = _Records(file, path.stat().st_size)
            return _read(records)
    except ProgramError:
        raise
    # zipfile reports damage with whatever its layers happen to raise.
    except Exception as error:
        raise ProgramError(f"it is cut off or damaged ({shortened(error)})") from error


class _Records:
    """The records of an archive by name, without the folder that all are in. Each is read when asked for."""

    def __init__(self, file: zipfile.ZipFile, num_bytes: int) -> None:
        self._file = file
        infos = file.infolist()
        if {"version", "serialized_exported_program.json"} <= {info.filename for info in infos}:
            raise ProgramError(f"it has the format of torch 2.7 and older; load it where it was made, and {_AGAIN}")
        if any(info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size for info in infos):
            raise ProgramError("its records are compressed, which torch.export.save never does; " + _AGAIN)
        # Records are no larger than the file together: none overlap, and none promises bytes that are not there.
        if sum(info.file_size for info in infos) > num_bytes:
            raise ProgramError("it is damaged: its records say that they are larger than the file")
        folder = infos[0].filename.partition("/")[0] + "/" if infos else ""
        self._infos = {info.filename.removeprefix(folder): info for info in infos}
        if len(self._infos) < len(infos) or not all(info.filename.startswith(folder) for info in infos):
            raise ProgramError("it is no program that torch.export.save wrote: its records are not in one folder")

    def __contains__(self, name: str) -> bool:
        return name in self._infos

    def names(self, start: str) -> list[str]:
        """Return the names that begin in a way."""
        return [name for name in self._infos if name.startswith(start)]

    def read(self, name: str) -> bytearray:
        """Read a record; its checksum must be right."""
        if name not in self:
            raise ProgramError(f"it is damaged: {shortened(name)} is missing")
        content = bytearray(self._file.read(self._infos[name]))
        if len(content) != self._infos[name].file_size:
            raise ProgramError(f"it is cut off in {shortened(name)}")
        return content

    def text(self, name: str) -> str:
        """Read a short record."""
        return self.read(name)[:100].decode(errors="replace")

    def parse(self, name: str, kind: type[T]) -> T:
        """Read a record of JSON that must fit a schema."""
        if name in self and self._infos[name].file_size > _MAX_JSON_BYTES:
            raise ProgramError(f"its {shortened(name)} is larger than {_MAX_JSON_BYTES >> 20} MB")
        try:
            return msgspec.json.decode(self.read(name), type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ProgramError(f"{shortened(name)} in it has what is not known here: {shortened(error)}") from error


def _read(records: _Records) -> Archive:
    name = _only_model(records)
    schema = records.parse(f"models/{name}.json", Version).schema_version
    if schema.major != _SCHEMA:
        raise ProgramError(
            f"it has schema version {schema.major}.{schema.minor}, and version {_SCHEMA} is known here; {_AGAIN}, or "
            "upgrade featurecache"
        )
    model = records.parse(f"models/{name}.json", Model)
    if (opset := model.opset_version.get("aten", _OPSET)) != _OPSET:
        raise ProgramError(f"its operators are of edition {opset}, and {_OPSET} is known here; upgrade featurecache")
    return Archive(
        graph=model.graph_module.graph,
        signature=model.graph_module.signature,
        state=_tensors(records, "data/weights/", f"{name}_weights_config.json", "weight_"),
        constants=_tensors(records, "data/constants/", f"{name}_constants_config.json", "tensor_"),
    )


def _only_model(records: _Records) -> str:
    """Check what kind of archive it is and return the name of its program."""
    models = [name.removeprefix("models/").removesuffix(".json") for name in records.names("models/")]
    if "archive_format" not in records or records.text("archive_format") != "pt2":
        raise ProgramError("it is no program that torch.export.save wrote; weights or TorchScript are not read here")
    if (version := records.text("archive_version").strip()) != "0":
        raise ProgramError(f"it has archive version {shortened(version)}, and version 0 is known here; {_AGAIN}")
    if "byteorder" in records and (order := records.text("byteorder").strip()) != sys.byteorder:
        raise ProgramError(f"it was saved on a {shortened(order)}-endian machine; {_AGAIN} on one like this")
    if not models:
        raise ProgramError("it holds no exported program, only compiled parts; bring what torch.export.save wrote")
    if len(models) > 1:
        raise ProgramError(f"it holds {len(models)} programs; save one alone")
    if records.names(f"data/weights/{models[0]}.pt"):
        raise ProgramError(f"its weights are pickled, as torch 2.8 did; load it where it was made, and {_AGAIN}")
    return models[0]


def _tensors(records: _Records, folder: str, config: str, prefix: str) -> dict[str, Tensor]:
    """Read tensors by their paths in the network; a record is read once, however many name it."""
    payloads = records.parse(folder + config, Payloads).config
    raw: dict[str, bytearray] = {}
    made: dict[tuple[Any, ...], Tensor] = {}
    tensors: dict[str, Tensor] = {}
    for path, payload in payloads.items():
        where = f"tensor {shortened(path)} of it"
        if payload.use_pickle or not payload.path_name.startswith(prefix) or payload.tensor_meta is None:
            raise ProgramError(f"{where} is pickled or no plain tensor, and those are not read here")
        form = _form(payload.tensor_meta, where)
        if payload.path_name not in raw:
            raw[payload.path_name] = records.read(folder + payload.path_name)
        key = (payload.path_name, payload.is_param, *form)
        if key not in made:
            tensor = _tensor(raw[payload.path_name], *form, where)
            made[key] = nn.Parameter(tensor, requires_grad=False) if payload.is_param else tensor
        tensors[path] = made[key]
    return tensors


def _form(meta: TensorMeta, where: str) -> tuple[torch.dtype, tuple[int, ...], tuple[int, ...], int]:
    numbers: list[Any] = [size.as_int for size in (*meta.sizes, *meta.strides, meta.storage_offset)]
    if meta.dtype not in DTYPES or meta.layout != 7 or len(meta.sizes) != len(meta.strides):
        raise ProgramError(f"{where} is of a type or layout that is not known here")
    if not all(isinstance(number, int) for number in numbers):
        raise ProgramError(f"{where} has no fixed size")
    rank = len(meta.sizes)
    return DTYPES[meta.dtype], tuple(numbers[:rank]), tuple(numbers[rank:-1]), numbers[-1]


def _tensor(
    raw: bytearray, dtype: torch.dtype, sizes: tuple[int, ...], strides: tuple[int, ...], offset: int, where: str
) -> Tensor:
    """Make a tensor that uses the bytes of a record, and none beyond them."""
    available = len(raw) // dtype.itemsize
    reach = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True)) + 1
    if 0 in sizes:
        return torch.zeros(sizes, dtype=dtype)
    if not raw:
        raise ProgramError(f"{where} has no values: the program was exported from a network without weights")
    if reach > available or prod(sizes) > available:
        raise ProgramError(f"{where} is larger than its record ({len(raw):,} bytes)")
    if dtype == torch.bool:  # any other byte than 0 and 1 would be neither
        return torch.frombuffer(raw, dtype=torch.uint8).ne(0).as_strided(sizes, strides, offset)
    flat = torch.frombuffer(raw, dtype=dtype, count=available)
    return flat.as_strided(sizes, strides, offset)
