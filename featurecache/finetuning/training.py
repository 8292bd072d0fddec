"""Layers trained on cached activations or on images of a task, chosen and scored by the protocol of every head."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from featurecache.backbones.backbone import Backbone
from featurecache.errors import ReportWarning, RequestError, command_line, unique_warnings
from featurecache.evaluation.trained_head import TrainedHead
from featurecache.evaluation.training import TrainingReport, train_heads
from featurecache.extraction.reproduction import reproduce_backbone
from featurecache.finetuning.factories import TAIL, layer_factory
from featurecache.finetuning.images import ImageSet
from featurecache.finetuning.settings import FineTuning
from featurecache.hashing import digest_json
from featurecache.heads.gradient.budget import TrainingBudget
from featurecache.heads.gradient.finetuned import FineTuned, FineTunedClassifier, FineTunedRegressor
from featurecache.heads.gradient.trainable import layer_factors
from featurecache.heads.head import NamedHead
from featurecache.progress import Progress
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.gc import TRAINING
from featurecache.store.store import FeatureStore
from featurecache.store.tasks import Task
from featurecache.wording import counted

# Whole activations are read by the batch: the limit on features of pooled taps is not for them.
_NO_LIMIT = 1 << 62


@dataclass(frozen=True, kw_only=True)
class LayerTraining:
    """Trains layers on feature sets of a task.

    Parameters
    ----------
    store : FeatureStore
    task : Task
    tuning : FineTuning
        Each augmentation makes a head of its own, so that they can be compared.
    tta, balanced, metric, threshold, positive, random_state, memory, progress
        As for `featurecache.evaluation.training.train_heads`.
    backbone, weights, weights_key
        As for `featurecache.extraction.reproduction.reproduce_backbone`: the network whose rest is trained.
    """

    store: FeatureStore
    task: Task
    tuning: FineTuning
    tta: bool = False
    balanced: bool = False
    metric: str | None = None
    threshold: str | None = None
    positive: str | None = None
    random_state: int = 0
    memory: int | None = None
    progress: Progress | None = None
    backbone: str | None = None
    weights: str | Path | None = None
    weights_key: str | None = None

    def train(self, sets: Sequence[FeatureSet], heads: Sequence[str]) -> TrainingReport:
        """Train layers of several heads on several feature sets.

        Parameters
        ----------
        sets : sequence of FeatureSet
            Activations to train on; whole ones (``layer3:none``) where the rest of the network follows. Images: see
            `featurecache.finetuning.images.images_of`.
        heads : sequence of str
            What to train; see `featurecache.finetuning.factories`.

        Raises
        ------
        RequestError
            Pooled activations where whole ones are needed, or views of images where there are none.
        BackboneError
            The network cannot be cut there, or it cannot be had here.
        HeadError
            Layers that do not fit, or training that diverges.
        """
        self.check_views(sets)
        report = TrainingReport(self.task, [])
        for feature_set, head in product(sets, heads):
            report.join(self.train_head(feature_set, head))
        # Only now: a run that is killed at its second head takes over the first.
        self.remove_checkpoints(sets, heads)
        return report

    def train_head(
        self,
        feature_set: FeatureSet,
        head: str,
        *,
        network: Backbone | None = None,
        budget: TrainingBudget | None = None,
    ) -> TrainingReport:
        """Train the layers of one head, and leave its checkpoints; see `remove_checkpoints`.

        Parameters
        ----------
        feature_set : FeatureSet
        head : str
            As for `train`.
        network : Backbone, optional
            That made the features, where it is loaded already.
        budget : TrainingBudget, optional
            How much time there is.
        """
        report, budget = TrainingReport(self.task, []), budget or TrainingBudget()
        if head == TAIL:
            self._check_whole(feature_set)
            network = network or self.reproduce(feature_set, needed_by=f"a tail after {feature_set.tap}")
        shape = feature_set.activation_shape
        estimator = (FineTunedRegressor if self.task.kind == "regression" else FineTunedClassifier)(
            layer_factory(head, feature_set.tap, shape, network),
            description=f"{head} {feature_set.key}",
            shape=shape,
            budget=budget,
        )
        with feature_set.dataset.modality.undisturbed() if isinstance(feature_set, ImageSet) else nullcontext():
            for tuning in each_training(self.tuning, feature_set, head):
                folder = self.checkpoint_folder(feature_set, head, tuning)
                estimator.set_params(checkpoints=str(folder), **tuning.params())
                named = NamedHead(head, estimator, tuning.grid)
                # One at a time: layers compute on all cores.
                options = {"tta": self.tta, "n_jobs": 1, "progress": self.progress, "max_numbers": _NO_LIMIT}
                report.join(self.evaluate(feature_set, named, **options))
        report.warnings = unique_warnings([*report.warnings, *self._warnings(report, feature_set, head, budget)])
        return report

    def evaluate(self, feature_set: FeatureSet, head: str | NamedHead, **options: Any) -> TrainingReport:
        """Train any one head, by what all heads here have in common; ``options`` are others of `train_heads`."""
        return train_heads(
            self.store,
            self.task,
            [feature_set],
            [head],
            balanced=self.balanced,
            metric=self.metric,
            threshold=self.threshold,
            positive=self.positive,
            random_state=self.random_state,
            memory=self.memory,
            **options,
        )

    def reproduce(self, feature_set: FeatureSet, *, needed_by: str) -> Backbone:
        """Load the network that made the features of a set."""
        return reproduce_backbone(
            feature_set.identity.plain,
            feature_set.about.weights_source,
            needed_by=needed_by,
            backbone=self.backbone,
            weights=self.weights,
            weights_key=self.weights_key,
        )

    def checkpoint_folder(self, feature_set: FeatureSet, head: str, tuning: FineTuning) -> Path:
        """Return the folder for the checkpoints of a training: its own, as others may be at work on the cache.

        Parameters
        ----------
        feature_set, head
            As for `train_head`.
        tuning : FineTuning
            One of `each_training`.
        """
        # What changes no number is left out, so that a killed training may be gone on with otherwise.
        identity = {name: value for name, value in vars(tuning).items() if name not in ("resume", "checkpoint_seconds")}
        identity |= {"task": self.task.name, "layers": f"{head} {feature_set.key}"}
        identity |= {"tta": self.tta, "balanced": self.balanced, "seed": self.random_state}
        return self.store.path / TRAINING / digest_json("training", 1, identity)[:16]

    def remove_checkpoints(self, sets: Iterable[FeatureSet], heads: Sequence[str]) -> None:
        """Remove the checkpoints of trainings that are done; the folder around them with the last."""
        for feature_set, head in product(sets, heads):
            for tuning in each_training(self.tuning, feature_set, head):
                folder = self.checkpoint_folder(feature_set, head, tuning)
                shutil.rmtree(folder, ignore_errors=True)
                # Not empty as long as there are checkpoints of another training.
                with suppress(OSError):
                    folder.parent.rmdir()

    def check_views(self, sets: Sequence[FeatureSet]) -> None:
        """Raise `RequestError` where views of images are asked for, and there are no images."""
        if "views" in self.tuning.augment and not any(isinstance(feature_set, ImageSet) for feature_set in sets):
            raise RequestError(
                f"--augment views shows another part of each image in every epoch, and of {sets[0]} only activations "
                "are kept; add --from-images FOLDER, or augment with brightness, noise or mixup"
            )

    def _check_whole(self, feature_set: FeatureSet) -> None:
        node, _, pooling = feature_set.tap.rpartition(":")
        if pooling == "none":
            return
        backbone, whole = feature_set.identity.backbone, f"{node}:none"
        extract = command_line("extract", "SOURCE", "--cache", self.store.path, "--backbone", backbone, "--tap", whole)
        raise RequestError(
            f"tap {feature_set.tap!r} is pooled, and the layers after it need all of it; run `{extract}`, and train "
            f"with --from-tap {whole} (see `{command_line('inspect', backbone, '--tails')}` for others)"
        )

    def _warnings(
        self, report: TrainingReport, feature_set: FeatureSet, head: str, budget: TrainingBudget
    ) -> Iterator[ReportWarning]:
        """Warn of what is doubtful about the trainings of a head."""
        name = f"{head} on {feature_set.tap}"
        rises = [rise for trained in report.heads if (rise := trained.result.estimator.loss_rise_) is not None]
        if rises:
            begun, ended = rises[0]
            text = f"{name}: the loss rose from {begun:.4g} to {ended:.6g}; use a smaller --learning-rate"
            yield ReportWarning(kind="diverged", count=len(rises), text=text)
        if budget.diverged:
            settings = tuple(", ".join(f"{key}={value}" for key, value in s.items()) for s in budget.diverged)
            text = f"{name}: settings whose loss was no finite number any more are left out"
            yield ReportWarning(kind="diverged", count=len(settings), text=text, examples=settings)
        if count := budget.num_stopped:
            total = len(budget.deadlines)
            text = (
                f"{name}: {counted(count, 'training', of=total, verb='was')} stopped at the deadline, before "
                "their last step"
            )
            yield ReportWarning(kind="deadline", count=count, text=text)
        if (decay := self.tuning.layer_decay) != 1:
            factors = layer_factors(report.best.result.estimator.fitted_layers, decay)
            if (count := len(set(factors.values()))) < 2:
                reason = "has no pretrained layers" if count == 0 else "is one group of layers"
                text = f"{name}: --layer-decay has no effect, as what is trained {reason}"
                yield ReportWarning(kind="layer_decay", count=1, text=text)


def each_training(tuning: FineTuning, feature_set: FeatureSet, head: str) -> list[FineTuning]:
    """Return the settings of each training: one for each augmentation that is for a feature set.

    Parameters
    ----------
    tuning : FineTuning
    feature_set : FeatureSet
        Views are of images alone.
    head : str
        As for `LayerTraining.train`.
    """
    tuning = tuning.started(pretrained=head == TAIL)
    fit = [name for name in tuning.augment if name != "views" or isinstance(feature_set, ImageSet)]
    return [replace(tuning, augment=(name,)) for name in fit or [None]]


def keeps_statistics(head: TrainedHead) -> bool:
    """Tell whether a head is layers with norms whose statistics stayed those of the pretrained weights."""
    estimator = head.result.estimator
    if not isinstance(estimator, FineTuned) or estimator.batch_norm != "frozen":
        return False
    layers = estimator.fitted_layers
    return not layers.is_own and any(getattr(module, "track_running_stats", False) for module in layers.modules())
