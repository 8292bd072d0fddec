"""Several numbers: each has its errors in its own unit, and no unit has a say in what is chosen."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from featurecache.evaluation.chosen_score import chosen_score
from featurecache.evaluation.measures import measure_of
from featurecache.evaluation.number_measure import OfNumbers
from featurecache.evaluation.search import evaluate_heads
from featurecache.evaluation.summary import COLUMNS, SweepRow
from featurecache.evaluation.table_verdicts import compare_heads
from featurecache.evaluation.trained_head import HeadResult
from featurecache.heads.head import NamedHead
from featurecache.heads.mlp import MlpRegressor
from featurecache.heads.registry import list_heads, make_head

NAMES = ("height", "brightness")
MEASURE = measure_of("regression", 2, names=NAMES)
# Of few epochs: to the end it takes seconds, and no unit matters in one epoch more than in another.
MLP = NamedHead("mlp", make_head("mlp", kind="regression", epochs=3), MlpRegressor.settings)
HEADS = [MLP if head == "mlp" else head for head in list_heads(kind="regression")]
ENDS = ("", "_low", "_high")


def splits(scale: tuple[float, float]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Heights in metres and brightness up to 255, in units that are so many times smaller."""
    found = {}
    for seed, name in enumerate(("train", "validation", "test")):
        rng = np.random.default_rng(seed)
        X = rng.normal(size=(70, 6)).astype(np.float32)
        height = 1.7 + 0.1 * (X[:, 0] + np.sin(2 * X[:, 1]) + 0.4 * rng.normal(size=70))
        brightness = 120 + 40 * (X[:, 2] * X[:, 0] + X[:, 3] + 0.6 * rng.normal(size=70))
        found[name] = (X, np.stack([height, brightness], axis=1) * scale)
    return found


def trained(scale: tuple[float, float]) -> list[HeadResult]:
    return evaluate_heads(HEADS, splits(scale), 2, kind="regression", n_jobs=1)


def of_table(results: list[HeadResult]) -> list[object]:
    y, predictions = results[0].selection_y, [result.selection_pred for result in results]
    chosen = chosen_score(MEASURE, y, predictions, None)
    verdicts = compare_heads(MEASURE, y, predictions, 0, None)
    return [
        [verdict.text for verdict in verdicts],
        [number for verdict in verdicts for number in (verdict.difference, verdict.low, verdict.high, verdict.p_value)],
        [chosen.observed, chosen.corrected, chosen.low, chosen.high],
    ]


@pytest.fixture(scope="module")
def in_metres() -> list[HeadResult]:
    return trained((1.0, 1.0))


@pytest.mark.parametrize("scale", [(1000.0, 1 / 255), (1e-9, 1e9)], ids=str)
def test_the_same_table_in_other_units_chooses_the_same(in_metres, scale):
    others = trained(scale)
    assert [result.head for result in others] == [result.head for result in in_metres]
    for result, same in zip(others, in_metres, strict=True):
        assert result.params == same.params
        assert result.selection_score == pytest.approx(same.selection_score, rel=1e-3, abs=1e-6)
        for index, name in enumerate(result.test):
            unit = 1.0 if name[:2] in ("n", "r2") else scale[name.startswith("number 2")]
            assert result.test[name] == pytest.approx(same.test[name] * unit, rel=1e-3), (index, name)
    for found, expected in zip(of_table(others), of_table(in_metres), strict=True):
        assert found == (expected if isinstance(expected[0], str) else pytest.approx(expected, rel=1e-3, abs=1e-4))


def test_each_number_has_the_errors_that_it_has_alone(in_metres):
    result, (_, y) = in_metres[0], splits((1.0, 1.0))["test"]
    scores = OfNumbers(2, NAMES).scores(y, result.y_pred, None, random_state=0)
    assert scores["r2"] == pytest.approx(np.mean([r2_score(y[:, k], result.y_pred[:, k]) for k in range(2)]))
    for k, name in enumerate(NAMES):
        alone = OfNumbers(1).scores(y[:, [k]], result.y_pred[:, [k]], None, random_state=0)
        for key, figure in (
            ("mean_absolute_error", mean_absolute_error),
            ("root_mean_squared_error", root_mean_squared_error),
        ):
            assert scores[f"{name} {key}"] == pytest.approx(figure(y[:, k], result.y_pred[:, k]))
            assert [scores[f"{name} {key}{end}"] for end in ENDS] == pytest.approx([alone[key + end] for end in ENDS])
    assert len(scores) == 1 + 3 + 3 * 4
    assert list(MEASURE.titles.values())[:3] == ["mean R2", "height mean error", "height RMSE"]


def test_no_name_of_a_number_is_taken_for_a_bound_of_another():
    names = ("mass", "mass_low", "r2", "mass mean_absolute_error")
    y = np.random.default_rng(0).normal(size=(30, 4)) * [1, 10, 100, 1000]
    scores = OfNumbers(4, names).scores(y, y * 0.9, None, random_state=0)
    assert len(scores) == 1 + 3 + 3 * 2 * 4
    for name, size in zip(names, (0.1, 1, 10, 100), strict=True):
        low, value, high = (scores[f"{name} root_mean_squared_error{end}"] for end in ("_low", "", "_high"))
        assert low < value < high
        assert value == pytest.approx(size, rel=0.4)


def test_a_number_that_no_sample_knows_has_no_errors():
    y = np.random.default_rng(0).normal(size=(30, 2))
    y[:, 1] = np.nan
    scores = MEASURE.scores(y, np.zeros((30, 2)), None, random_state=0)
    assert scores["r2"] == r2_score(y[:, 0], np.zeros(30))
    assert [scores[f"brightness root_mean_squared_error{end}"] for end in ENDS] == [None] * 3
    assert None not in [scores[f"height root_mean_squared_error{end}"] for end in ENDS]
    json.dumps(scores.to_json(), allow_nan=False)


def test_rows_of_sweeps_keep_the_scores_of_each_number():
    y = np.random.default_rng(0).normal(size=(30, 2))
    scores = dict(MEASURE.scores(y, 0.5 * y, None, random_state=0))
    del scores["n"]
    names = dict.fromkeys(("task", "backbone", "fingerprint", "tap", "dtype", "evaluated_on", "head", "split"), "x")
    row = SweepRow(
        **names, kind="regression", measure="r2", shots=None, share=None, views=None, balanced=False, seed=0, fold=None,
        num_folds=None, n_available=30, n=30, scores=scores,
    )  # fmt: skip
    values = json.loads(json.dumps(row.to_json(), allow_nan=False))
    assert tuple(values) == COLUMNS
    assert values["mean_absolute_error"] is None
    assert set(json.loads(values["scores_of_numbers"])) == scores.keys() - {"r2", "r2_low", "r2_high"}
    assert SweepRow.from_json(values) == row
