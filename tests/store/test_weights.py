"""Weights: how much each sample counts in fitting, from the table to the kept task."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import RUNTIME, TINY, content_id, make_store

from featurecache.cli import main
from featurecache.errors import CorruptError, TaskError
from featurecache.store.folders import ShardFolder
from featurecache.store.label_tables import labels_from_csv
from featurecache.store.labels import Label, TableLabels
from featurecache.store.schemas import TASK
from featurecache.store.store import FeatureStore
from featurecache.store.tasks import load_task, save_task

pytestmark = pytest.mark.usefixtures("few_settings")

FILES = {f"{k:03d}.jpg": f"content {k}" for k in range(30)}
LABELS = tuple(Label(name, f"class {k % 2}", weight=1.0 + k) for k, name in enumerate(FILES))


def test_every_sample_has_its_weight_and_copies_have_their_mean(tmp_path):
    store = make_store(tmp_path, FILES | {"copy.jpg": "content 4"})
    copy = Label("copy.jpg", "class 0", weight=7.0)
    store.add_task("t", TableLabels(labels=(*LABELS[::-1], copy), origin="test"))
    names = [f"content {k}" for k in (29, 4, 0, 17)]
    rows = store.samples.rows_of(np.stack([content_id(name) for name in names]))
    assert store.task("t").weights_of(rows).tolist() == [30.0, (5.0 + 7.0) / 2, 1.0, 18.0]
    without = TableLabels(labels=tuple(replace(label, weight=None) for label in LABELS), origin="test")
    assert store.add_task("u", without).weights_of(rows) is None


@pytest.mark.parametrize("entry", ["", "0", "-1", "much", "nan", "inf"])
def test_what_is_no_weight(tmp_path, entry):
    path = tmp_path / "labels.csv"
    path.write_text(f"path,label,trust\na.jpg,x,0.5\nb.jpg,y,{entry}\n")
    wrong = {"0": "must be above 0, not '0'; drop the line", "": "is empty; say 1 .*; drop the line to leave it out"}
    wrong["-1"] = wrong["0"].replace("0'", "-1'")
    with pytest.raises(TaskError, match=f"csv line 3: the trust {wrong.get(entry, 'is no number: ')}"):
        labels_from_csv(path, weight_column="trust")
    with pytest.raises(TaskError, match="unknown column 'trusted'; did you mean 'trust'.*--weight-column"):
        labels_from_csv(path, weight_column="trusted")


def test_weights_of_a_strangers_task_are_checked(tmp_path):
    store = make_store(tmp_path, FILES)
    task = store.add_task("t", TableLabels(labels=LABELS, origin="test"))
    folder = ShardFolder(store.path / "tasks" / "t", TASK)
    for wrong in (task.weights - 1.0, task.weights * np.nan, task.weights * np.inf):
        save_task(folder, replace(task, weights=wrong))
        with pytest.raises(CorruptError, match="task 't' has weights that are not above 0; make it again"):
            load_task("t", folder, store.samples)


def test_the_whole_walk_with_weights(
    labelled_cache: Callable[..., tuple[Path, Path, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    source, cache, table = labelled_cache(trust=lambda number: 1 + number % 3)
    add = ["task", "add", str(cache), "colour", str(table), "--weight-column", "trust"]
    assert main(add) == 0
    assert ", weights 1 to 3 (splits made)" in capsys.readouterr().out
    assert main(["train", str(cache), "--task", "colour", "--quiet", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    results = document["results"]
    assert {"knn", "gda", "nearest_mean"} <= document["heads_left_out"].keys()
    assert set(document["heads_left_out"].values()) == {"cannot weigh samples"}
    # Of all heads, those that can weigh samples.
    names = {result["head"] for result in results}
    assert {"logistic", "linear_svm", "rbf_svm", "mlp", "ridge", "majority"} <= names
    assert not names & set(document["heads_left_out"])
    assert main(["train", str(cache), "--task", "colour", "--quiet", "--head", "knn"]) == 2
    assert "head 'knn' cannot weigh samples, and these have weights; choose among logistic" in capsys.readouterr().err
    assert main([*add[:3], "other", "--from-folders", "--weight-column", "trust"]) == 2
    assert "folders say no weights; give a CSV with --weight-column" in capsys.readouterr().err
    assert main(["verify", str(cache)]) == 0
    run = ["run", str(source), "--cache", str(cache), "--backbone", TINY, "--weight-column", "trust", *RUNTIME]
    assert main([*run]) == 2
    assert "folders say no weights; give a CSV with --labels and --weight-column" in capsys.readouterr().err
    assert main([*run, "--labels", str(table), "--head", "logistic"]) == 0
    assert FeatureStore.open(cache).task("run").weights is not None
