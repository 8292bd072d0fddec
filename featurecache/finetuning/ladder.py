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

from featurecache.backbones.backbone import Backbone
from featurecache.backbones.dry_run import INPUT, PRE_LOGITS
from featurecache.backbones.inspection import CostedDryRun, dry_run_with_costs
from featurecache.errors import BackboneError, HeadError, ReportWarning, RequestError
from featurecache.evaluation.training import TrainedHead, TrainingReport, train_heads
from featurecache.extraction.reproduction import reproduce_backbone
from featurecache.finetuning.choosing import shallowest_unless_better
from featurecache.finetuning.making import TAIL, maker
from featurecache.finetuning.planning import (
    TRAINING_PASSES,
    LadderPlan,
    RungPlan,
    measured_speed,
    plan_rung,
    seconds_of_a_flop,
    speed_by_operations,
)
from featurecache.finetuning.settings import FineTuning
from featurecache.finetuning.training import check_views, forget, train_on
from featurecache.heads.gradient.trainings import Cost, Trainings
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.store import FeatureStore
from featurecache.store.tasks import Task

_ROUGHLY = 4
"""A whole network's speed may be that far from the speed of a part of it in training."""
_STEPS_TO_TIME = 4
_LINEAR = {"classification": "logistic", "multilabel": "logistic", "regression": "ridge"}


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
    predicted_seconds: float | None = None
    """Where time is limited."""
    num_stopped: int = 0
    """Trainings that were stopped because their time was over."""

    def to_json(self, report: TrainingReport, probe: TrainedHead) -> dict[str, Any]:
        """Return plain JSON values."""
        said = {
            "tap": self.tap,
            "num_bytes": self.num_bytes,
            "num_trainable": self.num_trainable,
            "reason": self.reason,
            "predicted_seconds": None if self.predicted_seconds is None else round(self.predicted_seconds, 1),
            "num_stopped": self.num_stopped,
            "chosen": self.head is not None and self.head is report.best,
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
    """The head of the chosen rung comes first."""
    rungs: list[Rung]
    plan: LadderPlan
    overrun: float = 0.0
    """Seconds beyond those that were allowed."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values: the rungs, what was planned, and by how much it took longer than allowed."""
        probe = self.rungs[0].head
        assert probe is not None
        rungs = [rung.to_json(self.report, probe) for rung in self.rungs]
        return {"ladder": rungs, "ladder_plan": self.plan.to_json(), "ladder_overrun": round(self.overrun, 1)}


def climb(
    store: FeatureStore,
    task: Task,
    sets: Sequence[FeatureSet],
    tuning: FineTuning | None = None,
    *,
    seconds: float = math.inf,
    on_plan: Callable[[LadderPlan], None] | None = None,
    on_rung: Callable[[Rung], None] | None = None,
    balanced: bool = False,
    random_state: int = 0,
    memory: int | None = None,
    backbone: str | None = None,
    weights: str | Path | None = None,
    weights_key: str | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Ladder:
    """Train deeper and deeper while there is time, and choose the shallowest unless a deeper one is better.

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
        For all of it. A rung that is predicted to take longer than is left is not begun, and trainings that take longer
        than was predicted are stopped.
    on_plan
        Called before anything is trained.
    on_rung
        Called with each rung as it comes.
    clock
        Gives seconds.

    Raises
    ------
    RequestError
        There are no pooled features, or neither whole activations nor images.
    """
    deadline = clock() + seconds
    network, first, whole = _parts_of(sets, {"backbone": backbone, "weights": weights, "weights_key": weights_key})
    tuning = replace(tuning or FineTuning(), start=("probe",))
    check_views(sets, tuning)
    judging: dict[str, Any] = {"balanced": balanced, "random_state": random_state}
    costed = dry_run_with_costs(network)
    whole.sort(key=lambda each: -costed.seen.order[_node(each)])
    plans = [_plan(task, each, tuning, costed, random_state) for each in whole]
    plan = LadderPlan(rungs=tuple(plans))
    if on_plan is not None:
        on_plan(plan)
    begun = clock()
    report = train_heads(store, task, [first], [_LINEAR[task.kind]], **judging, memory=memory)
    linear = report.best.result.estimator
    size = linear.coef_.size + np.size(linear.intercept_)
    rungs = [Rung(tap=first.tap, num_bytes=first.num_bytes, head=report.best, num_trainable=size)]
    budget = _Budget(network, costed, tuning, deadline=deadline, clock=clock, beginning=clock() - begun)
    for feature_set, planned in zip(whole, plans, strict=True):
        if on_rung is not None:
            on_rung(rungs[-1])
        settings: dict[str, Any] = {**judging, "memory": memory, "network": network}
        rungs.append(_rung(store, task, feature_set, planned, budget, report, settings))
    if on_rung is not None:
        on_rung(rungs[-1])
    forget(store, task, whole, [TAIL], tuning, **judging)
    _choose(report, rungs, max(each.num_settings for each in plans))
    overrun = max(clock() - deadline, 0.0)
    if overrun >= 1:
        report.warnings.append(_overrun(seconds, overrun))
    return Ladder(report=report, rungs=rungs, plan=plan, overrun=overrun)


class _Budget:
    """What is left of the time, and how much of it a rung would take."""

    def __init__(
        self,
        network: Backbone,
        costed: CostedDryRun,
        tuning: FineTuning,
        *,
        deadline: float,
        clock: Callable[[], float],
        beginning: float,
    ) -> None:
        self.deadline, self.clock, self.tuning, self.is_limited = deadline, clock, tuning, not math.isinf(deadline)
        self._network, self._beginning = network, beginning
        self._flop = seconds_of_a_flop(network, costed.flops[PRE_LOGITS], clock=clock) if self.is_limited else 0.0

    @property
    def left(self) -> float:
        return max(self.deadline - self.clock(), 0.0)

    def costs(self, task: Task, feature_set: FeatureSet, plan: RungPlan) -> list[Cost]:
        """Return the predicted seconds of each training: by operations where steps themselves would take too long."""
        if not self.is_limited:
            return []
        by_operations = speed_by_operations(plan.flops, self._flop, self.tuning, beginning=self._beginning)
        costs = by_operations.costs(plan, self.tuning)
        # A few steps are taken unless the rung is far from fitting, or these steps alone would be a good part of it.
        if _total(costs) > _ROUGHLY * self.left or _STEPS_TO_TIME * by_operations.step > self.left / _ROUGHLY:
            return costs
        layers = maker(TAIL, feature_set.tap, feature_set.activation_shape, self._network)(len(task.classes))
        speed = measured_speed(layers, feature_set, self.tuning, clock=self.clock, beginning=self._beginning)
        costs = speed.costs(plan, self.tuning)
        forward = speed.step / (self.tuning.batch_size * TRAINING_PASSES)
        self._flop = forward / plan.flops if plan.flops else self._flop
        return costs


def _rung(
    store: FeatureStore,
    task: Task,
    feature_set: FeatureSet,
    plan: RungPlan,
    budget: _Budget,
    report: TrainingReport,
    settings: dict[str, Any],
) -> Rung:
    """Train a tail if there is time for it, and take it into the report, or say why it could not be."""
    rung = Rung(tap=feature_set.tap, num_bytes=feature_set.num_bytes)
    try:
        costs = budget.costs(task, feature_set, plan)
        predicted, left = (_total(costs), budget.left) if budget.is_limited else (None, math.inf)
        if predicted is not None and predicted > left:
            reason = f"would take about {predicted:.0f} s, and {left:.0f} s are left"
            return replace(rung, reason=reason, predicted_seconds=predicted)
        trainings = Trainings(deadline=budget.deadline, costs=costs, clock=budget.clock)
        found = train_on(store, task, feature_set, TAIL, budget.tuning, **settings, trainings=trainings)
    except (BackboneError, HeadError) as error:
        return replace(rung, reason=str(error))
    report.join(found)
    head = found.best
    return replace(
        rung,
        head=head,
        num_trainable=sum(array.size for array in head.result.estimator.arrays_),
        predicted_seconds=predicted,
        num_stopped=trainings.num_stopped,
    )


def _choose(report: TrainingReport, rungs: list[Rung], num_settings: int) -> None:
    """Put the head of the chosen rung first in the report."""
    heads = [rung.head for rung in rungs if rung.head is not None]
    number = shallowest_unless_better(
        len(heads),
        lambda rung, other: report.compare(heads[rung], heads[other]),
        num_settings=num_settings,
    )
    report.heads.sort(key=lambda head: head is not heads[number])  # a stable sort: the others stay by score


def _plan(task: Task, feature_set: FeatureSet, tuning: FineTuning, costed: CostedDryRun, random_state: int) -> RungPlan:
    before = 0 if _node(feature_set) == INPUT else costed.flops.get(_node(feature_set), 0)
    flops = max(costed.flops[PRE_LOGITS] - before, 0)
    return plan_rung(task, feature_set, tuning, flops=flops, random_state=random_state)


def _total(costs: Sequence[Cost]) -> float:
    return sum(map(sum, costs))


def _overrun(seconds: float, overrun: float) -> ReportWarning:
    text = f"training took {overrun:.0f} s longer than the {seconds:.0f} s that were allowed"
    return ReportWarning(kind="deadline", count=1, text=text)


def _node(feature_set: FeatureSet) -> str:
    return feature_set.tap.rpartition(":")[0]


def _parts_of(
    sets: Sequence[FeatureSet], reopening: Mapping[str, Any]
) -> tuple[Backbone, FeatureSet, list[FeatureSet]]:
    """Return the network, the pooled features to begin with, and the whole activations."""
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
    if others := [each for each in whole if each.fingerprint != whole[0].fingerprint]:
        raise RequestError(f"a ladder is of one network, and {whole[0]} and {others[0]} are of two; choose with "
                           "--fingerprint")  # fmt: skip
    made_with = whole[0].about.weights_source
    identity = whole[0].identity.plain
    network = reproduce_backbone(identity, made_with, needed_by="a ladder", **reopening)
    return network, _last_layer(pooled), whole


def _last_layer(pooled: Sequence[FeatureSet]) -> FeatureSet:
    """Return the input of the output layer, or what was cached last."""
    return next((each for each in pooled if each.tap.startswith("pre_logits:")), pooled[-1])


def _verdict(report: TrainingReport, head: TrainedHead, other: TrainedHead) -> str | None:
    compared = report.compare(head, other)
    return None if compared is None else compared.verdict
