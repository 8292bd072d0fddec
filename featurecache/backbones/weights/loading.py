"""Fitting weights onto a network, and what is doubtful about the file that they came from."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from featurecache.backbones.weights.checkpoints import Checkpoint
from featurecache.backbones.weights.file_formats import differing_digest
from featurecache.backbones.weights.key_prefixes import choose_tensors, fits
from featurecache.errors import ReportWarning, WeightsError
from featurecache.hashing import digest_file
from featurecache.wording import counted

if TYPE_CHECKING:
    from torch import Tensor, nn

# What parallel training and compilation put in front of every name.
_WRAPPERS = ("module.", "_orig_mod.")
_STATISTICS = ("running_mean", "running_var")
_FILE_SOURCE = re.compile(r"file .*\(sha256 [0-9a-f]{12}\), key (.+)$")


@dataclass(frozen=True)
class LoadedWeights:
    """What came of loading weights.

    Parameters
    ----------
    notes
        What a reader should know: names that were changed, and the output layer's weights.
    warnings
        What is doubtful.
    """

    notes: tuple[str, ...] = ()
    warnings: tuple[ReportWarning, ...] = ()


def file_source(path: Path, key: str | None) -> str:
    """Say which file weights came from, and which section of it; `key_of` reads the section back."""
    return f"file {path.name} (sha256 {digest_file(path)[:12]})" + ("" if key is None else f", key {key}")


def key_of(weights_source: str) -> str | None:
    """Return the section of a weights file that was loaded, where one was named."""
    found = _FILE_SOURCE.match(weights_source)
    return found[1] if found else None


def name_warnings(path: Path) -> tuple[ReportWarning, ...]:
    """Warn of a name that carries hexadecimal digits, as the beginning of a file's SHA-256, which are not.

    Publishers write that beginning into names (``resnet18-f37072fd.pth``); a commit looks the same.
    """
    if (differing := differing_digest(path)) is None:
        return ()
    promised, actual = differing
    text = f"the name of the weights file carries {promised}, and the file's SHA-256 begins with {actual}: if that is "
    text += "meant as its digest, this is another file; it was loaded"
    return (ReportWarning(kind="weights_name", count=1, text=text, examples=(path.name,)),)


def load_weights(
    module: nn.Module,
    checkpoint: Checkpoint,
    classifiers: Iterable[str] = (),
    *,
    keep_classifier: bool = False,
    rename_key: Callable[[str], str] | None = None,
    what: str = "the network",
) -> LoadedWeights:
    """Load the tensors of a file, strictly except for an output layer that will be removed anyway.

    Which of the file's tensors are meant, and which prefix their names have or lack, is found by the names and shapes.

    Parameters
    ----------
    module
        Network to load into, in place.
    checkpoint
        The file.
    classifiers
        Paths of the output layers.
    keep_classifier
        The output layers stay, so their weights are needed too.
    rename_key
        How names of older files read today.
    what
        Name of the network, for messages.
    """
    own = module.state_dict()
    # Of the layer that goes anyway: weights of another number of classes fit the backbone as well.
    forgiven = () if keep_classifier else tuple(f"{path}." for path in classifiers)
    if rename_key is not None:
        checkpoint = _renamed(checkpoint, rename_key)
    choice = choose_tensors(checkpoint, own, forgiven, what)
    misfits = [name for name, tensor in choice.state.items() if name in own and not fits(tensor, own[name])]
    fitting = {name: tensor for name, tensor in choice.state.items() if name not in misfits}
    # Not strict: what is missing or unexpected is reported below, all at once.
    result = module.load_state_dict(fitting, strict=False)
    missing = [name for name in result.missing_keys if name not in misfits]
    problems = {"missing": missing, "unexpected": list(result.unexpected_keys), "of another shape or type": misfits}
    serious = {kind: [n for n in names if not n.startswith(forgiven)] for kind, names in problems.items()}
    if any(serious.values()):
        reasons = "; ".join(filter(None, [_describe(serious), choice.note]))
        raise WeightsError(f"weights file {checkpoint.path} does not fit {what}: {reasons}")
    notes = [f"names in the weights file: {choice.note}"] if choice.note else []
    notes += [f"weights of the removed output layer: {_describe(problems)}"] if any(problems.values()) else []
    return LoadedWeights(tuple(notes), () if choice.warning is None else (choice.warning,))


def check_finite(module: nn.Module, what: str) -> None:
    """Refuse weights of a training that diverged: one number that is none makes every feature one.

    Parameters
    ----------
    module
        The network.
    what
        Its name, for the message.

    Raises
    ------
    WeightsError
        A parameter, or a statistic of a norm, holds NaN or infinity. In other buffers an infinity is in its place: it
        masks tokens.
    """
    tensors: dict[str, Tensor] = dict(module.named_parameters())
    tensors |= {name: tensor for name, tensor in module.named_buffers() if name.endswith(_STATISTICS)}
    bad = [name for name, tensor in tensors.items() if not _is_finite(tensor)]
    if bad:
        raise WeightsError(
            f"weights of {what} hold NaN or infinity in {counted(len(bad), 'tensor', of=len(tensors))} "
            f"({_first(bad)}): the "
            "training that made them diverged; take a checkpoint from before that"
        )


def _is_finite(tensor: Tensor) -> bool:
    import torch

    if tensor.is_meta or not tensor.is_floating_point():
        return True
    return bool(torch.isfinite(tensor if tensor.element_size() > 1 else tensor.float()).all())


def _renamed(checkpoint: Checkpoint, rename_key: Callable[[str], str]) -> Checkpoint:
    """Rename each tensor within its section, behind what wraps all names of the section."""
    fronts = {section: _wrapper(checkpoint, section) for section in set(checkpoint.sections.values())}
    tensors, sections = {}, {}
    for name, tensor in checkpoint.tensors.items():
        section = checkpoint.sections[name]
        front = fronts[section]
        new = front + rename_key(name[len(front) :])
        tensors[new], sections[new] = tensor, section
    return replace(checkpoint, tensors=tensors, sections=sections)


def _wrapper(checkpoint: Checkpoint, section: str) -> str:
    """Return what all names of a section begin with: the section itself, then what training put in front."""
    # DataParallel in a compiled network puts both in front, in either order.
    front = f"{section}." if section else ""
    names = [name for name, other in checkpoint.sections.items() if other == section]
    while added := next((w for w in _WRAPPERS if all(name.startswith(front + w) for name in names)), None):
        front += added
    return front


def _describe(problems: Mapping[str, list[str]]) -> str:
    return "; ".join(f"{len(names)} {kind} ({_first(names)})" for kind, names in problems.items() if names)


def _first(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
