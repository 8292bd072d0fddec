"""Many heads on many taps of many tasks, with several seeds and few labels: each result is kept, none computed twice.

A result is named by the digest of all it depends on: identity of the features, ids and classes of the samples in each
part, the division, the head with its settings, and the versions of what computes. A sweep that was killed goes on where
it was, and a larger one takes over what a smaller one did.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from joblib import Parallel, delayed, effective_n_jobs
from scipy.stats import t as student_t

from featurecache.errors import FeatureCacheError, RequestError
from featurecache.evaluation.calibration import calibration
from featurecache.evaluation.comparison import verdict_of
from featurecache.evaluation.divisions import Division, divide
from featurecache.evaluation.intervals import wilson
from featurecache.evaluation.parts import Part
from featurecache.evaluation.protocol import evaluate_head
from featurecache.evaluation.training import judged_set_of, read_parts, rows_of_part
from featurecache.hashing import digest_bytes, digest_json
from featurecache.heads.registry import HEADS, TOKEN_HEADS, head_grid, make_head
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.features import Features
from featurecache.store.labels import SPLITS
from featurecache.store.store import FeatureStore
from featurecache.store.tasks import Task
from featurecache.versions import installed_versions

COLUMNS = (
    "task", "backbone", "fingerprint", "tap", "dtype", "views", "judged_on", "head", "balanced", "seed", "fold",
    "num_folds", "shots", "share", "part", "n_train", "n", "params", "accuracy", "accuracy_low", "accuracy_high",
    "balanced_accuracy", "balanced_accuracy_low", "balanced_accuracy_high", "macro_f1", "macro_f1_low",
    "macro_f1_high", "log_loss",
    "expected_calibration_error", "selection_accuracy", "seconds", "converged", "error",
)  # fmt: skip
"""Of a row of the table; a head that could not be fitted has ``error`` and no figures."""
_GROUP = (
    *("task", "backbone", "fingerprint", "tap", "dtype", "views"),
    *("judged_on", "head", "balanced", "shots", "share", "part"),
)
_Z95 = 1.959963984540054
_COMPUTES = ("featurecache", "joblib", "numpy", "scikit-learn", "scipy", "torch")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a sweep goes over.

    Attributes
    ----------
    heads : sequence of str
    seeds : sequence of int
    num_folds : int or None
        Judge on each fold of so many, instead of on the validation part.
    shots : sequence of int
    shares : sequence of float
        Labels to fit on; all of them where both are empty.
    look_at_test : bool
    tta : bool
        Judge on the mean over the views of a sample.
    balanced : bool
        Choose settings by balanced accuracy, and give all classes the same total weight where the head can.
    """

    heads: Sequence[str]
    seeds: Sequence[int] = (0,)
    num_folds: int | None = None
    shots: Sequence[int] = ()
    shares: Sequence[float] = ()
    look_at_test: bool = False
    tta: bool = False
    balanced: bool = False

    def __post_init__(self) -> None:
        for head in self.heads:
            make_head(head)
        if not self.heads or not self.seeds:
            raise RequestError("a sweep needs at least one head and one seed")
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

    def num_cells(self, num_pairs: int) -> int:
        """Return how many heads are fitted on so many pairs of task and features."""
        return num_pairs * len(dict.fromkeys(self.heads)) * len(self.divisions())


def run_sweep(
    store: FeatureStore,
    tasks: Sequence[Task],
    sets: Sequence[FeatureSet],
    plan: Plan,
    *,
    n_jobs: int = -1,
    on_result: Callable[[dict[str, Any], bool], None] = lambda row, kept: None,
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
    on_result : callable
        Called with each row, and whether it was there before.

    Returns
    -------
    rows
        One for each cell, by column, in the order of tasks, sets, heads and divisions.

    Raises
    ------
    RequestError, TaskError
        What cannot be divided or read. A head that refuses a division is a row with ``error``.
    """
    rows: list[dict[str, Any]] = []
    for task in tasks:
        if task.kind != "classes":
            raise RequestError(f"sweep is for tasks with classes, and {task.name!r} has {task.kind}; use train for it")
    for task in tasks:
        for feature_set in sets:
            order, found = [], {}
            for key, row, kept in _pair(store, task, feature_set, plan, n_jobs):
                if row is None:
                    order.append(key)
                else:
                    found[key] = row
                    on_result(row, kept)
            rows += [found[key] for key in order]
    return rows


def _pair(
    store: FeatureStore, task: Task, feature_set: FeatureSet, plan: Plan, n_jobs: int
) -> Iterator[tuple[str, dict[str, Any] | None, bool]]:
    """Yield all keys of a task and feature set in order, without rows; then each with its row."""
    judged_set = judged_set_of(store, feature_set, tta=plan.tta)
    features, judged = feature_set.open(), judged_set.open()
    labels = _digest_of_labels(task, features, judged)
    cells = {}
    for head in dict.fromkeys(plan.heads):
        for division in plan.divisions():
            key = _key(head, division, feature_set, judged_set, labels, balanced=plan.balanced)
            cells[key] = head, division
            yield key, None, False
    to_do = {}
    for key, cell in cells.items():
        if (row := store.recall_result(key)) is not None and set(row) == set(COLUMNS):
            # The names of a task and its features are this cache's; the figures belong to their contents.
            yield key, row | _names(task, feature_set), True
        else:
            to_do[key] = cell
    if not to_do:
        return
    fitted = [split for split in SPLITS if split != "test" and task.has(split)]
    parts = read_parts(task, features, judged, fitted)
    for division in {division for _, division in to_do.values()}:
        divide(parts, division)  # what cannot be divided must not cost the fits before it
    known = _names(task, feature_set) | {"judged_on": "plain" if judged_set.num_views is None else "views"}
    for key, figures in _computed(to_do, parts, len(task.classes), plan.balanced, n_jobs):
        row = dict.fromkeys(COLUMNS) | known | figures
        store.remember_result(key, row)
        yield key, row, False


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
    to_do: dict[str, tuple[str, Division]], parts: dict[str, Part], n_classes: int, balanced: bool, n_jobs: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    # A head that this program registered is not known in a fresh process.
    built_in = all(head in (*HEADS, *TOKEN_HEADS) for head, _ in to_do.values())
    workers = min(effective_n_jobs(n_jobs), len(to_do)) if built_in else 1
    if workers == 1:
        yield from (_compute(key, *cell, parts, n_classes, balanced) for key, cell in to_do.items())
        return
    # joblib maps the features into the other processes, they are not copied to each.
    parallel = Parallel(n_jobs=workers, backend="loky", return_as="generator_unordered")
    yield from parallel(delayed(_compute)(key, *cell, parts, n_classes, balanced) for key, cell in to_do.items())


def _compute(
    key: str, head: str, division: Division, parts: dict[str, Part], n_classes: int, balanced: bool
) -> tuple[str, dict[str, Any]]:
    divided = divide(parts, division)
    about = {
        "head": head,
        "balanced": balanced,
        "seed": division.seed,
        "fold": division.fold,
        "num_folds": division.num_folds,
        "shots": division.shots,
        "share": division.share,
        "part": division.judges_on if division.num_folds or division.judges_on in parts else "held out",
        "n_train": len(divided["train"]),
    }
    try:
        result = evaluate_head(head, divided, n_classes, balanced=balanced, random_state=division.seed)
    except FeatureCacheError as error:
        return key, about | {"error": str(error)}
    scores = result.test or result.validation
    y = divided[result.reported].y
    figures = {name: value for name, value in scores.to_json().items() if name in COLUMNS}
    said = calibration(y, result.proba)
    return key, about | figures | {
        "n_train": result.n_train // divided["train"].fitted.shape[1],
        "params": json.dumps(result.params, sort_keys=True),
        "log_loss": said["log_loss"],
        "expected_calibration_error": said["expected_calibration_error"],
        "selection_accuracy": result.selection_accuracy,
        "seconds": round(result.seconds, 4),
        "converged": bool(result.converged),
    }


def _digest_of_labels(task: Task, features: Features, judged: Features) -> str:
    """Digest which samples are in each part, and their classes."""
    assert task.samples is not None
    document: dict[str, Any] = {"classes": task.classes}
    for split in SPLITS:
        if task.has(split):
            rows, y = rows_of_part(task, features, judged, split)
            groups = task.groups_of(rows)
            content = task.samples.ids[rows].tobytes() + y.astype("<i8").tobytes()
            content += b"" if groups is None else groups.astype("<i4").tobytes()
            document[split] = digest_bytes(content)
    return digest_json("labels", 1, document)


def _key(
    head: str, division: Division, feature_set: FeatureSet, judged_set: FeatureSet, labels: str, *, balanced: bool
) -> str:
    document = {
        "features": [feature_set.fingerprint, feature_set.tap, feature_set.dtype],
        "judged": [judged_set.fingerprint, judged_set.tap, judged_set.dtype],
        "labels": labels,
        "head": [head, repr(make_head(head)), head_grid(head, 1_000_000)],
        "division": asdict(division),
        "balanced": balanced,
        "versions": installed_versions(_COMPUTES),
        "columns": list(COLUMNS),
    }
    return digest_json("sweep-result", 1, document)


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one line for each head on each tap of each task with the same labels to fit on, the most accurate first.

    Several divisions are averaged. Where each is judged on samples of its own (folds, or held out by seed), the
    interval is that of the corrected resampled t-test (Nadeau & Bengio, "Inference for the generalization error",
    Machine Learning 52, 2003): variance times ``1 / J + n_test / n_train``. Where all are judged on one part, or fewer
    labels are drawn than there are, the spread between draws and the sampling of that part are added.
    ``against_best`` compares with the best line of the task with as many labels, division by division, likewise.

    Parameters
    ----------
    rows
        From `run_sweep`; those with ``error`` are counted in ``failed`` only.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in _GROUP), []).append(row)
    lines = [_line(dict(zip(_GROUP, names, strict=True)), group) for names, group in groups.items()]
    for line in lines:
        rivals = [other for other in lines if _contest(other) == _contest(line) and other["accuracy"] is not None]
        if rivals and line["accuracy"] is not None:
            best = max(rivals, key=lambda other: other["accuracy"])
            line["against_best"] = None if best is line else _against(line["_rows"], best["_rows"])
    ordered = sorted(lines, key=lambda line: (*map(str, _contest(line)), -(line["accuracy"] or -1)))
    return [{name: value for name, value in line.items() if name != "_rows"} for line in ordered]


def _contest(line: dict[str, Any]) -> tuple[Any, ...]:
    return line["task"], line["shots"], line["share"], line["part"]


def _line(names: dict[str, Any], group: list[dict[str, Any]]) -> dict[str, Any]:
    good = [row for row in group if row["error"] is None]
    line: dict[str, Any] = {**names, "divisions": len(good), "failed": len(group) - len(good), "_rows": good}
    if not good:
        return line | dict.fromkeys(("accuracy", "low", "high", "n_train", "seconds", "against_best"))
    accuracy = np.array([row["accuracy"] for row in good])
    mean = float(accuracy.mean())
    if len(good) == 1:
        low, high = good[0]["accuracy_low"], good[0]["accuracy_high"]
    else:
        half = _half_width(accuracy, good, mean * (1 - mean))
        if not half:  # all alike: as with one division
            low, high = (float(end) for end in wilson(round(mean * good[0]["n"]), good[0]["n"]))
        else:
            low, high = max(mean - half, 0.0), min(mean + half, 1.0)
    return line | {
        "accuracy": mean,
        "low": float(low),
        "high": float(high),
        "n_train": float(np.mean([row["n_train"] for row in good])),
        "seconds": float(np.mean([row["seconds"] for row in good])),
        "against_best": None,
    }


def _half_width(values: np.ndarray, rows: list[dict[str, Any]], variance_of_one: float) -> float:
    """Return half of a 95 % interval of a mean over divisions; ``variance_of_one`` is that of one sample's figure."""
    spread, count = float(values.var(ddof=1)), len(values)
    n, n_train = float(np.mean([row["n"] for row in rows])), float(np.mean([row["n_train"] for row in rows]))
    all_labels = rows[0]["shots"] is None and rows[0]["share"] in (None, 1.0)
    if rows[0]["part"] in ("fold", "held out") and all_labels:
        of_draws, of_samples = spread * (1 / count + n / n_train), 0.0
    else:
        of_draws, of_samples = spread / count, variance_of_one / n
    return math.hypot(float(student_t.ppf(0.975, count - 1)) * math.sqrt(of_draws), _Z95 * math.sqrt(of_samples))


def _against(rows: list[dict[str, Any]], best: list[dict[str, Any]]) -> str | None:
    """Say whether a line is worse than the best; None where there is one division: `train` compares those by sample."""
    theirs = {(row["seed"], row["fold"]): row["accuracy"] for row in best}
    shared = [row for row in rows if (row["seed"], row["fold"]) in theirs]
    if len(shared) < 2:
        return None
    difference = np.array([row["accuracy"] - theirs[row["seed"], row["fold"]] for row in shared])
    mean = float(difference.mean())
    # Of one sample, the difference is 1, 0 or -1, and its variance at most the share of samples that are judged
    # differently. That is not known here; it is at most the sum of both shares of errors.
    errors = float(np.mean([2 - row["accuracy"] - theirs[row["seed"], row["fold"]] for row in shared]))
    half = _half_width(difference, shared, min(errors, 1.0))
    return verdict_of(mean - half, mean + half)
