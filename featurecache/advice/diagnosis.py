"""Bias, variance or mismatch: which of the gaps between errors is the largest, and what to do about it.

The decomposition is Ng's ("Machine Learning Yearning", 2018, chapters 20 to 43): error in the sample (avoidable bias,
as far as the task can be done without error), out of fold less in the sample (variance), on the target less out of fold
(mismatch), and on test data less on the data that choices were made by (overfitting to the dev set). A gap is named
only where its interval excludes zero and it is larger than the next by more than chance.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from featurecache.advice.finding import Finding
from featurecache.advice.paired import in_words, mean_difference

_WHAT_TO_DO = {
    "bias": "richer features: another layer or backbone, or layers trained deeper",
    "variance": "more labels, augmented views, or stronger regularisation",
    "mismatch": "labels of the target, or adaptation to it",
    "overfitting to dev": "a larger dev set",
}
ErrorsOf = tuple[NDArray[np.float64], NDArray[np.int64] | None]
"""Errors of rows, (n,), and the groups of these."""


def diagnosis_finding(
    in_sample: NDArray[np.float64],
    out_of_fold: NDArray[np.float64],
    floor: NDArray[np.float64],
    groups: NDArray[np.int64] | None = None,
    *,
    target: NDArray[np.float64] | None = None,
    target_groups: NDArray[np.int64] | None = None,
    target_name: str = "target",
    others: Mapping[str, ErrorsOf] | None = None,
    commands: Mapping[str, str | None] | None = None,
) -> Finding:
    """Name the largest gap.

    Parameters
    ----------
    in_sample, out_of_fold, floor : ndarray (n,)
        Errors of each row: of the fit on all rows, of fits without it, and of the largest class.
    groups : ndarray of int (n,), optional
    target : ndarray (m,), optional
        Errors of the rows of another split or domain, by the fit on all rows.
    target_groups : ndarray of int (m,), optional
    target_name : str
    others : mapping of str to (errors, groups), optional
        Of other rows, each by a fit that has not seen them: ``train-dev``, ``dev``, ``test``. Of the last one the
        difference from the target, else from ``dev``, is a gap too.
    commands : mapping, optional
        By gap: what to run next.
    """
    others = dict(others or {})
    within = {"bias": mean_difference(in_sample, groups), "variance": mean_difference(out_of_fold - in_sample, groups)}
    gaps = {name: (found.mean, found.low, found.high, found.error) for name, found in within.items()}
    if target is not None:
        gaps["mismatch"] = _gap_between((target, target_groups), (out_of_fold, groups))
    # Test data are compared with what choices were made by: the target where there is one.
    chosen_by = (target, target_groups) if target is not None else others.get("dev")
    if chosen_by is not None and "test" in others:
        gaps["overfitting to dev"] = _gap_between(others["test"], chosen_by)
    errors = {"largest class": (floor, groups), "in sample": (in_sample, groups), "out of fold": (out_of_fold, groups)}
    errors |= {name: values for name, values in others.items() if name != "test"}
    errors |= {} if target is None else {target_name: (target, target_groups)}
    errors |= {"test": others["test"]} if "test" in others else {}
    means = {name: mean_difference(*values) for name, values in errors.items()}
    details = {
        "errors": {
            name: {"error": found.mean, "low": found.low, "high": found.high, "n": float(found.n)}
            for name, found in means.items()
        },
        "gaps": {name: {"gap": gap[0], "low": gap[1], "high": gap[2]} for name, gap in gaps.items()},
    }
    order = sorted(gaps, key=lambda name: -gaps[name][0])
    first, second = gaps[order[0]], gaps[order[1]]
    # As of two independent gaps.
    exceeds = first[0] - second[0] > 1.96 * float(np.hypot(first[3], second[3]))
    shown = ", ".join(f"{name} {in_words(*gaps[name][:3])}" for name in order)
    n = len(out_of_fold) + (0 if target is None else len(target))
    basis = "errors of a linear probe: in the sample, out of fold" + ("" if target is None else f", on {target_name}")
    verdict, text, command = "cannot tell", f"no gap stands out: {shown}", None
    if first[1] > 0 and exceeds:
        verdict, command = order[0], (commands or {}).get(order[0])
        text = f"the largest gap is {verdict}: {shown}; what helps is {_WHAT_TO_DO[verdict]}"
    return Finding(
        question="diagnosis",
        verdict=verdict,
        text=text,
        figure=first[0],
        low=first[1],
        high=first[2],
        n=n,
        basis=basis,
        next_command=command,
        details=details,
    )


def _gap_between(later: ErrorsOf, earlier: ErrorsOf) -> tuple[float, float, float, float]:
    """Return the difference of two mean errors of different rows, with its interval and standard error."""
    apart, before = mean_difference(*later), mean_difference(*earlier)
    difference, error = apart.mean - before.mean, float(np.hypot(apart.error, before.error))
    # One of both has too few rows or groups for an interval.
    if not np.isfinite(error):
        return difference, -np.inf, np.inf, np.inf
    # Degrees of freedom of the smaller one: an interval that is rather too wide.
    half = float(student_t.ppf(0.975, min(apart.num_units, before.num_units) - 1)) * error
    return difference, difference - half, difference + half, error
