"""``featurecache sweep``: resumable, the same with any number of processes, and every result is kept by content."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, TINY, need

from featurecache.cli import main
from featurecache.evaluation.sweep import COLUMNS, Plan, run_sweep
from featurecache.heads import registry
from featurecache.store.store import FeatureStore

RUNTIME = ["--runtime", "torch", "--batch-size", "8", "--quiet"]


@pytest.fixture
def cached(make_folder: Callable[..., Path], tmp_path: Path) -> Path:
    """A cache with two taps and a task in three parts."""
    taps = ["--tap", "default", "--tap", "stem.0:avg"]
    source = make_folder(per_class=20)
    assert main(["extract", str(source), "--cache", str(tmp_path / "c"), "--backbone", TINY, *taps, *RUNTIME]) == 0
    assert main(["task", "add", str(tmp_path / "c"), "colour", "--from-folders"]) == 0
    return tmp_path / "c"


@pytest.fixture
def sweep(cached: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    def run(*args: str, status: int = 0) -> dict[str, Any]:
        capsys.readouterr()
        assert main(["sweep", str(cached), "--quiet", "--json", *args]) == status
        return dict(json.loads(capsys.readouterr().out))

    return run


def figures(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_nothing_is_computed_twice(sweep: Callable, cached: Path) -> None:
    few = sweep("--head", "knn", "--seeds", "2")
    assert (few["kept"], few["computed"]) == (0, 4)
    more = sweep("--head", "knn", "--head", "gda", "--seeds", "3")
    assert (more["kept"], more["computed"]) == (4, 8)
    again = sweep("--head", "knn", "--head", "gda", "--seeds", "3")
    assert (again["kept"], again["computed"]) == (12, 0)
    assert again["rows"] == more["rows"]
    assert [set(row) for row in again["rows"]] == [set(COLUMNS)] * 12
    assert main(["verify", str(cached)]) == 0


def test_results_do_not_depend_on_processes_and_order(cached: Path) -> None:
    store = FeatureStore.open(cached)
    plan = Plan(heads=["logistic", "knn", "gda"], seeds=[0, 1], shots=[2, 5])
    there = run_sweep(store, [store.task("colour")], store.feature_sets(), plan, n_jobs=2)
    for record in (cached / "results").iterdir():
        record.unlink()
    here = run_sweep(store, [store.task("colour")], store.feature_sets(), plan, n_jobs=1)
    assert figures(here) == figures(there)
    assert len(here) == 2 * 3 * 2 * 2


def test_a_result_belongs_to_contents_not_to_names(sweep: Callable, cached: Path) -> None:
    sweep("--head", "knn")
    assert main(["task", "add", str(cached), "same", "--from-folders"]) == 0
    both = sweep("--head", "knn")
    assert (both["kept"], both["computed"]) == (4, 0)
    assert [row["task"] for row in both["rows"]] == ["colour", "colour", "same", "same"]
    assert main(["task", "add", str(cached), "other", "--from-folders", "--seed", "5"]) == 0
    assert sweep("--head", "knn", "--task", "other")["computed"] == 2  # other parts, other results


def test_a_changed_head_is_fitted_again(sweep: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sweep("--head", "knn")["computed"] == 2
    monkeypatch.setattr(registry, "_HEADS", dict(registry._HEADS))
    del registry._HEADS["classes", "knn"]
    registry.register_head("knn", registry._knn, lambda n_samples: [{"n_neighbors": 1}])
    assert sweep("--head", "knn")["computed"] == 2


def test_it_never_looks_at_test_unless_asked(sweep: Callable) -> None:
    assert {row["part"] for row in sweep("--head", "knn")["rows"]} == {"validation"}
    folds = sweep("--head", "knn", "--folds", "3")["rows"]
    assert {(row["part"], row["fold"]) for row in folds} == {("fold", 0), ("fold", 1), ("fold", 2)}
    looked = sweep("--head", "knn", "--look-at-test")["rows"]
    assert {row["part"] for row in looked} == {"test"}
    assert looked[0]["n_train"] == 48  # train and validation


def test_a_head_that_cannot_be_fitted_is_a_row_and_status_one(sweep: Callable, monkeypatch: Any) -> None:
    from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis

    class Fussy(QuadraticDiscriminantAnalysis):
        def fit(self, X: Any, y: Any) -> Any:
            raise ValueError("not today")

    monkeypatch.setattr(registry, "_HEADS", dict(registry._HEADS))
    registry.register_head("fussy", Fussy, lambda n_samples: [{}])
    document = sweep("--head", "fussy", "--head", "knn", "--tap", "pre_logits:none", status=1)
    errors = {row["head"]: row["error"] for row in document["rows"]}
    assert errors["knn"] is None
    assert "head 'fussy' cannot be fitted" in errors["fussy"]


def test_tables_and_picture(cached: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    need("pyarrow")
    import pyarrow.parquet

    args = ["sweep", str(cached), "--quiet", "--head", "knn", "--head", "gda", "--share", "0.3", "--share", "1"]
    for name in ("rows.csv", "rows.tsv", "rows.parquet"):
        assert main([*args, "--out", str(tmp_path / name), "--picture", str(tmp_path / "p.svg")]) == 0
    table = pyarrow.parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    with (tmp_path / "rows.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["accuracy"] for line in lines] == [str(row["accuracy"]) for row in table]
    assert tuple(lines[0]) == tuple(table[0]) == COLUMNS
    assert len((tmp_path / "rows.tsv").read_text().splitlines()) == len(table) + 1 == 9
    picture = (tmp_path / "p.svg").read_text()
    assert picture.rstrip().endswith("</svg>")
    out = capsys.readouterr().out
    assert "8 results, 8 of them from earlier sweeps" in out
    assert "knn" in out


def test_a_kill_loses_only_what_was_not_finished(cached: Path) -> None:
    command = [sys.executable, "-m", "featurecache", "sweep", str(cached), "--quiet", "--jobs", "1", "--seeds", "200"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])}
    process = subprocess.Popen([*command, "--head", "logistic"], env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list((cached / "results").glob("*.json"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(list((cached / "results").glob("*.json")))
    assert 5 <= done < 400
    store = FeatureStore.open(cached)
    kept = []
    plan = Plan(heads=["logistic"], seeds=range(done // 2))
    run_sweep(
        store, [store.task("colour")], store.feature_sets(), plan, n_jobs=1, on_result=lambda row, was: kept.append(was)
    )
    assert sum(kept) >= done // 2
    assert main(["verify", str(cached)]) == 0


def test_a_damaged_result_is_computed_again_and_repaired(sweep: Callable, cached: Path) -> None:
    rows = sweep("--head", "knn")["rows"]
    record = sorted((cached / "results").iterdir())[0]
    record.write_bytes(record.read_bytes().replace(b"accuracy", b"accurate", 1))
    assert main(["verify", str(cached)]) == 1
    again = sweep("--head", "knn")
    assert (again["kept"], again["computed"]) == (1, 1)
    assert figures(again["rows"]) == figures(rows)
    assert main(["verify", str(cached)]) == 0
    record.write_bytes(record.read_bytes()[:-9])
    assert main(["repair", str(cached)]) == 1
    assert main(["verify", str(cached)]) == 0
    assert sweep("--head", "knn")["computed"] == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--seeds", "0"], "--seeds must be 1 or more, got 0"),
        (["--task", "colours"], "did you mean 'colour'"),
        (["--tap", "nothing"], "nothing"),
        (["--head", "knm"], "did you mean 'knn'"),
        (["--out", "no/such/rows.csv"], "--out no/such/rows.csv: there is no folder no/such; make it"),
        (["--picture", "p.png"], "--picture p.png must end in .svg"),
        (["--out", "."], "--out .: it is a folder; name a file"),
        (["--folds", "40"], "too few for 40 folds; ask for fewer folds"),
    ],
)
def test_wrong_requests(cached: Path, args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", str(cached), "--quiet", *args]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (cached / "results").exists()


def test_a_cache_without_tasks(make_folder: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["extract", str(make_folder(per_class=2)), "--cache", str(tmp_path / "c"), "--backbone", TINY, *RUNTIME])
    assert main(["sweep", str(tmp_path / "c"), "--quiet"]) == 2
    assert "has no tasks with classes; add one with `featurecache task add`" in capsys.readouterr().err
