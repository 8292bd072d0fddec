"""How deep to train, by evidence: a linear probe on the last layer, tails that reach further back, the whole network.

The tails are trained on what is cached of their layers, the whole network on that or on the images themselves.

Each rung starts from a linear head on the pretrained features, so that a deeper one has no worse start than a shallower
(LP-FT), and each is judged by the protocol that judges every head.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from featurecache.backbones.probing import probe
from featurecache.errors import BackboneError, HeadError, RequestError
from featurecache.evaluation.training import TrainedHead, TrainingReport, train_heads
from featurecache.extraction.reproduction import reproduce_backbone
from featurecache.finetuning.making import TAIL
from featurecache.finetuning.training import FineTuning, check_views, forget, train_on
from featurecache.heads.registry import last_step
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.store import FeatureStore
from featurecache.store.tasks import Task

_LINEAR = {"classes": "logistic", "labels": "logistic", "numbers": "ridge"}


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One depth."""

    tap: str
    num_bytes: int
    """Of one sample's activations on disk."""
    head: TrainedHead | None = None
    num_trainable: int | None = None
    """Numbers that training changed."""
    reason: str = ""
    """Why it was not trained."""

    def to_json(self, report: TrainingReport, probe: TrainedHead) -> dict[str, Any]:
        """Return plain JSON values."""
        said = {
            "tap": self.tap,
            "num_bytes": self.num_bytes,
            "num_trainable": self.num_trainable,
            "reason": self.reason,
        }
        if self.head is None:
            return said
        result = self.head.result
        return said | {
            "head": result.head,
            "selection_score": result.selection_score,
            "seconds": round(result.seconds, 3),
            "against_probe": _verdict(report, self.head, probe),
            "against_chosen": _verdict(report, self.head, report.best),
        }


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """All rungs, the shallowest first."""

    report: TrainingReport
    rungs: list[Rung]

    def to_json(self) -> list[dict[str, Any]]:
        """Return plain JSON values, a rung each."""
        probe = self.rungs[0].head
        assert probe is not None
        return [rung.to_json(self.report, probe) for rung in self.rungs]


def climb(
    store: FeatureStore,
    task: Task,
    sets: Sequence[FeatureSet],
    tuning: FineTuning | None = None,
    *,
    seconds: float = float("inf"),
    on_rung: Callable[[Rung], None] | None = None,
    balanced: bool = False,
    random_state: int = 0,
    memory: int | None = None,
    backbone: str | None = None,
    weights: str | Path | None = None,
    weights_key: str | None = None,
) -> Ladder:
    """Train deeper and deeper while there is time.

    Parameters
    ----------
    store, task, balanced, random_state, memory, backbone, weights, weights_key
        As for `featurecache.finetuning.training.train_layers`.
    sets
        What is cached of one backbone: pooled features to begin with, and whole activations of several layers; or
        images (`featurecache.finetuning.images.images_of`).
    tuning
        How tails are trained; their output layers start from a linear head.
    seconds
        For all of it. A rung is not begun that would take longer than is left, if it takes as long as the one before
        it for each number that a sample has.
    on_rung
        Called with each rung as it comes.

    Raises
    ------
    RequestError
        There are no pooled features, or neither whole activations nor images.
    """
    started = time.monotonic()
    reopening: dict[str, Any] = {"backbone": backbone, "weights": weights, "weights_key": weights_key}
    first, whole = _parts_of(sets, reopening)
    tuning = replace(tuning or FineTuning(), start=("probe",))
    check_views(sets, tuning)
    judging: dict[str, Any] = {"balanced": balanced, "random_state": random_state}
    report = train_heads(store, task, [first], [_LINEAR[task.kind]], **judging, memory=memory)

    def train(feature_set: FeatureSet) -> TrainingReport:
        settings: dict[str, Any] = {**judging, "memory": memory, **reopening}
        return train_on(store, task, feature_set, TAIL, tuning, **settings)

    linear = last_step(report.best.result.estimator)
    size = linear.coef_.size + np.size(linear.intercept_)
    rungs = [Rung(tap=first.tap, num_bytes=first.num_bytes, head=report.best, num_trainable=size)]
    seconds_of_a_number = 0.0
    for feature_set in whole:
        if on_rung is not None:
            on_rung(rungs[-1])
        numbers = math.prod(feature_set.activation_shape) * (feature_set.num_views or 1)
        left = seconds - (time.monotonic() - started)
        expected = seconds_of_a_number * numbers
        if expected > left:
            reason = f"would take about {expected:.0f} s, and {max(left, 0):.0f} s are left"
            rungs.append(Rung(tap=feature_set.tap, num_bytes=feature_set.num_bytes, reason=reason))
            continue
        begun = time.monotonic()
        rungs.append(_trained(feature_set, train, report))
        if rungs[-1].head is not None:
            seconds_of_a_number = (time.monotonic() - begun) / numbers
    if on_rung is not None:
        on_rung(rungs[-1])
    forget(store, task, whole, [TAIL], tuning, **judging)
    return Ladder(report=report, rungs=rungs)


def _trained(feature_set: FeatureSet, train: Callable[[FeatureSet], TrainingReport], report: TrainingReport) -> Rung:
    """Train a tail and take it into the report, or say why it could not be."""
    rung = Rung(tap=feature_set.tap, num_bytes=feature_set.num_bytes)
    try:
        found = train(feature_set)
    except (BackboneError, HeadError) as error:
        return replace(rung, reason=str(error))
    report.join(found)
    head = found.best
    return replace(rung, head=head, num_trainable=sum(array.size for array in head.result.estimator.arrays_))


def _parts_of(sets: Sequence[FeatureSet], reopening: Mapping[str, Any]) -> tuple[FeatureSet, list[FeatureSet]]:
    """Return the pooled features to begin with, and the whole activations, the last layer first."""
    whole = [each for each in sets if not each.is_pooled]
    networks = {each.fingerprint for each in whole}
    pooled = [each for each in sets if each.is_pooled and (each.fingerprint in networks or not networks)]
    if not pooled or not whole:
        missing = "whole activations (--tap layer3:none)" if pooled else "pooled features to begin with (--tap default)"
        otherwise = ", or train on the images too (--from-images FOLDER)" if pooled else ""
        raise RequestError(
            f"a ladder needs {missing}; add them with `featurecache extract`{otherwise}, and see `featurecache inspect "
            "BACKBONE --tails`"
        )
    return _last_layer(pooled), _from_the_last(whole, reopening)


def _last_layer(pooled: Sequence[FeatureSet]) -> FeatureSet:
    """Return the input of the output layer, or what was cached last."""
    return next((each for each in pooled if each.tap.startswith("pre_logits:")), pooled[-1])


def _from_the_last(whole: Sequence[FeatureSet], reopening: Mapping[str, Any]) -> list[FeatureSet]:
    """Sort by where in the network the taps are, the last layer first."""
    if others := [each for each in whole if each.fingerprint != whole[0].fingerprint]:
        raise RequestError(f"a ladder is of one network, and {whole[0]} and {others[0]} are of two; choose with "
                           "--fingerprint")  # fmt: skip
    made_with = whole[0].about["weights_source"]
    identity = whole[0].identity.plain
    network = reproduce_backbone(identity, made_with, needed_by="a ladder", **reopening)
    order = probe(network).order
    return sorted(whole, key=lambda each: -order[each.tap.rpartition(":")[0]])


def _verdict(report: TrainingReport, head: TrainedHead, other: TrainedHead) -> str | None:
    compared = report.compare(head, other)
    return None if compared is None else compared.verdict
