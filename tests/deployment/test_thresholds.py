"""Thresholds on the command line, and in what travels: the kept head, predictions for new images, exports."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import RUNTIME, TINY, write_folder

from featurecache.cli import main
from featurecache.deployment.export import export_head
from featurecache.deployment.saved import SavedHead, open_head
from featurecache.errors import HeadError
from featurecache.heads.bundle import load_head, save_head
from featurecache.heads.thresholds import Thresholds


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More blue images than green ones: whoever knows nothing says blue."""
    folder = tmp_path_factory.mktemp("thresholds")
    source = write_folder(folder / "photos", per_class=10, classes=("blue", "green"))
    for image in sorted((source / "green").iterdir())[6:]:
        image.unlink()
    assert main(["extract", str(source), "--cache", str(folder / "c"), "--backbone", TINY, *RUNTIME]) == 0
    assert main(["task", "add", str(folder / "c"), "colour", "--from-folders"]) == 0
    train = ["train", str(folder / "c"), "--task", "colour", "--quiet", "--head"]
    rule = ["--threshold", "cost=1000:1", "--positive", "green"]
    assert main([*train, "majority", "--save", "plain"]) == 0
    assert main([*train, "majority", "--save", "careful", *rule]) == 0
    assert main([*train, "logistic", "--save", "logistic", *rule]) == 0
    return folder / "c"


def labels_of(cache: Path, name: str, capsys: pytest.CaptureFixture[str]) -> list[dict[str, str]]:
    capsys.readouterr()
    predict = ["predict", str(cache / "heads" / name), str(cache.parent / "photos"), "--csv", "--backbone", TINY]
    assert main([*predict, *RUNTIME, "--quiet"]) == 0
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def test_a_kept_head_predicts_by_its_threshold(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, careful = (labels_of(cache, name, capsys) for name in ("plain", "careful"))
    assert {row["label"] for row in plain} == {"blue"}
    assert {row["label"] for row in careful} == {"green"}
    # Probabilities are what they were.
    assert {float(row["probability"]) for row in careful} == {round(1 - float(row["probability"]), 6) for row in plain}
    saved = open_head(cache / "heads" / "careful")
    assert saved.thresholds is not None
    assert (saved.thresholds.rule, saved.thresholds.positive) == ("cost=1000:1", 1)
    assert saved.names_of(np.array([[0.6, 0.4], [1.0, 0.0]])) == [["green"], ["blue"]]
    before = open_head(cache / "heads" / "plain")
    assert before.thresholds is None
    assert before.names_of(np.array([[0.6, 0.4]])) == [["blue"]]


def test_labels_hold_from_their_thresholds_on() -> None:
    given: dict[str, Any] = {"estimator": None, "identity": None, "tap": "", "dtype": "float32", "meta": {}}
    thresholds = Thresholds("f1", (0.2, 0.9), None, (30, 30), (True, True))
    for chosen, names in ((None, ["b"]), (thresholds, ["a"])):
        saved = SavedHead(**given, classes=["a", "b"], temperature=None, kind="multilabel", thresholds=chosen)
        assert saved.names_of(np.array([[0.3, 0.8]])) == [names]


def test_the_table_and_the_figures_are_those_of_the_threshold(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = ["train", str(cache), "--task", "colour", "--quiet", "--head", "majority", "--threshold", "recall=1"]
    capsys.readouterr()
    assert main(train) == 0
    said = capsys.readouterr().out
    assert "thresholds by recall=1, chosen on the rows that chose the head: green from" in said
    assert "1 of 1 threshold was chosen by fewer than 20 positive samples" in said
    assert main([*train, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (result,) = document["results"]
    assert result["threshold"]["rule"] == "recall=1"
    green = next(row for row in document["last_look"]["per_class"] if row["class"] == "green")
    assert green["recall"] == 1


def test_an_export_says_its_thresholds(cache: Path, tmp_path: Path) -> None:
    about = export_head(cache / "heads" / "logistic", tmp_path / "out", format="safetensors", backbone=TINY)
    saved = open_head(cache / "heads" / "logistic")
    assert saved.thresholds is not None
    assert about["thresholds"] == {"green": saved.thresholds.values[0]}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["thresholds"] == about["thresholds"]


def test_thresholds_that_do_not_belong_to_a_head_are_refused(cache: Path, tmp_path: Path) -> None:
    estimator, meta = load_head(cache / "heads" / "careful")[:2]
    save_head(tmp_path / "other", estimator, meta | {"threshold": {**meta["threshold"], "values": [0.1, 0.2]}})
    with pytest.raises(HeadError, match="its thresholds are not those of its classes"):
        open_head(tmp_path / "other")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--threshold", "recal=1"], "threshold 'recal=1' is none of default, f1, recall=R"),
        (["--threshold", "f1", "--positive", "gren"], "unknown class 'gren'; did you mean 'green'?"),
    ],
)
def test_options_that_cannot_be_are_told(
    cache: Path, options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["train", str(cache), "--task", "colour", "--head", "ridge", *options]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
