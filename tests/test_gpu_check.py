"""The check of GPUs, as far as a CPU runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, TINY


@pytest.mark.parametrize("backbone", [TINY, "python:tiny_backbones:missing"])
def test_the_check_of_gpus_runs_on_a_cpu_and_tells_what_failed(backbone: str, tmp_path: Path) -> None:
    script, out = REPOSITORY / "scripts" / "gpu_check.py", tmp_path / "out"
    command = [sys.executable, str(script), str(out), "--device", "cpu", "--quick", "--backbone", backbone]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    checks = {row["name"]: row["ok"] for row in json.loads((out / "gpu_check.json").read_text())["checks"]}
    failed = [name for name, ok in checks.items() if ok is False]
    assert f"{len(failed)} of {len(checks)} checks failed" in done.stdout
    if backbone == TINY:
        assert (done.returncode, failed) == (0, []), done.stdout + done.stderr
        assert sum(ok is True for ok in checks.values()) >= 11
        assert any("end to end" in name for name in checks)
    else:
        assert done.returncode == 1
        assert f"equality of {backbone}" in failed
        assert checks["logistic: the same where the device does not hold the rows"]
