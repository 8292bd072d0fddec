"""A plan covers exactly what is missing, once, whatever was cached before."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurecache.extraction.plan import plan_extraction

pytestmark = pytest.mark.quick

ROWS = st.sets(st.integers(0, 60)).map(lambda rows: np.array(sorted(rows), np.int64))


@given(wanted=ROWS, cached=st.dictionaries(st.sampled_from("abc"), ROWS, min_size=1), shard_rows=st.integers(1, 20))
def test_jobs_cover_what_is_missing_once(wanted: np.ndarray, cached: dict, shard_rows: int) -> None:
    jobs = plan_extraction(wanted, cached, shard_rows=shard_rows)
    done = [(tap, int(row)) for job in jobs for tap in job.taps for row in job.rows]
    missing = {(tap, int(row)) for tap, rows in cached.items() for row in np.setdiff1d(wanted, rows)}
    assert len(done) == len(set(done))
    assert set(done) == missing
    assert all(0 < len(job.rows) <= shard_rows for job in jobs)
    assert all((np.diff(job.rows) > 0).all() for job in jobs)


@given(n=st.integers(1, 100), shard_rows=st.integers(1, 20), data=st.data())
def test_a_resumed_run_makes_the_same_shards(n: int, shard_rows: int, data: st.DataObject) -> None:
    wanted = np.arange(n)
    whole = plan_extraction(wanted, {"t": wanted[:0]}, shard_rows=shard_rows)
    num_done = data.draw(st.integers(0, len(whole)))
    cached = np.concatenate([wanted[:0], *(job.rows for job in whole[:num_done])])
    resumed = plan_extraction(wanted, {"t": cached}, shard_rows=shard_rows)
    assert [job.rows.tolist() for job in resumed] == [job.rows.tolist() for job in whole[num_done:]]


def test_rows_missed_by_several_taps_are_computed_in_one_pass() -> None:
    wanted = np.arange(6)
    jobs = plan_extraction(wanted, {"a": np.arange(3), "b": np.arange(0)}, shard_rows=10)
    assert [(job.taps, job.rows.tolist()) for job in jobs] == [(("b",), [0, 1, 2]), (("a", "b"), [3, 4, 5])]
