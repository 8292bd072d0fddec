"""``featurecache sweep``: resumable, the same with any number of processes, and every result is kept by content."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import starmap
from pathlib import Path
from typing import Any

import pytest
from conftest import COLOURS, REPOSITORY, RUNTIME, TINY, need, write_cache

from featurecache.atomic import is_partial
from featurecache.cli import main
from featurecache.errors import HeadError, ReportWarning, UnknownNameError
from featurecache.evaluation import fits, selection
from featurecache.evaluation.measures import measure_of
from featurecache.evaluation.plan import Plan, Resampling, resample
from featurecache.evaluation.processes import FitBackend
from featurecache.evaluation.search import evaluate_head, search
from featurecache.evaluation.summary import COLUMNS, SweepLine, SweepRow
from featurecache.evaluation.sweep import SweepReport, run_sweep
from featurecache.evaluation.task_features import read_splits
from featurecache.heads import registry
from featurecache.heads.knn import CosineKnn
from featurecache.heads.registry import list_heads
from featurecache.progress import Silent
from featurecache.store.store import FeatureStore

pytestmark = pytest.mark.usefixtures("few_settings")
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder, and its cache with two taps and a task in three splits: made once, and copied for each test."""
    root = tmp_path_factory.mktemp("sweep")
    write_cache(root, "default", "stem.0:avg")
    return root


@pytest.fixture
def cached(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "c", tmp_path / "c"))


@pytest.fixture
def sweep(cached: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    def run(*args: str, status: int = 0) -> dict[str, Any]:
        capsys.readouterr()
        assert main(["sweep", str(cached), "--quiet", "--json", *args]) == status
        return dict(json.loads(capsys.readouterr().out))

    return run


@pytest.fixture
def of_all_kinds(cached: Path, tmp_path: Path) -> Path:
    """The cache with one task of each kind."""
    said = {
        "tags": lambda colour, i: ";".join([colour, *(["third"] if i % 3 == 0 else [])]),
        "redness": lambda colour, i: COLOURS[colour][0] + i / 100,
    }
    rows = [[f"{colour}/{i:03d}.png", *(f(colour, i) for f in said.values())] for colour in COLOURS for i in range(20)]
    with (tmp_path / "labels.csv").open("w", newline="") as out:
        csv.writer(out).writerows([["path", *said], *rows])
    for column, kind in zip(said, ("multilabel", "regression"), strict=True):
        add = ["task", "add", str(cached), column, str(tmp_path / "labels.csv"), "--kind", kind]
        assert main([*add, "--label-column", column]) == 0
    return cached


MEASURES = {"colour": "accuracy", "redness": "r2", "tags": "mean_average_precision"}


def figures(rows: list[dict[str, Any]] | SweepReport) -> list[dict[str, Any]]:
    rows = [row.to_json() for row in rows.rows] if isinstance(rows, SweepReport) else rows
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


class Watching(Silent):
    """Calls a function after each result."""

    def __init__(self, look: Callable[[], object]) -> None:
        self._look = look

    def advance(self, count: int, *, bad: int = 0) -> None:
        self._look()


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


def test_results_do_not_depend_on_processes_and_order(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fits, "_SECONDS_TO_START", 0.0)
    monkeypatch.setattr(selection, "_MAX_REPEATS", 4)  # as in the other processes
    store = FeatureStore.open(cached)
    plan = Plan(heads=["logistic", "knn"], seeds=[0, 1], shots=[3])
    there = run_sweep(store, [store.task("colour")], store.feature_sets(), plan, n_jobs=2)
    for record in (cached / "results").iterdir():
        record.unlink()
    here = run_sweep(store, [store.task("colour")], store.feature_sets(), plan, n_jobs=1)
    assert figures(here) == figures(there)
    assert len(here.rows) == 2 * 2 * 2


def test_a_sweep_that_is_soon_done_starts_no_processes(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would import all libraries again; one that takes long has them after its first search."""
    started: list[int] = []

    def run(
        backend: FitBackend, work: Callable[..., Any], arguments: Iterable[tuple[Any, ...]], *, workers: int
    ) -> Iterator[Any]:
        started.append(workers)
        return enumerate(starmap(work, arguments))

    monkeypatch.setattr(FitBackend, "run", run)
    store, heads = FeatureStore.open(cached), ["nearest_mean", "majority"]
    for seconds, seeds, expected in ((1e9, [0, 1], []), (0.0, [2, 3], [2])):
        monkeypatch.setattr(fits, "_SECONDS_TO_START", seconds)
        plan = Plan(heads=heads, seeds=seeds, num_folds=2)
        found = run_sweep(store, [store.task("colour")], store.feature_sets()[:1], plan, n_jobs=2)
        assert started == expected
        assert len(found.rows) == 8


def leftovers(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if is_partial(path)]


@pytest.mark.parametrize(
    ("n_jobs", "changes"),
    [
        (1, {}),
        (2, {}),
        (1, {"on_test": True}),
        (2, {"num_folds": 2}),
        (1, {"shares": [0.5]}),
        (1, {"shots": [3]}),
    ],
    ids=str,
)
def test_results_do_not_depend_on_memory(cached: Path, changes: dict[str, Any], n_jobs: int) -> None:
    store = FeatureStore.open(cached)
    task, tap = store.task("colour"), store.find(tap="stem.0:avg")
    # With room for a few samples, heads that need all their rows in memory are fitted on few.
    heads, num_rows = (["logistic", "nearest_mean", "knn"], 9) if "shots" in changes else (["logistic", "ridge"], 0)
    plan = Plan(heads=heads, **changes)
    on_disk: list[int] = []

    def sweep_with(memory: int, n_jobs: int) -> list[SweepRow]:
        on_disk.clear()
        watching = Watching(lambda: on_disk.append(len(leftovers(cached))))
        found = run_sweep(store, [task], [tap], plan, n_jobs=n_jobs, memory=memory, progress=watching)
        assert not leftovers(cached)
        return found.rows

    there = sweep_with(num_rows * 4 * math.prod(tap.open().view_shape), n_jobs)
    assert on_disk
    assert all(on_disk)
    assert [row.error for row in there] == [None] * len(there)
    assert sweep_with(1 << 30, 1) == there  # all kept, whatever the memory
    for record in (cached / "results").iterdir():
        record.unlink()
    here = sweep_with(1 << 30, 1)
    assert not any(on_disk)
    assert sweep_with(1, n_jobs) == here
    here, there = ([row.to_json() for row in rows] for rows in (here, there))
    for one, other in zip(figures(here), figures(there), strict=True):
        assert one == pytest.approx(other, abs=1e-6)


LITTLE = ["--memory", "0.000000001"]


def test_heads_for_which_there_is_no_room(
    cached: Path,
    sweep: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("featurecache.evaluation.plan.list_heads", lambda **which: ["ridge", "knn", "gda", "majority"])
    asked = ["--tap", "stem.0:avg", "--head", "ridge", "--head", "knn"]
    few = sweep(*asked, *LITTLE, status=1)
    assert (few["kept"], few["computed"]) == (0, 2)
    errors = {row["head"]: row["error"] for row in few["rows"]}
    assert errors["ridge"] is None
    assert re.search("'knn' holds all rows in memory, .*--memory, or choose among logistic, .*ridge", errors["knn"])
    # That was true of that moment only.
    more = sweep(*asked)
    assert (more["kept"], more["computed"], [row["error"] for row in more["rows"]]) == (1, 1, [None, None])
    assert sweep(*asked, *LITTLE)["rows"] == more["rows"]
    # Those that nobody named are left out, but for what is there already.
    everything = sweep("--tap", "stem.0:avg", *LITTLE)
    assert [row["head"] for row in everything["rows"]] == ["ridge", "knn", "majority"]
    assert {each["head"]: each["reason"] for each in everything["heads_left_out"]} == {
        "gda": "holds all rows in memory"
    }
    assert main(["sweep", str(cached), "--quiet", "--tap", "stem.0:avg", "--folds", "2", *LITTLE]) == 0
    said = capsys.readouterr().err.splitlines()
    left_out = "featurecache: head {} is left out on stem.0:avg, task colour: it holds all rows in memory"
    assert said == [left_out.format("knn"), left_out.format("gda")]
    assert main(["sweep", str(cached), "--memory", "0"]) == 2
    assert "--memory must be above 0, got 0" in capsys.readouterr().err


@pytest.fixture(scope="module")
def made_of_several_tasks(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache with three tasks on the same samples, the same with weights, and one that divides them another way.

    It has a tap more, of as many features as one of the others.
    """
    tmp_path = tmp_path_factory.mktemp("several")
    cached = Path(shutil.copytree(made / "c", tmp_path / "c"))
    more = ["--backbone", TINY, "--tap", "stem.2:avg", *RUNTIME]
    assert main(["extract", str(made / "photos"), "--cache", str(cached), *more]) == 0
    splits = ["train"] * 9 + ["val"] * 6 + ["test"] * 5
    said = {
        "hue": lambda colour, i: colour,
        "half": lambda colour, i: "a" if colour == next(iter(COLOURS)) else "b",
        "third": lambda colour, i: f"{colour} {i % 2}",
        "split": lambda colour, i: splits[i],
        "other": lambda colour, i: splits[(i + 7) % 20],
        "weight": lambda colour, i: 1 + i % 3,
    }
    names = [(colour, i) for colour in COLOURS for i in range(20)]
    for task, split in (
        ("hue", "split"),
        ("half", "split"),
        ("third", "split"),
        ("again", "other"),
        ("heavy", "split"),
    ):
        label = {"again": "third", "heavy": "hue"}.get(task, task)
        columns = {"path": lambda colour, i: f"{colour}/{i:03d}.png", "label": said[label], "split": said[split]}
        columns |= {"weight": said["weight"]}
        with (tmp_path / f"{task}.csv").open("w", newline="") as out:
            csv.writer(out).writerows([list(columns), *([f(*name) for f in columns.values()] for name in names)])
        weights = ["--weight-column", "weight"] if task == "heavy" else []
        assert main(["task", "add", str(cached), task, str(tmp_path / f"{task}.csv"), *weights]) == 0
    return cached


@pytest.fixture
def of_several_tasks(made_of_several_tasks: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made_of_several_tasks, tmp_path / "several"))


@pytest.mark.parametrize(
    ("changes", "memory"),
    [({}, None), ({"on_test": True}, None), ({"num_folds": 2}, None), ({"shots": [3]}, None), ({}, 0)],
    ids=["plain", "test", "folds", "shots", "on disk"],
)
def test_a_table_of_tasks_and_taps_holds_what_each_gives_alone(
    of_several_tasks: Path, changes: dict[str, Any], memory: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureStore.open(of_several_tasks)
    plain = not changes and memory is None
    tasks = [store.task(name) for name in (("hue", "third", "heavy") if plain else ("hue", "half"))]
    sets = [store.find(tap=tap) for tap in ("stem.0:avg", "pre_logits:none")]
    plan = Plan(heads=["ridge", "majority"] if plain else ["ridge"], **changes)
    together = run_sweep(store, tasks, sets, plan, n_jobs=1, memory=memory)
    shutil.rmtree(of_several_tasks / "results")
    if plain:
        monkeypatch.setattr(fits, "_SECONDS_TO_START", 0.0)
        assert figures(run_sweep(store, tasks, sets, plan, n_jobs=2)) == figures(together)
        shutil.rmtree(of_several_tasks / "results")
    alone = [
        row
        for task in tasks
        for one in sets
        for row in figures(run_sweep(store, [task], [one], plan, n_jobs=1, memory=memory))
    ]
    assert figures(together) == alone
    assert not together.failed


def test_what_a_head_refuses_of_one_task_costs_no_other(
    of_several_tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureStore.open(of_several_tasks)
    tasks, sets = [store.task(name) for name in ("hue", "half", "third")], [store.find(tap="stem.0:avg")]

    def refuse(head: Any, splits: Any, measure: Any, random_state: int, steps: Any) -> Any:
        if measure.n_outputs == 2:
            raise HeadError("two classes are too few for it")
        return search(head, splits, measure, random_state, steps)

    monkeypatch.setattr("featurecache.evaluation.fits.search", refuse)
    found = run_sweep(store, tasks, sets, Plan(heads=["ridge"]), n_jobs=1)
    assert [row.error for row in found.rows] == [None, "two classes are too few for it", None]
    assert [not row.scores for row in found.rows] == [False, True, False]


def test_whoever_stops_leaves_no_features(cached: Path) -> None:
    store = FeatureStore.open(cached)

    def stop() -> None:
        assert leftovers(cached)
        raise KeyboardInterrupt

    plan = Plan(heads=["ridge"], num_folds=3)
    with pytest.raises(KeyboardInterrupt) as stopped:
        run_sweep(
            store, [store.task("colour")], store.feature_sets(), plan, n_jobs=1, memory=1, progress=Watching(stop)
        )
    assert not leftovers(cached)
    assert stopped.traceback  # also while somebody holds that, and all that it holds


OPTIONS = [*((name, []) for name in MEASURES), ("colour", ["--balanced"])]


def test_each_kind_has_its_heads_and_figures(of_all_kinds: Path, sweep: Callable) -> None:
    args = ["--tap", "stem.0:avg", "--head", "knn", "--head", "ridge", "--share", "0.5", "--share", "1"]
    document = sweep(*args)
    store, rows = FeatureStore.open(of_all_kinds), document["rows"]
    for task in (store.task(name) for name in MEASURES):
        assert [head.name for head in Plan().heads_for(task)] == list_heads(kind=task.kind)
        mine = [row for row in rows if row["task"] == task.name]
        plan = Plan(heads=["knn", "ridge"], shares=[0.5, 1])
        assert len(mine) == len(plan.heads_for(task)) * len(plan.resamplings()) == 4
        for row in mine:
            assert (row["kind"], row["measure"]) == (task.kind, MEASURES[task.name])
            ends = ("", "_low", "_high")
            assert [row[f"score{end}"] for end in ends] == [row[MEASURES[task.name] + end] for end in ends]
            assert all(row[name] is not None for name in measure_of(task.kind, len(task.classes)).titles)
            assert (row["log_loss"] is None) == (row["accuracy"] is None) == (task.kind != "classification")
        lines = [line for line in document["summary"] if line["task"] == task.name and line["share"] == 1]
        assert [line["score"] for line in lines] == sorted(row["score"] for row in mine if row["share"] == 1)[::-1]
    assert sweep(*args)["computed"] == 0


@pytest.mark.parametrize(("task_name", "options"), OPTIONS)
def test_a_score_is_what_the_head_gets_alone_on_that_division(
    task_name: str, options: list[str], of_all_kinds: Path
) -> None:
    store, balanced = FeatureStore.open(of_all_kinds), bool(options)
    task, feature_set = store.task(task_name), store.find(tap="stem.0:avg")
    plan = Plan(heads=["knn"], seeds=[0, 1], num_folds=3, shares=[0.4, 1], balanced=balanced)
    parts = read_splits(task, feature_set.open(), feature_set.open(), ["train", "validation"])
    rows = run_sweep(store, [task], [feature_set], plan, n_jobs=1).rows
    assert len(rows) == 2 * 3 * 2
    for row in (each.to_json() for each in rows):
        division = Resampling(**{name: row[name] for name in ("seed", "fold", "num_folds", "shots", "share")})
        alone = evaluate_head(
            "knn",
            resample(parts, division, kind=task.kind),
            len(task.classes),
            kind=task.kind,
            balanced=balanced,
            random_state=row["seed"],
        )
        expected = alone.validation.to_json()
        assert expected.items() <= row.items()
        assert row["measure"] == ("balanced_accuracy" if balanced else MEASURES[task_name])
        assert row["score"] == expected[row["measure"]]
        assert (row["selection_score"], row["params"]) == (
            alone.selection_score,
            json.dumps(alone.params, sort_keys=True),
        )


@pytest.mark.parametrize(("task_name", "options"), OPTIONS)
def test_one_division_says_what_train_says(
    task_name: str, options: list[str], of_all_kinds: Path, sweep: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--task", task_name, "--tap", "stem.0:avg", "--head", "knn", "--head", "ridge", *options]
    swept = sweep(*asked, "--look-at-test")
    assert main(["train", str(of_all_kinds), "--quiet", "--json", *asked]) == 0
    trained = {result["head"]: result for result in json.loads(capsys.readouterr().out)["results"]}
    assert len(swept["rows"]) == len(swept["summary"]) == 2
    for row in swept["rows"]:
        result = trained[row["head"]]
        assert result["test"].items() <= row.items()
        assert row["selection_score"] == result["selection_score"]
    for line in swept["summary"]:
        test, measure = trained[line["head"]]["test"], line["measure"]
        ends = (test[measure], test[f"{measure}_low"], test[f"{measure}_high"])
        assert (line["score"], line["low"], line["high"]) == ends


def test_a_task_of_another_kind_is_another_result(cached: Path, tmp_path: Path, sweep: Callable) -> None:
    """The same samples in the same parts, with 0 and 1 as label and as number."""
    table = tmp_path / "warm.csv"
    rows = [f"{colour}/{i:03d}.png,{int(i % 2)}" for colour in COLOURS for i in range(20)]
    table.write_text("\n".join(["path,warm", *rows]))
    for kind in ("multilabel", "regression"):
        assert main(["task", "add", str(cached), kind, str(table), "--kind", kind, "--label-column", "warm"]) == 0
    both = sweep("--task", "multilabel", "--task", "regression", "--head", "knn")
    assert both["computed"] == 4
    assert {row["measure"] for row in both["rows"]} == {"mean_average_precision", "r2"}


def test_numbers_belong_to_a_result_to_the_last_digit(cached: Path, tmp_path: Path, sweep: Callable) -> None:
    for name, end in (("one", ".25"), ("other", ".75")):
        table = tmp_path / f"{name}.csv"
        rows = [f"{colour}/{i:03d}.png,{i}{end if i == 3 else ''}" for colour in COLOURS for i in range(20)]
        table.write_text("\n".join(["path,number", *rows]))
        options = ["--kind", "regression", "--label-column", "number", "--random-state", "3"]
        assert main(["task", "add", str(cached), name, str(table), *options]) == 0
    assert sweep("--task", "one", "--task", "other", "--head", "ridge")["computed"] == 4


def test_weights_belong_to_a_result_and_choose_the_heads(cached: Path, tmp_path: Path, sweep: Callable) -> None:
    for name, heavy in (("even", 1), ("uneven", 9)):
        table = tmp_path / f"{name}.csv"
        rows = [f"{colour}/{i:03d}.png,{colour},{heavy if i % 2 else 1}" for colour in COLOURS for i in range(20)]
        table.write_text("\n".join(["path,label,weight", *rows]))
        assert main(["task", "add", str(cached), name, str(table), "--weight-column", "weight"]) == 0
    task = FeatureStore.open(cached).task("uneven")
    assert [head.name for head in Plan().heads_for(task)] == list_heads(weighted=True) != list_heads()
    both = sweep("--task", "even", "--task", "uneven", "--head", "ridge", "--tap", "stem.0:avg", "--share", "0.5")
    assert both["computed"] == 2
    refused = sweep("--task", "even", "--head", "knn", "--tap", "stem.0:avg", status=1)
    assert "cannot weigh samples" in refused["rows"][0]["error"]


def test_tables_and_picture_of_all_kinds(
    of_all_kinds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["sweep", str(of_all_kinds), "--quiet", "--head", "knn", "--folds", "2", "--tap", "stem.0:avg"]
    assert main([*args, "--out", str(tmp_path / "rows.tsv"), "--picture", str(tmp_path / "p.svg")]) == 0
    out = capsys.readouterr().out
    with (tmp_path / "rows.tsv").open(newline="") as file:
        lines = list(csv.DictReader(file, dialect="excel-tab"))
    assert [(line["task"], line["measure"]) for line in lines[::2]] == list(MEASURES.items())
    picture = (tmp_path / "p.svg").read_text()
    for task, measure in MEASURES.items():
        title = measure.replace("_", " ")
        assert title in out
        assert f"{title} (line: 95 % interval)" in picture
        assert f"{task}: by layer" in picture


def test_an_unknown_head_fails_before_anything_is_fitted(cached: Path) -> None:
    store, seen = FeatureStore.open(cached), []
    with pytest.raises(UnknownNameError, match="did you mean 'knn'"):
        run_sweep(
            store,
            [store.task("colour")],
            store.feature_sets(),
            Plan(heads=["gda", "knm"]),
            progress=Watching(lambda: seen.append(1)),
        )
    assert not seen


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--shots", "3"], "shots are for tasks with classes, and 'redness' is of kind regression; use --share"),
        (
            ["--task", "tags", "--shots", "3"],
            "shots are for tasks with classes, and 'tags' is of kind multilabel; use --share",
        ),
        (
            ["--balanced"],
            "balanced classes are for tasks with classes, and 'redness' is of kind regression; leave --balanced",
        ),
        (
            ["--head", "ridge", "--head", "logistic"],
            "task 'redness' is of kind regression, and head 'logistic' is for classification or multilabel; "
            "for regression there are mlp, ",
        ),
        (
            ["--task", "tags", "--head", "mean", "--head", "gda"],
            "task 'tags' is of kind multilabel, and head 'gda' is for classification; ",
        ),
        (["--head", "knm"], "did you mean 'knn'"),
        (["--task", "tags", "--folds", "100"], "the task has 48 samples, too few for 100 folds; ask for fewer folds"),
    ],
)
def test_what_does_not_go_with_a_kind_is_said_before_any_fit(
    of_all_kinds: Path, args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["sweep", str(of_all_kinds), "--quiet", *args]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (of_all_kinds / "results").exists()


def test_a_result_belongs_to_contents_not_to_names(sweep: Callable, cached: Path) -> None:
    sweep("--head", "knn")
    assert main(["task", "add", str(cached), "same", "--from-folders"]) == 0
    both = sweep("--head", "knn")
    assert (both["kept"], both["computed"]) == (4, 0)
    assert [row["task"] for row in both["rows"]] == ["colour", "colour", "same", "same"]
    assert main(["task", "add", str(cached), "other", "--from-folders", "--random-state", "5"]) == 0
    assert sweep("--head", "knn", "--task", "other")["computed"] == 2  # other parts, other results


def test_a_changed_head_is_fitted_again(sweep: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sweep("--head", "knn")["computed"] == 2
    monkeypatch.setattr(CosineKnn, "grid", {"n_neighbors": [1]})
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

    monkeypatch.setattr(registry, "_REGISTERED", {})
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
        assert main([*args, "--out", str(tmp_path / name), "--picture", str(tmp_path / "p.svg"), "--replace"]) == 0
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


@pytest.mark.parametrize(("option", "name"), [("--out", "rows.csv"), ("--picture", "p.svg")])
def test_what_is_there_is_replaced_only_when_told(
    cached: Path, tmp_path: Path, option: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["sweep", str(cached), "--quiet", "--head", "knn", option, str(tmp_path / name)]
    (tmp_path / name).write_text("mine")
    capsys.readouterr()
    assert main(args) == 2
    said = f"{option} {tmp_path / name} is there already; pass --replace, or name another place"
    assert capsys.readouterr().err == f"featurecache: error: {said}\n"
    assert (tmp_path / name).read_text() == "mine"
    assert not (cached / "results").exists()
    assert main([*args, "--replace"]) == 0
    assert len((tmp_path / name).read_text()) > 100


def test_what_comes_to_be_there_during_the_fits_stays(
    cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from featurecache.evaluation import sweep

    places = {"--out": tmp_path / "rows.csv", "--picture": tmp_path / "p.svg"}
    named = [str(word) for item in places.items() for word in item]
    args = ["sweep", str(cached), "--quiet", "--head", "knn", "--jobs", "1", *named]
    summarise = sweep.summarise

    def summarise_late(rows: list[SweepRow]) -> list[SweepLine]:
        for path in places.values():
            path.write_text("mine")
        return summarise(rows)

    monkeypatch.setattr(sweep, "summarise", summarise_late)
    capsys.readouterr()
    assert main(args) == 1
    out, err = capsys.readouterr()
    assert "knn" in out
    assert err.splitlines() == [
        f"featurecache: error: {option} {path}: it is there by now; pass --replace, or name another place"
        for option, path in places.items()
    ]
    assert [path.read_text() for path in places.values()] == ["mine", "mine"]
    assert main([*args, "--replace"]) == 0
    assert all(len(path.read_text()) > 100 for path in places.values())


def test_warnings_of_features_are_repeated(sweep: Callable, cached: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("--head", "knn", "--jobs", "1")["warnings"] == []
    warning = ReportWarning(
        kind="weights_choice", count=1, text="2 candidates fit; the first was taken", examples=("a",)
    )
    first, second = FeatureStore.open(cached).feature_sets()
    first.keep_warning(warning)
    (found,) = sweep("--head", "knn", "--tap", first.tap)["warnings"]
    assert found == warning.to_json()
    (found,) = sweep("--head", "knn")["warnings"]
    assert (found["kind"], first.tap in found["text"], second.tap in found["text"]) == ("weights_choice", True, False)
    assert main(["sweep", str(cached), "--quiet", "--head", "knn"]) == 0
    assert capsys.readouterr().out.count(warning.text) == 1
    assert sweep("--head", "knn", "--tap", second.tap)["warnings"] == []


def test_what_cannot_be_compared_says_why(cached: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args, why = ["sweep", str(cached), "--quiet", "--tap", "stem.0:avg"], "no two divisions in common with the best"
    for more, is_said in [
        (["--head", "knn"], False),  # the best, and alone
        (["--head", "knn", "--head", "majority"], True),
        (["--head", "knn", "--head", "majority", "--folds", "2"], False),
    ]:
        capsys.readouterr()
        assert main([*args, *more]) == 0
        assert (why in capsys.readouterr().out) == is_said


def test_a_kill_loses_what_was_not_finished_and_leaves_features_that_gc_removes(
    cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_REGISTERED", {})  # the settings that the other process searches
    command = [sys.executable, "-m", "featurecache", "sweep", str(cached), "--quiet", "--jobs", "1", "--seeds", "200"]
    process = subprocess.Popen([*command, "--head", "ridge", *LITTLE], env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list((cached / "results").glob("*.json"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(list((cached / "results").glob("*.json")))
    assert 5 <= done < 400
    assert leftovers(cached)
    assert main(["gc", str(cached), "--remove", "--older-than", "0"]) == 0
    assert not leftovers(cached)
    store = FeatureStore.open(cached)
    # Seeds of the first feature set come first.
    plan = Plan(heads=["ridge"], seeds=range(min(done, 200)))
    found = run_sweep(store, [store.task("colour")], store.feature_sets()[:1], plan, n_jobs=1)
    assert found.num_kept >= min(done, 200)
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
        (["--out", "rows.txt"], "--out rows.txt must end in .csv, .tsv, .tab, .parquet"),
        (["--picture", "p.png"], "--picture p.png must end in .svg"),
        (["--out", "."], "--out .: it is a folder; name a file"),
        (["--replace"], "--replace is for what --out and --picture name, and nothing is named; leave it out"),
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
    assert "has no tasks; add one with `featurecache task add`" in capsys.readouterr().err


def test_a_picture_never_costs_the_table(
    cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All fits are done when it is drawn: whatever goes wrong then is said after the results."""
    picture, table = tmp_path / "p" / "layers.svg", tmp_path / "p" / "rows.csv"
    picture.parent.mkdir()
    command = ["sweep", str(cached), "--quiet", "--head", "knn", "--tap", "stem.0:avg"]
    capsys.readouterr()
    monkeypatch.setattr("featurecache.reporting.sweep._by_time", lambda *args: 1 / 0)
    assert main([*command, "--out", str(table), "--picture", str(picture)]) == 1
    said = capsys.readouterr()
    assert "stem.0:avg" in said.out
    assert said.err == "featurecache: error: --picture: division by zero\n"
    assert table.exists()
    assert main([*command, "--json", "--picture", str(picture)]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (len(document["rows"]), document["failed_outputs"]) == (1, ["--picture: division by zero"])


def test_a_picture_of_scores_that_are_all_one(cached: Path, tmp_path: Path) -> None:
    """Three colours are easily told apart: every seed scores 1.000, and no interval may lie beside that."""
    picture = tmp_path / "layers.svg"
    command = ["sweep", str(cached), "--quiet", "--head", "ridge", "--head", "knn", "--seeds", "2", "--folds", "2"]
    assert main([*command, "--balanced", "--picture", str(picture)]) == 0
    assert picture.read_text().startswith("<?xml")


def test_shots_beyond_what_there_is_are_all(cached: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sweep", str(cached), "--quiet", "--head", "knn", "--tap", "stem.0:avg"]
    for shots in ("10", "5", "500"):
        command += ["--shots", shots]
    capsys.readouterr()
    assert main(command) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("colour")]
    found = [re.search(r"stem\.0:avg +(.*?\(\d+\))", line).group(1) for line in lines]
    assert [label.split(" (")[0] for label in found] == ["5 a class", "10 a class", "all"]
