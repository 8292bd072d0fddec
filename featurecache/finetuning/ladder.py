"""How deep to train, by evidence: a linear probe on the last layer, tails that reach further back, the whole network.

The tails are trained on what is cached of their layers, the whole network on that or on the images themselves.

Each rung starts from a linear head on the pretrained features, so that a deeper one has no worse start than a shallower
(LP-FT), and each is scored by the protocol of every head.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from featurecache.backbones.dry_run import INPUT, PRE_LOGITS, DryRun, dry_run
from featurecache.errors import BackboneError, HeadError, ReportWarning, RequestError
from featurecache.evaluation.choice_warnings import choice_warnings
from featurecache.evaluation.comparison import Comparison
from featurecache.evaluation.trained_head import TrainedHead
from featurecache.evaluation.training import TrainingReport
from featurecache.finetuning import planning
from featurecache.finetuning.factories import TAIL, layer_factory
from featurecache.finetuning.planning import LadderPlan, RungPlan
from featurecache.finetuning.training import LayerTraining
from featurecache.heads.gradient.budget import TrainingBudget, TrainingCost
from featurecache.heads.registry import LINEAR_PROBES
from featurecache.store.feature_sets import FeatureSet

LEVEL = 0.05
"""Of ladders whose rungs are all equally good, at most this share climbs."""
_ROUGHLY = 4
"""A whole network's speed may be that far from the speed of its end in training."""
# About what `measured_speed` takes: a step to warm up, two that are timed, and a prediction.
_STEPS_TO_TIME = 4


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
        document = {
            "tap": self.tap,
            "num_bytes": self.num_bytes,
            "num_trainable": self.num_trainable,
            "reason": self.reason,
            "predicted_seconds": None if self.predicted_seconds is None else round(self.predicted_seconds, 1),
            "num_stopped": self.num_stopped,
            "chosen": self.head is not None and self.head is report.best,
        }
        if self.head is None:
            return document
        result = self.head.result
        document |= {"head": result.head, "selection_score": result.selection_score}
        document["seconds"] = round(result.seconds, 3)
        for name, other in (("against_probe", probe), ("against_chosen", report.best)):
            compared = report.compare(self.head, other)
            document[name] = None if compared is None else compared.verdict
        return document


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
        num_fits = sum(len(rung.fits) for rung in self.plan.rungs)
        plan = {"num_trainings": num_fits, "rungs": [rung.to_json() for rung in self.plan.rungs]}
        return {"ladder": rungs, "ladder_plan": plan, "ladder_overrun": round(self.overrun, 1)}


def climb(
    training: LayerTraining,
    sets: Sequence[FeatureSet],
    *,
    seconds: float = math.inf,
    on_plan: Callable[[LadderPlan], None] = lambda plan: None,
    on_rung: Callable[[Rung], None] = lambda rung: None,
    clock: Callable[[], float] = time.monotonic,
) -> Ladder:
    """Train deeper and deeper while there is time, and choose the shallowest unless a deeper one is better.

    Parameters
    ----------
    training : LayerTraining
        How tails are trained; their output layers start from a linear head.
    sets : sequence of FeatureSet
        What is cached of one backbone: pooled features to start with, and whole activations of several layers; or
        images (`featurecache.finetuning.images.images_of`).
    seconds : float
        For all of it. A rung that is predicted to take longer than is left is not begun, and trainings that take longer
        than was predicted are stopped.
    on_plan, on_rung : callable, optional
        Called with the plan before anything is trained, and with each rung as it comes.
    clock : callable
        Returns seconds.

    Raises
    ------
    RequestError
        There are no pooled features, or neither whole activations nor images.
    """
    # From a linear head, whatever was asked for: a deeper tail has no worse start than a shallower one.
    training = replace(training, tuning=replace(training.tuning, start=("probe",)))
    state = _Climb(training, sets, seconds, clock)
    plan = LadderPlan(rungs=tuple(_plan(training, feature_set, state.seen) for feature_set in state.whole))
    on_plan(plan)
    report, first = state.linear_rung()
    rungs = [first]
    for feature_set, planned in zip(state.whole, plan.rungs, strict=True):
        on_rung(rungs[-1])
        rungs.append(state.rung(feature_set, planned, report))
    on_rung(rungs[-1])
    training.remove_checkpoints(state.whole, [TAIL])
    _choose(report, rungs, max(rung.num_settings for rung in plan.rungs))
    overrun = max(clock() - state.deadline, 0.0)
    # The last step that began in time may end after it.
    if overrun >= 1:
        text = f"training took {overrun:.0f} s longer than the {seconds:.0f} s that were allowed"
        report.warnings.append(ReportWarning(kind="deadline", count=1, text=text))
    report.warnings += choice_warnings(report)
    return Ladder(report=report, rungs=rungs, plan=plan, overrun=overrun)


class _Climb:
    """One ladder while it is trained.

    Parameters
    ----------
    training : LayerTraining
    sets, seconds, clock
        As for `climb`.
    """

    def __init__(
        self, training: LayerTraining, sets: Sequence[FeatureSet], seconds: float, clock: Callable[[], float]
    ) -> None:
        self.training, self.clock = training, clock
        self.deadline = clock() + seconds
        self.pooled, whole = _pooled_and_whole(sets)
        self.network = training.reproduce(whole[0], needed_by="a ladder")
        training.check_views(sets)
        self.seen = dry_run(self.network, with_costs=True)
        # The latest layers first: they cost least, and each depth predicts the next.
        self.whole = sorted(whole, key=lambda feature_set: -self.seen.order[feature_set.tap.rpartition(":")[0]])
        # Seconds of fitting the linear head, and of one operation; known when the former is fitted.
        self.linear_fit, self.flop = 0.0, 0.0

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return max(self.deadline - self.clock(), 0.0)

    def linear_rung(self) -> tuple[TrainingReport, Rung]:
        """Fit the linear head on pooled features, and measure what predicts the rungs to come where time is limited."""
        begun = self.clock()
        report = self.training.evaluate(self.pooled, LINEAR_PROBES[self.training.task.kind])
        estimator = report.best.result.estimator
        size = estimator.coef_.size + np.size(estimator.intercept_)
        tap, num_bytes = self.pooled.tap, self.pooled.num_bytes
        self.linear_fit = self.clock() - begun
        if not math.isinf(self.deadline):
            self.flop = planning.seconds_of_a_flop(self.network, self.seen.flops[PRE_LOGITS], clock=self.clock)
        return report, Rung(tap=tap, num_bytes=num_bytes, head=report.best, num_trainable=size)

    def rung(self, feature_set: FeatureSet, plan: RungPlan, report: TrainingReport) -> Rung:
        """Train a tail if there is time for it, and take it into the report, or give the reason why not."""
        rung = Rung(tap=feature_set.tap, num_bytes=feature_set.num_bytes)
        try:
            costs = [] if math.isinf(self.deadline) else self._costs(feature_set, plan)
            predicted, left = (sum(map(sum, costs)), self.left) if costs else (None, math.inf)
            if predicted is not None and predicted > left:
                reason = f"would take about {predicted:.0f} s, and {left:.0f} s are left"
                return replace(rung, reason=reason, predicted_seconds=predicted)
            budget = TrainingBudget(deadline=self.deadline, costs=costs, clock=self.clock)
            found = self.training.train_head(feature_set, TAIL, network=self.network, budget=budget)
        except (BackboneError, HeadError) as error:
            return replace(rung, reason=str(error))
        report.join(found)
        return replace(
            rung,
            head=found.best,
            num_trainable=sum(array.size for array in found.best.result.estimator.arrays_),
            predicted_seconds=predicted,
            num_stopped=budget.num_stopped,
        )

    def _costs(self, feature_set: FeatureSet, plan: RungPlan) -> list[TrainingCost]:
        """Return the predicted seconds of each training: by operations where steps themselves would take too long."""
        tuning, clock = self.training.tuning, self.clock
        speed = planning.speed_by_operations(plan.flops, self.flop, tuning, linear_fit=self.linear_fit)
        costs = [speed.cost(fit, tuning) for fit in plan.fits]
        # A few steps are taken unless the rung is far from fitting, or these steps alone would be a large share of it.
        if sum(map(sum, costs)) > _ROUGHLY * self.left or _STEPS_TO_TIME * speed.step > self.left / _ROUGHLY:
            return costs
        factory = layer_factory(TAIL, feature_set.tap, feature_set.activation_shape, self.network)
        speed = planning.measured_speed(factory, feature_set, tuning, clock=clock, linear_fit=self.linear_fit)
        # What an operation takes here predicts the next depth better than a forward pass of the whole network.
        if plan.flops:
            self.flop = speed.step / (tuning.batch_size * planning.TRAINING_PASSES) / plan.flops
        return [speed.cost(fit, tuning) for fit in plan.fits]


def shallowest_unless_better(
    num_rungs: int, compare: Callable[[int, int], Comparison | None], *, num_settings: int = 1, level: float = LEVEL
) -> int:
    """Return the number of a rung, the shallowest being 0.

    Each rung in turn is chosen instead of the one that is chosen so far where it is better on the rows by which both
    were chosen: its interval leaves out zero, and its p value is below the level divided by the comparisons that there
    may be (Bonferroni), one for each deeper rung and setting, as the best of several settings is lucky.

    Parameters
    ----------
    num_rungs : int
    compare : callable
        Takes two numbers of rungs, and returns the first against the second; None where that is not known.
    num_settings : int
        Of each rung, among which its own is the best.
    level : float
        See `LEVEL`.
    """
    chosen, num_comparisons = 0, max((num_rungs - 1) * num_settings, 1)
    for rung in range(1, num_rungs):
        found = compare(rung, chosen)
        if found is not None and found.verdict == "better" and found.p_value <= level / num_comparisons:
            chosen = rung
    return chosen


def _choose(report: TrainingReport, rungs: list[Rung], num_settings: int) -> None:
    """Put the head of the chosen rung first in the report."""
    heads = [rung.head for rung in rungs if rung.head is not None]
    number = shallowest_unless_better(
        len(heads), lambda rung, other: report.compare(heads[rung], heads[other]), num_settings=num_settings
    )
    report.heads.sort(key=lambda head: head is not heads[number])  # a stable sort: the others stay by score


def _plan(training: LayerTraining, feature_set: FeatureSet, seen: DryRun) -> RungPlan:
    node = feature_set.tap.rpartition(":")[0]
    flops = max(seen.flops[PRE_LOGITS] - (0 if node == INPUT else seen.flops.get(node, 0)), 0)
    state = training.random_state
    return planning.plan_rung(training.task, feature_set, training.tuning, flops=flops, random_state=state)


def _pooled_and_whole(sets: Sequence[FeatureSet]) -> tuple[FeatureSet, list[FeatureSet]]:
    """Return the pooled features to start with, those of the last layer if there are any, and the whole activations."""
    # What keeps its positions or tokens is for layers; the linear head that they are compared with sees one vector.
    whole = [feature_set for feature_set in sets if not feature_set.is_pooled]
    networks = {feature_set.fingerprint for feature_set in whole}
    pooled = [
        feature_set
        for feature_set in sets
        if feature_set.is_pooled and (feature_set.fingerprint in networks or not networks)
    ]
    if not pooled:
        raise RequestError(
            "a ladder needs pooled features to begin with; add them with `featurecache extract --tap default`"
        )
    if not whole:
        raise RequestError(
            "a ladder needs whole activations: extract them (`featurecache extract --tap layer3:none`; "
            "`featurecache inspect BACKBONE --tails` names the layers), then name them here (--from-tap "
            "layer3:none), or train on the images too (--from-images FOLDER)"
        )
    if others := [feature_set for feature_set in whole if feature_set.fingerprint != whole[0].fingerprint]:
        raise RequestError(
            f"a ladder is of one network, and {whole[0]} and {others[0]} are of two; choose with --fingerprint"
        )
    return next((feature_set for feature_set in pooled if feature_set.tap.startswith("pre_logits:")), pooled[-1]), whole
