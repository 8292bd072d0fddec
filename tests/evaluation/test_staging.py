"""Features that memory would not hold: laid out in a file, read block by block, and nothing else changes."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY

from featurecache.cli import main
from featurecache.errors import HeadError, RequestError
from featurecache.evaluation import parts as parts_module
from featurecache.evaluation.divisions import Division, divide
from featurecache.evaluation.measures import OfClasses
from featurecache.evaluation.parts import Part, check_parts
from featurecache.evaluation.protocol import evaluate_heads
from featurecache.evaluation.staging import Staging, staging
from featurecache.heads.registry import list_heads, streams
from featurecache.machine import free_memory

SIZES = {"train": 300, "validation": 90, "test": 110}


def laid_out(room: Staging, names: tuple[str, ...]) -> dict[str, Part]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, sum(SIZES.values()))
    whole = room.empty((len(y), 1, 30))
    whole[:] = rng.normal(size=whole.shape)
    whole[np.arange(len(y)), 0, y] += 2
    found, start = {}, 0
    for name, size in SIZES.items():
        some = slice(start, start + size)
        features = whole[some]
        found[name] = Part(y=y[some], fitted=features, judged=features, on_disk=isinstance(whole, np.memmap))
        start += size
    return {name: found[name] for name in names}


@pytest.mark.parametrize("names", [("train", "validation", "test"), ("train", "test")])
def test_on_disk_is_as_in_memory(tmp_path, monkeypatch, names):
    heads = [name for name in list_heads() if streams(name)]
    assert {"logistic", "linear_svm", "ridge", "mlp"} <= set(heads)
    # Of heads of one kind, one.
    heads = ["logistic", "ridge", "mlp", "majority"]
    found = []
    for max_bytes in (1 << 30, 0):
        # Many blocks of few rows.
        monkeypatch.setattr(parts_module, "_BLOCK_BYTES", 1 << 30 if max_bytes else 30 * 4 * 64)
        with staging(tmp_path, max_bytes) as room:
            found.append(*evaluate_heads(heads, [laid_out(room, names)], 3))
            assert len(list(tmp_path.iterdir())) == (0 if max_bytes else 1)
        assert not list(tmp_path.iterdir())
    for here, there in zip(*found, strict=True):
        assert (here.head, here.params, here.selection_score) == (there.head, there.params, there.selection_score)
        np.testing.assert_allclose(here.proba, there.proba, atol=1e-6)
        np.testing.assert_array_equal(here.y_pred, there.y_pred)


@pytest.mark.parametrize("max_bytes", [1 << 30, 0])
def test_train_and_validation_are_fitted_on_without_a_copy(tmp_path, max_bytes):
    with staging(tmp_path, max_bytes) as room:
        given = laid_out(room, tuple(SIZES))
        checked = check_parts(given, OfClasses(3).check)
        X, y, *_ = checked["train"].with_samples_of(checked["validation"]).rows_to_fit()
        assert np.shares_memory(X, given["train"].fitted)
        assert isinstance(X, np.memmap) == (max_bytes == 0)
        np.testing.assert_array_equal(X, np.concatenate([given[n].fitted[:, 0] for n in ("train", "validation")]))
        assert len(y) == len(X) == 390
        # The other way round they are not next to each other.
        X, *_ = checked["validation"].with_samples_of(checked["train"]).rows_to_fit()
        np.testing.assert_array_equal(X, np.concatenate([given[n].fitted[:, 0] for n in ("validation", "train")]))


def test_parts_that_came_to_another_process_are_fitted_on_without_a_copy(tmp_path):
    """There, each is a map of its own of the same file."""
    with staging(tmp_path, 0) as room:
        given = laid_out(room, tuple(SIZES))
        (path,), start = tmp_path.iterdir(), 0
        for name, size in SIZES.items():
            own = np.memmap(path, np.float32, "r+", offset=start, shape=(size, 1, 30))
            given[name] = replace(given[name], fitted=own, judged=own)
            start += own.nbytes
        features = given["train"].with_samples_of(given["validation"]).fitted
        assert isinstance(features, np.memmap)
        np.testing.assert_array_equal(features, np.concatenate([given[n].fitted for n in ("train", "validation")]))
        given["validation"].fitted[3, 0, 5] = 7.0
        assert features[303, 0, 5] == 7.0  # the same file, not a copy
        # These are not next to each other, or not in this order.
        for first, second in (("train", "test"), ("validation", "train")):
            features = given[first].with_samples_of(given[second]).fitted
            np.testing.assert_array_equal(features, np.concatenate([given[n].fitted for n in (first, second)]))


DIVISIONS = [Division(fold=1, num_folds=3), Division(share=0.3), Division(fold=0, num_folds=2, share=0.3)]


@pytest.mark.parametrize("division", [*DIVISIONS, Division(), Division(look_at_test=True)])
@pytest.mark.parametrize("names", [("train", "validation", "test"), ("train", "test")])
def test_a_division_on_disk_is_that_in_memory(tmp_path, monkeypatch, names, division):
    monkeypatch.setattr(parts_module, "_BLOCK_BYTES", 30 * 4 * 64)
    with staging(tmp_path, 1 << 30) as room:
        expected = divide(laid_out(room, names), division)
    with staging(tmp_path, 0) as room:
        given = laid_out(room, names)
        divided = divide(given, division, room=room)
        assert list(divided) == list(expected)
        for name, part in divided.items():
            assert part.on_disk
            assert isinstance(part.fitted, np.memmap)
            np.testing.assert_array_equal(part.fitted, expected[name].fitted)
            np.testing.assert_array_equal(part.y, expected[name].y)
        # One file of the features, and one for each part that is taken out of them.
        taken = sum(all(part is not each for each in given.values()) for part in divided.values())
        assert len(list(tmp_path.iterdir())) == 1 + taken
        # Without a room they are in memory, and what is not taken stays where it is.
        kept = [part.on_disk for part in divide(given, division).values()]
        assert kept == [any(part is each for each in given.values()) for part in divided.values()]
    assert not list(tmp_path.iterdir())


def test_heads_that_need_all_rows_say_which_do_not(tmp_path):
    with staging(tmp_path, 0) as room, pytest.raises(HeadError, match="'knn' holds all rows in .*--memory.* logistic"):
        evaluate_heads(["knn"], [laid_out(room, tuple(SIZES))], 3)


def test_a_full_disk_says_so_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with (
        pytest.raises(RequestError, match=r"0.0 GB of features fit neither into memory .* nor into .*No space left"),
        staging(tmp_path, 0) as room,
    ):
        room.empty((10, 1, 8))
    assert not list(tmp_path.iterdir())


def test_free_memory_is_no_more_than_there_is():
    assert 0 < free_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_train_with_little_memory(
    make_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, cache = make_folder(per_class=20), tmp_path / "c"
    runtime = ["--runtime", "torch", "--batch-size", "8", "--quiet"]
    assert main(["extract", str(source), "--cache", str(cache), "--backbone", TINY, *runtime]) == 0
    assert main(["task", "add", str(cache), "colour", "--from-folders"]) == 0
    capsys.readouterr()
    train = ["train", str(cache), "--task", "colour", "--quiet", "--json", "--head", "logistic", "--head", "ridge"]
    found = []
    for memory in ("1", "0.000000001"):
        assert main([*train, "--memory", memory]) == 0
        found.append({each["head"]: each for each in json.loads(capsys.readouterr().out)["results"]})
        assert not [path for path in cache.iterdir() if path.name.startswith(".")]
    for name, result in found[1].items():
        assert result["test"] == found[0][name]["test"]
    assert main([*train[:-4], "--memory", "0.000000001"]) == 0
    document = json.loads(capsys.readouterr().out)
    able = [name for name in list_heads() if streams(name)]
    assert sorted(each["head"] for each in document["results"]) == sorted(able)
    assert document["heads_left_out"] == dict.fromkeys(
        [name for name in list_heads() if name not in able], "holds all rows in memory"
    )
    assert main([*train, "--memory", "0"]) == 2
    assert "--memory must be above 0, got 0" in capsys.readouterr().err
