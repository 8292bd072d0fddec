"""What it means to be right about labels and numbers: scikit-learn's figures, intervals that hold, honest verdicts."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, mean_absolute_error, r2_score, root_mean_squared_error

from featurecache.errors import TaskError
from featurecache.evaluation.bootstrap import num_units, weights_of_resamples
from featurecache.evaluation.measures import OfLabels, measure_of
from featurecache.evaluation.number_measure import OfNumbers
from featurecache.evaluation.search import evaluate_head, evaluate_heads
from featurecache.evaluation.split_data import SplitData
from featurecache.heads.registry import list_heads
from featurecache.specs import TASK_NOUN

pytestmark = pytest.mark.usefixtures("few_settings")

OTHER = ("multilabel", "regression")
CASES = [(kind, head) for kind in OTHER for head in list_heads(kind=kind)]
ALL = ("train", "validation", "test")
# Five folds of a network on so few rows take seconds, and nothing in the protocol depends on the head.
WITH_FOLDS = [
    (kind, head, names)
    for kind, head in CASES
    for names in (("train", "test"), ("train", "validation"))
    if head != "mlp"
]


def rows(kind: str, number: int, seed: int, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(number, 5)).astype(np.float32)
    said = X @ np.random.default_rng(9).normal(size=(5, 3)) + noise * rng.normal(size=(number, 3))
    return X, (said > 0.5).astype(np.int64) if kind == "multilabel" else 10 + 3 * said


@given(
    seed=st.integers(0, 1000),
    number=st.integers(2, 40),
    outputs=st.integers(1, 4),
    levels=st.sampled_from([2, 5, 1000]),
)
@settings(max_examples=30)
def test_figures_from_weights_are_those_of_repeated_rows(seed, number, outputs, levels):
    """Also with ties: few levels of answers."""
    rng = np.random.default_rng(seed)
    times = rng.integers(0, 4, number)
    times[0] = 1
    y = rng.integers(0, 2, (number, outputs))
    y[0] = 1
    answers = rng.integers(0, levels, (number, outputs)) / levels
    again, said = np.repeat(y, times, axis=0), np.repeat(answers, times, axis=0)
    found = OfLabels(outputs).weighted(y, answers)(times[None].astype(float))[0]
    expected = [
        average_precision_score(again, said, average="macro"),
        f1_score(again.astype(bool), said > 0.5, average="micro", zero_division=0.0),
        f1_score(again.astype(bool), said > 0.5, average="macro", zero_division=0.0) if outputs > 1 else None,
        np.mean(((said > 0.5) == again).all(axis=1)),
    ]
    for place, value in enumerate(expected):
        if value is not None and (place != 1 or outputs > 1):
            assert found[place] == pytest.approx(value, abs=1e-12)
    y = rng.normal(size=(number, outputs))
    numbers = np.repeat(y, times, axis=0)
    if np.ptp(numbers, axis=0).min() < 0.01:
        return  # R2 of rows that are nearly alike has few digits, however it is computed
    found = OfNumbers(outputs).weighted(y, answers)(times[None].astype(float))[0]
    assert found[0] == pytest.approx(r2_score(numbers, said), rel=1e-6, abs=1e-9)  # it may be -1e6
    each = list(zip(numbers.T, said.T, strict=True))
    assert found[1::2] == pytest.approx([mean_absolute_error(*one) for one in each], rel=1e-9)
    assert found[2::2] == pytest.approx([root_mean_squared_error(*one) for one in each], rel=1e-9)


def test_weights_draw_whole_groups():
    groups = np.array([5, 5, 5, 7, 9, 9])
    for weights in weights_of_resamples(6, groups, 0):
        assert weights.shape[1] == 6
        assert (weights[:, 0] == weights[:, 1]).all()
        assert (weights[:, 4] == weights[:, 5]).all()
        assert (weights[:, [0, 3, 4]].sum(axis=1) == 3).all()


@pytest.mark.parametrize("kind", OTHER)
def test_intervals_hold_the_truth(kind):
    """The truth is the figure on very many rows."""
    measure, held = measure_of(kind, 3), 0
    name = measure.primary

    def answers(y, seed):
        noise = np.random.default_rng(seed).normal(size=y.shape)
        return 1 / (1 + np.exp(-(2 * y - 1 + 1.5 * noise))) if kind == "multilabel" else y + 2 * noise

    _, y = rows(kind, 40_000, 1)
    truth = measure.point(y, answers(y, 2))[0]
    for seed in range(40):
        _, y = rows(kind, 150, 100 + seed)
        found = measure.scores(y, answers(y, 1000 + seed), None, random_state=0)
        held += found[f"{name}_low"] <= truth <= found[f"{name}_high"]
    assert held >= 34  # of 40 at 95 %


@pytest.mark.parametrize("kind", OTHER)
def test_verdicts(kind):
    measure = measure_of(kind, 3)
    _, y = rows(kind, 400, 3)
    noise = np.random.default_rng(4).normal(size=(3, *y.shape))
    good, alike, bad = (y + scale * each for scale, each in zip((0.4, 0.4, 1.5), noise, strict=True))
    assert measure.compare(y, good, bad, None).verdict == "better"
    assert measure.compare(y, bad, good, None).verdict == "worse"
    found = measure.compare(y, good, alike, None)
    assert found.low <= found.difference <= found.high
    assert found.verdict in ("cannot tell", "equivalent")
    assert 0.01 < found.p_value <= 1
    assert measure.compare(y, good, good, None).verdict == "the same answers"
    assert measure.compare(y[:20], good[:20], good[:20], None).low <= 0
    one_group = measure.compare(y, good, bad, np.zeros(400, int))
    assert one_group.low < one_group.difference - 0.7


def test_resamples_in_which_nothing_varies_say_nothing():
    """One row in thirty differs, so a third of the resamples are all alike."""
    y = np.full((30, 1), 1000.3)
    y[7] = 1001.1
    answers = y + 0.1 * np.random.default_rng(0).normal(size=y.shape)
    measure = OfNumbers(1)
    found = measure.scores(y, answers, None, random_state=0)
    assert -5 < found["r2_low"] <= found["r2"] <= found["r2_high"] <= 1
    worse = measure.compare(y, answers, answers + 0.1, None)
    assert -5 < worse.low <= worse.difference <= worse.high < 5


def test_all_right_is_not_certain():
    _, y = rows("multilabel", 30, 5)
    found = OfLabels(3).scores(y, y.astype(float), None, random_state=0)
    for name in OfLabels.score_titles:
        assert found[name] == 1
        assert 0.8 < found[f"{name}_low"] < 0.97
    errors_of_nothing = OfNumbers(1).scores(np.arange(30.0)[:, None], np.arange(30.0)[:, None], None, random_state=0)
    assert errors_of_nothing["r2_low"] is None


def test_bounds_move_little_with_one_wrong_answer():
    """Whether no answer is wrong or one of 2,448."""
    y = (np.random.default_rng(0).random((18, 136)) < 0.4).astype(int)
    answers = y * 0.8 + 0.1
    one_wrong = answers.copy()
    one_wrong[3, np.flatnonzero(y[3])[0]] = 0.05
    measure = OfLabels(136)
    perfect, nearly = (measure.scores(y, each, None, random_state=0) for each in (answers, one_wrong))
    for name in measure.titles:
        assert nearly[f"{name}_high"] - nearly[f"{name}_low"] > 0
        lost = perfect[name] - nearly[name]
        assert abs(perfect[f"{name}_low"] - nearly[f"{name}_low"]) < 0.02 + 2 * lost
    same, other = (measure.compare(y, answers, each, None) for each in (answers, one_wrong))
    assert same.verdict == "the same answers"
    assert same.low == pytest.approx(other.low, abs=0.01)
    assert same.high == pytest.approx(other.high, abs=0.01)
    assert same.low < 0 < same.high


@pytest.mark.parametrize(("kind", "head", "names"), [(*each, ALL) for each in CASES] + WITH_FOLDS, ids=str)
def test_every_head_under_every_protocol(kind, head, names):
    parts = {name: rows(kind, 90, seed) for seed, name in enumerate(names)}
    result = evaluate_head(head, parts, 3, kind=kind)
    measure = measure_of(kind, 3)
    _, y = parts[result.reported]
    figures = result.test or result.validation
    assert result.reported == names[-1]
    assert figures["n"] == 90
    assert result.y_pred.shape == (90, 3)
    assert result.selection_accuracy is None
    assert result.selection_score == pytest.approx(measure.score(result.selection_y, result.selection_pred))
    assert figures[measure.primary] == pytest.approx(measure.score(y, result.y_pred))
    for name in measure.titles:
        assert figures[f"{name}_low"] <= figures[name] <= figures[f"{name}_high"]
    document = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert document["protocol"] == ("validation" if len(names) == 3 else "cross-validation")
    assert figures[measure.primary] < 0.6 if head == "mean" else figures[measure.primary] > 0.7
    alone = measure.per_output(y, result.y_pred, list("abc"))
    name = "average_precision" if kind == "multilabel" else "r2"
    assert [item[TASK_NOUN[kind]] for item in alone] == list("abc")
    assert np.mean([item[name] for item in alone]) == pytest.approx(figures[measure.primary])


@pytest.mark.parametrize("kind", OTHER)
def test_heads_are_ordered_by_what_they_were_chosen_by(kind):
    parts = {name: rows(kind, 90, seed, noise=1.0) for seed, name in enumerate(("train", "test"))}
    results = evaluate_heads(["mean", "knn", "ridge"], parts, 3, kind=kind, n_jobs=1)
    scores = [result.selection_score for result in results]
    assert scores == sorted(scores, reverse=True)
    assert results[-1].head == "mean"


@pytest.mark.parametrize("kind", OTHER)
def test_settings_are_chosen_on_groups_held_out(kind):
    """What copies of a row say is noise: with copies on both sides the nearest neighbour looks perfect."""
    rng = np.random.default_rng(0)
    X = np.repeat(rng.normal(size=(40, 5)), 6, axis=0).astype(np.float32)
    y = np.repeat(rng.integers(0, 2, (40, 2)) if kind == "multilabel" else rng.normal(size=(40, 2)), 6, axis=0)
    whole = SplitData(y=y, fit_views=X[:, None], eval_views=X[:, None], groups=np.repeat(np.arange(40), 6))
    parts = {"train": whole.take(np.arange(180)), "test": whole.take(np.arange(180, 240))}
    blind = {name: replace(part, groups=None) for name, part in parts.items()}
    honest, fooled = (evaluate_head("knn", each, 2, kind=kind).selection_score for each in (parts, blind))
    assert fooled > 0.95
    assert honest < 0.75


@given(
    kind=st.sampled_from(OTHER),
    seed=st.integers(0, 10_000),
    number=st.integers(2, 30),
    noise=st.sampled_from([0.0, 1e-16, 1e-9, 0.5, 1e6]),
    num_groups=st.sampled_from([None, 1, 3]),
)
@example(kind="regression", seed=0, number=5, noise=1e6, num_groups=1)  # alike but for rounding
@example(kind="regression", seed=303, number=11, noise=0.5, num_groups=None)  # of numbers near 1e8
@settings(max_examples=20)
def test_bounds_hold_their_figure(kind, seed, number, noise, num_groups):
    rng = np.random.default_rng(seed)
    y = (
        rng.integers(0, 2, (number, 2))
        if kind == "multilabel"
        else rng.normal(size=(number, 2)) * 10.0 ** rng.integers(-9, 9)
    )
    y[0], y[1] = 1, 0
    answers, others = (y + noise * rng.normal(size=y.shape) for _ in range(2))
    groups = None if num_groups is None else rng.integers(0, num_groups, number)
    measure = measure_of(kind, 2)
    found = measure.scores(y, answers, groups, random_state=0)
    for name in measure.titles:
        if found[f"{name}_low"] is None:
            # An error of 1e-6 of the numbers moves R2 by 1e-12, which is rounding.
            assert num_units(number, groups) < 5 or (kind == "regression" and noise <= 1e-6 * np.abs(y).max())
        else:
            assert found[f"{name}_low"] <= found[name] <= found[f"{name}_high"]
    compared = measure.compare(y, answers, others, groups)
    assert compared.low <= compared.difference <= compared.high
    json.dumps(compared.to_json(), allow_nan=False)


def test_few_groups_seldom_lead_to_a_wrong_verdict():
    """Five groups, each with an error of its own: no head is better."""
    rng, measure, wrong = np.random.default_rng(5), OfNumbers(1), 0
    groups = np.repeat(np.arange(5), 20)
    for _ in range(120):
        y = rng.normal(size=(100, 1)) * 3
        first, second = (y + rng.normal(size=(5, 1))[groups] + 0.1 * rng.normal(size=y.shape) for _ in range(2))
        wrong += measure.compare(y, first, second, groups).verdict in ("better", "worse")
    assert wrong <= 12  # of 120 at 5 %; the percentiles themselves are wrong in 20


@pytest.mark.parametrize(
    ("kind", "y", "message"),
    [
        ("multilabel", np.full((6, 3), 2), "not 0 or 1 for each of 3 labels"),
        ("multilabel", np.zeros((6, 2), int), "not 0 or 1 for each of 3 labels"),
        ("multilabel", np.zeros((6, 3), int), "no label holds for any of 6"),
        ("multilabel", np.zeros(6, int), "not 0 or 1 for each"),
        ("regression", np.full((6, 3), np.nan), "not 3 finite numbers"),
        ("regression", np.zeros((6, 1)), "not 3 finite numbers"),
        ("regression", np.zeros((1, 3)), "has one row"),
        ("regression", np.array([[1.0, 2.5, k] for k in range(6)]), "number 1 of 3 is 1 in all 6 train rows"),
    ],
)
def test_what_cannot_be_judged(kind, y, message):
    part = (np.ones((len(y), 4), np.float32), y)
    with pytest.raises(TaskError, match=message):
        evaluate_head("ridge", {"train": part, "test": part}, 3, kind=kind)


@pytest.mark.parametrize("kind", OTHER)
def test_balanced_is_for_classes(kind):
    part = rows(kind, 30, 0)
    with pytest.raises(TaskError, match=f"this one is of kind {kind}; leave balanced out"):
        evaluate_head("ridge", {"train": part, "test": part}, 3, kind=kind, balanced=True)
