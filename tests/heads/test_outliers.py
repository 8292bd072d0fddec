"""Outliers of a head: as many false alarms as promised, and what is unlike is found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from featurecache.errors import HeadError
from featurecache.heads.bundle import load_head, save_head
from featurecache.heads.outliers import OutlierDetector, most_rows
from featurecache.heads.registry import make_head
from featurecache.store.samples import some_rows

pytestmark = pytest.mark.quick


def rows(n: int, d: int, seed: int, *, centre: float = 1.0) -> np.ndarray:
    """Return features around three means, most of their variance in few directions."""
    rng = np.random.default_rng(seed)
    means = np.random.default_rng(7).normal(size=(3, d))
    return (centre * means[np.arange(n) % 3] + rng.normal(size=(n, d)) * np.logspace(0, -1, d)).astype(np.float32)


@pytest.mark.parametrize(("n", "d"), [(20, 50), (60, 400), (300, 8), (300, 400)])
def test_false_alarms_are_as_many_as_asked_for_at_most(n: int, d: int) -> None:
    for rate in (0.05, 0.2):
        alarms = []
        for seed in range(40):
            X = rows(n + 100, d, seed)
            detector = OutlierDetector.fit(X[:n], random_state=seed)
            assert detector is not None
            alarms.append(np.mean(detector.p_values(X[n:]) <= rate))
        assert np.mean(alarms) < rate + 0.01
        assert n == 20 or np.mean(alarms) > rate / 10


def test_what_is_unlike_is_found_and_copies_of_fitted_samples_are_not() -> None:
    X, far = rows(200, 60, 0), rows(100, 60, 1, centre=-1.0)
    detector = OutlierDetector.fit(X)
    assert detector is not None
    assert (detector.p_values(far) <= 0.05).mean() > 0.95
    assert (detector.p_values(X) <= 0.05).mean() < 0.05


def test_copies_of_a_group_do_not_make_others_outliers() -> None:
    """Scored by its own copies every sample would look usual, and every new one strange."""
    base, new = rows(60, 60, 0), rows(100, 60, 1)
    copies = np.repeat(base, 4, axis=0) + 1e-3 * np.random.default_rng(2).normal(size=(240, 60)).astype(np.float32)
    alarms = {}
    for name, groups in (("rows", None), ("groups", np.repeat(np.arange(60), 4))):
        detector = OutlierDetector.fit(copies, groups)
        assert detector is not None
        alarms[name] = (detector.p_values(new) <= 0.05).mean()
    assert alarms["groups"] < 0.12
    assert alarms["rows"] > 0.5


def test_few_samples_tell_nothing_and_many_are_not_all_kept() -> None:
    assert OutlierDetector.fit(rows(19, 5, 0)) is None
    assert OutlierDetector.fit(rows(30, 5, 0), np.zeros(30, np.int64)) is None  # all are alike
    assert most_rows(64) == 1000
    assert most_rows(4096) * 4096 * 2 <= 2 << 20
    some = some_rows(np.arange(5000), most_rows(64))
    assert len(np.unique(some)) == 1000
    assert (np.diff(some) > 0).all()
    assert some_rows(np.arange(10), most_rows(64)).tolist() == list(range(10))


def test_it_travels_with_the_head_and_what_a_stranger_wrote_is_refused(tmp_path: Path) -> None:
    X = rows(60, 8, 0)
    head, detector = make_head("ridge").fit(X, np.arange(60) % 2), OutlierDetector.fit(X)
    assert detector is not None
    save_head(tmp_path / "new", head, {}, detector)
    again = load_head(tmp_path / "new").outliers
    assert again is not None
    np.testing.assert_array_equal(again.p_values(X), detector.p_values(X))
    save_head(tmp_path / "old", head, {})
    assert load_head(tmp_path / "old").outliers is None
    arrays = detector.to_arrays()
    for name, other in {
        "rows": arrays["rows"][:, :5],
        "usual": arrays["usual"].astype(np.float64),
    }.items():
        with pytest.raises(HeadError, match=f"what tells its outliers does not fit: {name} is"):
            OutlierDetector.from_arrays(arrays | {name: other}, 8)
    with pytest.raises(HeadError, match=r"what tells its outliers has the arrays \['rows'\]"):
        OutlierDetector.from_arrays({"rows": arrays["rows"]}, 8)
    with pytest.raises(HeadError, match="does not fit: usual"):
        OutlierDetector.from_arrays(arrays | {"usual": np.full(3, np.nan, np.float32)}, 8)
    assert sorted(safetensors.numpy.load((tmp_path / "new" / "head.safetensors").read_bytes()))[-2:] == [
        "outliers.rows",
        "outliers.usual",
    ]
