"""The table that `train` prints: what it shows to choose by, what it holds back, and what fits a terminal."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import write_cache

pytestmark = pytest.mark.usefixtures("few_settings")

HEADS = ["--head", "ridge", "--head", "nearest_mean", "--head", "majority"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("table"), per_class=10)


def lines_of(out: str, heads: tuple[str, ...] = ("ridge", "nearest_mean", "majority")) -> list[list[str]]:
    return [re.split(r"\s{2,}", line.strip()) for line in out.splitlines() if line.strip().startswith(heads)]


def test_the_chosen_head_comes_first_and_only_its_test_score_is_shown(cache: Path, call: Callable) -> None:
    status, out, _ = call("train", cache, "--task", "colour", *HEADS)
    assert status == 0
    table, _, below = out.partition("chosen by validation: ")
    lines = lines_of(table)
    assert max(map(len, table.splitlines())) <= 80
    assert [len(line) for line in lines] == [3, 3, 3]
    assert lines[0][2] == "chosen"
    assert lines[-1][0] == "majority"
    assert "test accuracy" not in table
    assert re.match(r"\w+ on .+ of python:\S+, with test accuracy [\d.]+ \([\d.]+ to [\d.]+, \d+ samples\)", below)
    assert "is of the one chosen among 3, so too high; with the choice repeated on resamples: " in below
    assert "nothing was chosen on them" in below


def test_all_test_scores_come_with_a_warning(cache: Path, call: Callable) -> None:
    _, out, _ = call("train", cache, "--task", "colour", *HEADS, "--look-at-test", "--wide")
    assert "choosing by the test column spoils it" in out
    assert all(re.fullmatch(r"[01]\.\d{3}", line[3]) for line in lines_of(out.partition("chosen by")[0]))
    assert re.search(r"test accuracy +95 % interval +balanced +macro F1 +seconds +settings +against", out)
    _, out, _ = call("train", cache, "--task", "colour", *HEADS, "--wide")
    assert [line[3] for line in lines_of(out.partition("chosen by")[0])[1:]] == ["-", "-"]


def test_json_says_which_features_and_how_much_choosing_made(cache: Path, call: Callable) -> None:
    _, out, _ = call("train", cache, "--task", "colour", *HEADS, "--json")
    document = json.loads(out)
    assert {"head", "backbone", "tap", "dtype", "views", "fingerprint"} <= set(document["chosen"])
    assert document["chosen_score"]["num_heads"] == 3
    assert document["chosen_score"]["corrected"] <= document["chosen_score"]["observed"]
    assert [result["against_chosen"] is None for result in document["results"]] == [True, False, False]
    _, out, _ = call("train", cache, "--task", "colour", "--head", "ridge", "--json")
    assert json.loads(out)["chosen_score"] is None


def test_lines_of_several_backbones_say_which(cache: Path, tmp_path: Path, call: Callable) -> None:
    copy = Path(shutil.copytree(cache, tmp_path / "c"))
    source = next(iter(cache.parent.glob("*/red"))).parent
    assert call("extract", source, "--cache", copy, "--backbone", "python:tiny_backbones:other_seed", "--quiet")[0] == 0
    _, out, _ = call("train", copy, "--task", "colour", "--tap", "all", "--head", "ridge")
    names = [line[1] for line in lines_of(out.partition("chosen by")[0])]
    assert len(set(names)) == len(names) >= 2
    assert any("other_seed" in name for name in names)
