"""Fitting the names in a weights file onto a network whose names carry another prefix, or none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from featurecache.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

_DEPTH = 3
# Batch norms of older files lack it, and torch fills it in.
_OPTIONAL = "num_batches_tracked"


def fit_prefix(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], forgiven: tuple[str, ...]
) -> tuple[dict[str, Tensor], str]:
    """Find the prefix to take off or to put in front so that a file's names and shapes fit the network.

    Parameters
    ----------
    state, own
        Tensors of the file and of the network, by name.
    forgiven
        Beginnings of names that the file may lack: the output layer's.

    Returns
    -------
    state
        Renamed; unchanged if no prefix helps.
    note
        What was done, or which prefixes were tried in vain; empty if the names fit as they are.

    Raises
    ------
    WeightsError
        Several prefixes fit: guessing between two encoders of one file would be a coin toss.
    """
    needed = [name for name in own if not name.startswith(forgiven) and not name.endswith(_OPTIONAL)]
    if _num_fitting(state, own, needed) == len(needed):
        return dict(state), ""
    candidates = {f"{prefix!r} taken off": _without(state, prefix) for prefix in _prefixes(state)}
    candidates |= {f"{prefix!r} put in front": _with(state, prefix) for prefix in _prefixes(own)}
    scores = {what: _num_fitting(renamed, own, needed) for what, renamed in candidates.items()}
    fitting = [what for what, score in scores.items() if score == len(needed)]
    if len(fitting) > 1:
        raise WeightsError(
            f"weights fit the network in more than one way ({'; '.join(fitting)}); save one of them alone"
        )
    if not fitting:
        return dict(state), _tried(scores, len(needed))
    left_out = len(state) - len(candidates[fitting[0]])
    return candidates[fitting[0]], f"prefix {fitting[0]}" + (f", {left_out} other tensors left out" if left_out else "")


def _num_fitting(state: Mapping[str, Tensor], own: Mapping[str, Tensor], needed: Iterable[str]) -> int:
    return sum(name in state and state[name].shape == own[name].shape for name in needed)


def _prefixes(names: Iterable[str]) -> list[str]:
    """Return every beginning of a name that ends with a dot, a few levels deep."""
    found = set()
    for name in names:
        parts = name.split(".")
        found |= {".".join(parts[:depth]) + "." for depth in range(1, min(len(parts), _DEPTH + 1))}
    return sorted(found)


def _without(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _with(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def _tried(scores: Mapping[str, int], num_needed: int) -> str:
    best = sorted((what for what in scores if scores[what]), key=lambda what: -scores[what])[:3]
    if not best:
        return f"{len(scores)} prefixes tried, under none does a name fit"
    return "prefixes tried: " + ", ".join(f"{what} ({scores[what]} of {num_needed} fit)" for what in best)
