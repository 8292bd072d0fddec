"""Heads and layers trained on cached features, in one table: what a notebook calls, and ``featurecache train`` too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Literal

from featurecache.specs import as_tuple

if TYPE_CHECKING:
    from featurecache.evaluation.configuring import HeadLike
    from featurecache.evaluation.training import TrainingReport
    from featurecache.finetuning.training import LayerTraining
    from featurecache.progress import Progress
    from featurecache.store.feature_sets import FeatureSet
    from featurecache.store.store import FeatureStore
    from featurecache.store.tasks import Task


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSettings:
    """How heads are trained and compared."""

    heads: tuple[HeadLike, ...] = ()
    """Names of heads, or estimators with names; when empty, all that the kind of the task has."""
    tta: bool = False
    """Score heads on the mean over the cached views of each sample, instead of on its plain features."""
    balanced: bool = False
    """Classes count alike, in choosing and (where a head can) in fitting."""
    metric: str | None = None
    """By which settings and heads are chosen instead of accuracy, mean average precision or R2: ``roc_auc``, ..."""
    threshold: str | None = None
    """For what thresholds of two classes, or of labels, are chosen: ``f1``, ``recall=0.95``, ``cost=5:1``, ..."""
    positive: str | None = None
    """Name of the positive one of two classes; the second when ``None``."""
    n_jobs: int | None = None
    """Parallel fits, as in joblib; ``None``: as a `joblib.parallel_config` says, or one per core. No result depends on
    it."""
    memory: int | None = None
    """Bytes of features in memory at most; half of what is free when ``None``."""
    keep: Literal["refitted", "evaluated"] | None = None
    """Which fit of the chosen head `run` keeps: on every sample, or the one that the figures are of.
    ``None``: the first of heads, the second of trained layers."""
    random_state: int = 0
    """Seed of splits, folds, fits and the bootstrap; no feature depends on it."""

    def __post_init__(self) -> None:
        # A text is one name.
        object.__setattr__(self, "heads", as_tuple(self.heads))


@dataclass(frozen=True, slots=True)
class LayersRequest:
    """Layers of a network that are trained on cached activations, or on images."""

    heads: Sequence[str]
    """``tail``, ``layers:conv`` and others that `featurecache.finetuning.factories` knows."""
    sets: Sequence[FeatureSet]
    """Activations, or images."""
    training: LayerTraining
    """How."""


def train(
    store: FeatureStore,
    task: Task,
    sets: Sequence[FeatureSet],
    settings: TrainingSettings,
    *,
    layers: LayersRequest | None = None,
    progress: Progress,
) -> TrainingReport:
    """Train heads on every feature set as `train_heads` does, and layers, with progress drawn.

    Parameters
    ----------
    store : FeatureStore
        The cache that holds task and features.
    task : Task
        Targets and splits.
    sets : sequence of FeatureSet
        What heads are trained on; may be empty where layers are trained.
    settings : TrainingSettings
        Which heads, and how.
    layers : LayersRequest, optional
        Which layers are compared with the heads, and how they are trained.
    progress : Progress
        Told of each head on each feature set, and of the settings that are being fitted.
    """
    from featurecache.errors import unique_warnings
    from featurecache.evaluation.choice_warnings import choice_warnings
    from featurecache.evaluation.training import train_heads
    from featurecache.heads.registry import list_heads

    report = None
    # With layers alone, there is no table of heads to be in.
    if sets or layers is None:
        # Those that are left out on some features never advance it: which these are is known later.
        num_heads = len(settings.heads or list_heads(kind=task.kind))
        progress.start("training heads", num_heads * len(sets))
        # Which fit is kept says nothing of how heads are trained.
        choice = {field.name: getattr(settings, field.name) for field in fields(settings) if field.name != "keep"}
        report = train_heads(store, task, sets, **choice, progress=progress, take_up=True)
    if layers is not None:
        progress.start("training layers", len(layers.heads) * len(layers.sets))
        found = replace(layers.training, progress=progress).train(layers.sets, layers.heads)
        # One table, chosen by the same protocol.
        if report is not None:
            found.join(report)
        report = found
    assert report is not None
    report.warnings = unique_warnings([*report.warnings, *choice_warnings(report)])
    return report
