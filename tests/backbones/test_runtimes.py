"""Every runtime keeps the same contract and gives the same numbers."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from featurecache.backbones import runtimes, torch_runtime
from featurecache.backbones.registry import load_backbone
from featurecache.backbones.runtimes import ComparedRuntime, disagreement, open_runtime
from featurecache.backbones.taps import TappedBackbone, resolve_taps
from featurecache.backbones.torch_runtime import CPU_BATCH_SIZE
from featurecache.code_notice import LOGGER
from featurecache.errors import MissingExtraError, RequestError, RuntimeMismatchError
from featurecache.specs import BackboneRequest

NETWORKS = "python:tests.backbones.networks:"
BATCH = 4


def network(name):
    backbone = load_backbone(BackboneRequest(name=NETWORKS + name))
    return backbone, resolve_taps(backbone, ["default"])


def some_batches(count, *, crop=32, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, (BATCH, crop, crop, 3), dtype=np.uint8) for _ in range(count)]


class RuntimeContract:
    """What `Runtime.map` promises."""

    runtime: str

    @pytest.fixture
    def opened(self):
        if self.runtime == "openvino":
            pytest.importorskip("openvino")
        self.backbone = load_backbone(BackboneRequest(name=NETWORKS + "small"))
        self.taps = resolve_taps(self.backbone, ["body:avg", "default"])
        opened = open_runtime(self.backbone, self.taps, runtime=self.runtime, batch_size=BATCH)
        yield opened
        opened.close()

    def expected(self, images_BHWC):
        spec = self.backbone.preprocess
        images = (images_BHWC.astype(np.float64) / 255 - spec.mean) / spec.std
        images_BCHW = torch.from_numpy(images.transpose(0, 3, 1, 2)).float()
        with torch.inference_mode():
            return {k: v.numpy() for k, v in TappedBackbone(self.backbone, self.taps)(images_BCHW).items()}

    def test_name_and_device(self, opened):
        assert (opened.name, opened.device) == (self.runtime, "cpu")

    def test_values_and_order(self, opened):
        batches = some_batches(12)
        results = list(opened.map(iter(batches)))
        assert len(results) == len(batches)
        for images_BHWC, features in zip(batches, results, strict=True):
            assert list(features) == ["body:avg", "pre_logits:none"]
            assert all(array.dtype == np.float32 for array in features.values())
            assert disagreement(features, self.expected(images_BHWC)) is None

    def test_the_same_batch_gives_the_same_bytes(self, opened):
        (batch,) = some_batches(1)
        first, *others = opened.map([batch] * 5)
        assert all(np.array_equal(first[tap], other[tap]) for other in others for tap in first)

    def test_few_batches_are_ahead(self, opened):
        taken = 0

        def feed():
            nonlocal taken
            for batch in some_batches(100):
                taken += 1
                yield batch

        results = opened.map(feed())
        next(results)
        assert taken < 50
        results.close()
        assert len(list(opened.map(some_batches(3)))) == 3

    def test_an_error_of_the_feed_reaches_the_caller(self, opened):
        def feed():
            yield from some_batches(3)
            raise OSError("disk gone")

        with pytest.raises(OSError, match="disk gone"):
            list(opened.map(feed()))
        assert len(list(opened.map(some_batches(2)))) == 2

    def test_nothing_in_nothing_out(self, opened):
        assert list(opened.map([])) == []

    def test_a_batch_of_another_kind_is_refused(self, opened):
        with pytest.raises(RequestError, match="uint8"):
            list(opened.map([np.zeros((BATCH, 32, 32, 3), dtype=np.float32)]))


class TestTorch(RuntimeContract):
    runtime = "torch"


class TestOpenVino(RuntimeContract):
    runtime = "openvino"


@pytest.mark.parametrize(
    ("name", "crop", "taps"),
    [
        ("timm:test_resnet", 64, ["layer2:max", "default"]),
        ("timm:test_vit", None, ["blocks.2:mean", "norm:cls", "default"]),
    ],
)
def test_openvino_agrees_with_torch(name, crop, taps, random_backbone):
    pytest.importorskip("openvino")
    backbone = random_backbone(name, crop=crop)
    resolved = resolve_taps(backbone, taps)
    batches = some_batches(2, crop=backbone.preprocess.crop)
    fast = list(open_runtime(backbone, resolved, runtime="openvino", batch_size=BATCH).map(batches))
    reference = list(open_runtime(backbone, resolved, runtime="torch").map(batches))
    for found, expected in zip(fast, reference, strict=True):
        assert disagreement(found, expected) is None


@pytest.mark.parametrize("faster", ["torch", "openvino"])
def test_auto_takes_the_faster_one_and_says_what_it_measured(monkeypatch, faster):
    pytest.importorskip("openvino")
    backbone, taps = network("small")
    monkeypatch.setattr(runtimes, "_rate", lambda runtime, example: 90.0 if runtime.name == faster else 30.0)
    chosen = open_runtime(backbone, taps)
    assert (chosen.name, chosen.batch_size) == (faster, CPU_BATCH_SIZE)
    assert chosen.trial == {"torch": 30.0, "openvino": 30.0} | {faster: 90.0}
    assert len(list(chosen.map([np.zeros((CPU_BATCH_SIZE, 32, 32, 3), np.uint8)] * 3))) == 3


def test_the_trial_measures_both(monkeypatch):
    pytest.importorskip("openvino")
    backbone, taps = network("small")
    monkeypatch.setattr(runtimes, "_TRIAL_SECONDS", 0.01)
    assert all(rate > 0 for rate in open_runtime(backbone, taps, batch_size=BATCH).trial.values())


def test_for_few_inputs_nothing_is_prepared(monkeypatch):
    backbone, taps = network("small")
    for preparation in ("_prepare_openvino", "_folded"):
        monkeypatch.setattr(runtimes, preparation, None)
    chosen = open_runtime(backbone, taps, num_inputs=30)
    assert (chosen.name, dict(chosen.trial)) == ("torch", {})


def test_features_that_were_made_with_folded_norms_go_on_so_for_few_inputs_too():
    backbone, taps = network("small")
    assert isinstance(open_runtime(backbone, taps, num_inputs=30, remembered="torch"), ComparedRuntime)
    assert not isinstance(open_runtime(backbone, taps, num_inputs=30), ComparedRuntime)


def test_auto_takes_what_is_remembered(monkeypatch, caplog):
    pytest.importorskip("openvino")
    backbone, taps = network("small")
    assert open_runtime(backbone, taps, batch_size=BATCH, remembered="openvino").name == "openvino"
    assert open_runtime(backbone, taps, batch_size=BATCH, remembered="torch").name == "torch"
    monkeypatch.setattr(runtimes, "find_spec", lambda name: None)
    assert open_runtime(backbone, taps, batch_size=BATCH).name == "torch"
    with caplog.at_level(logging.WARNING):
        assert open_runtime(backbone, taps, batch_size=BATCH, remembered="openvino").name == "torch"
    assert "not installed" in caplog.text
    with pytest.raises(MissingExtraError, match=r"pip install 'openvino>="):
        open_runtime(backbone, taps, runtime="openvino", batch_size=BATCH)


def test_a_runtime_that_disagrees_is_refused_or_replaced(monkeypatch, caplog):
    pytest.importorskip("openvino")
    backbone, taps = network("wild")
    with pytest.raises(RuntimeMismatchError, match="not finite"):
        list(open_runtime(backbone, taps, runtime="openvino", batch_size=BATCH).map(some_batches(2)))
    monkeypatch.setattr(runtimes, "_rate", lambda runtime, example: len(runtime.name))
    automatic = open_runtime(backbone, taps, batch_size=BATCH)
    with caplog.at_level(logging.WARNING):
        results = list(automatic.map(some_batches(3)))
    assert automatic.name == "torch"
    assert "continuing with plain torch" in caplog.text
    assert len(results) == 3
    assert all(np.isfinite(features["pre_logits:none"]).all() for features in results)


def test_a_network_that_cannot_be_converted(caplog):
    pytest.importorskip("openvino")
    backbone, taps = network("untraceable")
    with pytest.raises(RuntimeMismatchError, match="cannot convert"):
        open_runtime(backbone, taps, runtime="openvino", batch_size=BATCH)
    with caplog.at_level(logging.WARNING):
        assert open_runtime(backbone, taps, batch_size=BATCH).name == "torch"
    assert "continuing with torch" in caplog.text


def test_a_network_whose_conversion_would_take_minutes(monkeypatch, caplog):
    runtime = pytest.importorskip("featurecache.backbones.openvino_runtime")
    monkeypatch.setattr(runtime, "_MOST_OPERATIONS", 300)
    backbone, taps = network("loops")
    with pytest.raises(RuntimeMismatchError, match="trace has .* operations, .* takes minutes"):
        open_runtime(backbone, taps, runtime="openvino", batch_size=BATCH)
    with caplog.at_level(logging.WARNING):
        assert open_runtime(backbone, taps, batch_size=BATCH).name == "torch"
    assert "takes minutes); continuing with torch" in caplog.text


def test_what_counts_words_is_not_converted(monkeypatch):
    pytest.importorskip("openvino")
    pytest.importorskip("tokenizers")
    monkeypatch.setattr(runtimes, "_prepare_openvino", None)
    backbone = load_backbone(BackboneRequest(name="words"))
    assert open_runtime(backbone, resolve_taps(backbone, ["default"])).name == "torch"


def test_disagreement_is_relative_to_the_largest_value():
    expected = {"tap": np.array([[1000.0, 0.001]], dtype=np.float32)}
    assert disagreement({"tap": expected["tap"] + 0.5}, expected) is None
    assert "differs by" in disagreement({"tap": expected["tap"] + 2}, expected)
    assert "not finite" in disagreement({"tap": expected["tap"] * np.nan}, expected)


@pytest.fixture
def fresh_look():
    torch_runtime._best_device.cache_clear()
    yield
    torch_runtime._best_device.cache_clear()


def test_auto_is_the_gpu_that_is_there_and_says_so_once(monkeypatch, caplog, fresh_look):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Tesla 9")
    assert [str(torch_runtime.checked_device("auto")) for _ in range(2)] == ["cuda", "cuda"]
    assert [record.message for record in caplog.records] == [
        "computing on the GPU Tesla 9; --device cpu computes on the CPU"
    ]


def test_auto_is_the_cpu_without_a_gpu_and_for_openvino(monkeypatch, caplog, fresh_look):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    backbone, taps = network("small")
    assert open_runtime(backbone, taps, device="auto", runtime="torch").device == "cpu"
    assert {record.name for record in caplog.records} <= {LOGGER}
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    torch_runtime._best_device.cache_clear()
    assert str(torch_runtime.checked_device("auto")) == "mps"
    pytest.importorskip("openvino")
    assert open_runtime(backbone, taps, device="auto", runtime="openvino").device == "cpu"


def test_devices_are_never_replaced_silently():
    backbone, taps = network("small")
    if not torch.cuda.is_available():
        with pytest.raises(RequestError, match="torch sees no CUDA GPU"):
            open_runtime(backbone, taps, device="cuda")
    with pytest.raises(RequestError, match="unknown device 'warp'"):
        open_runtime(backbone, taps, device="warp")
    with pytest.raises(RequestError, match="unknown runtime 'onnx'"):
        open_runtime(backbone, taps, runtime="onnx")


@pytest.mark.parametrize(
    "module", ["featurecache.backbones.openvino_runtime", "featurecache.deployment.exporting.openvino_folder"]
)
def test_nothing_is_reported_to_the_authors_of_a_runtime(tmp_path, module):
    pytest.importorskip("openvino_telemetry")
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    code = f"import {module}, openvino_telemetry; print(openvino_telemetry.Telemetry().consent)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment | {"HOME": str(tmp_path)}
    )
    # An id of this user would have been made in the home folder.
    assert (done.stdout.split(), done.stderr, list(tmp_path.iterdir())) == (["False"], "", [])
