"""The neighbours of inputs are those that a plain comparison with all cached features finds."""

from __future__ import annotations

import numpy as np
import pytest

from featurecache.deployment import similar
from featurecache.deployment.similar import nearest_rows
from featurecache.heads.preparation import unit_rows

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("block", [1, 7, 64, 8192])
@pytest.mark.parametrize("count", [1, 5, 300, 10**9])
def test_neighbours_are_those_of_a_plain_search(block: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similar, "_BLOCK", block)
    rng = np.random.default_rng(0)
    # Every feature stands there twice, and one is nothing but zeros: of equals the first one counts.
    stored = np.repeat(rng.integers(-4, 5, (100, 6)), 2, axis=0).astype(np.float16)
    stored[40] = 0
    X = unit_rows(np.concatenate([stored[[3, 40, 77]], rng.standard_normal((4, 6))]).astype(np.float32))
    rows = np.flatnonzero(rng.random(200) < 0.8)
    found_rows, found = nearest_rows(X, rows, stored.__getitem__, count)
    cosines = np.array([[x @ unit_rows(stored[[row]].astype(np.float32))[0] for row in rows] for x in X])
    order = np.argsort(-cosines.round(5), axis=1, kind="stable")[:, :count]
    np.testing.assert_allclose(found, np.take_along_axis(cosines, order, axis=1), atol=1e-5)
    # Cosines that differ in their last digit are no order.
    same = np.take_along_axis(cosines, np.searchsorted(rows, found_rows), axis=1)
    np.testing.assert_allclose(same, found, atol=1e-5)
    assert all(len(set(some)) == len(some) for some in found_rows.tolist())
    first = {tuple(stored[row].tolist()): row for row in rows[::-1]}
    nearest = [row for row in found_rows[:, 0].tolist() if stored[row].any()]
    assert all(row == first[tuple(stored[row].tolist())] for row in nearest)


def test_nothing_is_like_anything_where_there_is_nothing() -> None:
    found_rows, found = nearest_rows(np.ones((2, 3), np.float32), np.zeros(0, np.int64), lambda rows: rows, 5)
    assert found_rows.shape == found.shape == (2, 0)
