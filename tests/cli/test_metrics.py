"""``--metric`` on the command line: the table, the sentence, the kept head and the kept results are about it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import write_cache

from featurecache.cli import main
from featurecache.heads.bundle import load_head


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_cache(tmp_path_factory.mktemp("metrics"), per_class=15))


def ran(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main([*arguments, "--quiet"]) == 0
    return capsys.readouterr().out


def test_the_table_and_the_sentence_are_about_the_metric(cache: str, capsys: pytest.CaptureFixture[str]) -> None:
    train = ["train", cache, "--task", "colour", "--head", "ridge", "--head", "majority", "--metric", "roc-auc"]
    said = ran(capsys, *train, "--wide", "--save", "areas")
    heading = next(line for line in said.splitlines() if "against the chosen" in line)
    assert heading.index("test AUROC") < heading.index("accuracy") < heading.index("balanced")
    assert "by AUROC: ridge on" in said
    assert "with test AUROC" in said
    _, meta = load_head(Path(cache) / "heads" / "areas")[:2]
    assert meta["metric"] == "roc_auc"
    assert meta["test"]["roc_auc"] > 0.5
    document = json.loads(ran(capsys, *train, "--json"))
    assert document["metric"] == "roc_auc"
    assert next(iter(document["figures"])) == "roc_auc"
    worst = document["results"][-1]
    assert (worst["head"], worst["metric"], worst["selection_score"]) == ("majority", "roc_auc", 0.5)
    loss = ran(
        capsys, "train", cache, "--task", "colour", "--head", "ridge", "--head", "majority", "--metric", "log_loss"
    )
    assert "by log loss (less is better): ridge on" in loss


def test_results_of_another_metric_are_not_taken_up(cache: str, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = ["sweep", cache, "--task", "colour", "--head", "ridge", "--head", "majority", "--json"]
    plain, again = (json.loads(ran(capsys, *sweep)) for _ in range(2))
    assert (plain["kept"], again["kept"]) == (0, 2)
    # What is chosen by default is named likewise.
    assert json.loads(ran(capsys, *sweep, "--metric", "accuracy"))["kept"] == 2
    found = json.loads(ran(capsys, *sweep, "--metric", "log_loss"))
    assert (found["kept"], found["computed"]) == (0, 2)
    rows = {row["head"]: row for row in found["rows"]}
    assert rows["ridge"]["measure"] == "log_loss"
    assert rows["ridge"]["score"] == rows["ridge"]["log_loss"] < rows["majority"]["score"]
    assert [line["head"] for line in found["summary"]] == ["ridge", "majority"]  # the least loss first
    again = json.loads(ran(capsys, *sweep, "--metric", "log_loss"))
    assert (again["kept"], again["rows"]) == (2, found["rows"])


@pytest.mark.parametrize(
    ("metric", "told"),
    [
        ("acuracy", "unknown metric 'acuracy'; did you mean 'accuracy'?"),
        ("r2", "kind classification has no metric r2;"),
    ],
)
@pytest.mark.parametrize("verb", ["train", "sweep"])
def test_a_metric_that_cannot_be_is_told(
    cache: str, verb: str, metric: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main([verb, cache, "--task", "colour", "--metric", metric]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
