"""What a file of ``torch.export.save`` holds: a graph as JSON, and the raw bytes of its tensors.

`torch.export.load` is not used. It unpickles without limit what says that it is pickled, hands strings of the file to
`sympy.sympify`, which evaluates them, looks up any attribute of ``torch``, ``math`` and ``operator`` as what a node
calls, and puts the names in the file into Python source that ``torch.fx`` executes. Here nothing of a file is
evaluated, unpickled or imported: zipfile finds its records, msgspec compares the JSON with schemas (`schemas`), which
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
from typing import Any, TypeVar

import msgspec
import torch
from torch import Tensor, nn

from featurecache.backbones.programs.schemas import (
    DTYPES,
    Graph,
    Model,
    Payloads,
    ProgramError,
    Signature,
    TensorMeta,
    Version,
)
from featurecache.errors import shortened
from featurecache.files import why_not_regular

_SCHEMA = 8
_OPSET = 10
"""Edition of the meaning of ``aten`` operators; it has been this one since 2022."""
_MAX_JSON_BYTES = 256 << 20
_AGAIN = "save it again with torch 2.10 or newer"

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
    if reason := why_not_regular(path):
        raise ProgramError(f"{reason}; check the path")
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
