"""Which heads can be fitted here: those that need more memory or time than there is are left out, with the reason."""

from __future__ import annotations

from collections.abc import Mapping

from featurecache.evaluation.memory_budget import memory_for_features
from featurecache.evaluation.split_data import SplitData
from featurecache.heads.head import MAX_SECONDS, NamedHead

_LEAST_BUDGET = 1 << 30
"""Bytes that a head may take in any case: a budget says how many features are held, and may be nothing."""
_ROWS_OF_A_BLOCK = 4096


def reason_to_leave_out(
    head: NamedHead, splits: Mapping[str, SplitData], n_outputs: int, *, memory: int | None, named: bool
) -> str | None:
    """Return why a head is left out of a training, or None.

    Parameters
    ----------
    head : NamedHead
    splits : mapping
        As they are evaluated; all but the last are fitted on.
    n_outputs : int
        Classes, labels or numbers.
    memory : int or None
        Bytes that may be taken; half of what is free when left out.
    named : bool
        Somebody asked for it by name, and has the time.
    """
    fit_views = [data.fit_views for name, data in splits.items() if name != "test"]
    n_samples, n_features = sum(views.shape[0] * views.shape[1] for views in fit_views), fit_views[0].shape[2]
    # Only those are asked that read rows as they are needed.
    if any(data.on_disk for data in splits.values()):  # heads that stream hold a block of rows
        n_samples = min(n_samples, _ROWS_OF_A_BLOCK)
    budget = max(memory_for_features(memory), _LEAST_BUDGET)
    needed = head.memory_needed(n_samples, n_features, n_outputs)
    if needed is not None and needed > budget:
        return f"needs about {needed / 1e9:.1f} GB of memory, and {budget / 1e9:.1f} GB may be used (--memory)"
    seconds = head.seconds_needed(n_samples, n_features, n_outputs)
    # Nobody waits half a day for a table of all heads because of one of them.
    if seconds > MAX_SECONDS and not named:
        return f"would take about {in_words(seconds)}; name it with --head {head.name} to train it all the same"
    return None


def in_words(seconds: float) -> str:
    """Write how long something takes about."""
    for name, unit in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{max(seconds, 1):.0f} s"
