"""When: does transfer help here, or does it hurt?

Transfer hurts where the same algorithm is better without the source (Wang et al., "Characterizing and avoiding negative
transfer", CVPR 2019). So the same linear probe is fitted, on the same folds, on features of the pretrained network and
on what there is without it: the same architecture untrained, pixels, colours. Transfer *helps* where it is better than
each of these, every comparison at one half of five percent on that side (an intersection of tests needs no correction;
Berger, "Multiparameter hypothesis testing", Technometrics 24, 1982), and *hurts* where one of them is better, corrected
for how many they are (Holm, Scandinavian Journal of Statistics 6, 1979).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

from featurecache.advice.finding import Finding
from featurecache.advice.paired import Difference, in_words, mean_difference
from featurecache.wording import counted


def transfer_finding(
    transferred: NDArray[np.float64],
    without: Mapping[str, NDArray[np.float64]],
    groups: NDArray[np.int64] | None = None,
    *,
    name: str = "the pretrained network",
    score: str = "accuracy",
    missing: Mapping[str, str] | None = None,
) -> Finding:
    """Tell whether transfer helps.

    Parameters
    ----------
    transferred : ndarray (n,)
        What each row adds to the score of the probe on pretrained features, out of fold.
    without : mapping of str to ndarray (n,)
        The same of arms without transfer.
    groups : ndarray of int (n,), optional
        Rows that are alike.
    name, score : str
        What the first arm and the score are called.
    missing : mapping of str to str, optional
        Arms that were not compared, and the commands that make them.
    """
    missing = dict(missing or {})
    differences = {arm: mean_difference(transferred - gain, groups) for arm, gain in without.items()}
    details = {
        "arms": {arm: _described(found, float(without[arm].mean())) for arm, found in differences.items()},
        "score": float(transferred.mean()),
        "missing": missing,
    }
    against = ", ".join(without) or "nothing"
    answer = partial(
        Finding,
        question="when",
        n=len(transferred),
        basis=f"{score} of a linear probe out of fold, on the same folds: {name} against {against}",
        next_command=next(iter(missing.values()), None),
        details=details,
    )
    informed = {arm: found for arm, found in differences.items() if arm != "largest class"}
    if not informed:
        text = "cannot tell whether transfer helps: nothing is cached that does without it"
        text += f" ({', '.join(missing)})" if missing else ""
        return answer(verdict="cannot tell", text=text)
    # The arm that comes nearest decides.
    worst = min(differences, key=lambda arm: differences[arm].mean)
    found = differences[worst]
    if all(difference.low > 0 for difference in differences.values()):
        shown = in_words(found.mean, found.low, found.high, sign="+")
        text = f"transfer helps: {name} is better than everything without it, over {worst} by {shown} {score}"
        return answer(verdict="helps", text=text, **found.figures)
    # One of several arms may look better by chance: their intervals hold together (the first step of Holm's).
    level = 1 - 0.05 / len(informed)
    corrected = {arm: mean_difference(transferred - without[arm], groups, level=level) for arm in informed}
    worst = min(informed, key=lambda arm: corrected[arm].high)
    found = corrected[worst]
    if found.high < 0:
        verdict, text = "hurts", f"transfer hurts: {worst} is better than {name} by {-found.mean:.3f}"
        text += f" ({-found.high:.3f} to {-found.low:.3f}, {counted(found.n, 'sample')})"
    else:
        verdict = "cannot tell"
        shown = in_words(found.mean, found.low, found.high, sign="+")
        text = f"cannot tell whether transfer helps: {name} less {worst} is {shown}"
        if np.isfinite(found.detectable):
            text += f"; a difference of {found.detectable:.3f} would have been found"
    return answer(verdict=verdict, text=text, **found.figures)


def _described(found: Difference, score: float) -> dict[str, float]:
    return {
        "score": score,
        "difference": found.mean,
        "low": found.low,
        "high": found.high,
        "detectable": found.detectable,
    }
