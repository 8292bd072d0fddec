"""The check of GPUs, as far as a CPU runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from conftest import REPOSITORY, TINY


def test_the_check_of_gpus_runs_on_a_cpu_and_tells_what_failed(tmp_path: Path) -> None:
    script, out, missing = REPOSITORY / "scripts" / "gpu_check.py", tmp_path / "out", "python:tiny_backbones:missing"
    command = [sys.executable, str(script), str(out), "--device", "cpu", "--quick"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])}
    done = subprocess.run(
        [*command, "--backbone", TINY, "--backbone", missing], env=environment, capture_output=True, text=True
    )
    checks = {row["name"]: row["ok"] for row in json.loads((out / "gpu_check.json").read_text())["checks"]}
    failed = [name for name, ok in checks.items() if ok is False]
    assert f"{len(failed)} of {len(checks)} checks failed" in done.stdout
    assert done.returncode == 1
    assert f"equality of {missing}" in failed
    assert all("missing" in name for name in failed), done.stdout + done.stderr
    assert sum(ok is True for ok in checks.values()) >= 11
    assert any("end to end" in name and "missing" not in name for name in checks)
    assert checks["logistic: the same where the device does not hold the rows"]
