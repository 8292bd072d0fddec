"""Small variants of the trials in ``scripts/trials``: no promise of the store may be broken, not even once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

LEAST_TRIALS = {
    "kill": (8, 8),
    "faults": (8, 5),
    "flips": (100, 80, 10, 80, 80, 150),
    "hostile": (1, 5, 5, 5, 5, 2, 5, 5),
    "races": (2, 2, 2, 2),
    "gc": (3,),
    "publish": (6, 12),
    "fsync": (50, 14),
    "images": (280,),
    "changes": (30, 10),
    "durability": (1,),
    "size": (5,),
}
"""For each promise of a trial, how many attempts the small variant makes at least."""


def run_trial(name: str, folder: Path, *options: str) -> tuple[int, list[dict[str, Any]], str]:
    """Run a trial in a process of its own: it forks, which a process with threads must not do."""
    command = [sys.executable, str(REPOSITORY / "scripts" / "trials"), name, "--json", str(folder / "numbers.json")]
    done = subprocess.run([*command, *options], cwd=folder, capture_output=True, text=True, timeout=1800)
    numbers = folder / "numbers.json"
    tallies = json.loads(numbers.read_text())["trials"][name]["tallies"] if numbers.exists() else []
    return done.returncode, tallies, done.stdout + done.stderr


@pytest.mark.parametrize("name", LEAST_TRIALS)
def test_small_trial_breaks_no_promise(name: str, tmp_path: Path) -> None:
    status, tallies, output = run_trial(name, tmp_path, "--quick")
    assert [tally["violations"] for tally in tallies] == [[] for _ in LEAST_TRIALS[name]], output
    assert all(tally["num_trials"] >= least for tally, least in zip(tallies, LEAST_TRIALS[name], strict=True)), output
    assert status == 0, output
    assert f"{name}: 0 of {tallies[0]['num_trials']} " in output


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in LEAST_TRIALS if name != "size"])
def test_full_trial_breaks_no_promise(name: str, tmp_path: Path) -> None:
    status, tallies, output = run_trial(name, tmp_path)
    assert status == 0, output
    assert len(tallies) == len(LEAST_TRIALS[name])
