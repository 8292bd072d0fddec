"""Heads on a GPU: rows that do not fit its memory, copies beside the computation, and no TF32. The CPU stands in."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import featurecache as fc
from featurecache import devices
from featurecache.heads import fold_blocks
from featurecache.heads.fold_blocks import FoldBlocks
from featurecache.heads.gradient import finetuned, layer_training
from featurecache.heads.gradient.finetuned import FineTunedClassifier
from featurecache.heads.gradient.trainable import TrainableLayers

rng = np.random.default_rng(0)
X, y = rng.normal(size=(400, 30)).astype(np.float32), rng.integers(0, 3, 400)
X[:, :3] += 2 * np.eye(3, dtype=np.float32)[y]
SWITCHES = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]


def precisions() -> set[str]:
    return {switch.fp32_precision for switch in SWITCHES}


@pytest.mark.parametrize("fold", [np.arange(400) % 3, np.full(400, -1)], ids=["folds", "all"])
def test_rows_that_do_not_fit_are_copied_in_each_pass_in_the_same_blocks(
    fold: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fold_blocks, "_BLOCK_BYTES", 64 * 30 * 4)
    expected = list(FoldBlocks(X, y, fold, weight=np.arange(400.0)))
    monkeypatch.setattr(fold_blocks, "free_device_memory", lambda device: 2 * X.nbytes - 1)
    rows = FoldBlocks(X, y, fold, weight=np.arange(400.0))
    for _ in range(2):
        for block, other in zip(rows, expected, strict=True):
            assert block.fold == other.fold
            assert all(torch.equal(a, b) for a, b in zip(block[1:], other[1:], strict=True))  # type: ignore[arg-type]
    assert len(expected) > 3
    assert "_held" not in vars(rows)
    assert len(caplog.records) == 1
    monkeypatch.setattr(fold_blocks, "free_device_memory", lambda device: 2 * X.nbytes)
    rows = FoldBlocks(X, y, fold)
    list(rows)
    assert "_held" in vars(rows)


@pytest.mark.parametrize("head", ["logistic", "linear_svm"])
def test_a_head_is_the_same_whether_the_device_holds_the_rows_or_not(
    head: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = fc.make_head(head).fit(X, y).decision_function(X)
    monkeypatch.setattr(fold_blocks, "free_device_memory", lambda device: 1000)
    with caplog.at_level(logging.WARNING):
        found = fc.make_head(head).fit(X, y).decision_function(X)
    assert np.array_equal(found, expected)
    assert "copied block by block" in caplog.text


def test_memory_that_torch_lends_to_nobody_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 70)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 30)
    assert devices.free_device_memory("cuda:1") == 140
    assert devices.free_device_memory("cpu") is None


def test_copies_to_a_gpu_are_pinned_and_not_waited_for() -> None:
    calls: list[Any] = []

    def to(device: str, **options: Any) -> None:
        calls.append((device, options))

    def pin_memory() -> Any:
        return calls.append("pinned") or SimpleNamespace(to=to)

    devices.copied_to(SimpleNamespace(pin_memory=pin_memory, to=to), "cuda:1")  # type: ignore[arg-type]
    assert calls == ["pinned", ("cuda:1", {"non_blocking": True})]
    calls.clear()
    devices.copied_to(SimpleNamespace(to=to), "cpu")  # type: ignore[arg-type]
    assert calls == [("cpu", {})]


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contexts are entered as for a GPU; all is computed on the CPU."""
    real = devices.exact_float32
    from featurecache.heads.gradient import estimators
    from featurecache.heads.solver import path, path_search

    for module in (devices, estimators, path, path_search, layer_training, finetuned):
        monkeypatch.setattr(module, "exact_float32", lambda device: real("cuda"))


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("head", ["logistic", "linear_svm", "mlp"])
def test_heads_are_fitted_in_exact_float32(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = precisions(), set()
    real = FoldBlocks.__iter__
    monkeypatch.setattr(FoldBlocks, "__iter__", lambda rows: seen.update(precisions()) or real(rows))
    fc.make_head(head).fit(X, y)
    assert seen == {"ieee"}
    assert precisions() == before


@pytest.mark.usefixtures("as_on_a_gpu")
def test_who_takes_heads_of_a_path_computes_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = precisions(), set()
    assert before != {"ieee"}
    real = FoldBlocks.__iter__
    monkeypatch.setattr(FoldBlocks, "__iter__", lambda rows: seen.update(precisions()) or real(rows))
    settings = [{"C": 1e-4}, {"C": 1e-2}, {"C": 1.0}]
    found = fc.make_head("logistic").fit_path(X, y, np.arange(400) % 3, settings)  # type: ignore[attr-defined]
    assert [(setting, precisions()) for setting, _ in found] == [(setting, before) for setting in settings]
    assert seen == {"ieee"}
    assert precisions() == before


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize(("precision", "expected"), [("float32", {"ieee"}), ("bfloat16", precisions())])
def test_layers_are_trained_in_exact_float32_unless_another_precision_is_chosen(
    precision: Any, expected: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    real = layer_training.LayerTrainer.take_step
    monkeypatch.setattr(
        layer_training.LayerTrainer, "take_step", lambda *given: seen.update(precisions()) or real(*given)
    )
    FineTunedClassifier(
        lambda k: TrainableLayers(nn.Identity(), nn.Linear(30, k)), shape=(30,), epochs=1, precision=precision
    ).fit(X, y)
    assert seen == expected
