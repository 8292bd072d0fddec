"""A plan covers exactly what is missing, once, whatever was cached before."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurecache.extraction.plan import LARGEST_SHARD, SMALLEST_SHARD, SMALLEST_SHARD_ON_GPU, plan_extraction

pytestmark = pytest.mark.quick

ROWS = st.sets(st.integers(0, 60)).map(lambda rows: np.array(sorted(rows), np.int64))


@given(
    wanted=ROWS,
    cached=st.dictionaries(st.sampled_from("abc"), ROWS, min_size=1),
    shard_rows=st.none() | st.integers(1, 20),
)
def test_jobs_cover_what_is_missing_once(wanted: np.ndarray, cached: dict, shard_rows: int | None) -> None:
    jobs = plan_extraction(wanted, cached, shard_rows=shard_rows, smallest=2)
    done = [(tap, int(row)) for job in jobs for tap in job.taps for row in job.rows]
    missing = {(tap, int(row)) for tap, rows in cached.items() for row in np.setdiff1d(wanted, rows)}
    assert len(done) == len(set(done))
    assert set(done) == missing
    assert all(0 < len(job.rows) <= (shard_rows or 2) for job in jobs)
    assert all((np.diff(job.rows) > 0).all() for job in jobs)


@given(n=st.integers(1, 100), shard_rows=st.none() | st.integers(1, 20), data=st.data())
def test_a_resumed_run_makes_the_same_shards(n: int, shard_rows: int | None, data: st.DataObject) -> None:
    wanted, sizes = np.arange(n), {"shard_rows": shard_rows, "smallest": 3}
    whole = plan_extraction(wanted, {"t": wanted[:0]}, **sizes)
    # Any of them may be there: workers commit in no order.
    is_done = data.draw(st.lists(st.booleans(), min_size=len(whole), max_size=len(whole)))
    cached = np.concatenate([wanted[:0], *(job.rows for job, done in zip(whole, is_done, strict=True) if done)])
    resumed = plan_extraction(wanted, {"t": cached}, **sizes)
    left = [job.rows.tolist() for job, done in zip(whole, is_done, strict=True) if not done]
    assert [job.rows.tolist() for job in resumed] == left


@pytest.mark.parametrize("n", [1_000, 4_000, 30_000, 1_000_000])
@pytest.mark.parametrize("num_workers", [2, 8, 16])
def test_workers_that_take_shards_as_they_come_end_together(n: int, num_workers: int) -> None:
    ends = [0] * num_workers
    for job in plan_extraction(np.arange(n), {"t": np.arange(0)}):
        first_free = int(np.argmin(ends))
        ends[first_free] += len(job.rows)
    assert max(ends) <= 1.07 * n / num_workers + SMALLEST_SHARD


def test_shards_are_as_many_as_their_number_of_rows_is_worth() -> None:
    nothing = {"t": np.arange(0)}
    assert [len(job.rows) for job in plan_extraction(np.arange(400), nothing)] == [256, 144]
    sizes = [len(job.rows) for job in plan_extraction(np.arange(1_000_000), nothing)]
    assert max(sizes) == LARGEST_SHARD
    assert len(sizes) < 150
    assert sizes == sorted(sizes, reverse=True)
    on_gpu = plan_extraction(np.arange(4_000), nothing, smallest=SMALLEST_SHARD_ON_GPU)
    assert [len(job.rows) for job in on_gpu] == [2_048, 1_952]


@given(data=st.data())
def test_scattered_rows_share_shards(data: st.DataObject) -> None:
    # New files among many old ones: not a shard for each.
    missing = data.draw(st.sets(st.integers(0, 99_999), min_size=1, max_size=200))
    cached = np.setdiff1d(np.arange(100_000), sorted(missing))
    jobs = plan_extraction(np.arange(100_000), {"t": cached})
    assert np.concatenate([job.rows for job in jobs]).tolist() == sorted(missing)
    assert len(jobs) == 1


def test_rows_missed_by_several_taps_are_computed_in_one_pass() -> None:
    wanted = np.arange(6)
    jobs = plan_extraction(wanted, {"a": np.arange(3), "b": np.arange(0)}, shard_rows=10)
    assert [(job.taps, job.rows.tolist()) for job in jobs] == [(("b",), [0, 1, 2]), (("a", "b"), [3, 4, 5])]
