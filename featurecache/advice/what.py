"""What: which backbone, layer and pooling. The sets that cannot be told from the best, and the cheapest of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featurecache.advice.finding import Finding
from featurecache.evaluation.chosen_score import chosen_score
from featurecache.evaluation.measure import Measure
from featurecache.evaluation.table_verdicts import compare_heads


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
    option : str
        By which `train` takes it.
    """

    name: str
    num_parameters: int
    num_bytes: int
    option: str
    order: int = 0
    is_default: bool = False


def features_finding(
    y: NDArray[np.int64] | NDArray[np.float64],
    predictions: Sequence[np.ndarray],
    candidates: Sequence[Candidate],
    measure: Measure,
    groups: NDArray[np.int64] | None = None,
    *,
    train_command: str = "featurecache train CACHE --task TASK",
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
    train_command : str
        Beginning of the next command.
    """
    scores = np.array([measure.score(y, predicted) for predicted in predictions])
    best = int(np.argmax(scores))
    compared = compare_heads(measure, y, predictions, best, groups)
    worse = [index != best and found.verdict == "worse" for index, found in enumerate(compared)]
    able = [index for index, is_worse in enumerate(worse) if not is_worse]
    # Of one network a shallower layer takes less to compute; a narrower one less space.
    cheapest = min(
        able, key=lambda i: (candidates[i].num_parameters, candidates[i].order, candidates[i].num_bytes, -scores[i])
    )
    corrected = chosen_score(measure, y, list(predictions), groups) if len(predictions) > 1 else None
    rows = [
        {
            "name": candidate.name,
            "score": float(score),
            "difference": 0.0 if index == best else found.difference,
            "low": None if index == best else _finite(found.low),
            "high": None if index == best else _finite(found.high),
            "verdict": "best" if index == best else found.verdict,
            "num_parameters": candidate.num_parameters,
            "bytes_per_sample": candidate.num_bytes,
        }
        for index, (candidate, score, found) in enumerate(zip(candidates, scores.tolist(), compared, strict=True))
    ]
    details = {
        "ranking": sorted(rows, key=lambda row: -float(row["score"])),  # type: ignore[arg-type]
        "best": candidates[best].name,
        "recommended": candidates[cheapest].name,
    }
    score_name = measure.primary.replace("_", " ")
    figure, low, high = (
        (scores[best], None, None) if corrected is None else (corrected.corrected, corrected.low, corrected.high)
    )
    if len(candidates) == 1:
        verdict, text = "one set", f"only {candidates[0].name} is cached: {score_name} {scores[0]:.3f} out of fold"
    elif cheapest == best:
        num_alike = len(able) - 1
        verdict = "best" if num_alike == 0 else "recommended"
        others = (
            "better than all others" if num_alike == 0 else f"not to be told from {num_alike} of {len(rows) - 1} others"
        )
        text = f"take {candidates[best].name}: the best of {len(rows)} by a linear probe ({scores[best]:.3f}), {others}"
    else:
        verdict = "recommended"
        text = (
            f"take {candidates[cheapest].name}: with {scores[cheapest]:.3f} not to be told from the best, "
            f"{candidates[best].name} ({scores[best]:.3f}), and the cheapest of the {len(able)} of which that is true"
        )
    # A default tap that is worse than another layer is the finding that people miss.
    beaten = [index for index in range(len(rows)) if worse[index] and candidates[index].is_default]
    if beaten:
        found = compared[beaten[0]]
        text += f"; the default, {candidates[beaten[0]].name}, is worse by {-found.difference:.3f}"
        text += f" ({-found.high:.3f} to {-found.low:.3f})"
    return Finding(
        question="what",
        verdict=verdict,
        text=text,
        figure=float(figure),
        low=_finite(low),
        high=_finite(high),
        n=len(y),
        basis=f"{score_name} of a linear probe out of fold on {len(rows)} feature sets; verdicts hold for the whole "
        "table, and the figure is corrected for the choice",
        next_command=f"{train_command} {candidates[cheapest].option}",
        details=details,
    )


def _finite(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)
