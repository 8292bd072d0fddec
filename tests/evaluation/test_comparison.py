"""A verdict on two heads keeps its promise: rarely wrong, and certain only where rows are enough."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.stats import binomtest

from featurecache.evaluation.comparison import compare

pytestmark = pytest.mark.quick


def outcomes(won: int, lost: int, both: int, none: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    first = np.repeat([1, 0, 1, 0], [won, lost, both, none])
    second = np.repeat([0, 1, 1, 0], [won, lost, both, none])
    return np.ones(len(first), int), first, second


@pytest.mark.parametrize(
    ("counts", "verdict"),
    [
        ((40, 10, 100, 50), "better"),
        ((10, 40, 100, 50), "worse"),
        ((5, 6, 2000, 100), "equivalent"),
        ((0, 0, 2000, 0), "the same answers"),
        ((0, 0, 15, 5), "the same answers"),
        ((12, 8, 60, 20), "cannot tell"),
        ((3, 0, 10, 0), "cannot tell"),
    ],
)
def test_verdicts(counts: tuple[int, ...], verdict: str) -> None:
    found = compare(*outcomes(*counts))
    assert found.verdict == verdict
    assert found.low <= found.difference <= found.high
    assert found.difference == pytest.approx((counts[0] - counts[1]) / sum(counts))
    if counts[0] + counts[1]:
        assert found.p_value == binomtest(counts[0], counts[0] + counts[1]).pvalue


def test_turned_round_it_says_the_opposite() -> None:
    y, first, second = outcomes(30, 12, 50, 20)
    one, other = compare(y, first, second), compare(y, second, first)
    assert (one.verdict, other.verdict) == ("better", "worse")
    assert np.allclose([one.low, one.high], [-other.high, -other.low])


@pytest.mark.full
def test_equal_heads_are_rarely_told_apart_and_the_interval_covers() -> None:
    rng = np.random.default_rng(0)
    for n, share in ((50, 0.1), (200, 0.3), (1000, 0.02)):
        covered, wrong = 0, 0
        for _ in range(1000):
            cells = rng.multinomial(n, [share / 2, share / 2, 0.9 * (1 - share), 0.1 * (1 - share)])
            found = compare(*outcomes(*cells))
            covered += found.low <= 0 <= found.high
            wrong += found.verdict in ("better", "worse")
        assert covered / 1000 > 0.94
        assert wrong / 1000 < 0.06


@example(seed=0, n=31, num_groups=1, balanced=True, right=(0.0, 1.0))  # a mean that is rounded to below -1
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 60),
    num_groups=st.sampled_from([None, 1, 2, 7]),
    balanced=st.booleans(),
    right=st.sampled_from([(0.0, 1.0), (1.0, 1.0), (0.5, 0.9)]),
)
def test_an_interval_holds_its_difference(
    seed: int, n: int, num_groups: int | None, balanced: bool, right: tuple[float, float]
) -> None:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    first, second = (np.where(rng.random(n) < share, y, (y + 1) % 3) for share in right)
    groups = None if num_groups is None else rng.integers(0, num_groups, n)
    found = compare(y, first, second, groups, balanced=balanced)
    assert found.low <= found.difference <= found.high
