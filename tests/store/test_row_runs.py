"""Sets of rows as runs agree with sets of numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurecache.store.row_runs import RowRuns

pytestmark = pytest.mark.quick

ROWS = st.sets(st.integers(0, 40))


def runs_of(rows: set[int]) -> RowRuns:
    return RowRuns.of(np.array(sorted(rows), np.int64))


@given(one=ROWS, other=ROWS)
def test_they_agree_with_sets(one: set[int], other: set[int]) -> None:
    a, b = runs_of(one), runs_of(other)
    for found, expected in [
        (a, one),
        (a.intersection(b), one & other),
        (a.difference(b), one - other),
        (RowRuns.union([(a.starts, a.stops), (b.starts, b.stops)]), one | other),
    ]:
        assert found.rows().tolist() == sorted(expected)
        assert len(found) == len(expected)
        assert (found.starts[1:] > found.stops[:-1]).all()
        assert (found.starts < found.stops).all()
    numbers = np.arange(-1, 43)
    assert a.contains(numbers).tolist() == [number in one for number in numbers.tolist()]
    assert a.count_below(numbers).tolist() == [sum(row < number for row in one) for number in numbers.tolist()]


@given(rows=ROWS, start=st.integers(0, 45), stop=st.integers(0, 45))
def test_a_part_is_a_slice(rows: set[int], start: int, stop: int) -> None:
    runs, expected = runs_of(rows), sorted(rows)
    assert runs.part(start, stop).rows().tolist() == expected[start:stop]
    assert runs[start:stop].tolist() == expected[start:stop]
    assert runs.at(np.arange(len(expected))).tolist() == expected


@given(runs=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12))))
def test_runs_that_overlap_count_once(runs: list[tuple[int, int]]) -> None:
    starts, lengths = np.array(runs, np.int64).reshape(-1, 2).T
    expected = {row for start, length in runs for row in range(start, start + length)}
    assert RowRuns.union([(starts, starts + lengths)]).rows().tolist() == sorted(expected)


@given(rows=st.lists(st.integers(0, 20)))
def test_rows_may_come_in_any_order_and_often(rows: list[int]) -> None:
    assert RowRuns.of(rows).rows().tolist() == sorted(set(rows))
