"""Choices that mean nothing are said: classes that are missing where heads are chosen, learned or reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import write_cache, write_folder

pytestmark = pytest.mark.usefixtures("few_settings")

TRAIN = ["--head", "ridge", "--head", "majority", "--json"]
Warnings = Callable[..., dict[str, dict]]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten samples of each of three colours, which `red/000.png` to `blue/009.png` name."""
    return write_cache(tmp_path_factory.mktemp("doubts"), per_class=10)


@pytest.fixture
def warnings_of(cache: Path, tmp_path: Path, call: Callable) -> Warnings:
    """Train on a task that a table gives, and return its warnings by kind."""

    def warnings(rows: list[tuple[str, str, str]]) -> dict[str, dict]:
        table = tmp_path / "labels.csv"
        table.write_text("path,label,split\n" + "".join(f"{','.join(row)}\n" for row in rows))
        assert call("task", "add", cache, "given", table, "--replace", "--allow-missing")[0] == 0
        status, out, _ = call("train", cache, "--task", "given", *TRAIN)
        assert status == 0
        return {warning["kind"]: warning for warning in json.loads(out)["warnings"]}

    return warnings


def rows(colour: str, split: str, numbers: range) -> list[tuple[str, str, str]]:
    return [(f"{colour}/{number:03d}.png", colour, split) for number in numbers]


def test_a_sound_task_has_none(warnings_of: Warnings) -> None:
    splits = (("train", range(5)), ("validation", range(5, 7)), ("test", range(7, 10)))
    sound = [row for colour in ("red", "green", "blue") for split, some in splits for row in rows(colour, split, some)]
    assert warnings_of(sound) == {}


def test_a_class_that_nothing_is_chosen_or_reported_by(warnings_of: Warnings) -> None:
    both = [
        row
        for colour in ("red", "green")
        for split, some in (("train", range(5)), ("validation", range(5, 7)), ("test", range(7, 10)))
        for row in rows(colour, split, some)
    ]
    found = warnings_of([*both, *rows("blue", "train", range(5)), *rows("blue", "test", range(7, 10))])
    assert "class_not_in_validation" in found
    assert "class_not_evaluated" not in found
    assert found["class_not_in_validation"]["examples"] == ["blue"]
    assert "1 of 3 classes has no validation sample" in found["class_not_in_validation"]["text"]
    found = warnings_of([*both, *rows("blue", "train", range(5)), *rows("blue", "validation", range(7, 10))])
    assert "1 of 3 classes has no test sample: the scores say nothing of them" in found["class_not_evaluated"]["text"]


def test_one_train_sample_of_a_class(warnings_of: Warnings) -> None:
    test = [row for colour in ("red", "green", "blue") for row in rows(colour, "test", range(7, 10))]
    some = [*rows("red", "train", range(5)), *rows("green", "train", range(5)), *rows("blue", "train", range(1))]
    found = warnings_of([*some, *test])["one_sample_classes"]
    assert (found["count"], found["examples"]) == (1, ["blue"])
    assert "a fold that is to predict it has never seen its class" in found["text"]
    single = [row for colour in ("red", "green", "blue") for row in rows(colour, "train", range(1))]
    found = warnings_of([*single, *test])["one_sample_classes"]
    assert "so heads and settings are chosen by chance" in found["text"]
    validation = [(path, label, "validation") for path, label, _ in test[:9:2]]
    found = warnings_of([*single, *validation, *[row for row in test if (*row[:2], "validation") not in validation]])
    assert "of what varies in them nothing is learned" in found["one_sample_classes"]["text"]


def test_a_head_that_is_no_better_than_the_largest_class(warnings_of: Warnings) -> None:
    """Labels that have nothing to do with colours."""
    mixed = [
        (path, ("yes", "no")[number % 2], split)
        for split, some in (("train", range(6)), ("test", range(6, 10)))
        for colour in ("red", "green", "blue")
        for number, (path, _, _) in enumerate(rows(colour, split, some))
    ]
    found = warnings_of(mixed)["no_better_than_baseline"]
    assert "is not shown to be better than the largest class, 'no', for all, on 12 test samples" in found["text"]


def test_one_sample_of_each_class_is_the_reason(tmp_path: Path, call: Callable) -> None:
    source = write_folder(tmp_path / "single", per_class=1)
    status, _, err = call("run", source, "--cache", tmp_path / "c", "--backbone", "python:tiny_backbones:tiny")
    assert status == 2
    assert "task 'run' has one sample of each of its 3 classes: a head that learns from it has none left" in err
