"""Which tensors of a file are a network's: names and shapes decide, whatever prefix a trainer put in front of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featurecache.backbones.weights.checkpoints import TOP, Checkpoint
from featurecache.errors import ReportWarning, WeightsError
from featurecache.wording import counted

if TYPE_CHECKING:
    from torch import Tensor

# Batch norms of older files lack it, and torch fills it in.
_OPTIONAL = "num_batches_tracked"
# An average of the weights often lacks the statistics of batch norms, a third of a ResNet's tensors.
_WORTH_A_WARNING = 0.5
_SHOWN = 6
_AVERAGE = re.compile(r"(^|[._])(ema|averaged?|swa|shadow)([._]|$)")
"""What trainers call averaged weights."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Tensors of a file that have names of the network, once a prefix is changed.

    Parameters
    ----------
    prefix
        What the names of the file begin with; empty, or with a dot at its end.
    front
        What the network's names begin with instead.
    names
        By name in the network, the name in the file of each tensor that fits.
    """

    prefix: str
    front: str
    names: Mapping[str, str]

    @property
    def key(self) -> str:
        """Return what ``--weights-key`` calls it."""
        return self.prefix.removesuffix(".") or TOP


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The tensors that a network takes from a file.

    Parameters
    ----------
    state
        Under the network's names.
    note
        What was done to the names, or what was tried in vain; empty if they fit as they are.
    warning
        Other tensors of the file fit in part.
    """

    state: dict[str, Tensor]
    note: str = ""
    warning: ReportWarning | None = None


def fits(tensor: Tensor, own: Tensor) -> bool:
    """Tell whether a tensor of a file can replace one of a network: its shape, and numbers of a kind."""
    # Whole numbers instead of fractions are quantised weights, which mean nothing without their scales.
    return own.shape == tensor.shape and own.is_floating_point() == tensor.is_floating_point() and not tensor.is_meta


def choose_tensors(checkpoint: Checkpoint, own: Mapping[str, Tensor], forgiven: tuple[str, ...], what: str) -> Choice:
    """Choose the tensors of a network among all of a file.

    Parameters
    ----------
    checkpoint
        The file.
    own
        The network's tensors, by name.
    forgiven
        Beginnings of names that the file may lack: the output layer's.
    what
        Name of the network, for messages.

    Returns
    -------
    choice
        The only tensors that fit all that is needed; those that fit most of it if none do.

    Raises
    ------
    WeightsError
        Several fit, and differ: to guess between an encoder and its average would be a coin toss.
    """
    needed = [name for name in own if not name.startswith(forgiven) and not name.endswith(_OPTIONAL)]
    found = find_candidates(checkpoint, own, needed)
    complete = every = [match for match in found if len(match.names) == len(needed)]
    if checkpoint.key == TOP:
        complete = [match for match in every if not match.prefix]
    if len(complete) > 1 and not _equal(checkpoint, complete):
        raise WeightsError(_several(checkpoint, complete, len(needed), what))
    if not complete:
        best = found[0] if found else Candidate(prefix="", front="", names={})
        return Choice(state=_state(checkpoint, best, ()), note=_tried(found, len(needed)))
    chosen = complete[0]
    state = _state(checkpoint, chosen, every)
    rest = [match for match in found if len(match.names) >= _WORTH_A_WARNING * len(needed)]
    rest = [match for match in rest if not set(match.names.values()) & set(chosen.names.values())]
    rest = [match for match in rest if match not in every]
    warning = _warn(checkpoint, chosen, rest, len(needed)) if rest and not checkpoint.key else None
    if warning is None and not checkpoint.key:
        warning = _warn_of_averages(checkpoint, found, len(needed))
    return Choice(state=state, note=_note(chosen, len(checkpoint.tensors) - len(state)), warning=warning)


def choose_section(checkpoint: Checkpoint, own: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """Choose by most of the names, for a library that changes some of them when it loads: older files have older names.

    Parameters
    ----------
    checkpoint, own, what
        As for `choose_tensors`.

    Raises
    ------
    WeightsError
        Several sections of the file have about as many of the names.
    """
    found = find_candidates(checkpoint, own, list(own))
    if not found:
        return _state(checkpoint, Candidate(prefix="", front="", names={}), ())
    alike = [match for match in found if len(match.names) >= _WORTH_A_WARNING * len(found[0].names)]
    apart = [match for match in alike[1:] if not set(match.names.values()) & set(alike[0].names.values())]
    if apart and not _equal(checkpoint, [alike[0], *apart]):
        raise WeightsError(_several(checkpoint, [alike[0], *apart], len(own), what))
    prefix = alike[0].prefix
    return {name[len(prefix) :]: tensor for name, tensor in checkpoint.tensors.items() if name.startswith(prefix)}


def find_candidates(checkpoint: Checkpoint, own: Mapping[str, Tensor], needed: list[str]) -> list[Candidate]:
    """Return every way to change a prefix that makes a tensor of the file fit, those that fit most first.

    Parameters
    ----------
    checkpoint
        The file.
    own
        The network's tensors, by name.
    needed
        Those of their names that count.
    """
    found: dict[tuple[str, str], dict[str, str]] = {}
    # Only what all names of the network begin with can have been left out of a file.
    first = needed[0] if needed else ""
    for front in [prefix for prefix in _prefixes(first) if all(name.startswith(prefix) for name in needed)]:
        targets = {name[len(front) :]: name for name in needed}
        for name, tensor in checkpoint.tensors.items():
            for prefix in _prefixes(name):
                target = targets.get(name[len(prefix) :])
                if target is not None and fits(tensor, own[target]):
                    found.setdefault((prefix, front), {})[target] = name
    candidates = [
        Candidate(prefix=prefix, front=front, names=names)
        for (prefix, front), names in found.items()
        # The same change, said with a word more on both sides.
        if not (front and f".{prefix}".endswith(f".{front.removesuffix('.').rpartition('.')[2]}."))
    ]
    return sorted(candidates, key=lambda match: -len(match.names))  # stable: the order of the file


def _prefixes(name: str) -> list[str]:
    """Return the empty text and every beginning of a name that ends with a dot."""
    return ["", *(name[: end + 1] for end, sign in enumerate(name) if sign == ".")]


def _state(checkpoint: Checkpoint, chosen: Candidate, complete: Iterable[Candidate]) -> dict[str, Tensor]:
    """Return the tensors that fit, and what is stored with them: unknown ones there are an error, not left out."""
    sections = {checkpoint.sections[name] for name in chosen.names.values()} or {""}
    # A second complete network inside the first, as a teacher in its student: its tensors are not unexpected.
    others = tuple(
        match.prefix for match in complete if match.prefix != chosen.prefix and match.prefix.startswith(chosen.prefix)
    )
    return {
        chosen.front + name[len(chosen.prefix) :]: tensor
        for name, tensor in checkpoint.tensors.items()
        if name.startswith(chosen.prefix) and checkpoint.sections[name] in sections and not name.startswith(others)
    }


def _equal(checkpoint: Checkpoint, candidates: list[Candidate]) -> bool:
    """Tell whether all hold the same numbers: an average may be saved before it differs."""
    import torch

    first, *others = (match.names for match in candidates)
    return all(
        name in other and torch.equal(checkpoint.tensors[file_name], checkpoint.tensors[other[name]])
        for other in others
        for name, file_name in first.items()
    )


def _several(checkpoint: Checkpoint, candidates: list[Candidate], num_needed: int, what: str) -> str:
    # As --weights-key takes them: from the top of the file, whatever was read of it.
    keys = [
        ".".join(filter(None, [checkpoint.key.strip("."), match.key.strip(".")])) or f"{TOP} (the top level)"
        for match in candidates
    ]
    named = list(zip(keys, candidates, strict=True))
    shown = ", ".join(f"{key} ({len(match.names)} of {num_needed} tensors)" for key, match in named[:_SHOWN])
    taken = "" if checkpoint.key else checkpoint.taken_before
    before = next((key for key, match in named if taken and match.prefix.startswith(f"{taken}.")), None)
    earlier = "" if before is None else f"; releases without that option took {before}"
    return (
        f"weights file {checkpoint.path} fits {what} in {len(candidates)} ways: {shown}"
        f"{', ...' if len(candidates) > _SHOWN else ''}; choose one with --weights-key KEY (weights_key in "
        f"Python){earlier}"
    )


def _warn(checkpoint: Checkpoint, chosen: Candidate, rest: list[Candidate], num_needed: int) -> ReportWarning:
    shown = ", ".join(f"{match.key} ({len(match.names)} of {num_needed})" for match in rest[:_SHOWN])
    return ReportWarning(
        kind="weights_choice",
        count=len(rest),
        text=f"{checkpoint.path.name}: {chosen.key} was loaded, and has all tensors of the network; others of the file "
        f"have a part of them, and --weights-key names what to load: {shown}",
        examples=tuple(match.key for match in rest),
    )


def _warn_of_averages(checkpoint: Checkpoint, found: list[Candidate], num_needed: int) -> ReportWarning | None:
    """Return a warning where a file has averaged weights too, under names that no network has, such as without dots."""
    # What has names of the network is a candidate, and was weighed already.
    known = {name for match in found for name in match.names.values()}
    prefixes = tuple(match.prefix for match in found if match.prefix)
    averages = [name for name in checkpoint.tensors if _AVERAGE.search(name) and name not in known]
    averages = [name for name in averages if not name.startswith(prefixes)]
    if len(averages) < num_needed // 2:
        return None
    return ReportWarning(
        kind="weights_choice",
        count=len(averages),
        text=f"{checkpoint.path.name}: raw weights were loaded; the file has averaged ones too, first {averages[0]}, "
        "under names that are not the network's: save these by the network's own names to take them",
        examples=tuple(averages[:3]),
    )


def _note(chosen: Candidate, num_left_out: int) -> str:
    done = [f"prefix {chosen.prefix!r} taken off"] if chosen.prefix else []
    done += [f"prefix {chosen.front!r} put in front"] if chosen.front else []
    done += [f"{counted(num_left_out, 'other tensor')} left out"] if num_left_out else []
    return ", ".join(done)


def _tried(found: list[Candidate], num_needed: int) -> str:
    if not found:
        return "no name fits under any prefix"
    shown = Counter({f"{_note(match, 0) or 'names as they are'}": len(match.names) for match in found}).most_common(3)
    return "prefixes tried: " + ", ".join(f"{what} ({count} of {num_needed} fit)" for what, count in shown)
