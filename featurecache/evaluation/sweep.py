"""Many heads on many taps of many tasks, with several seeds and few labels: each result is kept, none computed twice.

A result is named by the digest of all it depends on: identity of the features, ids of the samples in each part and
what is said of them, the division, the head with its settings, and the versions of what computes. A sweep that was
killed goes on where it was, and a larger one takes over what a smaller one did.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from typing import Any

from featurecache.evaluation.divisions import Division, divide
from featurecache.evaluation.jobs import Cell, State, computed, num_samples_taken
from featurecache.evaluation.measures import OfClasses, OfLabels, OfNumbers
from featurecache.evaluation.pairs import (
    Pair,
    Place,
    labelled_parts,
    on_the_same_samples,
    open_pairs,
    read_parts,
    rows_of_part,
)
from featurecache.evaluation.parts import Part
from featurecache.evaluation.plan import Plan
from featurecache.evaluation.staging import Staging, staging
from featurecache.hashing import digest_bytes, digest_json
from featurecache.heads.registry import head_grid, make_head
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.labels import SPLITS
from featurecache.store.store import FeatureStore
from featurecache.store.tasks import Task
from featurecache.versions import installed_versions

_FIGURES = dict.fromkeys(name for measure in (OfClasses, OfLabels, OfNumbers) for name in measure.titles)
COLUMNS = (
    "task", "kind", "backbone", "fingerprint", "tap", "dtype", "views", "judged_on", "head", "balanced", "seed", "fold",
    "num_folds", "shots", "share", "part", "n_train", "n_available", "n", "params", "measure", "score",
    "score_low", "score_high",
    *(name + end for name in _FIGURES for end in ("", "_low", "_high")), "log_loss",
    "expected_calibration_error", "selection_accuracy", "selection_score", "seconds", "converged", "error",
)  # fmt: skip
"""Of a row of the table. ``score`` is the figure that ``measure`` names, by which settings are chosen; figures of other
kinds of task are None. ``n_available`` samples could have been fitted on, had no labels been taken away. A head that
could not be fitted has ``error`` and no figures."""
_COMPUTES = ("featurecache", "joblib", "numpy", "scikit-learn", "scipy", "torch")


def run_sweep(
    store: FeatureStore,
    tasks: Sequence[Task],
    sets: Sequence[FeatureSet],
    plan: Plan,
    *,
    n_jobs: int = -1,
    memory: int | None = None,
    on_result: Callable[[dict[str, Any], bool], None] = lambda row, kept: None,
    on_left_out: Callable[[dict[str, Any]], None] = lambda row: None,
) -> list[dict[str, Any]]:
    """Compute what no earlier sweep has computed.

    Parameters
    ----------
    store : FeatureStore
        Holds tasks and features, and keeps the results.
    tasks : sequence of Task
    sets : sequence of FeatureSet
    plan : Plan
    n_jobs : int
        Processes at most, as in joblib; results don't depend on it.
    memory : int, optional
        Bytes of features in memory at most, with what each process takes out of them; half of what is free when left
        out. Where there are more, they are laid out in a file of the cache as in `train_heads`, and so is, for all
        processes together, what a division takes out of them. Results don't depend on it.
    on_result : callable
        Called with each row, and whether it was there before.
    on_left_out : callable
        Called with the row, whose ``error`` says why, of each head that was not asked for by name and that would have
        to hold more in memory than may be there.

    Returns
    -------
    rows
        One for each cell, by column, in the order of tasks, sets, heads and divisions, without those left out.

    Raises
    ------
    RequestError, UnknownNameError, TaskError
        What does not go with a task, or cannot be divided or read. A head that refuses a division is a row with
        ``error``; so is one that was asked for by name and has to hold more in memory than may be there.
    """
    for task in tasks:
        plan.check(task)
    pairs = open_pairs(store, tasks, sets, tta=plan.tta, balanced=plan.balanced)
    order: dict[Place, list[str]] = {}
    found: dict[Place, dict[str, dict[str, Any]]] = {}
    for places in on_the_same_samples(pairs):
        # Closed at once when somebody stops: a file of features may be open.
        with closing(_cells(store, [pairs[each] for each in places], plan, n_jobs, memory)) as cells:
            for number, key, row, state in cells:
                if row is None:
                    order.setdefault(places[number], []).append(key)
                elif state == "no room" and not plan.heads:
                    on_left_out(row)
                else:
                    found.setdefault(places[number], {})[key] = row
                    on_result(row, state == "kept")
    return [found[pair][key] for pair in sorted(found) for key in order[pair] if key in found[pair]]


def _cells(
    store: FeatureStore, pairs: list[Pair], plan: Plan, n_jobs: int, memory: int | None
) -> Generator[tuple[int, str, dict[str, Any] | None, State]]:
    """Yield all keys of pairs on the same samples in order, without rows; then each with its row and how it was got.

    Before each stands the place of the pair.
    """
    cells: list[Cell] = []
    for place, pair in enumerate(pairs):
        labels = _digest_of_labels(pair)
        for head in plan.heads_for(pair.task):
            for division in plan.divisions():
                key = _key(head, division, pair, labels)
                cells.append(Cell(key, place, labels, head, division))
                yield place, key, None, "asked for"
    to_do: dict[str, list[Cell]] = {}
    for cell in cells:
        if (row := store.recall_result(cell.key)) is not None and set(row) == set(COLUMNS):
            # The names of a task and its features are this cache's; the figures belong to their contents.
            yield cell.place, cell.key, row | _names(pairs[cell.place]), "kept"
        else:
            to_do.setdefault(cell.key, []).append(cell)
    if not to_do:
        return
    first = [alike[0] for alike in to_do.values()]
    said = [labelled_parts(pair.task, pair.features, pair.judged)[1] for pair in pairs]
    # What cannot be divided must not cost the fits before it, nor the reading of features.
    divided = dict.fromkeys((cell.place, cell.division) for cell in first)
    num_taken = max(num_samples_taken(said[place], division, pairs[place].measure.kind) for place, division in divided)
    with staging(store.path, memory) as room:
        parts = _parts_of_each(pairs, said, room)
        measures = [pair.measure for pair in pairs]
        results = computed(
            first, parts, measures, n_jobs, num_taken, store.path, room, memory=memory, asked_for=bool(plan.heads)
        )
        for done, figures, state in results:
            for cell in to_do[done.key]:
                about = _about(cell, pairs[cell.place], said[cell.place])
                row = dict.fromkeys(COLUMNS) | _names(pairs[cell.place]) | about | figures
                if state == "computed" and cell.place == done.place:
                    store.remember_result(cell.key, row)
                    yield cell.place, cell.key, row, state
                else:
                    yield cell.place, cell.key, row, "kept" if state == "computed" else state


def _parts_of_each(pairs: list[Pair], said: list[dict[str, Part]], room: Staging) -> list[dict[str, Part]]:
    """Return the parts of pairs on the same samples: those on one feature set have the same arrays."""
    read: dict[str, dict[str, Part]] = {}
    found = []
    for pair, mine in zip(pairs, said, strict=True):
        if (key := pair.feature_set.key) not in read:
            fitted = [split for split in SPLITS if split != "test" and pair.task.has(split)]
            read[key] = read_parts(pair.task, pair.features, pair.judged, fitted, room)
        whole = read[key].items()
        found.append({name: replace(part, y=mine[name].y, groups=mine[name].groups) for name, part in whole})
    return found


def _about(cell: Cell, pair: Pair, parts: dict[str, Part]) -> dict[str, Any]:
    division, measure = cell.division, pair.measure
    with_all_labels = divide(parts, replace(division, shots=None, share=None), kind=measure.kind)
    return {
        "judged_on": "plain" if pair.judged_set.num_views is None else "views",
        "kind": measure.kind,
        "measure": measure.chosen_by,
        "head": cell.head,
        "balanced": measure.balanced,
        "seed": division.seed,
        "fold": division.fold,
        "num_folds": division.num_folds,
        "shots": division.shots,
        "share": division.share,
        "n_available": len(with_all_labels["train"]),
        "part": division.judges_on if division.num_folds or pair.task.has(division.judges_on) else "held out",
    }


def _names(pair: Pair) -> dict[str, Any]:
    feature_set = pair.feature_set
    return {
        "task": pair.task.name,
        "backbone": feature_set.identity.backbone,
        "fingerprint": feature_set.fingerprint,
        "tap": feature_set.tap,
        "dtype": feature_set.dtype,
        "views": feature_set.num_views,
    }


def _digest_of_labels(pair: Pair) -> str:
    """Digest which samples are in each part, and what is said of them."""
    task = pair.task
    assert task.samples is not None
    document: dict[str, Any] = {"kind": task.kind, "classes": task.classes}
    exact = "<f8" if task.kind == "numbers" else "<i8"
    for split in SPLITS:
        if task.has(split):
            rows, y = rows_of_part(task, pair.features, pair.judged, split)
            groups, weights = task.groups_of(rows), task.weights_of(rows)
            content = task.samples.ids[rows].tobytes() + y.astype(exact).tobytes()
            content += b"" if groups is None else groups.astype("<i4").tobytes()
            content += b"" if weights is None else weights.astype("<f8").tobytes()
            document[split] = digest_bytes(content)
    return digest_json("labels", 2, document)


def _key(head: str, division: Division, pair: Pair, labels: str) -> str:
    measure = pair.measure
    features, judged = ([each.fingerprint, each.tap, each.dtype] for each in (pair.feature_set, pair.judged_set))
    document = {
        "features": features,
        "judged": judged,
        "labels": labels,
        "head": [head, repr(make_head(head, kind=measure.kind)), head_grid(head, 1_000_000, kind=measure.kind)],
        "division": asdict(division),
        "kind": measure.kind,
        "balanced": measure.balanced,
        "versions": installed_versions(_COMPUTES),
        "columns": list(COLUMNS),
    }
    return digest_json("sweep-result", 2, document)
