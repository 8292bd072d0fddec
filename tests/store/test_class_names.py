"""Names of classes and what the codes of ``y`` mean: numbers in their order, and never a code taken for a name."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from conftest import make_store
from hypothesis import given
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from featurecache.errors import TaskError
from featurecache.evaluation.scores import evaluate
from featurecache.store.folders import ShardFolder
from featurecache.store.label_tables import labels_from_csv
from featurecache.store.labels import class_order, labels_from_folders
from featurecache.store.schemas import TASK
from featurecache.store.store import FeatureStore
from featurecache.store.tasks import Task, class_counts, save_task

pytestmark = pytest.mark.quick


def of_folders(tmp_path: Path, names: list[str], num_files: int = 3) -> FeatureStore:
    return make_store(tmp_path, {f"{name}/{i}.jpg": f"{name} {i}" for name in names for i in range(num_files)})


def names_by_file(store: FeatureStore, task: Task) -> dict[str, str]:
    uris = store.samples.uris_of(store.samples.rows_of(task.ids).tolist())
    return dict(zip(uris, task.decode(task.labels).tolist(), strict=True))


@pytest.mark.parametrize(
    "expected",
    [
        ["1", "2", "10", "100"],
        ["-10", "-2", "0", "+1", "3"],
        ["007", "7", "7.0", "07.5", "8"],
        ["0.5", "1.0", "1.5", "2.0", "10.0"],
        ["2", "10", "10 euros", "Ten", "cat", "dog 10", "dog 2"],
        [".5", "5.", "1_0", "1e2", "²", "١"],
        ["9" * 30 + "8", "9" * 30 + "9", "1" + "0" * 5000],
    ],
    ids=lambda names: " ".join(names)[:30],
)
def test_classes_that_are_numbers_sort_as_numbers(expected):
    assert sorted(set(expected), key=class_order) == expected


@given(st.lists(st.from_regex(r"[+-]?[0-9]{1,25}(\.[0-9]{0,25})?", fullmatch=True) | st.text(max_size=4), unique=True))
def test_the_order_is_one_and_that_of_the_numbers(names):
    found = sorted(names, key=class_order)
    assert sorted(set(names), key=class_order) == found
    numbers = [Fraction(name) for name in found if re.fullmatch(r"[+-]?[0-9]+(\.[0-9]*)?", name)]
    assert numbers == sorted(numbers)


def test_folders_tables_and_lists_of_labels_have_the_same_order(tmp_path):
    names = ["2", "10", "-1", "cat"]
    store = of_folders(tmp_path, names)
    folders = store.add_task("folders", labels_from_folders())
    rows = [f"{name}/{i}.jpg,{name},{name};{'100' if i else '20'}" for name in names for i in range(3)]
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["path,label,all", *rows]))
    column = store.add_task("column", labels_from_csv(table))
    several = store.add_task("several", labels_from_csv(table, label_column="all", kind="multilabel"))
    assert folders.classes == column.classes == ["-1", "2", "10", "cat"]
    assert several.classes == ["-1", "2", "10", "20", "100", "cat"]
    assert list(class_counts(folders)) == folders.classes
    for task in (folders, column):
        assert all(uri.startswith(f"{name}/") for uri, name in names_by_file(store, task).items())


def test_stored_classes_keep_their_order(tmp_path):
    """As earlier releases stored them; also in a task that is made again with the same classes."""
    store = of_folders(tmp_path, ["2", "10", "x"])
    task = store.add_task("t", labels_from_folders())
    earlier = replace(task, classes=["10", "2", "x"], labels=np.array([1, 0, 2], np.int32)[task.labels])
    save_task(ShardFolder(store.path / "tasks" / "t", TASK), earlier)
    read = FeatureStore.open(store.path).task("t")
    assert read.classes == ["10", "2", "x"]
    again = store.add_task("t", labels_from_folders(), replace=True)
    assert again.classes == ["10", "2", "x"]
    np.testing.assert_array_equal(again.labels, read.labels)
    assert names_by_file(store, again) == names_by_file(store, task)
    grown = of_folders(tmp_path, ["2", "10", "x", "1"]).add_task("t", labels_from_folders(), replace=True)
    assert grown.classes == ["1", "2", "10", "x"]


def test_a_code_is_decoded_to_the_name_and_not_taken_for_it(tmp_path):
    """Classes 0 to 2 as names, whose codes are others."""
    store = of_folders(tmp_path, ["1", "2", "-3"])
    task = store.add_task("t", labels_from_folders())
    assert task.decode([0, 1, 2]).tolist() == ["-3", "1", "2"] == task.classes
    y = task.labels
    X = np.eye(3)[y]
    fitted = KNeighborsClassifier(1).fit(X, y)
    np.testing.assert_array_equal(task.decode(fitted.predict(X)), task.decode(y))
    on_names = KNeighborsClassifier(1).fit(X, task.decode(y))
    assert evaluate(fitted, X, y).accuracy == evaluate(on_names, X, task.decode(y)).accuracy == 1
    for estimator, labels in ((fitted, task.decode(y)), (on_names, y)):
        with pytest.raises(TaskError, match=r"labels are .* and predictions .*: one are codes and the other names"):
            evaluate(estimator, X, labels)


def some_task(kind: str, classes: list[str]) -> Task:
    nothing = np.zeros((0, 32), np.uint8)
    return Task("t", classes, nothing, np.zeros(0), np.zeros(0, np.uint8), kind=kind)


def test_columns_are_decoded_by_name():
    holds = some_task("multilabel", ["2", "10"]).decode([[1, 0], [-1, 1]])
    assert (holds["2"].tolist(), holds["10"].tolist()) == ([1, -1], [0, 1])
    numbers = some_task("regression", ["height", "a b"]).decode(np.array([[1.5, 2], [np.nan, 4]]))
    assert numbers.dtype.names == ("height", "a b")
    np.testing.assert_array_equal(numbers["height"], [1.5, np.nan])
    assert some_task("regression", ["height"]).decode([1.0, 2.0])["height"].tolist() == [1, 2]
    assert some_task("multilabel", ["a", "b"]).decode(np.zeros((0, 2), bool)).shape == (0,)


@pytest.mark.parametrize(
    ("kind", "y", "message"),
    [
        ("classification", ["2", "10"], r"codes of the classes of task 't', whole numbers from 0 to 1 .*, not <U2"),
        ("classification", [0, 2], r"not int64 of shape \(2,\): \[0, 2\]"),
        ("classification", [-1], r"not int64 of shape \(1,\): \[-1\]"),
        ("classification", [1.0], r"not float64 of shape"),
        ("classification", [[0.2, 0.8]], r"not float64 of shape \(1, 2\)"),
        ("multilabel", [[0.2, 0.8]], "compare probabilities with a threshold first"),
        ("multilabel", [0, 1], r"decode takes the 2 labels of task 't' as columns, .* not int64 of shape \(2,\)"),
        ("regression", np.zeros((4, 3)), r"the 2 numbers of task 't' as columns, .* not float64 of shape \(4, 3\)"),
        ("regression", [["a", "b"]], r"decode takes the 2 numbers"),
    ],
)
def test_what_is_not_decoded(kind, y, message):
    with pytest.raises(TaskError, match=message) as caught:
        some_task(kind, ["2", "10"]).decode(y)
    assert "\n" not in str(caught.value)
