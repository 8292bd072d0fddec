"""Tasks that say several labels, or numbers, of a sample."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_store

from featurecache.errors import CorruptError, TaskError, UnknownNameError
from featurecache.store import tasks
from featurecache.store.folders import ShardFolder
from featurecache.store.label_tables import labels_from_csv
from featurecache.store.labels import TableLabels
from featurecache.store.schemas import TASK
from featurecache.store.store import FeatureStore

pytestmark = pytest.mark.quick

FILES = {f"{k:03d}.jpg": f"content {k}" for k in range(100)}


def table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    with path.open("w", newline="") as out:
        csv.writer(out).writerows([columns, *rows])
    return path


def tags(k: int) -> str:
    return ";".join(name for name, each in (("two", 2), ("three", 3), ("seven", 7)) if k % each == 0)


def add(tmp_path: Path, labels: TableLabels, **options: Any) -> tuple[FeatureStore, tasks.Task]:
    store = make_store(tmp_path, FILES)
    return store, store.add_task("t", labels, **options)


def test_labels_of_one_column_come_back(tmp_path):
    path = table(tmp_path / "t.csv", ["path", "tags"], [[name, tags(k)] for k, name in enumerate(FILES)])
    store, task = add(tmp_path, labels_from_csv(path, label_column="tags", kind="multilabel"))
    assert (task.kind, task.classes) == ("multilabel", ["seven", "three", "two"])
    again = FeatureStore.open(store.path).task("t")
    assert again.kind == "multilabel"
    np.testing.assert_array_equal(again.labels, task.labels)
    rows = store.samples.rows_of(task.ids)
    for row, holds in zip(rows.tolist(), task.labels.tolist(), strict=True):
        number = int(store.samples.uris_of([row])[0].split(".")[0])
        assert holds == [number % 7 == 0, number % 3 == 0, number % 2 == 0]
    assert tasks.class_counts(task) == {"seven": 15, "three": 34, "two": 50}


def test_every_part_has_its_share_of_each_label(tmp_path):
    path = table(tmp_path / "t.csv", ["path", "tags"], [[name, tags(k)] for k, name in enumerate(FILES)])
    _, task = add(tmp_path, labels_from_csv(path, label_column="tags", kind="multilabel"))
    for part, share in enumerate((0.6, 0.2, 0.2)):
        held = task.labels[task.splits == part].sum(axis=0)
        np.testing.assert_allclose(held / task.labels.sum(axis=0), share, atol=0.12)
        assert abs((task.splits == part).mean() - share) < 0.05


def test_separators_spaces_and_columns_of_flags_say_the_same(tmp_path):
    bars = [[name, " | ".join(tags(k).split(";"))] for k, name in enumerate(FILES)]
    words = [["No", "yes"], ["0", "1"], ["false", "TRUE"], ["0.0", "1.0"]]
    flags = [
        [name, *(words[k % 4][each in tags(k)] for each in ("seven", "three", "two"))] for k, name in enumerate(FILES)
    ]
    one = labels_from_csv(table(tmp_path / "a.csv", ["path", "tags"], bars), label_column="tags", kind="multilabel")
    columns = ["seven", "three", "two"]
    several = labels_from_csv(
        table(tmp_path / "b.csv", ["path", *columns], flags), label_column=columns, kind="multilabel"
    )
    assert one.labels == several.labels
    assert several.names == tuple(columns)


def test_numbers_come_back_as_they_are(tmp_path):
    rows = [[name, k / 7, -1e12 * k] for k, name in enumerate(FILES)]
    path = table(tmp_path / "t.csv", ["path", "size", "weight"], rows)
    store, task = add(tmp_path, labels_from_csv(path, label_column=["size", "weight"], kind="regression"))
    assert (task.kind, task.classes) == ("regression", ["size", "weight"])
    again = FeatureStore.open(store.path).task("t")
    order = [int(uri.split(".")[0]) for uri in store.samples.uris_of(store.samples.rows_of(task.ids))]
    np.testing.assert_array_equal(again.labels, np.array([[k / 7, -1e12 * k] for k in order]))
    assert task.counts() == {"train": 60, "validation": 20, "test": 20}
    for part in range(3):  # each fifth of the numbers has its share
        mine = np.array(order)[task.splits == part]
        assert (np.bincount(mine // 20, minlength=5) == len(mine) // 5).all()


def test_groups_stay_together_and_splits_are_kept(tmp_path):
    rows = [[name, k / 7, k // 4] for k, name in enumerate(FILES)]
    path = table(tmp_path / "t.csv", ["path", "size", "photo"], rows)
    labels = labels_from_csv(path, label_column="size", kind="regression", group_column="photo")
    store, task = add(tmp_path, labels)
    assert all(len(np.unique(task.splits[task.groups == g])) == 1 for g in np.unique(task.groups))
    again = store.add_task("t", labels, replace=True)
    np.testing.assert_array_equal(again.splits, task.splits)


def test_copies_that_differ_are_left_out(tmp_path):
    files = dict(FILES) | {"copy.jpg": "content 5"}
    rows = [[name, k] for k, name in enumerate(files)]
    store = make_store(tmp_path, files)
    path = table(tmp_path / "t.csv", ["path", "size"], rows)
    task = store.add_task("t", labels_from_csv(path, label_column="size", kind="regression"))
    assert task.about["num_conflicts"] == 1
    assert len(task.ids) == 99


@pytest.mark.parametrize(
    ("columns", "values", "options", "message"),
    [
        (["tags"], [["a"], ["a"]], {"kind": "multilabel"}, "has 1 label, and a task needs at least two"),
        (["tags"], [[""], [""]], {"kind": "multilabel"}, "has 0 labels"),
        (["tags"], [["a;b"], ["a"]], {"kind": "multilabel"}, "'a' holds for all of 2 samples"),
        (["a", "b"], [["1", "maybe"], ["0", "1"]], {"kind": "multilabel"}, "line 2: the b is neither 1 nor 0: 'maybe'"),
        (["a", "b"], [["1", "0"], ["0", "0"]], {"kind": "multilabel"}, "'b' holds for none of 2 samples"),
        (["a"], [["1"], ["many"]], {"kind": "regression"}, "line 3: the a is no number: 'many'"),
        (["a"], [["1"], ["inf"]], {"kind": "regression"}, "line 3: the a is no number: 'inf'"),
        (["a"], [["1"], [""]], {"kind": "regression"}, "'a' is 1 for all of 1 sample"),
        (["a"], [["7"], ["7"]], {"kind": "regression"}, "'a' is 7 for all of 2 samples"),
        (["a", "b"], [["1", "2"]], {}, "2 label columns are named, and a sample has one class"),
        (["a\x07"], [["1"], ["2"]], {"label_column": "c"}, "unknown column 'c'"),
        (["a"], [["x\x07y"], ["2"]], {}, "the a is no plain text"),
    ],
)
def test_what_makes_no_task(tmp_path, columns, values, options, message):
    rows = [[name, *entries] for name, entries in zip(FILES, values, strict=False)]
    path = table(tmp_path / "t.csv", ["path", *columns], rows)
    options = {"label_column": columns} | options
    with pytest.raises((TaskError, UnknownNameError), match=message):
        add(tmp_path, labels_from_csv(path, **options))


def test_a_label_that_train_never_has(tmp_path):
    rows = [[name, "a" if k % 2 else "b", "train"] for k, name in enumerate(FILES)]
    rows[-1][1:] = ["a;c", "test"]
    path = table(tmp_path / "t.csv", ["path", "tags", "split"], rows)
    with pytest.raises(TaskError, match="'c' occurs in the test part but never in train"):
        add(tmp_path, labels_from_csv(path, label_column="tags", kind="multilabel"))


@pytest.mark.parametrize(
    ("arrays", "body", "message"),
    [
        ({"number": ("float64", np.full((4, 1), np.nan))}, {"kind": "regression"}, "do not exist"),
        ({"number": ("float64", np.zeros((4, 2)))}, {"kind": "regression"}, "do not exist"),
        ({"holds": ("uint8", np.full((4, 1), 2, np.uint8))}, {"kind": "multilabel"}, "do not exist"),
        ({"holds": ("uint8", np.ones((4, 1), np.uint8))}, {"kind": "regression"}, "has no number of its samples"),
        ({"label": ("int32", np.zeros(4, np.int32))}, {"kind": "multilabel"}, "has no holds of its samples"),
        ({}, {}, "has no label of its samples"),
        ({"label": ("int32", np.zeros(4, np.int32))}, {"kind": "colours"}, "cannot be used"),
    ],
)
def test_a_strangers_task_is_refused(tmp_path, arrays, body, message):
    rows = [[name, k] for k, name in enumerate(FILES)]
    path = table(tmp_path / "t.csv", ["path", "size"], rows)
    store, task = add(tmp_path, labels_from_csv(path, label_column="size", kind="regression"))
    folder = ShardFolder(store.path / "tasks" / "t", TASK)
    common = {"id": ("uint8", task.ids[:4]), "split": ("uint8", np.array([0, 0, 1, 2], np.uint8))}
    folder.publish_next(common | arrays, {"classes": ["size"], "about": task.about} | body, kind="task")
    with pytest.raises(CorruptError, match=message):
        FeatureStore.open(store.path).task("t")


def test_what_a_table_does_not_say_is_not_known(tmp_path):
    """Words of all kinds, in as many columns; the rows that say nothing are left out."""
    words = ["1", "0", "", "-1", "NaN", "no", "u", "yes"]
    rows = [[name, words[k % 8], words[(k // 8) % 8]] for k, name in enumerate(FILES)]
    path = table(tmp_path / "t.csv", ["path", "a", "b"], rows)
    options = {"label_column": ("a", "b"), "kind": "multilabel"}
    labels = labels_from_csv(path, **options)
    store, task = add(tmp_path, labels)
    meaning = {"1": 1, "yes": 1, "0": 0, "no": 0}
    expected = {name: [meaning.get(word, 2) for word in said] for name, *said in rows}
    names = store.samples.uris_of(store.samples.rows_of(task.ids).tolist())
    assert [expected[Path(name).name] for name in names] == task.labels.tolist()
    silent = sum(said == [2, 2] for said in expected.values())
    assert len(task.ids) == len(FILES) - silent
    again = FeatureStore.open(store.path).task("t")
    np.testing.assert_array_equal(again.labels, task.labels)
    assert again.is_partial
    unknown = {"a": int((task.labels[:, 0] == 2).sum()), "b": int((task.labels[:, 1] == 2).sum())}
    assert again.num_unknown() == unknown
    (warning,) = again.warnings()
    count = sum(unknown.values())
    assert warning.text.startswith(f"{count} of {2 * len(task.ids)} cells are not known")
    assert f"{silent} rows say nothing at all, left out" in warning.text
    no = labels_from_csv(path, **options, blank="negative", uncertain="positive")
    assert [label.unknown for label in no.labels] == [()] * len(FILES)
    assert no.labels[2].label == "b"
    assert no.labels[3].label == "a\nb"
    assert no.warnings == ()


def test_one_missing_number_costs_no_other(tmp_path):
    rows = [[name, k, "" if k % 5 == 0 else -k, "n/a" if k % 7 == 0 else k % 13] for k, name in enumerate(FILES)]
    rows[35][1] = ""
    path = table(tmp_path / "t.csv", ["path", "a", "b", "c"], rows)
    store, task = add(tmp_path, labels_from_csv(path, label_column=("a", "b", "c"), kind="regression"))
    assert len(task.ids) == 99
    assert task.num_unknown() == {"a": 0, "b": 19, "c": 14}
    np.testing.assert_array_equal(FeatureStore.open(store.path).task("t").labels, task.labels)
    assert task.warnings()[0].text.startswith("33 of 297 cells are not known")
    assert set(tasks.class_counts(task).values()) == {99, 80, 85}


def test_copies_know_together_what_one_of_them_does_not(tmp_path):
    store = make_store(tmp_path, {**FILES, "copy.jpg": "content 4", "other.jpg": "content 5"})
    rows = [[name, k % 2, int(k % 3 == 0)] for k, name in enumerate(FILES)]
    rows[4][1:], rows[5][1:] = [0, ""], [1, ""]
    path = table(tmp_path / "t.csv", ["path", "a", "b"], [*rows, ["copy.jpg", "", 1], ["other.jpg", 0, 1]])
    for kind, expected in (("multilabel", [0, 1]), ("regression", [0.0, 1.0])):
        task = store.add_task(kind, labels_from_csv(path, label_column=("a", "b"), kind=kind))
        assert task.about["num_conflicts"] == 1
        row = store.listings.all()[0].row_of["copy.jpg"]
        assert task.labels[store.samples.rows_of(task.ids).tolist().index(row)].tolist() == expected


@pytest.mark.parametrize(
    ("column", "options", "message"),
    [
        (["1", "", "1", "-1"], {}, "'a' holds for all of the 2 samples where it is known, .*--uncertain negative"),
        (["", "", "?", "u"], {}, "'a' is not known for any of 4 samples; leave it out"),
        (["1", "maybe", "0", "0"], {}, "line 3: the a is neither 1 nor 0: 'maybe'"),
    ],
)
def test_labels_of_which_too_little_is_known(column, options, message, tmp_path):
    rows = [[name, said, k % 2] for k, (name, said) in enumerate(zip(FILES, column, strict=False))]
    path = table(tmp_path / "t.csv", ["path", "a", "b"], rows)
    with pytest.raises(TaskError, match=message):
        add(tmp_path, labels_from_csv(path, label_column=("a", "b"), kind="multilabel", **options))


def test_a_label_must_be_known_in_train(tmp_path):
    rows = [
        [name, k % 2, "" if k < 60 else k % 2, "train" if k < 60 else "val" if k < 80 else "test"]
        for k, name in enumerate(FILES)
    ]
    path = table(tmp_path / "t.csv", ["path", "a", "b", "split"], rows)
    with pytest.raises(TaskError, match="'b' is not known for any sample of the train part"):
        add(tmp_path, labels_from_csv(path, label_column=("a", "b"), kind="multilabel"))


@pytest.mark.parametrize("separator", [",", ", ", "/", " "])
@pytest.mark.parametrize("kind", ["multilabel", "classification"])
def test_labels_joined_by_something_else_are_not_one_label_without_a_word(separator, kind, tmp_path):
    rows = [[name, tags(k).replace(";", separator) or "none"] for k, name in enumerate(FILES)]
    path = table(tmp_path / "t.csv", ["path", "tags"], rows)
    labels = labels_from_csv(path, label_column="tags", kind=kind)
    found = [warning for warning in labels.warnings if warning.kind == "joined_labels"]
    if kind == "classification" and "," not in separator:
        assert not found
        return
    (warning,) = found
    assert "different entries of 'tags' are made of" in warning.text
    assert f"--separator {separator[0]!r}" in warning.text
    divided = labels_from_csv(path, label_column="tags", kind="multilabel", separator=separator[0])
    assert [warning.kind for warning in divided.warnings] == ["unknown_targets"]
    assert {name for label in divided.labels for name in label.label.split("\n")} == {"two", "three", "seven", ""}


def test_an_empty_cell_of_tags_is_said_and_may_be_unknown(tmp_path):
    rows = [[name, tags(k)] for k, name in enumerate(FILES)]
    empty = sum(not said for _, said in rows)
    path = table(tmp_path / "t.csv", ["path", "tags"], rows)
    (warning,) = labels_from_csv(path, label_column="tags", kind="multilabel").warnings
    assert warning.text.startswith(f"{empty} rows have no label in 'tags', which is taken for none of them")
    assert labels_from_csv(path, label_column="tags", kind="multilabel", blank="negative").warnings == ()
    left = labels_from_csv(path, label_column="tags", kind="multilabel", blank="missing")
    assert len(left.labels) == len(FILES) - empty
    assert f"{empty} rows say nothing at all" in left.warnings[0].text
    with pytest.raises(TaskError, match="are for tasks of kind multilabel, not classification"):
        labels_from_csv(path, label_column="tags", blank="negative")


def test_a_comma_and_a_space_divide_where_a_comma_does(tmp_path):
    rows = [[name, "polar bear, ice" if k % 2 else "ice"] for k, name in enumerate(FILES)]
    path = table(tmp_path / "t.csv", ["path", "tags"], rows)
    found = [labels_from_csv(path, kind="multilabel", separator=separator) for separator in (", ", ",", " ")]
    assert {label.label for label in found[0].labels} == {"ice\npolar bear", "ice"}
    assert found[0].labels == found[1].labels
    assert {label.label for label in found[2].labels} == {"bear,\nice\npolar", "ice"}


@pytest.mark.parametrize("grouped", [False, True])
def test_every_label_is_in_train_however_rare(tmp_path, grouped):
    rare = {k: f";rare{k}" for k in range(0, 100, 3)}
    rows = [[name, f"{'a' if k % 2 else 'b'}{rare.get(k, '')}", f"g{k // 2}"] for k, name in enumerate(FILES)]
    path = table(tmp_path / "t.csv", ["path", "tags", "photo"], rows)
    options = {"group_column": "photo"} if grouped else {}
    labels = labels_from_csv(path, label_column="tags", kind="multilabel", **options)
    store, task = add(tmp_path, labels)
    assert (task.labels[task.splits == 0].sum(axis=0) > 0).all()
    assert task.has("validation")
    assert task.has("test")
    # The order of the table decides nothing, and samples keep their split when others come.
    table(path, ["path", "tags", "photo"], rows[::-1])
    labels = labels_from_csv(path, label_column="tags", kind="multilabel", **options)
    np.testing.assert_array_equal(store.add_task("u", labels).splits, task.splits)


@pytest.mark.parametrize("kind", ["multilabel", "classification"])
def test_that_rare_classes_leave_little_to_judge_by_is_told(tmp_path, kind):
    def warned(number):
        rows = [[name, f"x{k}" if k < number else "a" if k % 2 else "b"] for k, name in enumerate(FILES)]
        path = table(tmp_path / f"{number}.csv", ["path", "tags"], rows)
        (tmp_path / str(number)).mkdir()
        _, task = add(tmp_path / str(number), labels_from_csv(path, kind=kind))
        return [warning["text"] for warning in task.about.get("warnings", []) if warning["kind"] == "few_left"]

    assert warned(10) == []
    (text,) = warned(80)
    assert re.match(
        r"only \d+ of 100 samples are left to validate and test on: 80 of 82 (labels|classes) have one", text
    )


def test_labels_of_one_sample_each_leave_nothing_to_test_on(tmp_path):
    path = table(tmp_path / "t.csv", ["path", "tags"], [[name, f"x{k}"] for k, name in enumerate(FILES)])
    with pytest.raises(TaskError, match="100 of 100 labels are of one sample each") as error:
        add(tmp_path, labels_from_csv(path, kind="multilabel"))
    assert len(str(error.value)) < 300


def test_of_many_labels_some_are_named(tmp_path):
    rows = [
        [name, f"a;x{k}" if k > 50 else "a;b" if k % 2 else "b", "test" if k > 50 else "train"]
        for k, name in enumerate(FILES)
    ]
    path = table(tmp_path / "t.csv", ["path", "tags", "split"], rows)
    with pytest.raises(TaskError, match="'x51', 'x52', 'x53', 'x54', 'x55' and 44 more occurs in the test part"):
        add(tmp_path, labels_from_csv(path, kind="multilabel"))


def test_a_row_for_each_label_says_what_a_list_says(tmp_path):
    """As Open Images, and tables of boxes, are written."""
    lists = [[name, tags(k)] for k, name in enumerate(FILES)]
    long = [[name, tag, k] for k, (name, said) in enumerate(lists) for tag in said.split(";")]
    listed = labels_from_csv(table(tmp_path / "a.csv", ["path", "tags"], lists), kind="multilabel", blank="negative")
    path = table(tmp_path / "b.csv", ["path", "tags", "number"], long)
    found = labels_from_csv(path, label_column="tags", kind="multilabel", blank="negative")
    assert found.labels == listed.labels
    (warning,) = found.warnings
    several = sum(said.count(";") > 0 for _, said in lists)
    assert (warning.kind, warning.count) == ("joined_rows", several)
    assert "first 000.jpg is seven, three, two: they hold together" in warning.text
    # What differs in more than the label is no list of labels: it is left out, aloud.
    split = [[*row[:2], "train" if row[0] > "050" or row[1] != "two" else "test"] for row in long]
    labels = labels_from_csv(
        table(tmp_path / "c.csv", ["path", "tags", "split"], split), kind="multilabel", blank="negative"
    )
    _, task = add(tmp_path, labels)
    torn = [name for name, said in lists if name <= "050" and "two" in said and ";" in said]
    assert task.about["num_conflicts"] == len(torn) > 0
    assert task.about["conflicts"][0] == {"000.jpg": "two and three and seven"}


def test_several_classes_of_one_sample_are_said(tmp_path):
    rows = [["000.jpg", kind] for kind in ("Dead", "Alive", "Dead")]
    path = table(tmp_path / "t.csv", ["path", "label"], rows)
    said = "1 sample has several that differ, first 000.jpg is Dead and Alive; if one sample may have several"
    with pytest.raises(TaskError, match=said):
        add(tmp_path, labels_from_csv(path))


def test_lists_between_commas_are_told_however_many_names_there_are(tmp_path):
    spoken = [[name, ", ".join(["English", *([f"x{k}", "French"] if k % 2 else [])])] for k, name in enumerate(FILES)]
    rows = [[name, said if k else "Thai"] for k, (name, said) in enumerate(spoken)]
    found = labels_from_csv(table(tmp_path / "t.csv", ["path", "tags"], rows), kind="multilabel").warnings
    assert [warning.kind for warning in found] == ["joined_labels"]
    # Names of several words are no lists of words.
    rows = [
        [name, f"{word} bear" if k % 2 else f"fish {k}"]
        for k, (name, word) in enumerate(zip(FILES, "abcde" * 20, strict=True))
    ]
    labels = labels_from_csv(table(tmp_path / "t.csv", ["path", "tags"], rows), kind="multilabel")
    assert labels.warnings == ()


def test_of_very_many_columns_some_are_named(tmp_path):
    path = table(tmp_path / "t.csv", [f"c{k}" for k in range(99)], [list(range(99))])
    with pytest.raises(TaskError, match=r"it has: c0, c1, .*, c19 and 79 more; name it with --path-column"):
        labels_from_csv(path)
