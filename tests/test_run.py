"""The main job as a function: what a notebook gets, and that the command line gets the same."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import RUNTIME, TINY, write_image
from tiny_texts import ANIMALS, some_texts, write_encoder, write_table

import featurecache as fc
from featurecache.errors import RequestError

pytestmark = pytest.mark.quick

Make = Callable[..., Path]
TORCH = fc.ExtractionSettings(runtime="torch", batch_size=8)
RIDGE_AND_KNN = fc.TrainingSettings(heads=("ridge", "knn"), n_jobs=1)
TIMES = {"seconds", "startup_seconds", "usage"}


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_times(each) for name, each in value.items() if name not in TIMES}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def test_a_notebook_gets_what_the_command_line_prints(make_folder: Make, call: Callable[..., Any]) -> None:
    source = make_folder(per_class=8)
    cache = source.with_name("photos.cache")
    command = ["run", source, "--backbone", TINY, *RUNTIME, "--head", "ridge", "--head", "knn", "--jobs", "1", "--json"]
    status, out, _ = call(*command)
    assert status == 0
    printed = json.loads(out)
    cache.rename(source.with_name("first"))
    done = fc.run(source, backbone=TINY, settings=TORCH, training=RIDGE_AND_KNN)
    assert without_times(done.to_json()) == without_times(printed)
    assert done.training.best.result.head == printed["chosen"]["head"]
    assert done.failures == ()
    assert done.extraction.store.path == cache
    assert done.saved == cache / "heads" / "run"
    assert done.report == cache / "report.html"
    assert "featurecache.run(" in done.report.read_text()
    assert str(done.predict_command).startswith(f"featurecache predict {done.saved} NEW_IMAGES")
    assert fc.run(source, backbone=TINY, settings=TORCH, training=RIDGE_AND_KNN).extraction.num_extracted == 0


def test_labels_are_a_table_or_what_was_read_from_one(make_folder: Make, tmp_path: Path) -> None:
    source = make_folder(per_class=8)
    rows = [f"{path.relative_to(source)},{int(path.stem) % 2}" for path in sorted(source.rglob("*.png"))]
    table = tmp_path / "odd.csv"
    table.write_text("path,label\n" + "\n".join(rows))
    common: dict[str, Any] = {"cache": tmp_path / "c", "backbone": TINY, "settings": TORCH}
    majority = fc.TrainingSettings(heads=("knn",), n_jobs=1)
    report = tmp_path / "odd.html"
    done = fc.run(source, labels=table, training=majority, task="odd", report=report, **common)
    assert (done.training.task.classes, done.report) == (["0", "1"], report)
    same = fc.run(source, labels=fc.labels_from_csv(table), training=majority, task="odd", **common)
    assert same.training.task.ids.tolist() == done.training.task.ids.tolist()
    with pytest.raises(fc.FeatureCacheError, match=r"labels from odd.csv, not from folders; choose another name"):
        fc.run(source, training=majority, task="odd", **common)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"training": fc.TrainingSettings(heads=("logitsic",))}, "did you mean 'logistic'"),
        ({"training": fc.TrainingSettings(tta=True)}, "heads on views of each image"),
        ({"report": "nowhere/report.html"}, "name a file in a folder that exists"),
        ({"task": "a/b"}, "cannot be the name of a task"),
        ({"text_column": "body"}, "cannot read|no source|is a folder"),
        ({"labels": "none.csv"}, "cannot read labels from none.csv"),
    ],
    ids=str,
)
def test_a_wrong_request_costs_no_extraction(given: dict[str, Any], message: str, make_folder: Make) -> None:
    source = make_folder(per_class=2)
    with pytest.raises(fc.FeatureCacheError, match=message):
        fc.run(source, backbone=TINY, **given)
    assert [path.name for path in source.parent.iterdir()] == ["photos"]


def test_an_output_that_cannot_be_written_does_not_cost_the_heads(
    make_folder: Make, monkeypatch: pytest.MonkeyPatch, call: Callable[..., Any]
) -> None:
    def fail(*args: object, **settings: object) -> None:
        raise ArithmeticError("no drawing today")

    monkeypatch.setattr("featurecache.reporting.report.write_report", fail)
    source = make_folder(per_class=8)
    done = fc.run(source, backbone=TINY, settings=TORCH, training=RIDGE_AND_KNN)
    assert done.report is None
    assert done.saved is not None
    assert [failure.text for failure in done.failures] == ["the report: no drawing today"]
    command = ["run", source, "--backbone", TINY, *RUNTIME, "--head", "ridge", "--debug"]
    status, out, err = call(*command)
    assert status == 1
    assert "featurecache: error: the report: no drawing today" in err
    assert "ArithmeticError" in err
    assert "ridge" in out


@pytest.mark.parametrize("is_split", [False, True])
def test_of_a_folder_without_classes_a_table_beside_the_images_has_the_labels(
    is_split: bool, tmp_path: Path, call: Callable[..., Any]
) -> None:
    for folder in ("train", "test") if is_split else (".",):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        rows = [{"file_name": f"{k}.png", "label": "ab"[k % 2]} for k in range(12)]
        (tmp_path / "photos" / folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
        for k, row in enumerate(rows):
            write_image(
                tmp_path / "photos" / folder / row["file_name"], (90, 90, 90), seed=k + 100 * (folder == "test")
            )
    options = ["--cache", tmp_path / "c", "--backbone", TINY, *RUNTIME, "--head", "nearest_mean", "--device", "cpu"]
    status, out, err = call("run", tmp_path / "photos", *options)
    assert status == 0, err
    assert "task run: 2 classes" in out
    counts = fc.FeatureStore.open(tmp_path / "c").task("run").classes
    assert counts == ["a", "b"]
    assert ("12 test" in out) == is_split
    # Folders that say classes are taken at their word.
    for k in range(10):
        write_image(tmp_path / "photos" / "xy"[k % 2] / f"new-{k}.png", (90, 90, 90), seed=1000 + k)
    done = fc.run(
        tmp_path / "photos",
        cache=tmp_path / "d",
        backbone=TINY,
        training=fc.TrainingSettings(heads=("nearest_mean",)),
    )
    assert done.training.task.classes == ["x", "y"]


@pytest.mark.full
def test_texts_have_their_labels_in_the_same_table(tmp_path: Path) -> None:
    texts = list(dict.fromkeys(some_texts(40)))
    labels = ["animal" if any(word in text for word in ANIMALS) else "other" for text in texts]
    table = write_table(tmp_path / "mails.csv", texts, label=labels)
    encoder = write_encoder(tmp_path / "tiny")
    majority = fc.TrainingSettings(heads=("knn",), n_jobs=1)
    done = fc.run(table, text_column="text", backbone=f"hf:{encoder}", settings=TORCH, training=majority)
    assert done.training.task.classes == ["animal", "other"]
    assert done.extraction.store.path == tmp_path / "mails.cache"
    assert "NEW.csv --text-column text" in str(done.predict_command)


@pytest.mark.full
@pytest.mark.parametrize(
    "code",
    [
        "import featurecache as fc, featurecache.run",
        "import featurecache.run, featurecache as fc; fc.run",
        "import featurecache as fc; fc.run; import featurecache.run",
        "from featurecache.run import RunReport; import featurecache as fc",
        "import featurecache.cli.run, featurecache.cli.train, featurecache as fc; from featurecache.train import train",
    ],
)
def test_run_is_the_function_whoever_imported_its_module_before(code: str) -> None:
    check = "import sys; sys.exit(0 if fc.run.__name__ == 'run' and callable(fc.run) else 1)"
    assert subprocess.run([sys.executable, "-c", f"{code}; {check}"], check=False).returncode == 0


def test_a_new_image_is_labelled_by_what_was_kept(make_folder: Make, tmp_path: Path) -> None:
    done = fc.run(make_folder(per_class=8), backbone=TINY, settings=TORCH, training=RIDGE_AND_KNN)
    assert done.saved is not None
    new = write_image(tmp_path / "new.png", (210, 50, 40), seed=77)
    assert [each.label for each in fc.predict(done.saved, [new], backbone=TINY, settings=TORCH)] == ["red"]


def test_several_backbones_make_one_table_and_the_best_head_of_all_is_kept(
    make_folder: Callable[..., Path], tmp_path: Path, call: Callable
) -> None:
    source, other = make_folder(per_class=8), "python:tiny_backbones:other_seed"
    options = ["--runtime", "torch", "--head", "ridge", "--head", "knn", "--json"]
    named = ["--backbone", TINY, "--backbone", other, "--backbone", TINY]
    status, out, err = call("run", source, "--cache", tmp_path / "c", *named, *options)
    assert status == 0, err
    document = json.loads(out)
    assert document["extraction"]["extracted"] == 2 * 24
    assert [s["backbone"] for s in document["extraction"]["features"]] == [TINY, other]
    assert {(row["backbone"], row["head"]) for row in document["results"]} >= {
        (TINY, "ridge"),
        (other, "ridge"),
    }
    again = fc.run(source, cache=tmp_path / "c", backbone=[other, TINY], settings=TORCH, training=RIDGE_AND_KNN)
    assert (again.extraction.num_extracted, again.extraction.num_cached) == (0, 2 * 24)
    store = fc.extract(source, tmp_path / "d", backbone=(TINY, other), settings=TORCH)
    assert [s.identity.backbone for s in store.feature_sets()] == sorted([TINY, other])


def test_mistakes_in_several_backbones_are_told_before_any_is_extracted(
    make_folder: Callable[..., Path], tmp_path: Path, call: Callable
) -> None:
    source = make_folder(per_class=4)
    named = ["--backbone", TINY, "--backbone", "efficientnet_lite0", "--weights", "w.safetensors"]
    status, _, err = call("extract", source, "--cache", tmp_path / "c", *named)
    assert (status, err.count("\n")) == (2, 1)
    assert "weights are of one backbone, and 2 are named; extract one after the other" in err
    named = ["--backbone", TINY, "--backbone", "efficientnet_lit0"]
    status, _, err = call("extract", source, "--cache", tmp_path / "c", *named)
    assert (status, err.count("\n")) == (2, 1)
    assert "did you mean 'efficientnet_lite0'" in err
    for nothing in (fc.run, fc.extract):
        with pytest.raises(RequestError, match="no backbone is named"):
            nothing(source, cache=tmp_path / "c", backbone=[])
    assert not (tmp_path / "c").exists()
