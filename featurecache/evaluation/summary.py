"""What the results of a sweep say: means over resamplings, their intervals, and which heads are worse than the best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student_t

from featurecache.evaluation.comparison import verdict_of
from featurecache.evaluation.intervals import Z95, holding, wilson
from featurecache.evaluation.measures import measure_of

_CONTEST = ("task", "kind", "measure", "shots", "share", "part")
"""What lines share that are compared: scores of another kind, or of other labels, are not of one scale."""
_GROUP = (*_CONTEST, "backbone", "fingerprint", "tap", "dtype", "views", "judged_on", "head", "balanced")


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one line for each head on each tap of each task with the same labels to fit on, the best first.

    A line gives ``score``, the score ``measure`` of the task's kind, as a mean over resamplings, and its interval from
    ``low`` to ``high``. Where each resampling is evaluated on samples of its own (folds, or held out by seed), the
    interval is that of the corrected resampled t-test (Nadeau & Bengio, "Inference for the generalization error",
    Machine Learning 52, 2003): variance times ``1 / J + n_test / n_train``. Where all are evaluated on one split, or
    fewer labels are drawn than there are, the spread between draws and the sampling of that split are added: binomial
    for accuracy, for other scores what the bootstrap intervals of the resamplings imply. ``against_best`` compares with
    the best line of the task with as many labels, resampling by resampling, likewise.

    Parameters
    ----------
    rows
        From `featurecache.evaluation.sweep.run_sweep`; those with ``error`` are counted in ``failed`` only.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in _GROUP), []).append(row)
    lines = [_line(dict(zip(_GROUP, names, strict=True)), group) for names, group in groups.items()]
    ordered = sorted(lines, key=lambda line: (_in_order(_contest(line)), -_rank(line)))
    best: dict[tuple[Any, ...], dict[str, Any]] = {}
    for line in ordered:
        first = best.setdefault(_contest(line), line)
        if line is not first and line["score"] is not None:
            line["against_best"] = _against(line["_rows"], first["_rows"])
    return [{name: value for name, value in line.items() if name != "_rows"} for line in ordered]


def uncompared(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines of `summarise` that are not the best of their contest and could not be compared with it."""
    best: dict[tuple[Any, ...], dict[str, Any]] = {}
    for line in lines:
        best.setdefault(_contest(line), line)
    return [
        line
        for line in lines
        if line is not best[_contest(line)] and line["score"] is not None and line["against_best"] is None
    ]


def _contest(line: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(line[name] for name in _CONTEST)


def _in_order(contest: tuple[Any, ...]) -> list[tuple[int, float, str]]:
    """Return a key by which names sort as names and numbers as numbers: 5 shots before 10, before all."""
    return [
        (2, 0.0, "") if each is None else (0, float(each), "") if isinstance(each, int | float) else (1, 0.0, str(each))
        for each in contest
    ]


def _rank(line: dict[str, Any]) -> float:
    return -math.inf if line["score"] is None else float(line["score"])


def _line(names: dict[str, Any], group: list[dict[str, Any]]) -> dict[str, Any]:
    good = [row for row in group if row["error"] is None]
    line: dict[str, Any] = {**names, "divisions": len(good), "failed": len(group) - len(good), "_rows": good}
    means = ("score", "n_train", "n_available", "seconds")
    line |= dict.fromkeys((*means, "low", "high", "accuracy", "against_best"))
    if not good:
        return line
    # A mean of equal scores, and the bounds of one of them, may differ in the last digit.
    low, high = holding(float(np.mean([row["score"] for row in good])), *_interval(good))
    line |= {name: float(np.mean([row[name] for row in good])) for name in means}
    accuracy = float(np.mean([row["accuracy"] for row in good])) if line["kind"] == "classification" else None
    return line | {"low": low, "high": high, "accuracy": accuracy}


def _interval(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """Return the 95 % interval of the mean score over resamplings."""
    if len(rows) == 1:
        return rows[0]["score_low"], rows[0]["score_high"]
    scores = np.array([row["score"] for row in rows])
    mean = float(scores.mean())
    if half := _half_width(scores, rows, float(np.mean([_sampling_variance(row, mean) for row in rows]))):
        least, most = measure_of(rows[0]["kind"], 1, balanced=rows[0]["balanced"]).range_of(rows[0]["measure"])
        return max(mean - half, least), min(mean + half, most)
    # All alike, which is no certainty: as with one resampling.
    if rows[0]["measure"] == "accuracy":
        low, high = wilson(round(mean * rows[0]["n"]), rows[0]["n"])
        return float(low), float(high)
    return min(row["score_low"] for row in rows), max(row["score_high"] for row in rows)


def _sampling_variance(row: dict[str, Any], score: float) -> float:
    """Return the variance of a score that comes from which samples are evaluated."""
    if row["measure"] == "accuracy":
        return score * (1 - score) / float(row["n"])
    return float((row["score_high"] - row["score_low"]) / (2 * Z95)) ** 2


def _half_width(values: np.ndarray, rows: list[dict[str, Any]], sampling: float) -> float:
    """Return half of a 95 % interval of a mean over resamplings; ``sampling``: variance of the evaluated split."""
    spread, count = float(values.var(ddof=1)), len(values)
    n, n_train = float(np.mean([row["n"] for row in rows])), float(np.mean([row["n_train"] for row in rows]))
    all_labels = rows[0]["shots"] is None and rows[0]["share"] in (None, 1.0)
    if rows[0]["part"] in ("fold", "held out") and all_labels:
        of_draws, of_samples = spread * (1 / count + n / n_train), 0.0
    else:
        of_draws, of_samples = spread / count, sampling
    return math.hypot(float(student_t.ppf(0.975, count - 1)) * math.sqrt(of_draws), Z95 * math.sqrt(of_samples))


def _against(rows: list[dict[str, Any]], best: list[dict[str, Any]]) -> str | None:
    """Say whether a line is worse than the best; None for one resampling, as `train` compares by sample."""
    theirs = {(row["seed"], row["fold"]): row for row in best}
    shared = [(row, theirs[key]) for row in rows if (key := (row["seed"], row["fold"])) in theirs]
    if len(shared) < 2:
        return None
    differences = np.array([row["score"] - other["score"] for row, other in shared])
    mean = float(differences.mean())
    sampling = float(np.mean([_sampling_variance_of_difference(*pair) for pair in shared]))
    half = _half_width(differences, [row for row, _ in shared], sampling)
    return verdict_of(mean - half, mean + half)


def _sampling_variance_of_difference(row: dict[str, Any], other: dict[str, Any]) -> float:
    """Return what the variance of a difference of scores, on the same samples, is at most; it is not known here."""
    if row["measure"] == "accuracy":
        # Of one sample, the difference is 1, 0 or -1, and its variance at most the share of samples that are evaluated
        # differently, which is at most the sum of both shares of errors.
        return float(min(2 - row["score"] - other["score"], 1.0) / row["n"])
    # Both heads find the same samples hard, so their scores go up and down together, not against each other.
    return sum(_sampling_variance(each, each["score"]) for each in (row, other))
