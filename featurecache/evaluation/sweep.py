"""Many heads on many taps of many tasks, with several seeds and few labels: each result is kept, none computed twice.

A result is named by the digest of all it depends on: identity of the features, ids of the samples in each part and
what is said of them, the division, the head with its settings, and the versions of what computes. A sweep that was
killed goes on where it was, and a larger one takes over what a smaller one did.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from joblib import Parallel, delayed, effective_n_jobs

from featurecache.errors import FeatureCacheError, HeadError, RequestError
from featurecache.evaluation.calibration import calibration
from featurecache.evaluation.divisions import Division, divide
from featurecache.evaluation.measures import Measure, OfClasses, OfLabels, OfNumbers, measure_of
from featurecache.evaluation.parts import Part
from featurecache.evaluation.protocol import are_built_in, evaluate_head
from featurecache.evaluation.selection import check_streams
from featurecache.evaluation.staging import staging
from featurecache.evaluation.training import judged_set_of, labelled_parts, read_parts, rows_of_part
from featurecache.hashing import digest_bytes, digest_json
from featurecache.heads.registry import head_grid, kinds_of_head, list_heads, make_head
from featurecache.specs import TaskKind
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.features import Features
from featurecache.store.labels import SPLITS
from featurecache.store.store import FeatureStore
from featurecache.store.tasks import Task
from featurecache.versions import installed_versions

_FIGURES = dict.fromkeys(name for measure in (OfClasses, OfLabels, OfNumbers) for name in measure.titles)
COLUMNS = (
    "task", "kind", "backbone", "fingerprint", "tap", "dtype", "views", "judged_on", "head", "balanced", "seed", "fold",
    "num_folds", "shots", "share", "part", "n_train", "n", "params", "measure", "score", "score_low", "score_high",
    *(name + end for name in _FIGURES for end in ("", "_low", "_high")), "log_loss",
    "expected_calibration_error", "selection_accuracy", "selection_score", "seconds", "converged", "error",
)  # fmt: skip
"""Of a row of the table. ``score`` is the figure that ``measure`` names, by which settings are chosen; figures of other
kinds of task are None. A head that could not be fitted has ``error`` and no figures."""
_State = Literal["asked for", "kept", "computed", "no room"]
"""What is known of a result. ``no room`` is true of this machine and this moment, and so is never kept."""
_Cells = dict[str, tuple[str, Division]]
"""Head and division by the key of their result."""
_Result = tuple[str, dict[str, Any], _State]
_COMPUTES = ("featurecache", "joblib", "numpy", "scikit-learn", "scipy", "torch")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a sweep goes over.

    Attributes
    ----------
    heads : sequence of str
        Where it is empty, all heads for the kind of each task, and that can weigh its samples where these have weights.
    seeds : sequence of int
    num_folds : int or None
        Judge on each fold of so many, instead of on the validation part.
    shots : sequence of int
        Samples of each class to fit on; for tasks with classes only.
    shares : sequence of float
        Share of the labels to fit on; all of them where both are empty.
    look_at_test : bool
    tta : bool
        Judge on the mean over the views of a sample.
    balanced : bool
        Choose settings by balanced accuracy, and give all classes the same total weight where the head can; for tasks
        with classes only.
    """

    heads: Sequence[str] = ()
    seeds: Sequence[int] = (0,)
    num_folds: int | None = None
    shots: Sequence[int] = ()
    shares: Sequence[float] = ()
    look_at_test: bool = False
    tta: bool = False
    balanced: bool = False

    def __post_init__(self) -> None:
        if not self.seeds:
            raise RequestError("a sweep needs at least one seed")
        if self.num_folds is not None and self.num_folds < 2:
            raise RequestError(f"folds must be 2 or more, got {self.num_folds}")
        if self.num_folds and self.look_at_test:
            raise RequestError("folds divide train and validation samples, so they never look at test; leave one out")
        if any(shots < 1 for shots in self.shots):
            raise RequestError(f"shots must be 1 or more, got {min(self.shots)}")
        if any(not 0 < share <= 1 for share in self.shares):
            wrong = next(share for share in self.shares if not 0 < share <= 1)
            raise RequestError(f"shares must be above 0 and at most 1, got {wrong}")

    def divisions(self) -> list[Division]:
        """Return every way to divide the samples of a task."""
        budgets: list[dict[str, Any]] = [{"shots": shots} for shots in dict.fromkeys(self.shots)]
        budgets += [{"share": share} for share in dict.fromkeys(self.shares)]
        folds = range(self.num_folds) if self.num_folds else [None]
        return [
            Division(seed=seed, fold=fold, num_folds=self.num_folds, look_at_test=self.look_at_test, **budget)
            for budget in budgets or [{}]
            for seed in dict.fromkeys(self.seeds)
            for fold in folds
        ]

    def heads_for(self, task: Task) -> list[str]:
        """Return the heads that are fitted for a task."""
        return list(dict.fromkeys(self.heads)) or list_heads(kind=task.kind, weighted=task.weights is not None)

    def num_cells(self, tasks: Sequence[Task], num_sets: int) -> int:
        """Return how many heads are fitted for these tasks on so many feature sets."""
        return num_sets * len(self.divisions()) * sum(len(self.heads_for(task)) for task in tasks)

    def check(self, task: Task) -> None:
        """Raise what is wrong with the plan for a task.

        Raises
        ------
        RequestError
            Shots or balanced classes, for a task without classes; or a head that is for other kinds of task.
        UnknownNameError
            A head that there is not at all.
        """
        for head in self.heads_for(task):
            _check_head(head, task)
        if task.kind == "classes":
            return
        about = f"are for tasks with classes, and {task.name!r} has {task.kind}"
        if self.shots:
            raise RequestError(f"shots {about}; use --share, or name tasks with classes")
        if self.balanced:
            raise RequestError(f"balanced classes {about}; leave --balanced out, or name tasks with classes")


def _check_head(head: str, task: Task) -> None:
    if (kinds := kinds_of_head(head)) and task.kind not in kinds:
        able = list_heads(tokens=True, kind=task.kind)
        raise RequestError(
            f"task {task.name!r} has {task.kind}, and head {head!r} is for {' or '.join(kinds)}; for {task.kind} there "
            f"are {', '.join(able)}: choose among them, or name other tasks with --task"
        )
    make_head(head, kind=task.kind)


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
    rows: list[dict[str, Any]] = []
    for task in tasks:
        plan.check(task)
    for task in tasks:
        for feature_set in sets:
            order, found = [], {}
            # Closed at once when somebody stops: a file of features may be open.
            with closing(_pair(store, task, feature_set, plan, n_jobs, memory)) as cells:
                for key, row, state in cells:
                    if row is None:
                        order.append(key)
                    elif state == "no room" and not plan.heads:
                        on_left_out(row)
                    else:
                        found[key] = row
                        on_result(row, state == "kept")
            rows += [found[key] for key in order if key in found]
    return rows


def _pair(
    store: FeatureStore, task: Task, feature_set: FeatureSet, plan: Plan, n_jobs: int, memory: int | None
) -> Generator[tuple[str, dict[str, Any] | None, _State]]:
    """Yield all keys of a task and feature set in order, without rows; then each with its row and how it was got."""
    judged_set = judged_set_of(store, feature_set, tta=plan.tta)
    features, judged = feature_set.open(), judged_set.open()
    measure = measure_of(task.kind, len(task.classes), balanced=plan.balanced)
    labels = _digest_of_labels(task, features, judged)
    cells = {}
    for head in plan.heads_for(task):
        for division in plan.divisions():
            key = _key(head, division, feature_set, judged_set, labels, measure)
            cells[key] = head, division
            yield key, None, "asked for"
    to_do = {}
    for key, cell in cells.items():
        if (row := store.recall_result(key)) is not None and set(row) == set(COLUMNS):
            # The names of a task and its features are this cache's; the figures belong to their contents.
            yield key, row | _names(task, feature_set), "kept"
        else:
            to_do[key] = cell
    if not to_do:
        return
    fitted = [split for split in SPLITS if split != "test" and task.has(split)]
    built_in = are_built_in((head for head, _ in to_do.values()), task.kind)
    workers = min(effective_n_jobs(n_jobs), len(to_do)) if built_in else 1
    divisions = list(dict.fromkeys(division for _, division in to_do.values()))
    labelled = labelled_parts(task, features, judged)[1]
    # What cannot be divided must not cost the fits before it.
    num_taken = max(_num_taken(labelled, division, task.kind) for division in divisions)
    known = _names(task, feature_set) | {"judged_on": "plain" if judged_set.num_views is None else "views"}
    with staging(store.path, memory) as room:
        parts = read_parts(task, features, judged, fitted, room)
        on_disk = any(part.on_disk for part in parts.values())
        if on_disk or workers * num_taken * _bytes_of_a_sample(parts["train"]) > room.left:
            computed = _computed_by_division(to_do, parts, measure, workers, store.path, room.left)
        else:
            computed = _computed(to_do, parts, measure, workers)
        for key, figures, state in computed:
            row = dict.fromkeys(COLUMNS) | known | _about(*to_do[key], task, measure) | figures
            if state == "computed":
                store.remember_result(key, row)
            yield key, row, state


def _num_taken(parts: dict[str, Part], division: Division, kind: TaskKind) -> int:
    """Return of how many samples a process of its own makes copies, to take a division out of the parts."""
    taken = [part for part in divide(parts, division, kind=kind).values() if all(part is not p for p in parts.values())]
    # Parts come to another process one by one, and folds are of two of them.
    joined = [parts["train"], parts["validation"]] if division.num_folds and "validation" in parts else []
    return sum(map(len, taken + joined))


def _bytes_of_a_sample(part: Part) -> int:
    return part.judged[:1].nbytes + (0 if part.fitted is part.judged else part.fitted[:1].nbytes)


def _about(head: str, division: Division, task: Task, measure: Measure) -> dict[str, Any]:
    return {
        "kind": measure.kind,
        "measure": measure.chosen_by,
        "head": head,
        "balanced": measure.balanced,
        "seed": division.seed,
        "fold": division.fold,
        "num_folds": division.num_folds,
        "shots": division.shots,
        "share": division.share,
        "part": division.judges_on if division.num_folds or task.has(division.judges_on) else "held out",
    }


def _names(task: Task, feature_set: FeatureSet) -> dict[str, Any]:
    return {
        "task": task.name,
        "backbone": feature_set.identity.backbone,
        "fingerprint": feature_set.fingerprint,
        "tap": feature_set.tap,
        "dtype": feature_set.dtype,
        "views": feature_set.num_views,
    }


def _computed(
    to_do: _Cells, parts: dict[str, Part], measure: Measure, workers: int, *, is_divided: bool = False
) -> Iterator[_Result]:
    rest: dict[str, Any] = {"parts": parts, "measure": measure, "is_divided": is_divided}
    if (workers := min(workers, len(to_do))) <= 1:
        yield from (_compute(key, *cell, **rest) for key, cell in to_do.items())
        return
    # joblib maps the features into the other processes, they are not copied to each.
    parallel = Parallel(n_jobs=workers, backend="loky", return_as="generator_unordered")
    yield from parallel(delayed(_compute)(key, *cell, **rest) for key, cell in to_do.items())


def _computed_by_division(
    to_do: _Cells, parts: dict[str, Part], measure: Measure, workers: int, folder: Path, max_bytes: int
) -> Iterator[_Result]:
    """Do what `_computed` does, one division after the other: what it takes out is laid out once for all processes."""
    for division in dict.fromkeys(division for _, division in to_do.values()):
        mine = {key: cell for key, cell in to_do.items() if cell[1] == division}
        with staging(folder, max_bytes) as room:
            divided = divide(parts, division, kind=measure.kind, room=room)
            train = divided["train"]
            for key, (head, _) in list(mine.items()):
                try:
                    check_streams(head, train, kind=measure.kind)
                except HeadError as error:
                    del mine[key]
                    yield key, {"n_train": len(train), "error": str(error)}, "no room"
            yield from _computed(mine, divided, measure, workers, is_divided=True)


def _compute(
    key: str, head: str, division: Division, *, parts: dict[str, Part], measure: Measure, is_divided: bool
) -> _Result:
    divided = parts if is_divided else divide(parts, division, kind=measure.kind)
    n_train = len(divided["train"])
    try:
        result = evaluate_head(
            head,
            divided,
            measure.n_outputs,
            kind=measure.kind,
            balanced=measure.balanced,
            random_state=division.seed,
        )
    except FeatureCacheError as error:
        return key, {"n_train": n_train, "error": str(error)}, "computed"
    figures = (result.test or result.validation).to_json()
    figures |= {f"score{end}": figures[measure.chosen_by + end] for end in ("", "_low", "_high")}
    if measure.kind == "classes":
        figures |= calibration(divided[result.reported].y, result.proba)
        del figures["bins"]
    figures |= {
        "n_train": result.n_train // divided["train"].fitted.shape[1],
        "params": json.dumps(result.params, sort_keys=True),
        "selection_accuracy": result.selection_accuracy,
        "selection_score": result.selection_score,
        "seconds": round(result.seconds, 4),
        "converged": bool(result.converged),
    }
    return key, figures, "computed"


def _digest_of_labels(task: Task, features: Features, judged: Features) -> str:
    """Digest which samples are in each part, and what is said of them."""
    assert task.samples is not None
    document: dict[str, Any] = {"kind": task.kind, "classes": task.classes}
    exact = "<f8" if task.kind == "numbers" else "<i8"
    for split in SPLITS:
        if task.has(split):
            rows, y = rows_of_part(task, features, judged, split)
            groups, weights = task.groups_of(rows), task.weights_of(rows)
            content = task.samples.ids[rows].tobytes() + y.astype(exact).tobytes()
            content += b"" if groups is None else groups.astype("<i4").tobytes()
            content += b"" if weights is None else weights.astype("<f8").tobytes()
            document[split] = digest_bytes(content)
    return digest_json("labels", 2, document)


def _key(
    head: str, division: Division, feature_set: FeatureSet, judged_set: FeatureSet, labels: str, measure: Measure
) -> str:
    document = {
        "features": [feature_set.fingerprint, feature_set.tap, feature_set.dtype],
        "judged": [judged_set.fingerprint, judged_set.tap, judged_set.dtype],
        "labels": labels,
        "head": [head, repr(make_head(head, kind=measure.kind)), head_grid(head, 1_000_000, kind=measure.kind)],
        "division": asdict(division),
        "kind": measure.kind,
        "balanced": measure.balanced,
        "versions": installed_versions(_COMPUTES),
        "columns": list(COLUMNS),
    }
    return digest_json("sweep-result", 2, document)
