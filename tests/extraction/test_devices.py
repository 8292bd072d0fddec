"""Devices are what they are, whatever their numbers: records name the type and the model of a GPU."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from featurecache import devices
from featurecache.extraction import drift, runtimes
from featurecache.extraction.runtimes import Runtimes
from featurecache.specs import ExtractionSettings
from featurecache.store.schemas import Provenance

GPUS = {"cuda": "A", "cuda:0": "A", "cuda:1": "A", "cuda:2": "B"}


@pytest.fixture(autouse=True)
def machine_with_three_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of one model, one of another; nothing computes on them."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: GPUS[str(device)])
    monkeypatch.setattr(runtimes, "checked_device", torch.device)


def ran_on(device: str, **others: Any) -> Provenance:
    return msgspec.structs.replace(drift.provenance("torch", device, 64), **others)


def on(device: str, *, norms_folded: bool = False) -> Any:
    return SimpleNamespace(name="torch", device=device, batch_size=64, norms_folded=norms_folded, lengths=())


def test_gpus_of_one_model_make_equal_records() -> None:
    records = [msgspec.to_builtins(ran_on(device)) for device in ("cuda", "cuda:0", "cuda:1")]
    assert records[0] == records[1] == records[2]
    assert (records[0]["device"], records[0]["device_model"]) == ("cuda", "A")
    assert "device_model" not in msgspec.to_builtins(ran_on("cpu"))


@pytest.mark.parametrize(
    ("before", "now", "is_change"),
    [("cuda:0", "cuda:1", False), ("cuda:0", "cuda:2", True), ("cuda:0", "cpu", True), ("cpu", "cpu", False)],
)
def test_another_number_is_no_change_and_another_model_is(before: str, now: str, is_change: bool) -> None:
    stored = ran_on(before)
    assert bool(drift.changes(stored, on(now))) is is_change
    found = Runtimes(Any, {}, ExtractionSettings(device=now), stored)._agreed()  # type: ignore[arg-type]
    assert (found.runtime, found.batch_size, found.norms_folded) == ("torch", None if is_change else 64, False)


def test_the_models_are_named_where_they_differ() -> None:
    assert drift.changes(ran_on("cuda:1"), on("cuda:2")) == ["device cuda (A) -> cuda (B)"]


def test_a_record_without_a_model_is_read_and_is_no_change() -> None:
    """As earlier releases wrote it, with the number."""
    record = {**msgspec.to_builtins(ran_on("cuda:0")), "device": "cuda:0"}
    del record["device_model"]
    stored = msgspec.convert(record, Provenance)
    assert drift.changes(stored, on("cuda:2")) == []
    assert drift.changes(stored, on("cpu")) == ["device cuda -> cpu"]
    settings = replace(ExtractionSettings(), device="cuda:1")
    assert Runtimes(Any, {}, settings, stored)._agreed().batch_size == 64  # type: ignore[arg-type]


def test_folded_norms_are_recorded_and_kept() -> None:
    stored = ran_on("cpu", norms_folded=True)
    assert drift.changes(stored, on("cpu")) == ["batch norms folded -> not folded"]
    assert drift.changes(stored, on("cpu", norms_folded=True)) == []
    assert Runtimes(Any, {}, ExtractionSettings(device="cpu"), stored)._agreed().norms_folded is True  # type: ignore[arg-type]
    # OpenVINO's own record, and that of an earlier release, say nothing of it.
    for silent in (msgspec.structs.replace(stored, norms_folded=None), ran_on("cpu", runtime="openvino")):
        opened = Runtimes(Any, {}, ExtractionSettings(device="cpu"), silent)  # type: ignore[arg-type]
        assert opened._agreed().norms_folded is None
    assert not [c for c in drift.changes(msgspec.structs.replace(stored, norms_folded=None), on("cpu")) if "norm" in c]


def test_memory_that_cannot_be_pinned_is_ordinary(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, pin_memory: bool = False, **__: object) -> torch.Tensor:
        raise RuntimeError("no more of it")

    monkeypatch.setattr(torch, "empty", refuse)
    found = devices.host_array((2, 3), np.dtype(np.uint8), "cuda:1")
    assert (found.shape, found.dtype) == ((2, 3), np.uint8)


@pytest.mark.parametrize("status", [0, 1])
def test_shared_memory_is_pinned_while_it_is_used(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    """And is used as it is where CUDA refuses; then no later operation meets the error."""
    calls: list[tuple[object, ...]] = []

    class Cuda:
        def cudaHostRegister(self, *given: int) -> int:
            calls.append(("register", *given))
            return status

        def cudaHostUnregister(self, address: int) -> int:
            calls.append(("unregister", address))
            return 0

    monkeypatch.setattr(torch.cuda, "cudart", Cuda)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls.append(("synchronize", device)))
    monkeypatch.setattr(torch, "zeros", lambda *_, device: calls.append(("zeros", device)))
    array = np.zeros((4, 8), np.uint8)
    address = array.ctypes.data
    with devices.pinned(array, "cpu"):
        assert calls == []
    with devices.pinned(array, "cuda:1"):
        calls.append(("use",))
    ending = [("use",)]
    expected = (
        [("zeros", "cuda:1"), *ending] if status else [*ending, ("synchronize", "cuda:1"), ("unregister", address)]
    )
    assert calls == [("register", address, 32, 0), *expected]
