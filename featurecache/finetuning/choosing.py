"""How deep to go: no deeper than is better beyond chance."""

from __future__ import annotations

from collections.abc import Callable

from featurecache.evaluation.comparison import Comparison

LEVEL = 0.05
"""Of ladders whose rungs are all equally good, at most this share climbs."""


def shallowest_unless_better(
    num_rungs: int,
    compare: Callable[[int, int], Comparison | None],
    *,
    num_settings: int = 1,
    level: float = LEVEL,
) -> int:
    """Return the number of a rung, the shallowest being 0.

    Each rung in turn takes the place of the one that is chosen so far where it is better on the rows by which both were
    chosen: its interval leaves out zero, and its p value is below the level divided by the comparisons that there may
    be (Bonferroni), one for each deeper rung and setting, as the best of several settings is lucky.

    Parameters
    ----------
    num_rungs
    compare
        Takes two numbers of rungs, and returns the first against the second; None where it cannot be told.
    num_settings
        Of each rung, among which its own is the best.
    level
        See `LEVEL`.
    """
    chosen, num_comparisons = 0, max((num_rungs - 1) * num_settings, 1)
    for rung in range(1, num_rungs):
        found = compare(rung, chosen)
        if found is not None and found.verdict == "better" and found.p_value <= level / num_comparisons:
            chosen = rung
    return chosen
