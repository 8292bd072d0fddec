"""What fewer digits cost beside the spread of the features, and which features are constant: laws on arrays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurecache.specs import ViewSpec
from featurecache.store.constants import ConstantFinder, Runs
from featurecache.store.precision import (
    MOST_ERROR,
    by_channel,
    error_as,
    finite_rows,
    measure_error,
    spread_error,
    stored_arrays,
    widest,
)

pytestmark = pytest.mark.quick


def features(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


FITS = {
    "usual": features(16, 64),
    "rectified, some dead": np.maximum(features(16, 64) - 1, 0) * (np.arange(64) > 3),
    "tokens": features(16, 10, 32),
    "maps": features(16, 32, 3, 3),
    "constant": np.full((16, 8), 3.0, np.float32),
    "one row": features(1, 64),
    "none": features(0, 64),
}
LOST = {
    "subnormal": features(16, 64) * 1e-9,
    "large mean, small spread": 1000 + features(16, 64) * 0.1,
    "half of the features": features(16, 64) * np.where(np.arange(64) % 2, 1, 1e-9),
    "a few of many": features(16, 1000) * np.where(np.arange(1000) < 20, 1e-10, 1),
    "the largest feature": features(16, 64) * 0.01 + np.where(np.arange(64) == 5, 3e3 + 0.5 * features(16, 64), 0),
    "too large": features(16, 64) * 1e6,
    "nearly too large": features(16, 64) * 3e4,
    "tokens": features(16, 10, 32) * 1e-9,
    "maps": features(16, 32, 3, 3) * 1e-9,
    "constant and tiny": np.full((16, 8), 1e-9, np.float32),
}


@pytest.mark.parametrize("name", FITS)
def test_float16_fits_usual_features(name: str) -> None:
    assert error_as(FITS[name], "float16") <= MOST_ERROR


@pytest.mark.parametrize("name", LOST)
def test_features_that_float16_loses_are_told(name: str) -> None:
    values = LOST[name].astype(np.float32)
    assert error_as(values, "float16") > MOST_ERROR
    assert error_as(values, "float32") == 0


def test_bfloat16_has_the_range_and_loses_small_spreads() -> None:
    assert error_as(features(16, 64) * 1e-9, "bfloat16") <= MOST_ERROR
    assert error_as(10 + features(16, 64), "bfloat16") > MOST_ERROR


@given(st.integers(-20, 20), st.integers(0, 1000))
def test_the_error_does_not_depend_on_the_unit_or_the_order(power: int, seed: int) -> None:
    exact = features(16, 8, seed=seed).astype(np.float64)
    error = features(16, 8, seed=seed + 1).astype(np.float64) * 0.03
    order = np.random.default_rng(seed).permutation(16)
    expected = spread_error(exact, error)
    assert spread_error(exact * 2.0**power, error * 2.0**power) == pytest.approx(expected, rel=1e-9)
    assert spread_error(exact[order], error[order]) == pytest.approx(expected, rel=1e-9)
    assert spread_error(exact + 2.0**power, error) == pytest.approx(expected, rel=1e-6)


def test_channels_are_those_of_vectors_tokens_maps_and_views() -> None:
    assert by_channel(np.zeros((4, 6))).shape == (4, 6)
    assert by_channel(np.zeros((4, 5, 6))).shape == (20, 6)
    assert by_channel(np.zeros((4, 6, 2, 2))).shape == (16, 6)
    assert by_channel(np.zeros((4, 3, 6)), ViewSpec(count=3)).shape == (12, 6)
    assert by_channel(np.zeros((4, 3, 6, 2, 2)), ViewSpec(count=3)).shape == (48, 6)


def test_a_record_says_the_error_relative_to_the_spread_of_eight_rows_or_more() -> None:
    values = features(32, 16) * np.float32(1e-9)
    arrays = stored_arrays(values, "float16")
    assert measure_error(values, arrays, against="float32").relative_to_spread > 0.5
    few = {"features": ("float16", arrays["features"][1][:7])}
    assert measure_error(values[:7], few, against="float32").relative_to_spread is None


@given(st.integers(1, 40), st.integers(1, 12), st.sets(st.integers(0, 11)), st.integers(1, 9))
def test_constant_channels_are_found_in_any_batches(rows: int, width: int, chosen: set[int], batch: int) -> None:
    values = features(rows, width)
    for channel in chosen:
        values[:, channel % width] = channel % 3
    finder = ConstantFinder()
    for start in range(0, rows, batch):
        finder.add(values[start : start + batch])
    expected = np.flatnonzero((values == values[:1]).all(axis=0))
    channels, constant = finder.channels, finder.values
    assert channels.tolist() == expected.tolist()
    assert constant.tolist() == values[0, expected].tolist()
    runs = finder.runs()
    assert (runs is None) == (rows < 8)
    spread_out = [(channel, value) for start, stop, value in runs or [] for channel in range(int(start), int(stop))]
    assert runs is None or spread_out == list(zip(channels.tolist(), constant.tolist(), strict=True))


def constant_runs(values: np.ndarray) -> Runs | None:
    finder = ConstantFinder()
    finder.add(values[finite_rows(values)])
    return finder.runs()


def test_equal_constants_are_one_run_and_bad_rows_do_not_count() -> None:
    values = np.zeros((20, 1000), np.float32)
    values[3] = np.nan
    assert constant_runs(values) == [[0, 1000, 0.0]]
    values[7, 10] = 1
    assert constant_runs(values) == [[0, 10, 0.0], [11, 1000, 0.0]]


def test_the_type_with_the_most_digits_is_the_widest() -> None:
    assert widest(["int8", "float16", "bfloat16"]) == "float16"
    assert widest(["float16", "float32"]) == "float32"
    assert widest([]) is None
