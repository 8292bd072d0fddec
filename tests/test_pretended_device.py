"""Extraction on a device that is pretended: what forgets to go there, or to come back, fails.

Not heads: they change the shape of tensors in place (``squeeze_`` in a matrix product), which torch cannot ask of a
device in Python.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import REPOSITORY
from torch.utils import backend_registration

CODE = """
import os, sys
from pathlib import Path
import numpy as np, torch
import pretended_device
import featurecache as fc
from featurecache.backbones import tapped, torch_runtime
from featurecache.extraction import deep_verification, drift, loading_pools, recomputation, runtimes, worker
from featurecache.extraction.extract import make_request, run_extraction
from featurecache.backbones import runtimes as backbone_runtimes
for module in (torch_runtime, runtimes, backbone_runtimes, deep_verification, recomputation, worker):
    module.checked_device = torch.device
source, folder = Path(sys.argv[1]), Path(sys.argv[2])
found, NETWORK = {}, "python:tests.backbones.networks:deep"
for device in ("cpu", "pretend", "pretend:0"):
    settings = fc.ExtractionSettings(device=device, runtime="torch", batch_size=4, dtype="float32", num_workers=2)
    if device == "pretend:0":  # processes load
        os.environ["FEATURECACHE_LOADING"] = "processes"
        loading_pools.LoadingThreads.submit = None
    cache = folder / device.replace(":", "")
    store = fc.extract(
        source, cache, backbone=NETWORK, taps=["default", "body.1:avg"], settings=settings
    )
    found[device] = {s.tap: s.open().read(s.open().rows) for s in store.feature_sets()}
    ran = drift.recorded_provenance(store.feature_sets())
    assert (ran.device, ran.norms_folded) == (device.partition(":")[0], True), ran
    # A second run finds all of it, and compares.
    assert fc.extract(source, cache, backbone=NETWORK, settings=settings).path == cache
for tap, values in found["cpu"].items():
    for device in ("pretend", "pretend:0"):
        assert np.abs(found[device][tap] - values).max() <= 1e-5 * np.abs(values).max(), (device, tap)
# Images are decoded by processes and resized on the device; on the CPU, where they are decoded.
request = make_request(NETWORK, preprocess={"resize_on": "device"})
resized, on_device = {}, []
unpacked = tapped.unpacked
tapped.unpacked = lambda *given: on_device.append(len(given[1])) or unpacked(*given)
for device in ("cpu", "pretend"):
    settings = fc.ExtractionSettings(device=device, runtime="torch", batch_size=4, dtype="float32", num_workers=2)
    cache = folder / f"{device} resizes"
    sets = run_extraction(source, cache, request, taps=["body.1:avg"], settings=settings).sets
    resized[device] = {s.tap: s.open().read(s.open().rows) for s in sets}
    # Twelve images, and those of the batch that is compared with plain torch.
    assert sum(on_device) == (0 if device == "cpu" else 16), on_device
for tap, values in resized["cpu"].items():
    assert values.any() and np.abs(resized["pretend"][tap] - values).max() <= 1e-5 * np.abs(values).max(), tap
assert pretended_device.counts["operations"] > 100, pretended_device.counts
"""


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="not in this torch",
)
def test_a_device_computes_what_the_cpu_does(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    command = [sys.executable, "-c", CODE, str(make_folder(per_class=3)), str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
