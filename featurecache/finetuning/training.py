"""Layers trained on cached activations of a task, and judged by the same protocol as every head."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from sklearn.base import BaseEstimator

from featurecache.backbones.backbone import Backbone
from featurecache.errors import ReportWarning, RequestError, unique_warnings
from featurecache.evaluation.training import TrainedHead, TrainingReport, train_heads
from featurecache.extraction.reproduction import reproduce_backbone
from featurecache.finetuning.images import ImageSet
from featurecache.finetuning.making import maker, needs_backbone
from featurecache.finetuning.settings import FineTuning
from featurecache.hashing import digest_json
from featurecache.heads.gradient.finetuned import FineTunedClassifier, FineTunedRegressor
from featurecache.heads.gradient.trainable import layer_factors
from featurecache.heads.gradient.trainings import Trainings
from featurecache.heads.gradient.tuner import FineTuned, MakeLayers
from featurecache.heads.head import NamedHead
from featurecache.progress import Progress
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.gc import TRAINING
from featurecache.store.store import FeatureStore
from featurecache.store.tasks import Task

_NO_LIMIT = 1 << 62


def train_layers(
    store: FeatureStore,
    task: Task,
    sets: Sequence[FeatureSet],
    heads: Sequence[str],
    tuning: FineTuning | None = None,
    *,
    memory: int | None = None,
    backbone: str | None = None,
    weights: str | Path | None = None,
    weights_key: str | None = None,
    progress: Progress | None = None,
    **judging: Any,
) -> TrainingReport:
    """Train layers on cached activations, or on images.

    Parameters
    ----------
    store, task, memory, progress
        As for `featurecache.evaluation.training.train_heads`.
    sets
        Activations to train on; whole ones (``layer3:none``) where the rest of the network follows. Images: see
        `featurecache.finetuning.images.images_of`.
    heads
        What to train; see `featurecache.finetuning.making`.
    tuning
        How. Each augmentation makes a head of its own, so that they can be compared.
    backbone, weights, weights_key
        As for `featurecache.extraction.reproduction.reproduce_backbone`: the network whose rest is trained.
    **judging
        ``tta``, ``balanced`` and ``random_state``, as for `train_heads`.

    Raises
    ------
    RequestError
        Pooled activations where whole ones are needed, or views of images where there are none.
    BackboneError
        The network cannot be cut there, or it cannot be had here.
    HeadError
        Layers that do not fit, or training that diverges.
    """
    tuning = tuning or FineTuning()
    check_views(sets, tuning)
    report = TrainingReport(task, [])
    for feature_set, head in product(sets, heads):
        rest: dict[str, Any] = {"memory": memory, "progress": progress}
        rest |= {"backbone": backbone, "weights": weights, "weights_key": weights_key}
        report.join(train_on(store, task, feature_set, head, tuning, **rest, **judging))
    forget(store, task, sets, heads, tuning, **judging)
    return report


def train_on(
    store: FeatureStore,
    task: Task,
    feature_set: FeatureSet,
    head: str,
    tuning: FineTuning,
    *,
    memory: int | None = None,
    backbone: str | None = None,
    weights: str | Path | None = None,
    weights_key: str | None = None,
    network: Backbone | None = None,
    trainings: Trainings | None = None,
    progress: Progress | None = None,
    **judging: Any,
) -> TrainingReport:
    """Do a part of what `train_layers` does, and leave what a killed training would go on from; see `forget`.

    Parameters
    ----------
    network
        That made the features, where it is at hand.
    trainings
        How much time there is.
    """
    report = TrainingReport(task, [])
    trainings = trainings or Trainings()
    make = _maker(head, feature_set, backbone, weights, weights_key, store, network)
    reading = feature_set.reader.undisturbed() if isinstance(feature_set, ImageSet) else nullcontext()
    how: dict[str, Any] = {**judging, "n_jobs": 1, "memory": memory, "max_numbers": _NO_LIMIT}
    with reading:
        for one in apart(tuning, feature_set):
            place = place_of(store, task, feature_set, head, one, **judging)
            estimator = _estimator(make, task, one, feature_set, head, place, trainings)
            named = NamedHead(head, estimator, partial(_same_for_all, one.grid()))
            report.join(train_heads(store, task, [feature_set], [named], **how, progress=progress))
    report.warnings = unique_warnings([*report.warnings, *_warnings(report, feature_set, head, tuning, trainings)])
    return report


def _warnings(
    report: TrainingReport, feature_set: FeatureSet, head: str, tuning: FineTuning, trainings: Trainings
) -> Iterator[ReportWarning]:
    """Say what is doubtful about the trainings of a head."""
    name = f"{head} on {feature_set.tap}"
    rises = [each for trained in report.heads if (each := trained.result.estimator.loss_rise_) is not None]
    if rises:
        begun, ended = rises[0]
        text = f"{name}: the loss rose from {begun:.4g} to {ended:.6g}; use a smaller --learning-rate"
        yield ReportWarning(kind="diverged", count=len(rises), text=text)
    if trainings.diverged:
        left_out = tuple(", ".join(f"{key}={value}" for key, value in each.items()) for each in trainings.diverged)
        text = f"{name}: settings whose loss was no finite number any more are left out"
        yield ReportWarning(kind="diverged", count=len(left_out), text=text, examples=left_out)
    if trainings.num_stopped:
        count = trainings.num_stopped
        text = (
            f"{name}: {count} of {len(trainings.turns)} trainings were stopped at the deadline, before their last step"
        )
        yield ReportWarning(kind="deadline", count=count, text=text)
    if tuning.layer_decay != 1:
        layers = report.best.result.estimator.fitted_layers
        if (count := len(set(layer_factors(layers, tuning.layer_decay).values()))) < 2:
            reason = "has no pretrained layers" if count == 0 else "is one group of layers"
            text = f"{name}: --layer-decay has no effect, as what is trained {reason}"
            yield ReportWarning(kind="layer_decay", count=1, text=text)


def place_of(
    store: FeatureStore,
    task: Task,
    feature_set: FeatureSet,
    head: str,
    tuning: FineTuning,
    *,
    tta: bool = False,
    balanced: bool = False,
    random_state: int = 0,
) -> Path:
    """Return the folder in which a training keeps how far it is: its own, as others may be at work on the cache."""
    said = {name: value for name, value in vars(tuning).items() if name not in ("resume", "checkpoint_seconds")}
    said |= {"task": task.name, "layers": _described(feature_set, head)}
    said |= {"tta": tta, "balanced": balanced, "seed": random_state}
    return store.path / TRAINING / digest_json("training", 1, said)[:16]


def forget(
    store: FeatureStore,
    task: Task,
    sets: Iterable[FeatureSet],
    heads: Sequence[str],
    tuning: FineTuning,
    **judging: Any,
) -> None:
    """Remove what trainings that are done kept; the folder around them with the last."""
    for feature_set, head in product(sets, heads):
        for one in apart(tuning, feature_set):
            place = place_of(store, task, feature_set, head, one, **judging)
            shutil.rmtree(place, ignore_errors=True)
            with suppress(OSError):
                place.parent.rmdir()


def apart(tuning: FineTuning, feature_set: FeatureSet) -> list[FineTuning]:
    """Return one for each augmentation that is for a feature set: views are of images alone."""
    fit = [each for each in tuning.augment if each != "views" or isinstance(feature_set, ImageSet)]
    return [replace(tuning, augment=(each,)) for each in fit or [None]]


def keeps_statistics(head: TrainedHead) -> bool:
    """Tell whether a head is layers with norms whose statistics stayed those of the pretrained weights."""
    estimator = head.result.estimator
    if not isinstance(estimator, FineTuned) or estimator.batch_norm != "frozen":
        return False
    layers = estimator.fitted_layers
    return not layers.is_own and any(getattr(module, "track_running_stats", False) for module in layers.modules())


def _maker(
    head: str,
    feature_set: FeatureSet,
    backbone: str | None,
    weights: str | Path | None,
    weights_key: str | None,
    store: FeatureStore,
    network: Backbone | None,
) -> MakeLayers:
    if needs_backbone(head):
        _check_whole(feature_set, store)
        network = network or reproduce_backbone(
            feature_set.identity.plain,
            feature_set.about.weights_source,
            needed_by=f"a tail after {feature_set.tap}",
            backbone=backbone,
            weights=weights,
            weights_key=weights_key,
        )
    return maker(head, feature_set.tap, feature_set.activation_shape, network)


def _check_whole(feature_set: FeatureSet, store: FeatureStore) -> None:
    node, _, pooling = feature_set.tap.rpartition(":")
    if pooling != "none":
        whole = f"{node}:none"
        raise RequestError(
            f"tap {feature_set.tap!r} is pooled, and the layers after it need all of it; run `featurecache extract "
            f"SOURCE --cache {store.path} --backbone {feature_set.identity.backbone} --tap {whole}`, and train with "
            f"--from-tap {whole} (see `featurecache inspect {feature_set.identity.backbone} --tails` for others)"
        )


def check_views(sets: Sequence[FeatureSet], tuning: FineTuning) -> None:
    """Raise `RequestError` where views of images are asked for, and there are no images."""
    if "views" in tuning.augment and not any(isinstance(each, ImageSet) for each in sets):
        raise RequestError(
            f"--augment views shows another part of each image in every epoch, and of {sets[0]} only activations are "
            "kept; add --from-images FOLDER, or augment with brightness, noise or mixup"
        )


def _described(feature_set: FeatureSet, head: str) -> str:
    return f"{head} {feature_set.key}"


def _same_for_all(grid: list[dict[str, Any]], num_rows: int) -> list[dict[str, Any]]:
    return grid


def _estimator(
    make: MakeLayers,
    task: Task,
    tuning: FineTuning,
    feature_set: FeatureSet,
    head: str,
    place: Path,
    trainings: Trainings,
) -> BaseEstimator:
    kind = FineTunedRegressor if task.kind == "regression" else FineTunedClassifier
    about: dict[str, Any] = {"description": _described(feature_set, head), "shape": feature_set.activation_shape}
    if isinstance(feature_set, ImageSet):
        about["reader"] = feature_set.reader
    return kind(make, **about, checkpoints=str(place), trainings=trainings, **tuning.fixed())
