"""What advice rests on: the rows of a task that are not for testing, with folds, and the features of each arm.

An arm is a feature set in a role: of a pretrained network, or one of those that transfer has to beat: the same
architecture untrained, the pixels, the colours, of texts the words. All arms are compared on the same rows and folds.

Arms with a linear probe fitted on each: what the questions about features are answered from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial, reduce
from typing import TYPE_CHECKING, Literal

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray

from featurecache.advice.probe import Floats, Probe, linear_probe, one_hot
from featurecache.backbones.weights.random_weights import seed_of
from featurecache.errors import TaskError
from featurecache.evaluation.kept_results import COMPUTES
from featurecache.evaluation.selection import fold_numbers
from featurecache.hashing import digest_bytes, digest_json
from featurecache.heads.checks import UNKNOWN
from featurecache.machine import num_cores
from featurecache.specs import TaskKind
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.labels import SPLITS
from featurecache.store.naming import distinct_names
from featurecache.store.notes import Notes
from featurecache.store.result_schemas import ArrayBody, ProbeBody
from featurecache.store.samples import Rows
from featurecache.store.store import FeatureStore
from featurecache.store.tasks import Task, read_views
from featurecache.versions import installed_versions

if TYPE_CHECKING:
    from featurecache.progress import Progress

Role = Literal["pretrained", "untrained", "pixels", "colours", "words"]
MAX_ROWS = 3000
"""More rows are sampled: a figure of so many has an interval of two points, and a layer takes seconds."""
FITTED = ("train", "validation")
SCORE_NAMES: Mapping[TaskKind, str] = {
    "classification": "accuracy",
    "multilabel": "share of labels right",
    "regression": "R2",
}
"""What the mean of `gains` is."""


@dataclass(frozen=True, eq=False)
class Arm:
    """A feature set in a role.

    Attributes
    ----------
    feature_set : FeatureSet
    role : str
    rows : ndarray of int64 (n,)
        Rows of the sample table.
    """

    feature_set: FeatureSet
    role: Role
    rows: Rows

    def features(self) -> NDArray[np.float32]:
        """Read the features, (n, d) float32."""
        features = self.feature_set.open()
        found = read_views(features, self.rows)[:, 0]
        features.let_go()
        return found


@dataclass(frozen=True, eq=False)
class Evidence:
    """Rows and targets that all arms share.

    Attributes
    ----------
    task : Task
    rows : ndarray of int64 (n,)
    y : ndarray (n,), or (n, n_outputs)
        As `Task.rows` returns targets.
    groups : ndarray of int (n,), or None
    folds : ndarray of int64 (n,)
    arms : list of Arm
    num_left_out : int
        Rows that were not sampled.
    """

    task: Task
    rows: Rows
    y: NDArray[np.float64] | NDArray[np.int64]
    groups: NDArray[np.int64] | None
    folds: NDArray[np.int64]
    arms: list[Arm]
    num_left_out: int = 0

    @cached_property
    def targets(self) -> Floats:
        """What a probe is fitted to, (n, n_outputs); what is not known is the mean of what is."""
        if self.task.kind == "classification":
            return one_hot(self.y.astype(np.int64), len(self.task.classes))
        columns = self.y.astype(np.float64)
        columns = np.where(columns == UNKNOWN, np.nan, columns) if self.task.kind == "multilabel" else columns
        return np.where(np.isnan(columns), np.nanmean(columns, axis=0), columns)

    def probe(self, arm: Arm, notes: Notes | None = None) -> Probe:
        """Fit a linear probe on an arm, or take up what is noted of it.

        Parameters
        ----------
        arm : Arm
        notes : Notes, optional
            Of the cache.
        """
        if notes is None:
            return linear_probe(arm.features(), self.targets, self.folds)
        # By content: for other rows, targets or folds there is another digest, and nothing is found.
        digest = self._digest(arm)
        if (kept := _probe_of(notes.recall(ProbeBody, digest), self.targets.shape)) is not None:
            return kept
        found = linear_probe(arm.features(), self.targets, self.folds)
        arrays = {"out_of_fold": found.out_of_fold, "in_sample": found.in_sample}
        body = ProbeBody(**{name: ArrayBody.of(array) for name, array in arrays.items()}, penalty=found.penalty)
        with suppress(OSError):  # of a cache that may not be written, or a full disk
            notes.remember(digest, body)
        return found

    def _digest(self, arm: Arm) -> str:
        """Return the name of everything that a probe on an arm depends on."""
        assert self.task.samples is not None
        rows = self.task.samples.ids[self.rows].tobytes()
        document = {
            "features": arm.feature_set.key,
            "rows": digest_bytes(rows + self.targets.astype("<f8").tobytes() + self.folds.astype("<i8").tobytes()),
            # Other releases of the numerical libraries may round otherwise.
            "versions": installed_versions(COMPUTES),
        }
        return digest_json("probe", 1, document)


def _probe_of(kept: ProbeBody | None, shape: tuple[int, ...]) -> Probe | None:
    """Return a probe that was kept; None where none was, or what was kept is none of these rows."""
    if kept is None:
        return None
    try:
        # A note may be damaged, or written by a stranger: what does not fit these rows is fitted again.
        out_of_fold, in_sample = kept.out_of_fold.read(), kept.in_sample.read()
    except ValueError:
        return None
    finite = np.isfinite(out_of_fold).all() and np.isfinite(in_sample).all() and np.isfinite(kept.penalty)
    fits = out_of_fold.shape == in_sample.shape == shape and out_of_fold.dtype == in_sample.dtype == np.float64
    return Probe(out_of_fold, in_sample, kept.penalty) if fits and finite and kept.penalty > 0 else None


def gains(y: NDArray[np.float64] | NDArray[np.int64], predictions: Floats, kind: TaskKind) -> Floats:
    """Return what each row adds to a score, (n,), whose mean is the score: accuracy, share of labels right, or R2.

    Parameters
    ----------
    y : ndarray (n,), or (n, n_outputs)
    predictions : ndarray (n, n_outputs)
        Of a probe.
    kind : str
    """
    if kind == "classification":
        return (predictions.argmax(axis=1) == y).astype(np.float64)
    if kind == "multilabel":
        # A row counts once, however many of its labels are known.
        known = y != UNKNOWN
        right = ((predictions > 0.5) == (y == 1)) & known
        return np.asarray(right.sum(axis=1) / np.maximum(known.sum(axis=1), 1))
    known = np.isfinite(y)
    # Each number counts by its own variance, whatever its unit.
    spread = np.nanvar(y, axis=0)
    errors = np.where(known, (predictions - y) ** 2, 0.0) / np.where(spread > 0, spread, 1.0)
    return np.asarray(1.0 - (errors * (len(y) / np.maximum(known.sum(axis=0), 1))).mean(axis=1))


def role_of(feature_set: FeatureSet) -> Role:
    """Tell what a feature set stands for among the arms."""
    if feature_set.is_baseline:
        name = feature_set.identity.backbone
        return "colours" if name == "colours" else "words" if name == "words" else "pixels"
    return "untrained" if seed_of(feature_set.about.weights_source) is not None else "pretrained"


def gather(
    task: Task,
    sets: Sequence[FeatureSet],
    *,
    random_state: int = 0,
    max_rows: int = MAX_ROWS,
    but_not: Rows | None = None,
) -> Evidence:
    """Return the rows that all feature sets have in the splits that may be fitted on, with folds.

    Parameters
    ----------
    task : Task
    sets : sequence of FeatureSet
        Plain and pooled.
    random_state : int
        Of folds and sampling.
    max_rows : int
        More rows are sampled, groups of them whole.
    but_not : ndarray of int64, optional
        Rows that are left out.

    Raises
    ------
    TaskError
        There are no such rows.
    """
    found = []
    for feature_set in sets:
        by_split = [task.rows(feature_set.open(), split) for split in filter(task.has, FITTED)]
        found.append(tuple(map(np.concatenate, zip(*by_split, strict=True))))
    # A sample that is bad for one network is left out of all: arms are compared on the same rows.
    # Sorted for one set too: another one that comes later must not change the folds, and with them every figure.
    rows = np.sort(reduce(partial(np.intersect1d, assume_unique=True), [of_set for of_set, _ in found]))
    rows = rows if but_not is None else np.setdiff1d(rows, but_not)
    if not len(rows):
        raise TaskError(f"the features share no labelled samples of task {task.name!r} to compare them on")
    # A row has the same target in all sets: those of the first stand for all.
    first, targets = found[0]
    order = np.argsort(first)
    y = targets[order[np.searchsorted(first[order], rows)]]
    group_numbers = task.groups_of(rows)
    groups = None if group_numbers is None else group_numbers.astype(np.int64)
    kept = sampled(len(rows), groups, max_rows, random_state)
    left_out = len(rows) - len(kept)
    rows, y = rows[kept], y[kept]
    groups = None if groups is None else groups[kept]
    folds = fold_numbers(y, groups, random_state=random_state)
    if (folds < 0).any():  # a class in a single fold is never held out: it is judged by nothing
        rows, y, groups = rows[folds >= 0], y[folds >= 0], None if groups is None else groups[folds >= 0]
        folds = folds[folds >= 0]
    return Evidence(
        task, rows, y, groups, folds, [Arm(found, role_of(found), rows) for found in sets], num_left_out=left_out
    )


def sampled(count: int, groups: NDArray[np.int64] | None, max_rows: int, random_state: int) -> NDArray[np.int64]:
    """Return indices of at most so many rows, groups of them whole.

    Parameters
    ----------
    count : int
        Rows there are.
    groups : ndarray of int (count,), optional
    max_rows : int
    random_state : int
    """
    if count <= max_rows:
        return np.arange(count)
    generator = np.random.default_rng(random_state)
    if groups is None:
        return np.sort(generator.permutation(count)[:max_rows])
    # Groups in random order, as many as fit; where the first is larger than the limit, the first rows.
    numbers, of_row, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = generator.permutation(len(numbers))
    fit = np.cumsum(sizes[order]) <= max_rows
    return np.flatnonzero(np.isin(of_row, order[fit])) if fit.any() else np.arange(max_rows)


def class_counts_by_split(task: Task) -> dict[str, dict[str, int]]:
    """Return the samples of each class, or with each label, in each split."""
    counts = {}
    for split in filter(task.has, SPLITS):
        labels = task.labels[task.splits == SPLITS.index(split)]
        of_split = np.bincount(labels, minlength=len(task.classes)) if labels.ndim == 1 else (labels == 1).sum(axis=0)
        counts[split] = dict(zip(task.classes, of_split.tolist(), strict=True))
    return counts


@dataclass(frozen=True, eq=False)
class ProbedArm(Arm):
    """An arm with its probe.

    Attributes
    ----------
    name : str
        What people call it.
    probe : Probe
    gains : ndarray of float64 (n,)
        What each row adds to the score out of fold; see `featurecache.advice.evidence.gains`.
    is_default : bool
        Its tap is the network's default one.
    """

    name: str
    probe: Probe
    gains: Floats
    is_default: bool


def fit_probes(
    evidence: Evidence, store: FeatureStore, *, n_jobs: int = -1, progress: Progress | None = None
) -> list[ProbedArm]:
    """Fit a linear probe on each arm, or take up what the cache has noted of it.

    Parameters
    ----------
    evidence : Evidence
    store : FeatureStore
    n_jobs : int
        Threads; all cores when negative.
    progress : Progress, optional
        Told of each arm.
    """
    if progress is not None:
        progress.start("comparing features", len(evidence.arms))
    names = _names_of(evidence)

    def fit(arm: Arm) -> ProbedArm:
        probe = evidence.probe(arm, store)
        if progress is not None:
            progress.advance(1)
        gained = gains(evidence.y, probe.out_of_fold, evidence.task.kind)
        is_default = arm.feature_set.tap.partition(":")[0] == "pre_logits"
        return ProbedArm(arm.feature_set, arm.role, arm.rows, names[arm.feature_set.key], probe, gained, is_default)

    num_threads = min(num_cores() if n_jobs < 0 else max(n_jobs, 1), len(evidence.arms))
    # Threads: what takes long is linear algebra, which lets others run.
    return list(Parallel(n_jobs=num_threads, require="sharedmem")(delayed(fit)(arm) for arm in evidence.arms))


def _names_of(evidence: Evidence) -> dict[str, str]:
    """Return what people call each arm, by the key of its feature set."""
    names = {}
    for is_baseline in (True, False):
        arms = [arm for arm in evidence.arms if arm.feature_set.is_baseline == is_baseline]
        documents = [arm.feature_set.to_json() for arm in arms]
        if is_baseline:  # what no network made has one tap, which says nothing
            documents = [{**document, "tap": document["backbone"], "backbone": ""} for document in documents]
        for arm, name in zip(arms, distinct_names(documents), strict=True):
            # An untrained network has the name of the pretrained one, and may stand beside it.
            names[arm.feature_set.key] = f"{name}, untrained" if arm.role == "untrained" else name
    return names
