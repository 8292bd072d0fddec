"""What: which backbone, layer and pooling. The sets that cannot be told from the best, and the cheapest of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurecache.advice.finding import Finding, finite
from featurecache.evaluation.chosen_score import chosen_score
from featurecache.evaluation.comparison import Comparison
from featurecache.evaluation.measure import Measure
from featurecache.evaluation.table_verdicts import compare_heads
from featurecache.wording import counted


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A feature set that may be transferred.

    Attributes
    ----------
    name : str
    num_parameters : int
        Of the network.
    num_bytes : int
        Of a sample in the cache.
    order : int
        Where its layer comes in the network, if that is known.
    is_default : bool
        Its tap is the network's default one.
    command : str
        That trains heads on it.
    promises : mapping of str to float or None
        What is known without a probe: ``log_me``, ``h_score``, ``imagenet_accuracy``.
    """

    name: str
    num_parameters: int
    num_bytes: int
    command: str
    order: int = 0
    is_default: bool = False
    promises: Mapping[str, float | None] = field(default_factory=dict)


def features_finding(
    y: NDArray[np.int64] | NDArray[np.float64],
    predictions: Sequence[np.ndarray],
    candidates: Sequence[Candidate],
    measure: Measure,
    groups: NDArray[np.int64] | None = None,
) -> Finding:
    """Rank feature sets by the score of a linear probe, and recommend the cheapest that is not worse than the best.

    Parameters
    ----------
    y : ndarray (n,), or (n, n_outputs)
        Targets.
    predictions : sequence of ndarray
        Of the probe on each set, out of fold, as the measure takes them.
    candidates : sequence of Candidate
    measure : Measure
        Of the task.
    groups : ndarray of int (n,), optional
        Rows that are alike.
    """
    scores = np.array([measure.score(y, predicted) for predicted in predictions])
    best = int(np.argmax(measure.sign * scores))
    compared = compare_heads(measure, y, predictions, best, groups)
    able = [index for index, found in enumerate(compared) if index == best or found.verdict != "worse"]
    # Of one network a shallower layer takes less to compute; a narrower one less space.
    cheapest = min(
        able, key=lambda i: (candidates[i].num_parameters, candidates[i].order, candidates[i].num_bytes, -scores[i])
    )
    # The best of several looks better than it is, by having been chosen.
    corrected = chosen_score(measure, y, list(predictions), groups) if len(predictions) > 1 else None
    text = _recommendation(candidates, scores, able, best, cheapest)
    ranking = _ranking(candidates, scores, compared, best)
    # A default tap that is worse than another layer is the finding that people miss.
    for index in set(range(len(candidates))) - set(able):
        if candidates[index].is_default:
            found = compared[index]
            text += f"; the default, {candidates[index].name}, is worse by {-found.difference:.3f}"
            text += f" ({-found.high:.3f} to {-found.low:.3f})"
    return Finding(
        question="what",
        verdict="one set" if len(candidates) == 1 else "best" if able == [best] else "recommended",
        text=text,
        figure=float(scores[best]) if corrected is None else corrected.corrected,
        low=None if corrected is None else corrected.low,
        high=None if corrected is None else corrected.high,
        n=len(y),
        basis=f"{measure.primary.replace('_', ' ')} of a linear probe out of fold on "
        f"{counted(len(candidates), 'feature set')}; "
        "verdicts hold for the whole table, and the figure is corrected for the choice",
        next_command=candidates[cheapest].command,
        details={
            "ranking": ranking,
            "would_have_chosen": _choices_by_promise(ranking),
            "best": candidates[best].name,
            "recommended": candidates[cheapest].name,
        },
    )


def _recommendation(
    candidates: Sequence[Candidate], scores: NDArray[np.float64], able: Sequence[int], best: int, cheapest: int
) -> str:
    """Say which feature set to take."""
    count = len(candidates)
    if count == 1:
        name = candidates[0].name
        return f"only {name} is cached, {scores[0]:.3f} by a linear probe out of fold; other layers may be better"
    if cheapest != best:
        return (
            f"take {candidates[cheapest].name}: with {scores[cheapest]:.3f} not to be told from the best, "
            f"{candidates[best].name} ({scores[best]:.3f}), and the cheapest of the {len(able)} of which that is true"
        )
    others = (
        f"not to be told from {counted(len(able) - 1, 'other', of=count - 1)}"
        if len(able) > 1
        else "better than all others"
    )
    return f"take {candidates[best].name}: the best of {count} by a linear probe ({scores[best]:.3f}), {others}"


def _ranking(
    candidates: Sequence[Candidate], scores: NDArray[np.float64], compared: Sequence[Comparison], best: int
) -> list[dict[str, Any]]:
    """Return all feature sets, the best first."""
    rows = []
    for index in np.argsort(-scores, kind="stable").tolist():
        candidate, found, is_best = candidates[index], compared[index], index == best
        rows.append(
            {
                "name": candidate.name,
                "score": float(scores[index]),
                "difference": 0.0 if is_best else found.difference,
                "low": None if is_best else finite(found.low),
                "high": None if is_best else finite(found.high),
                "verdict": "best" if is_best else found.verdict,
                **candidate.promises,
                "num_parameters": candidate.num_parameters,
                "bytes_per_sample": candidate.num_bytes,
            }
        )
    return rows


def _choices_by_promise(ranking: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return which set each promise would have chosen, and whether that is not worse than the best one."""
    found = {}
    for name in ("log_me", "h_score", "imagenet_accuracy"):
        known = [row for row in ranking if row.get(name) is not None]
        # Layers of one network share what is published for it.
        if len(ranking) > 1 and len(known) == len(ranking) and len({row[name] for row in known}) > 1:
            row = max(known, key=lambda row: float(row[name]))
            found[name] = {"name": row["name"], "right": row["verdict"] != "worse"}
    return found


def depth_of(tap: str) -> tuple[Any, ...]:
    """Return a key that sorts the taps of one network by depth, as far as their names tell."""
    node = tap.partition(":")[0]
    if node == "pre_logits":
        return (1,)
    # By numbers where there are numbers: blocks.10 lies deeper than blocks.9.
    words = [(0, int(word), "") if word.isdecimal() else (1, 0, word) for word in node.replace("_", ".").split(".")]
    return (0, *words)
