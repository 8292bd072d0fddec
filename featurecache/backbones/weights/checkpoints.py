"""Reading files of weights: every tensor by its dotted name, however deep a trainer put it. Nothing unpickles code.

Trainers keep more than weights in a checkpoint: settings, counters, the state of an optimizer. What can only be data is
passed over: the class that a pickle names is never looked up, an inert object stands in for it.
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.backbones.weights import file_formats
from featurecache.errors import WeightsError, shortened
from featurecache.files import why_not_regular

if TYPE_CHECKING:
    from torch import Tensor

TOP = "."
"""The key of tensors that lie in no named section of a file."""
# Far deeper than trainers nest what they save.
_MAX_DEPTH = 16
_SHOWN = 6
# Releases before --weights-key existed took the first of these, again and again.
_FIRST_BEFORE = ("state_dict", "model_state_dict", "model", "net")
_BLOCKED = re.compile(r"GLOBAL (\S+) (?:was not an allowed|whose module)")


class _Inert:
    """Stands in for an object that is no tensor: takes any arguments and any state, and keeps none."""

    def __init__(self, *_arguments: object) -> None:
        pass

    def __setstate__(self, _state: object) -> None:
        pass


def _empty_dict(*_arguments: object) -> dict[Any, Any]:
    return {}


# Settings, counters, times and paths that trainers keep with the weights. torch fills plain dicts only.
_INERT_NAMES = (
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer", "numpy.dtype", "numpy.ndarray"),
    *(f"numpy.{kind}" for kind in ("float16", "float32", "float64", "int32", "int64", "bool", "bool_", "str_")),
    *("argparse.Namespace", "types.SimpleNamespace", "uuid.UUID", "decimal.Decimal", "fractions.Fraction"),
    *(f"pathlib{m}.{kind}Path" for m in ("", "._local") for kind in ("", "Posix", "Windows")),
    *(f"pathlib{m}.Pure{kind}Path" for m in ("", "._local") for kind in ("", "Posix", "Windows")),
    *(f"datetime.{kind}" for kind in ("datetime", "date", "time", "timedelta", "timezone")),
    *(f"builtins.{kind}" for kind in ("int", "float", "bool", "str", "bytes", "list", "dict", "tuple", "frozenset")),
    *(f"omegaconf.{name}" for name in ("dictconfig.DictConfig", "listconfig.ListConfig", "base.ContainerMetadata")),
    *("omegaconf.base.Metadata", "omegaconf.base.ContainerMetadata", "typing.Any", "typing.Union"),
    *(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "String", "Integer", "Float", "Boolean", "Path", "Enum")),
)
_DICT_NAMES = (
    *("easydict.EasyDict", "addict.addict.Dict", "yacs.config.CfgNode", "fvcore.common.config.CfgNode"),
    *("mmengine.config.config.ConfigDict", "mmcv.utils.config.ConfigDict", "detectron2.config.config.CfgNode"),
    *("pytorch_lightning.utilities.parsing.AttributeDict", "lightning_fabric.utilities.data.AttributeDict"),
    *("lightning.fabric.utilities.data.AttributeDict", "timm.models._helpers.AttrDict"),
)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The tensors of a file.

    Parameters
    ----------
    path
        The file.
    key
        The section of it that was asked for; empty for all of it, `TOP` for what lies in no named section.
    tensors
        By dotted name within that section: keys of mappings and numbers of lists, joined by dots.
    sections
        By dotted name of a tensor, that of the mapping which holds it.
    taken_before
        The section that releases before ``--weights-key`` took.
    """

    path: Path
    key: str
    tensors: dict[str, Tensor]
    sections: dict[str, str]
    taken_before: str


def read_checkpoint(path: Path, key: str | None = None) -> Checkpoint:
    """Read the tensors of a safetensors or torch file.

    Parameters
    ----------
    path
        What it is is told from its first bytes, whatever its suffix.
    key
        Dotted name of the section to read, as ``--weights-key`` has it.

    Raises
    ------
    WeightsError
        If the file is missing, damaged, something else, or holds no tensors there.
    """
    check_exists(path)
    content = _content(path)
    tensors, sections = {}, {}
    for section, name, tensor in _walk(content, "", depth=0, seen=set()):
        full = f"{section}.{name}" if section else name
        tensors[full], sections[full] = tensor, section
    if not tensors:
        raise WeightsError(f"weights file {path} holds no tensors by name ({_instead(content)})")
    key = (key or "").strip()
    key = key if key == TOP else key.strip(".")
    if key and key != TOP:
        tensors, sections = _under(key, tensors, sections, path)
    return Checkpoint(path=path, key=key, tensors=tensors, sections=sections, taken_before=_taken_before(content))


def check_exists(path: Path) -> None:
    """Refuse a file that is not there."""
    if path.is_dir():
        raise WeightsError(f"weights file {path} is a folder; name the file in it")
    if reason := why_not_regular(path):
        raise WeightsError(f"weights file {path} cannot be read: {reason}; check the path")


def _content(path: Path) -> Any:
    try:
        is_safe = file_formats.format_of(path) == file_formats.SAFETENSORS
        return _read_safetensors(path) if is_safe else _read_torch(path)
    except file_formats.NotWeightsError as error:
        differing = file_formats.differing_digest(path)
        added = "" if differing is None else f"; its name promises sha256 {differing[0]}..., it has {differing[1]}..."
        raise WeightsError(f"weights file {path} {error}{added}") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise file_formats.NotWeightsError(file_formats.damaged(path.stat().st_size)) from error


def _read_torch(path: Path) -> Any:
    import torch

    stand_ins: list[tuple[Callable[..., object], str]] = [(_Inert, name) for name in _INERT_NAMES]
    stand_ins += [(OrderedDict, name) for name in _DICT_NAMES]
    stand_ins += [(_empty_dict, "collections.defaultdict")]
    try:
        # torch warns of old formats and of its own deprecations: nothing that who reads weights can act on.
        quiet, known = warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(stand_ins)  # type: ignore[arg-type]
        # As an open file: torch has an opinion of its own on names that end in .safetensors.
        with quiet, known, path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    # torch.load reports damage with whatever its layers happen to raise: KeyError, EOFError, UnpicklingError, ...
    except Exception as error:
        raise file_formats.NotWeightsError(_why_unreadable(path, str(error))) from error


def _why_unreadable(path: Path, error: str) -> str:
    advice = "save the network's state_dict alone, where the code that wrote this is at hand"
    if found := _BLOCKED.search(error):
        return f"holds Python objects that are not tensors ({found[1]}), and those are not unpickled; {advice}"
    if "Unsupported operand" in error:
        return f"is pickled by a protocol that torch reads only by running code, and it is not unpickled; {advice}"
    return file_formats.damaged(path.stat().st_size)


def _walk(content: Any, section: str, *, depth: int, seen: set[int]) -> Iterator[tuple[str, str, Tensor]]:
    """Yield each tensor with the section that holds it; one that occurs twice counts once, a very deep one never."""
    import torch

    # By identity: a list may hold itself.
    if depth > _MAX_DEPTH or id(content) in seen:
        return
    seen.add(id(content))
    is_list = isinstance(content, Sequence) and not isinstance(content, str | bytes)
    items = content.items() if isinstance(content, Mapping) else enumerate(content) if is_list else ()
    for key, value in items:
        if isinstance(value, torch.Tensor):
            yield section, str(key), value
        else:
            yield from _walk(value, f"{section}.{key}" if section else str(key), depth=depth + 1, seen=seen)


def _instead(content: Any) -> str:
    """Say what a file without tensors holds."""
    if isinstance(content, _Inert):
        return "found a Python object, which is not unpickled; save its state_dict"
    if isinstance(content, Mapping):
        return f"found {', '.join(shortened(key, 40) for key in list(content)[:_SHOWN]) or 'an empty dict'}"
    return f"found {type(content).__name__}"


def _under(
    key: str, tensors: Mapping[str, Tensor], sections: Mapping[str, str], path: Path
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return what lies under a key, by the rest of its name."""
    inside = [name for name in tensors if name.startswith(f"{key}.")]
    if not inside:
        known = list(dict.fromkeys(section for section in sections.values() if section))
        near = difflib.get_close_matches(key, known) or known[:_SHOWN]
        there = f"there is {', '.join(near)}" if near else "its tensors lie in no named part"
        raise WeightsError(f"weights file {path} has no tensors under the key {key!r}; {there}")
    start = len(key) + 1
    return {name[start:]: tensors[name] for name in inside}, {name[start:]: sections[name][start:] for name in inside}


def _taken_before(content: Any) -> str:
    path: list[str] = []
    while isinstance(content, Mapping) and len(path) < _MAX_DEPTH:
        key = next((key for key in _FIRST_BEFORE if isinstance(content.get(key), Mapping)), None)
        if key is None:
            break
        path.append(key)
        content = content[key]
    return ".".join(path)
