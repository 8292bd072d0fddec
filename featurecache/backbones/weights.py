"""Reading weights files and fitting them onto a network. Nothing here unpickles code.

A name with a hash in it (``resnet20-12fca82f.th``) follows torchvision's convention: the hash is the beginning of
the file's SHA-256. A file that breaks that promise is refused even if it could be read.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.backbones.key_prefixes import fit_prefix
from featurecache.errors import WeightsError
from featurecache.files import why_not_regular
from featurecache.hashing import digest_file

if TYPE_CHECKING:
    from torch import Tensor, nn

_SUFFIXES = (".pth", ".pt", ".th", ".bin", ".ckpt", ".tar")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "_orig_mod.")
# Digits alone are a date or a step (vit-20240131.pth), not a digest.
_HASH_IN_NAME = re.compile(r"-(?=[0-9a-f]*[a-f])([0-9a-f]{8,64})\.[a-z]+$")


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a safetensors or torch file.

    Parameters
    ----------
    path
        ``.safetensors``, or anything that ``torch.load`` reads with ``weights_only=True``.

    Returns
    -------
    state
        Tensors by parameter name, unwrapped and without ``module.`` prefixes.

    Raises
    ------
    WeightsError
        If the file is missing, damaged, not what its name promises, or holds no tensors.
    """
    check_exists(path)
    check_name_hash(path)
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    return _strip_prefixes(_unwrap(content, path))


def check_exists(path: Path) -> None:
    """Refuse a file that is not there."""
    if reason := why_not_regular(path):
        raise WeightsError(f"weights file {path} cannot be read: {reason}; check the path")


def check_name_hash(path: Path) -> None:
    """Refuse a file whose name carries a SHA-256 prefix that its bytes do not have."""
    if promised := _HASH_IN_NAME.search(path.name):
        actual = digest_file(path)
        if not actual.startswith(promised[1]):
            raise WeightsError(
                f"weights file {path} is damaged or not what its name says: the name promises sha256 {promised[1]}..., "
                f"the file ({path.stat().st_size:,} bytes) has {actual[: len(promised[1])]}...; download it again"
            )


def load_weights(
    module: nn.Module, state: Mapping[str, Tensor], classifiers: Iterable[str] = (), *, keep_classifier: bool = False
) -> list[str]:
    """Load a state dict, strictly except for an output layer that will be removed anyway.

    A prefix that all of the network's names lack, or have in addition, is found by itself.

    Parameters
    ----------
    module
        Network to load into, in place.
    state
        Tensors by parameter name.
    classifiers
        Paths of the output layers.
    keep_classifier
        The output layers stay, so their weights are needed too.

    Returns
    -------
    notes
        What a reader should know: names that were changed, and the output layer's weights.
    """
    own = module.state_dict()
    forgiven = () if keep_classifier else tuple(f"{path}." for path in classifiers)
    state, note = fit_prefix(state, own, forgiven)
    misfits = [name for name in state if name in own and own[name].shape != state[name].shape]
    fitting = {name: tensor for name, tensor in state.items() if name not in misfits}
    result = module.load_state_dict(fitting, strict=False)
    missing = [name for name in result.missing_keys if name not in misfits]
    problems = {"missing": missing, "unexpected": list(result.unexpected_keys), "of another shape": misfits}
    serious = {kind: [n for n in names if not n.startswith(forgiven)] for kind, names in problems.items()}
    if any(serious.values()):
        raise WeightsError("weights do not fit the network: " + "; ".join(filter(None, [_describe(serious), note])))
    notes = [f"names in the weights file: {note}"] if note else []
    return notes + ([f"weights of the removed output layer: {_describe(problems)}"] if any(problems.values()) else [])


def _describe(problems: Mapping[str, list[str]]) -> str:
    return "; ".join(f"{len(names)} {kind} ({_first(names)})" for kind, names in problems.items() if names)


def _first(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _read_torch(path: Path) -> Any:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    # torch.load reports damage with whatever its layers happen to raise: KeyError, EOFError, UnpicklingError, ...
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> WeightsError:
    with path.open("rb") as file:
        head = file.read(256)
    if head and all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return WeightsError(f"weights file {path} is a text file, not a checkpoint")
    size = path.stat().st_size
    if path.suffix not in (*_SUFFIXES, ".safetensors"):
        return WeightsError(f"weights file {path} is not a checkpoint; expected .safetensors or {', '.join(_SUFFIXES)}")
    if "Unsupported" in str(error) and "GLOBAL" in str(error):
        reason = "it holds Python objects that are not tensors, and those are not unpickled; save its state_dict alone"
    else:
        reason = f"it is cut off or damaged ({size:,} bytes); download it again"
    return WeightsError(f"weights file {path} cannot be read: {reason}")


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    import torch

    while isinstance(content, Mapping):
        if inner := next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None):
            content = inner
            continue
        if state := {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}:
            return state
        break
    raise WeightsError(f"weights file {path} holds no tensors by name (found {type(content).__name__})")


def _strip_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state
