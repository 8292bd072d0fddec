"""Which heads can be fitted here: those that need more memory or time than there is are left out, with the reason."""

from __future__ import annotations

from collections.abc import Mapping

from featurecache.errors import HeadError
from featurecache.evaluation.parts import Part
from featurecache.heads.costs import MAX_SECONDS, in_words, memory_needed, seconds_needed
from featurecache.machine import free_memory

_LEAST_BUDGET = 1 << 30
"""Bytes that a head may take in any case: a budget says how many features are held, and may be nothing."""
_ROWS_OF_A_BLOCK = 4096
_SHARE = 0.5
"""Of the memory that is free, as in `Staging`."""


def cannot_afford(
    name: str, parts: Mapping[str, Part], n_outputs: int, *, memory: int | None, asked_for: bool
) -> str | None:
    """Return why a head is left out of a training, or None.

    Parameters
    ----------
    name : str
    parts : mapping
        As they are judged; all but the last are fitted on.
    n_outputs : int
        Classes, labels or numbers.
    memory : int or None
        Bytes that may be taken; half of what is free when left out.
    asked_for : bool
        Somebody named it, and has the time.
    """
    fitted = [part.fitted for split, part in parts.items() if split != "test"]
    n_samples, n_features = sum(each.shape[0] * each.shape[1] for each in fitted), fitted[0].shape[2]
    if any(part.on_disk for part in parts.values()):  # heads that stream hold a block of rows
        n_samples = min(n_samples, _ROWS_OF_A_BLOCK)
    budget = max(int(_SHARE * free_memory()) if memory is None else memory, _LEAST_BUDGET)
    needed = memory_needed(name, n_samples, n_features, n_outputs)
    if needed is not None and needed > budget:
        return f"needs about {needed / 1e9:.1f} GB of memory, and {budget / 1e9:.1f} GB may be used (--memory)"
    seconds = seconds_needed(name, n_samples, n_features, n_outputs)
    if seconds > MAX_SECONDS and not asked_for:
        return f"would take about {in_words(seconds)}; name it with --head {name} to train it all the same"
    return None


def check_affordable(name: str, parts: Mapping[str, Part], n_outputs: int, *, memory: int | None) -> None:
    """Raise `HeadError` for a head that was asked for and needs more memory than there is."""
    reason = cannot_afford(name, parts, n_outputs, memory=memory, asked_for=True)
    if reason is not None:
        raise HeadError(f"head {name!r} {reason}; choose another head, or fewer features")
