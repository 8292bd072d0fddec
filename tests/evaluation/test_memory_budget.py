"""Features that memory would not hold: laid out in a file, read block by block, and nothing else changes."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import write_cache

from featurecache.cli import main
from featurecache.errors import HeadError, RequestError
from featurecache.evaluation import split_data as splits_module
from featurecache.evaluation.class_measure import OfClasses
from featurecache.evaluation.memory_budget import MemoryBudget, memory_budget
from featurecache.evaluation.plan import Resampling, resample
from featurecache.evaluation.search import evaluate_heads
from featurecache.evaluation.split_data import SplitData, check_splits
from featurecache.heads.registry import find_head, list_heads
from featurecache.machine import free_memory

pytestmark = pytest.mark.usefixtures("few_settings")

SIZES = {"train": 300, "validation": 90, "test": 110}


def laid_out(budget: MemoryBudget, names: tuple[str, ...]) -> dict[str, SplitData]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, sum(SIZES.values()))
    whole = budget.empty((len(y), 1, 30))
    whole[:] = rng.normal(size=whole.shape)
    whole[np.arange(len(y)), 0, y] += 2
    found, start = {}, 0
    for name, size in SIZES.items():
        some = slice(start, start + size)
        features = whole[some]
        found[name] = SplitData(
            y=y[some], fit_views=features, eval_views=features, on_disk=isinstance(whole, np.memmap)
        )
        start += size
    return {name: found[name] for name in names}


@pytest.mark.parametrize("names", [("train", "validation", "test"), ("train", "test")])
def test_on_disk_is_as_in_memory(tmp_path, monkeypatch, names):
    heads = [name for name in list_heads() if find_head(name).streams]
    assert {"logistic", "linear_svm", "ridge", "mlp"} <= set(heads)
    # Of heads of one kind, one; a network is fitted five times by folds, each block by block.
    heads = ["logistic", "ridge", "majority", *(["mlp"] if "validation" in names else [])]
    found = []
    for max_bytes in (1 << 30, 0):
        # Many blocks of few rows.
        monkeypatch.setattr(splits_module, "_BLOCK_BYTES", 1 << 30 if max_bytes else 30 * 4 * 64)
        with memory_budget(tmp_path, max_bytes) as budget:
            found.append(evaluate_heads(heads, laid_out(budget, names), 3))
            assert len(list(tmp_path.iterdir())) == (0 if max_bytes else 1)
        assert not list(tmp_path.iterdir())
    for here, there in zip(*found, strict=True):
        assert (here.head, here.params, here.selection_score) == (there.head, there.params, there.selection_score)
        np.testing.assert_allclose(here.proba, there.proba, atol=1e-6)
        np.testing.assert_array_equal(here.y_pred, there.y_pred)


@pytest.mark.parametrize("max_bytes", [1 << 30, 0])
def test_train_and_validation_are_fitted_on_without_a_copy(tmp_path, max_bytes):
    with memory_budget(tmp_path, max_bytes) as budget:
        given = laid_out(budget, tuple(SIZES))
        checked = check_splits(given, OfClasses(3).check)
        X, y, *_ = checked["train"].with_samples_of(checked["validation"]).fit_rows()
        assert np.shares_memory(X, given["train"].fit_views)
        assert isinstance(X, np.memmap) == (max_bytes == 0)
        np.testing.assert_array_equal(X, np.concatenate([given[n].fit_views[:, 0] for n in ("train", "validation")]))
        assert len(y) == len(X) == 390
        # The other way round they are not next to each other.
        X, *_ = checked["validation"].with_samples_of(checked["train"]).fit_rows()
        np.testing.assert_array_equal(X, np.concatenate([given[n].fit_views[:, 0] for n in ("validation", "train")]))


def test_parts_that_came_to_another_process_are_fitted_on_without_a_copy(tmp_path):
    """There, each is a map of its own of the same file."""
    with memory_budget(tmp_path, 0) as budget:
        given = laid_out(budget, tuple(SIZES))
        (path,), start = tmp_path.iterdir(), 0
        for name, size in SIZES.items():
            own = np.memmap(path, np.float32, "r+", offset=start, shape=(size, 1, 30))
            given[name] = replace(given[name], fit_views=own, eval_views=own)
            start += own.nbytes
        features = given["train"].with_samples_of(given["validation"]).fit_views
        assert isinstance(features, np.memmap)
        np.testing.assert_array_equal(features, np.concatenate([given[n].fit_views for n in ("train", "validation")]))
        given["validation"].fit_views[3, 0, 5] = 7.0
        assert features[303, 0, 5] == 7.0  # the same file, not a copy
        # These are not next to each other, or not in this order.
        for first, second in (("train", "test"), ("validation", "train")):
            features = given[first].with_samples_of(given[second]).fit_views
            np.testing.assert_array_equal(features, np.concatenate([given[n].fit_views for n in (first, second)]))


RESAMPLINGS = [Resampling(fold=1, num_folds=3), Resampling(share=0.3), Resampling(fold=0, num_folds=2, share=0.3)]


@pytest.mark.parametrize("resampling", [*RESAMPLINGS, Resampling(), Resampling(on_test=True)])
@pytest.mark.parametrize("names", [("train", "validation", "test"), ("train", "test")])
def test_a_resampling_on_disk_is_that_in_memory(tmp_path, monkeypatch, names, resampling):
    monkeypatch.setattr(splits_module, "_BLOCK_BYTES", 30 * 4 * 64)
    with memory_budget(tmp_path, 1 << 30) as budget:
        expected = resample(laid_out(budget, names), resampling)
    with memory_budget(tmp_path, 0) as budget:
        given = laid_out(budget, names)
        resampled = resample(given, resampling, budget=budget)
        assert list(resampled) == list(expected)
        for name, data in resampled.items():
            assert data.on_disk
            assert isinstance(data.fit_views, np.memmap)
            np.testing.assert_array_equal(data.fit_views, expected[name].fit_views)
            np.testing.assert_array_equal(data.y, expected[name].y)
        # One file of the features, and one for each split that is taken out of them.
        taken = sum(all(data is not each for each in given.values()) for data in resampled.values())
        assert len(list(tmp_path.iterdir())) == 1 + taken
        # Without a budget they are in memory, and what is not taken stays where it is.
        kept = [data.on_disk for data in resample(given, resampling).values()]
        assert kept == [any(data is each for each in given.values()) for data in resampled.values()]
    assert not list(tmp_path.iterdir())


def test_heads_that_need_all_rows_say_which_do_not(tmp_path):
    with (
        memory_budget(tmp_path, 0) as budget,
        pytest.raises(HeadError, match="'knn' holds all rows in .*--memory.* logistic"),
    ):
        evaluate_heads(["knn"], laid_out(budget, tuple(SIZES)), 3)


def test_a_full_disk_says_so_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with (
        pytest.raises(RequestError, match=r"0.0 GB of features fit neither into memory .* nor into .*No space left"),
        memory_budget(tmp_path, 0) as budget,
    ):
        budget.empty((10, 1, 8))
    assert not list(tmp_path.iterdir())


def test_free_memory_is_no_more_than_there_is():
    assert 0 < free_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_train_with_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = write_cache(tmp_path)
    capsys.readouterr()
    train = ["train", str(cache), "--task", "colour", "--quiet", "--json", "--head", "logistic", "--head", "ridge"]
    found = []
    for memory in ("1", "0.000000001"):
        assert main([*train, "--memory", memory]) == 0
        found.append({each["head"]: each for each in json.loads(capsys.readouterr().out)["results"]})
        assert not [path for path in cache.iterdir() if path.name.startswith(".")]
    for name, result in found[1].items():
        assert result["test"] == found[0][name]["test"]
    monkeypatch.setattr("featurecache.evaluation.training.list_heads", lambda **which: ["ridge", "knn", "majority"])
    assert main([*train[:-4], "--memory", "0.000000001"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert sorted(each["head"] for each in document["results"]) == ["majority", "ridge"]
    assert document["heads_left_out"] == {"knn": "holds all rows in memory"}
    assert main([*train, "--memory", "0"]) == 2
    assert "--memory must be above 0, got 0" in capsys.readouterr().err
