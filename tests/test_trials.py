"""Small variants of the trials in ``scripts/trials``: no promise of the store may be broken, not even once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

LEAST_TRIALS = {
    "kill": (4, 4),
    "faults": (6, 3),
    "flips": (50, 40, 5, 40, 40, 75),
    "hostile": (1, 2, 2, 2, 2, 1, 2, 2, 0),
    "races": (2, 2, 1, 1, 1, 1),
    "gc": (3,),
    "publish": (6, 10),
    "fsync": (50, 14),
    "images": (280,),
    "changes": (14, 6),
    "coverage": (24, 1, 24, 1, 24, 1, 24, 0, 24, 0, 24, 0),
    "durability": (1,),
    "size": (5,),
}
"""For each promise of a trial, how many attempts the small variant makes at least."""


def run_trials(names: Sequence[str], folder: Path, *options: str) -> tuple[dict[str, list[dict[str, Any]]], str]:
    """Run trials in a process of their own: they fork, which a process with threads must not do.

    Returns what each tallied, and what was printed.
    """
    command = [sys.executable, str(REPOSITORY / "scripts" / "trials"), *names, "--json", str(folder / "numbers.json")]
    done = subprocess.run([*command, *options], cwd=folder, capture_output=True, text=True, timeout=3600)
    output = done.stdout + done.stderr
    numbers = folder / "numbers.json"
    assert numbers.exists(), output
    trials = json.loads(numbers.read_text())["trials"]
    broken = any(tally["violations"] for trial in trials.values() for tally in trial["tallies"])
    assert done.returncode == int(broken), output
    return {name: trial["tallies"] for name, trial in trials.items()}, output


@pytest.fixture(scope="module")
def small_trials(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[list[dict[str, Any]], str]]:
    """Tallies and output of a trial; all run in one process, as loading the libraries takes as long as one."""

    @cache
    def run() -> tuple[dict[str, list[dict[str, Any]]], str]:
        return run_trials(list(LEAST_TRIALS), tmp_path_factory.mktemp("trials"), "--quick")

    def tallies(name: str) -> tuple[list[dict[str, Any]], str]:
        trials, output = run()
        return trials[name], output

    return tallies


@pytest.mark.parametrize("name", LEAST_TRIALS)
def test_small_trial_breaks_no_promise(
    name: str, small_trials: Callable[[str], tuple[list[dict[str, Any]], str]]
) -> None:
    tallies, output = small_trials(name)
    assert [tally["violations"] for tally in tallies] == [[] for _ in LEAST_TRIALS[name]], output
    assert all(tally["num_trials"] >= least for tally, least in zip(tallies, LEAST_TRIALS[name], strict=True)), output
    assert f"{name}: 0 of {tallies[0]['num_trials']} " in output


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in LEAST_TRIALS if name != "size"])
def test_full_trial_breaks_no_promise(name: str, tmp_path: Path) -> None:
    trials, output = run_trials([name], tmp_path)
    assert [tally["violations"] for tally in trials[name]] == [[] for _ in LEAST_TRIALS[name]], output
