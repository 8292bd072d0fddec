"""Verdicts of a table hold for all of it, with the choice of the winner inside; so does what the winner scored."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from featurecache.evaluation import table_verdicts
from featurecache.evaluation.chosen_score import chosen_score
from featurecache.evaluation.measures import measure_of
from featurecache.evaluation.table_verdicts import LEVEL, compare_heads

CLASSES = measure_of("classification", 2)


def equal_heads(rng: np.random.Generator, n: int, accuracy: float, correlation: float, count: int = 9) -> np.ndarray:
    """Which rows each head gets right, (n, count) int: a row is hard for all of them, and harder for some."""
    hard, own = rng.standard_normal((n, 1)), rng.standard_normal((n, count))
    values = np.sqrt(correlation) * hard + np.sqrt(1 - correlation) * own
    return (values < norm.ppf(accuracy)).astype(int)


def verdicts_on(right: np.ndarray, groups: np.ndarray | None = None) -> list[str]:
    """Verdicts against the head with the most right rows, which comes first of equals."""
    chosen = int(right.sum(axis=0).argmax())
    found = compare_heads(CLASSES, np.ones(len(right), int), list(right.T), chosen, groups)
    return [comparison.verdict for head, comparison in enumerate(found) if head != chosen]


@pytest.mark.parametrize(("n", "accuracy", "correlation"), [(150, 0.8, 0.5), (150, 0.95, 0.9), (1500, 0.97, 0.95)])
def test_equal_heads_are_rarely_called_worse(
    n: int, accuracy: float, correlation: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_verdicts, "_NUM_FLIPS", 200)
    rng = np.random.default_rng(0)
    wrong = sum("worse" in verdicts_on(equal_heads(rng, n, accuracy, correlation)) for _ in range(200))
    assert wrong <= 17  # of 200: two standard errors above 5 %; one by one it would be 80 to 120


def test_rows_of_a_group_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_verdicts, "_NUM_FLIPS", 200)
    rng, groups = np.random.default_rng(1), np.repeat(np.arange(40), 10)
    tables = [np.repeat(equal_heads(rng, 40, 0.8, 0.5), 10, axis=0) for _ in range(100)]
    assert sum("worse" in verdicts_on(table, groups) for table in tables) <= 10
    assert sum("worse" in verdicts_on(table) for table in tables) > 50


def test_two_heads_are_mcnemar_exact() -> None:
    right = np.repeat([[1, 0], [0, 1], [1, 1]], [18, 6, 176], axis=0)
    found = compare_heads(CLASSES, np.ones(200, int), list(right.T), 0, None)[1]
    expected = binomtest(18, 24)
    middle = (
        expected.pvalue
        - binomtest(18, 24, alternative="greater").pvalue
        + sum(binomtest(k, 24, alternative="greater").pvalue for k in (18, 19)) / 2
    )
    assert found.p_value == pytest.approx(middle, abs=0.01)
    assert found.verdict == "worse"
    assert found.low < -0.06 < found.high <= 0


def test_the_maximum_over_pairs_is_that_of_a_loop() -> None:
    rng = np.random.default_rng(2)
    right = equal_heads(rng, 100, 0.7, 0.3, count=5)
    units = right / 100
    draws = table_verdicts._flipped(units, None, 0)
    p_values, critical = table_verdicts._step_down(draws, 0)
    greatest = np.zeros(len(draws.chance))
    for i, j in combinations(range(5), 2):
        spread = np.sqrt(((units[:, i] - units[:, j]) ** 2).sum())
        greatest = np.maximum(greatest, np.abs(draws.chance[:, i] - draws.chance[:, j]) / spread)
    assert critical == pytest.approx(np.quantile(greatest, 1 - LEVEL))
    farthest = int(draws.statistics.argmax())
    assert p_values[farthest] == pytest.approx((greatest > draws.statistics[farthest]).mean(), abs=0.02)


def test_what_is_worse_leaves_the_others_alone() -> None:
    """Useless heads beside them make a comparison of two no harder."""
    rng = np.random.default_rng(3)
    right = equal_heads(rng, 400, 0.9, 0.5, count=2)
    right[:45, 1], right[:45, 0] = 0, 1
    useless = rng.integers(0, 2, (400, 30))
    alone = compare_heads(CLASSES, np.ones(400, int), list(right.T), 0, None)[1]
    beside = compare_heads(CLASSES, np.ones(400, int), [*right.T, *useless.T], 0, None)
    assert alone.verdict == beside[1].verdict == "worse"
    assert beside[1].p_value == pytest.approx(alone.p_value, abs=0.01)
    assert {comparison.verdict for comparison in beside[2:]} == {"worse"}


def test_rows_that_are_needed_are_enough() -> None:
    rng = np.random.default_rng(4)
    right = equal_heads(rng, 300, 0.95, 0.95, count=4)
    found = compare_heads(CLASSES, np.ones(300, int), list(right.T), 0, None)[1]
    assert found.verdict == "cannot tell"
    assert found.rows_needed is not None
    assert 300 < found.rows_needed < 20_000
    assert found.text == f"cannot tell: about {found.rows_needed:,} rows would"
    tables = [verdicts_on(equal_heads(rng, found.rows_needed, 0.95, 0.95, count=4)) for _ in range(8)]
    assert sum(verdict == "equivalent" for verdicts in tables for verdict in verdicts) >= 16  # of 24


@pytest.mark.parametrize("kind", ["classification", "multilabel", "regression"])
def test_other_scores_have_the_same_verdicts(kind: str) -> None:
    rng = np.random.default_rng(6)
    y = rng.integers(0, 2, (300, 3)) if kind == "multilabel" else rng.normal(size=(300, 3))
    if kind == "classification":
        y = rng.integers(0, 3, 300)
        heads = [np.where(rng.random(300) < share, y, (y + 1) % 3) for share in (0.95, 0.94, 0.94, 0.5)]
    else:
        heads = [y + scale * rng.normal(size=y.shape) for scale in (0.4, 0.4, 0.4, 1.5)]
    measure = measure_of(kind, 3, balanced=kind == "classification")
    order = sorted(heads[:3], key=lambda predictions: -measure.score(y, predictions))
    found = compare_heads(measure, y, [*order, heads[3], order[0].copy()], 0, None)
    assert [comparison.verdict for comparison in found[3:]] == ["worse", "the same answers"]
    assert {comparison.verdict for comparison in found[1:3]} <= {"cannot tell", "equivalent"}
    assert all(comparison.low <= comparison.difference <= comparison.high for comparison in found)
    one_group = compare_heads(measure, y, [*order, heads[3]], 0, np.zeros(300, int))
    assert {comparison.text for comparison in one_group[1:]} == {"cannot tell"}


@pytest.mark.parametrize("balanced", [False, True])
def test_the_score_of_the_best_of_many_is_corrected(balanced: bool) -> None:
    """Heads on labels that say nothing: the best looks good, and is not."""
    measure, held, observed, corrected = measure_of("classification", 2, balanced=balanced), 0, [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        y = rng.integers(0, 2, 120)
        heads = list((rng.standard_normal((120, 1)) + rng.standard_normal((120, 40)) > 0).astype(int).T)
        heads.sort(key=lambda predictions: -measure.score(y, predictions))
        found = chosen_score(measure, y, heads, None)
        assert found.low is not None
        held += found.low <= 0.5 <= found.high
        observed.append(found.observed)
        corrected.append(found.corrected)
    assert np.mean(observed) > 0.57
    assert abs(np.mean(corrected) - 0.5) < 0.03
    assert held >= 9


def test_a_score_that_nothing_was_chosen_by_is_not_corrected() -> None:
    y = np.arange(100) % 2
    assert chosen_score(CLASSES, y, [y], None) is None
    clear = chosen_score(CLASSES, y, [y, 1 - y], None)
    assert (clear.observed, clear.corrected, clear.high, clear.num_heads) == (1.0, 1.0, 1.0, 2)
    assert 0.95 < clear.low < 0.97  # Wilson's of a hundred rows that are all right
    few = chosen_score(CLASSES, y, [y, 1 - y], np.arange(100) // 30)
    assert (few.low, few.high) == (None, None)
    numbers = np.random.default_rng(0).normal(size=(60, 1))
    found = chosen_score(measure_of("regression", 1), numbers, [0.9 * numbers, 0 * numbers], None)
    assert found.low <= found.corrected <= found.high < 1
