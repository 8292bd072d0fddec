"""Several labels, and numbers, from a folder of images to answers for new ones."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import COLOURS, TINY, write_image

from featurecache.cli import main
from featurecache.specs import TASK_NOUNS

pytestmark = pytest.mark.usefixtures("few_settings")

RUNTIME = ["--runtime", "torch", "--batch-size", "8", "--quiet"]
SAID = {
    "multilabel": (["tags"], lambda colour, i: [";".join([colour] if i % 3 else [colour, "third"])]),
    "regression": (
        ["redness", "blueness"],
        lambda colour, i: [COLOURS[colour][0] + i / 100, COLOURS[colour][2] - i / 100],
    ),
}


@pytest.fixture
def given(make_folder: Callable[..., Path], tmp_path: Path) -> Callable[[str], tuple[Path, Path, list[str]]]:
    def make(kind: str) -> tuple[Path, Path, list[str]]:
        source = make_folder(per_class=20)
        columns, says = SAID[kind]
        with (tmp_path / "labels.csv").open("w", newline="") as out:
            rows = [[f"{colour}/{i:03d}.png", *says(colour, i)] for colour in COLOURS for i in range(20)]
            csv.writer(out).writerows([["path", *columns], *rows])
        options = ["--kind", kind] + [option for column in columns for option in ("--label-column", column)]
        return source, tmp_path / "labels.csv", options

    return make


@pytest.mark.parametrize("kind", SAID)
def test_from_images_to_answers(
    kind: str, given: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, labels, options = given(kind)
    cache, common = str(tmp_path / "c"), ["--backbone", TINY, *RUNTIME]
    command = ["run", str(source), "--cache", cache, "--labels", str(labels), *options, *common]
    assert main([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["kind"] == kind
    assert {result["head"] for result in document["results"]} >= {"ridge", "knn", "mlp", "mean"}
    chosen = document["results"][0]
    primary = next(iter(document["figures"]))
    assert chosen["test"][primary] > 0.7
    assert document["results"][-1]["head"] == "mean"
    assert document["results"][-1]["against_chosen"]["verdict"] == "worse"
    report = (tmp_path / "c" / "report.html").read_text()
    assert all(title in report for title in document["figures"].values())
    if kind == "regression":
        each = {number["number"]: number for number in document["last_look"]["per_number"]}
        for name in ("redness", "blueness"):
            key = f"{name} root_mean_squared_error"
            assert document["figures"][key] == f"{name} RMSE"
            assert chosen["test"][key] == pytest.approx(each[name]["root_mean_squared_error"])
            assert f"{chosen['test'][key]:.4g}" in report
    assert ("Largest errors" if kind == "regression" else "Most confident mistakes") in report
    assert "Confusion matrix" not in report

    new = [write_image(tmp_path / "new" / f"{c}.png", COLOURS[c], seed=77 + k) for k, c in enumerate(COLOURS)]
    (tmp_path / "new" / "empty.png").write_bytes(b"")
    predict = ["predict", str(tmp_path / "c/heads/run"), str(tmp_path / "new"), "--backbone", TINY, *RUNTIME]
    assert main([*predict, "--csv"]) == 1
    rows = {Path(row["path"]).stem: row for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    assert rows["empty"]["status"] == "empty"
    for path in new:
        colour = path.stem
        if kind == "multilabel":
            assert colour in rows[colour]["label"].split(";")
        else:
            said = [float(rows[colour][name]) for name in ("redness", "blueness")]
            np.testing.assert_allclose(said, [COLOURS[colour][0], COLOURS[colour][2]], atol=40)
    assert main([*predict, "--json"]) == 1
    answers = json.loads(capsys.readouterr().out)["predictions"]
    good = next(answer for answer in answers if answer["status"] == "ok")
    assert set(good["numbers"] if kind == "regression" else good["probabilities"]) == set(document["classes"])
    assert main(predict) == 1
    assert "empty" in capsys.readouterr().out
    assert main(["verify", cache]) == 0


@pytest.mark.parametrize("kind", SAID)
def test_tasks_are_described(
    kind: str, given: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, labels, options = given(kind)
    cache = str(tmp_path / "c")
    assert main(["extract", str(source), "--cache", cache, "--backbone", TINY, *RUNTIME]) == 0
    assert main(["task", "add", cache, "t", str(labels), *options]) == 0
    said = capsys.readouterr().out
    assert ("least" if kind == "regression" else "third") in said
    assert main(["task", "ls", cache]) == 0
    assert f"{2 if kind == 'regression' else 4} {TASK_NOUNS[kind]}" in capsys.readouterr().out
    assert main(["train", cache, "--task", "t", "--head", "ridge", "--quiet"]) == 0
    assert ("mean R2" if kind == "regression" else "mean AP") in capsys.readouterr().out
    assert main(["train", cache, "--task", "t", "--head", "ridge", "--quiet", "--wide", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)["results"][0]["test"]
    assert main(["train", cache, "--task", "t", "--head", "ridge", "--quiet", "--wide"]) == 0
    wide = capsys.readouterr().out
    for name in ("redness", "blueness") if kind == "regression" else ():
        assert f"{scores[f'{name} mean_absolute_error']:.4g}" in wide
    for arguments, message in [
        (["train", cache, "--task", "t", "--head", "gda"], f"unknown head for {kind} 'gda'"),
        (["train", cache, "--task", "t", "--balanced"], "balanced classes are for tasks with classes"),
        (
            ["sweep", cache, "--task", "t", "--shots", "2"],
            f"shots are for tasks with classes, and 't' is of kind {kind}",
        ),
        (["task", "add", cache, "u", "--from-folders", "--kind", kind], f"folders say classes, not {kind}"),
        (
            ["run", str(source), "--cache", cache, "--kind", kind, "--backbone", TINY],
            f"folders say classes, not {kind}",
        ),
    ]:
        assert main([*arguments, *(["--quiet"] if arguments[0] != "task" else [])]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("kind", SAID)
def test_cells_that_say_nothing(kind: str, make_folder: Callable[..., Path], tmp_path: Path, capsys: Any) -> None:
    """As tables of X-rays are: from images to a report and answers, and what is unknown is said at every step."""
    source, rng = make_folder(per_class=20), np.random.default_rng(0)
    columns = list(COLOURS)
    with (tmp_path / "labels.csv").open("w", newline="") as out:
        table = csv.writer(out)
        table.writerow(["path", *columns])
        for colour in COLOURS:
            for i in range(20):
                cells = [
                    int(c == colour) if kind == "multilabel" else COLOURS[colour][k] + i / 100
                    for k, c in enumerate(columns)
                ]
                table.writerow([f"{colour}/{i:03d}.png", *("" if rng.random() < 0.2 else cell for cell in cells)])
    options = ["--kind", kind, *(each for column in columns for each in ("--label-column", column))]
    cache, common = str(tmp_path / "c"), ["--backbone", TINY, *RUNTIME]
    run = ["run", str(source), "--cache", cache, "--labels", str(tmp_path / "labels.csv"), *options, *common]
    assert main([*run, "--head", "ridge", "--head", "knn"]) == 0
    out = capsys.readouterr().out
    assert "not known" in out
    assert out.count("cells are not known, and left out of fitting and judging") == 1
    assert "cells are not known" in (tmp_path / "c" / "report.html").read_text()
    predict = ["predict", f"{cache}/heads/run", str(source), "--backbone", TINY, "--quiet", "--json"]
    assert main(predict) == 0
    capsys.readouterr()
    assert main(["train", cache, "--task", "run", "--quiet", "--json", "--head", "ridge", "--tap", "pre_logits"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [warning["kind"] for warning in document["warnings"]] == ["unknown_targets"]
    assert main(["sweep", cache, "--quiet", "--json", "--head", "ridge", "--seeds", "2", "--folds", "2"]) == 0
    assert [row["error"] for row in json.loads(capsys.readouterr().out)["rows"]] == [None] * 4
    assert main(["verify", cache]) == 0
