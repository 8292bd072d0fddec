"""How deep to train: no deeper than pays beyond chance, and no longer than is allowed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from conftest import TINY, write_cache

from featurecache.evaluation.comparison import compare
from featurecache.finetuning.ladder import LEVEL, Ladder, climb, shallowest_unless_better
from featurecache.finetuning.planning import Fit, LadderPlan, Speed, speed_by_operations
from featurecache.finetuning.settings import FineTuning
from featurecache.finetuning.training import LayerTraining
from featurecache.heads.gradient.budget import TrainingBudget, TrainingCost, loss_rise
from featurecache.store.store import FeatureStore

TAPS = ("default", "stem:none", "input:none")
EPOCHS, BATCH = 2, 4


class Ticking:
    """A clock that moves by a second whenever somebody looks."""

    def __init__(self, tick: float = 1.0) -> None:
        self.now, self._tick = 0.0, tick

    def __call__(self) -> float:
        self.now += self._tick
        return self.now


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return FeatureStore.open(write_cache(tmp_path_factory.mktemp("ladder"), *TAPS, per_class=8, task="colours"))


def climbed(store: FeatureStore, seconds: float = math.inf, tick: float = 1.0, **settings: Any) -> Ladder:
    tuning = FineTuning(**{"epochs": EPOCHS, "batch_size": BATCH, "learning_rate": (0.01,), **settings})
    return climb(training(store, tuning), store.select_sets(), seconds=seconds, clock=Ticking(tick))


def training(store: FeatureStore, tuning: FineTuning) -> LayerTraining:
    return LayerTraining(store=store, task=store.task("colours"), tuning=tuning, backbone=TINY)


def predictions(rng: np.random.Generator, y: np.ndarray, accuracy: float, like: np.ndarray | None = None) -> np.ndarray:
    """Answers that are right so often; half of them those of another rung."""
    own = np.where(rng.random(len(y)) < accuracy, y, 1 - y)
    return own if like is None else np.where(rng.random(len(y)) < 0.5, like, own)


@pytest.mark.parametrize(("num_rungs", "num_settings", "num_rows"), [(2, 1, 60), (4, 1, 400), (4, 3, 150)])
@pytest.mark.parametrize("grouped", [False, True])
def test_where_all_rungs_are_equally_good_few_ladders_climb(
    num_rungs: int, num_settings: int, num_rows: int, grouped: bool
) -> None:
    """Each deeper rung is the best of its settings on the rows by which it is compared."""
    rng = np.random.default_rng([num_rungs, num_settings, num_rows, grouped])
    trials, climbs = 400, 0
    groups = np.arange(num_rows) // 3 if grouped else None
    for _ in range(trials):
        y = rng.integers(0, 2, num_rows)
        linear = predictions(rng, y, 0.8)
        rungs = [linear]
        for _ in range(num_rungs - 1):
            settings = [predictions(rng, y, 0.8, linear) for _ in range(num_settings)]
            rungs.append(max(settings, key=lambda each: np.mean(each == y)))
        found = shallowest_unless_better(
            num_rungs,
            lambda a, b: compare(y, rungs[a], rungs[b], groups),  # noqa: B023
            num_settings=num_settings,
        )
        climbs += found > 0
    assert climbs / trials <= LEVEL + 2 * math.sqrt(LEVEL * (1 - LEVEL) / trials)


def test_a_better_rung_is_chosen_and_no_deeper_one_that_is_as_good() -> None:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(50):
        y = rng.integers(0, 2, 500)
        rungs = [predictions(rng, y, accuracy) for accuracy in (0.75, 0.9, 0.9)]
        found.append(shallowest_unless_better(3, lambda a, b: compare(y, rungs[a], rungs[b])))  # noqa: B023
    assert found.count(1) >= 47
    assert shallowest_unless_better(3, lambda a, b: None) == 0


def test_a_prediction_counts_steps_answers_and_trainings() -> None:
    speed = Speed(step=2.0, predict=0.5, linear_fit=1.0)
    tuning = FineTuning(epochs=3, batch_size=10)
    assert tuning.num_steps(95) == (10, 3)
    assert speed.cost(Fit(num_rows=95, num_predicted=20), tuning) == TrainingCost(1.0 + 30 * 2.0 + 95 * 0.5, 20 * 0.5)
    near, far = (speed_by_operations(flops, 1e-9, tuning) for flops in (10**6, 10**8))
    assert far.step == pytest.approx(100 * near.step)
    assert near.step == pytest.approx(10 * 3 * 1e-3)


def test_each_training_has_its_share_of_what_is_left() -> None:
    clock = Ticking(0.0)
    budget = TrainingBudget(
        deadline=100.0, costs=[TrainingCost(10, 5), TrainingCost(10, 5), TrainingCost(20, 0)], clock=clock
    )
    assert budget.begin().end == pytest.approx(20)
    clock.now = 60.0  # much slower than was thought
    assert budget.begin().end == pytest.approx(60 + 40 * 10 / 35)
    clock.now = 90.0
    last = budget.begin()
    assert last.end == pytest.approx(100)
    assert not last.has_passed()
    clock.now = 100.0
    assert last.has_passed()
    assert budget.num_stopped == 1
    assert math.isinf(TrainingBudget().begin().end)


class SeenError(Exception):
    """Ends a ladder before anything is trained."""


@pytest.mark.parametrize(
    ("head", "chosen", "start"),
    [
        ("tail", (), "probe"),
        ("tail", ("fresh",), "fresh"),
        ("layers:conv", (), "fresh"),
        ("layers:conv", ("probe",), "probe"),
    ],
)
def test_the_rest_of_a_network_begins_at_a_linear_head_unless_another_start_is_chosen(
    cache: FeatureStore, head: str, chosen: tuple[str, ...], start: str
) -> None:
    tuning = FineTuning(epochs=1, batch_size=BATCH, learning_rate=(1e-12,), start=chosen)
    trained = training(cache, tuning).train_head(cache.find(tap="stem:none"), head).best.result.estimator
    assert trained.start == start
    if head == "tail":  # of steps that move nothing, the first loss tells where they began: a drawn layer knows nothing
        assert (trained.losses_[0] < 0.9 * math.log(3)) == (start == "probe")


def test_a_ladder_says_before_training_how_many_trainings_there_will_be(cache: FeatureStore) -> None:
    plans: list[LadderPlan] = []

    def see(plan: LadderPlan) -> None:
        plans.append(plan)
        raise SeenError

    tuning = FineTuning(epochs=1, batch_size=BATCH, learning_rate=(0.01, 0.001))
    with pytest.raises(SeenError):
        climb(training(cache, tuning), cache.select_sets(), on_plan=see)
    (plan,) = plans
    # Two depths, and for each two settings on each fold, and one training on all rows.
    counts = {rung.tap: (rung.num_settings, rung.num_folds, len(rung.fits)) for rung in plan.rungs}
    folds = next(iter(counts.values()))[1]
    assert counts == {"stem:none": (2, folds, 2 * folds + 1), "input:none": (2, folds, 2 * folds + 1)}
    num_fits = sum(len(rung.fits) for rung in plan.rungs)
    assert num_fits == 2 * (2 * folds + 1)
    assert f"{num_fits} trainings to come: 2 depths x 2 settings x {folds} fold" in str(plan)
    assert plan.rungs[0].flops < plan.rungs[1].flops


def test_what_does_not_fit_is_left_out_and_no_step_begins_after_the_deadline(cache: FeatureStore) -> None:
    """By a clock that moves a second for each look, and is looked at before each step."""
    ladder = climbed(cache, seconds=1e9)
    assert [rung.num_stopped for rung in ladder.rungs] == [0, 0, 0]
    predicted = [rung.predicted_seconds for rung in ladder.rungs[1:]]
    for rung, seconds in zip(ladder.plan.rungs, predicted, strict=True):
        tuning = FineTuning(epochs=EPOCHS, batch_size=BATCH)
        steps = sum(math.prod(tuning.num_steps(fit.num_rows)) for fit in rung.fits)
        assert seconds is not None
        # A step takes a second, reading its rows and answering for them less than another, a linear head another one.
        assert steps <= seconds <= 4 * (steps + len(rung.fits))
    assert ladder.overrun == 0

    short = climbed(cache, seconds=0.5 * min(each for each in predicted if each is not None))
    for rung in short.rungs[1:]:
        assert rung.head is None
        assert "s are left" in rung.reason
        assert rung.predicted_seconds is not None
    assert short.report.best is short.rungs[0].head
    assert short.overrun == 0


def test_trainings_that_are_slower_than_predicted_are_stopped_and_scored(cache: FeatureStore) -> None:
    """The clock runs faster from the second training on."""

    class Slowing(Ticking):
        times_reported = 0

        def __call__(self) -> float:
            self.times_reported += 1
            self.now += 1e-3 if self.times_reported < 60 else 5.0
            return self.now

    sets = [each for each in cache.select_sets() if each.tap != "input:none"]
    tuning = FineTuning(epochs=30, batch_size=BATCH, learning_rate=(0.01,))
    ladder = climb(training(cache, tuning), sets, seconds=100.0, clock=Slowing())
    (_, tail) = ladder.rungs
    assert tail.head is not None, tail.reason
    assert tail.num_stopped > 0
    assert ladder.overrun <= 2 * 5.0 * (1 + len(ladder.plan.rungs[0].fits))
    (warning,) = (each for each in ladder.report.warnings if "stopped at the deadline" in each.text)
    assert (warning.kind, warning.count) == ("deadline", tail.num_stopped)
    rung = ladder.to_json()["ladder"][1]
    assert rung["num_stopped"] == tail.num_stopped
    assert len(tail.head.result.estimator.losses_) < math.prod(tuning.num_steps(tail.head.result.n_train))


@pytest.mark.parametrize(
    ("losses", "found"),
    [
        ([1.1] * 10 + [326155.0] * 10, True),
        ([1.1, 2.0, 1.5, 0.3, 0.2, 0.2], False),
        ([0.001, 0.002, 0.001, 0.01, 0.02, 0.02], False),
        ([0.1] * 3 + [1.0] * 10, True),
        ([1.1, 900.0, 0.2, 0.2, 0.2, 0.2], False),
        ([1.1], False),
    ],
)
def test_a_loss_that_ends_far_above_where_it_began(losses: list[float], found: bool) -> None:
    assert (loss_rise(losses, batch_size=32, steps_per_epoch=4, constant=math.log(3)) is not None) == found
