"""Tasks: one label and one split for each sample, joined by id whatever the order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import content_id, make_store
from hypothesis import given, settings
from hypothesis import strategies as st

from featurecache.errors import StoreError, TaskError, UnknownNameError
from featurecache.store.features import Features
from featurecache.store.folders import ShardFolder
from featurecache.store.label_folders import label_of_path
from featurecache.store.label_tables import labels_from_csv
from featurecache.store.labels import Label, TableLabels, labels_from_folders
from featurecache.store.listings import Listing
from featurecache.store.row_runs import runs_of_rows
from featurecache.store.samples import SampleTable
from featurecache.store.splits import stratified_splits
from featurecache.store.store import FeatureStore
from featurecache.store.task_builder import build_task
from featurecache.text import TextColumn

pytestmark = pytest.mark.quick


def table(**labels: str) -> TableLabels:
    return TableLabels(labels=tuple(Label(key, *value.split("/")) for key, value in labels.items()), origin="test")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("rose/1.jpg", ("rose", None)),
        ("a/b/rose/1.jpg", ("rose", None)),
        ("train/rose/1.jpg", ("rose", "train")),
        ("val/rose/1.jpg", ("rose", "validation")),
        ("Valid/rose/1.jpg", ("rose", "validation")),
        ("validation/x/rose/1.jpg", ("rose", "validation")),
        ("TEST/rose/1.jpg", ("rose", "test")),
        ("1.jpg", None),
        ("train/1.jpg", None),
    ],
)
def test_folders_say_class_and_split(path: str, expected: tuple | None) -> None:
    label = label_of_path(path)
    assert (label and (label.label, label.split)) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("animals/cats/big/1.jpg", ("animals", None)),
        ("train/animals/cats/1.jpg", ("animals", "train")),
        ("animals/test/cats/1.jpg", ("animals", "test")),
        ("animals/val/1.jpg", ("animals", "validation")),
        ("train/1.jpg", None),
        ("1.jpg", None),
    ],
)
def test_the_outermost_folder_may_be_the_class(path: str, expected: tuple | None) -> None:
    label = label_of_path(path, "outermost")
    assert (label and (label.label, label.split)) == expected


def test_folders_in_folders_of_classes_are_told(tmp_path: Path) -> None:
    places = ["mammals", "mammals/cats", "mammals/cats/big", "birds", "birds/drawn", "fish/drawn", "fish/deep"]
    store = make_store(tmp_path, {f"{place}/{k}.jpg": f"{place} {k}" for place in places for k in range(5)})
    inner = store.add_task("inner", labels_from_folders())
    assert inner.classes == ["big", "birds", "cats", "deep", "drawn", "mammals"]
    first, second = inner.about["warnings"]
    assert (first["kind"], first["count"], second["kind"], second["count"]) == (
        *("folder_classes", 4),
        *("folder_classes", 1),
    )
    assert "'birds/drawn' in 'birds'" in first["text"]
    assert "'drawn' of birds/drawn, fish/drawn" in second["text"]
    outer = store.add_task("outer", labels_from_folders(class_folder="outermost"))
    assert (outer.classes, outer.about.get("warnings")) == (["birds", "fish", "mammals"], None)
    with pytest.raises(TaskError, match="class_folder is 'innermost' or 'outermost', not 'first'"):
        labels_from_folders(class_folder="first")  # type: ignore[arg-type]


def test_classes_below_sites_and_splits_are_no_surprise(tmp_path: Path) -> None:
    places = [f"{site}/{kind}" for site in ("amazon", "dslr", "train") for kind in ("bike", "mug", "pen")]
    store = make_store(tmp_path, {f"{place}/{k}.jpg": f"{place} {k}" for place in places[:6] for k in range(5)})
    assert "warnings" not in store.add_task("t", labels_from_folders()).about


@settings(max_examples=25)
@given(order=st.permutations(range(12)), seed=st.integers(0, 3))
def test_select_joins_by_id_whatever_the_order(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], seed: int
) -> None:
    tmp_path = tmp_path_factory.mktemp("tasks")
    folder, samples = ShardFolder(tmp_path / "features"), SampleTable(ShardFolder(tmp_path / "samples"))
    ids = np.stack([content_id(f"content {n}") for n in order])  # the order of arrival differs each time
    rows = samples.append(ids, [f"{n}.jpg" for n in order], np.ones(12))
    values = np.array([[n] for n in order], np.float16)
    arrays = {"features": ("float16", values), "id": ("uint8", ids)}
    folder.publish("000", arrays, {"rows": runs_of_rows(rows), "bad": []}, kind="features")
    shuffled = np.random.default_rng(seed).permutation(12)
    labels = tuple(Label(content_id(f"content {n}").tobytes().hex(), f"class {n % 3}", None) for n in shuffled)
    task = build_task("t", TableLabels(labels=labels, origin="test"), samples=samples, listings=[], random_state=seed)
    features = Features("t:avg", "float16", folder)
    seen = []
    for split in ("train", "validation", "test"):
        X, y = task.select(features, split)
        assert [f"class {int(x) % 3}" for (x,) in X] == [task.classes[k] for k in y]
        seen += [int(x) for (x,) in X]
    assert sorted(seen) == list(range(12))


def test_made_splits_depend_on_content_and_seed_only() -> None:
    rng = np.random.default_rng(0)
    ids, labels = rng.integers(0, 256, (60, 32)).astype(np.uint8), np.repeat([0, 1, 2], 20).astype(np.int32)
    splits = stratified_splits(ids, labels, random_state=5)
    order = rng.permutation(60)
    assert np.array_equal(stratified_splits(ids[order], labels[order], random_state=5), splits[order])
    assert not np.array_equal(stratified_splits(ids, labels, random_state=6), splits)
    for label in range(3):
        assert np.bincount(splits[labels == label]).tolist() == [12, 4, 4]


@pytest.mark.parametrize(("n", "expected"), [(1, [1]), (2, [1, 0, 1]), (3, [1, 1, 1]), (5, [3, 1, 1])])
def test_small_classes_fill_train_then_test(n: int, expected: list[int]) -> None:
    ids = np.random.default_rng(0).integers(0, 256, (n, 32)).astype(np.uint8)
    assert np.bincount(stratified_splits(ids, np.zeros(n, np.int32), random_state=0)).tolist() == expected


def test_copies_never_straddle_splits(tmp_path: Path) -> None:
    files = {f"train/{c}/{i}.jpg": f"{c}{i}" for c in "ab" for i in range(4)}
    files |= {"test/a/copy.jpg": "a0", "test/a/own.jpg": "a9", "test/b/own.jpg": "b9"}
    task = make_store(tmp_path, files).add_task("t", labels_from_folders())
    assert task.counts() == {"train": 7, "test": 3}  # the sample with a copy in test has left train
    assert task.about["num_moved"] == 1
    assert len(np.unique(task.ids, axis=0)) == len(task.ids)


def test_a_sample_with_two_labels_is_left_out_and_reported(tmp_path: Path) -> None:
    files = {f"{c}/{i}.jpg": f"{c}{i}" for c in "ab" for i in range(5)} | {"b/copy_of_a0.jpg": "a0"}
    task = make_store(tmp_path, files).add_task("t", labels_from_folders())
    assert task.about["conflicts"] == [{"a/0.jpg": "a", "b/copy_of_a0.jpg": "b"}]
    assert len(task.ids) == 9


def test_tasks_are_kept_apart_and_come_back(tmp_path: Path) -> None:
    store = make_store(tmp_path, {f"{c}/{i}.jpg": f"{c}{i}" for c in "ab" for i in range(5)})
    first = store.add_task("species", labels_from_folders())
    other = store.add_task(
        "even", table(**{f"{c}/{i}.jpg": "even" if i % 2 == 0 else "odd" for c in "ab" for i in range(5)})
    )
    again = FeatureStore.open(store.path)
    assert again.task_names() == ["even", "species"]
    for task in (first, other):
        back = again.task(task.name)
        assert back.classes == task.classes
        assert np.array_equal(back.ids, task.ids)
        assert np.array_equal(back.labels, task.labels)
        assert np.array_equal(back.splits, task.splits)
    with pytest.raises(TaskError, match="task 'species' exists already .*--replace"):
        store.add_task("species", labels_from_folders())
    store.add_task("species", table(**{"a/0.jpg": "x", "a/1.jpg": "x", "b/0.jpg": "y", "b/1.jpg": "y"}), replace=True)
    assert FeatureStore.open(store.path).task("species").classes == ["x", "y"]


def test_ids_serve_as_keys(tmp_path: Path) -> None:
    store = make_store(tmp_path, {f"{i}.jpg": f"content {i}" for i in range(4)})
    ids = [row.tobytes().hex() for row in store.samples.ids]
    task = store.add_task(
        "t", TableLabels(labels=tuple(Label(i, str(n % 2), None) for n, i in enumerate(ids)), origin="x")
    )
    assert sorted(row.tobytes().hex() for row in task.ids) == sorted(ids)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a/1.jpg": "1", "a/2.jpg": "2"}, r"2 labelled files are of one class \('a'\); a task needs at least two"),
        (
            {"1.jpg": "1", "2.jpg": "2"},
            "no labels from folders: put the .* or name a table of labels .*, such as a metadata.csv",
        ),
        (
            {"train/a/1.jpg": "1", "train/b/1.jpg": "2"},
            "all labels have the split train; add a validation or test part",
        ),
        ({"test/a/1.jpg": "1", "test/b/1.jpg": "2"}, "has no train part"),
        ({"train/a/1.jpg": "1", "b/1.jpg": "2"}, "1 file has a split .*, and no split is said of 1, first 'b/1.jpg'"),
        (
            {"train/a/1.jpg": "1", "train/b/1.jpg": "2", "test/c/1.jpg": "3"},
            "'c' occurs in the test part but never in train",
        ),
    ],
)
def test_impossible_folder_tasks_are_refused(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        make_store(tmp_path, files).add_task("t", labels_from_folders())


def test_labels_for_unknown_files_are_refused_or_skipped(tmp_path: Path) -> None:
    store = make_store(tmp_path, {f"{i}.jpg": f"content {i}" for i in range(4)})
    labels = table(**{"0.jpg": "a", "1.jpg": "b", "2.jpg": "a", "nine.jpg": "b"})
    with pytest.raises(
        TaskError,
        match=r"1 of 4 labels is for inputs that are not in the cache, first 'nine.jpg' .*'0.jpg'\); extract",
    ):
        store.add_task("t", labels)
    assert store.add_task("t", labels, allow_missing=True).about["num_missing"] == 1


def test_unknown_task_names_the_nearest(tmp_path: Path) -> None:
    store = make_store(tmp_path, {"a/1.jpg": "1", "b/1.jpg": "2", "a/2.jpg": "3", "b/2.jpg": "4"})
    store.add_task("species", labels_from_folders())
    with pytest.raises(UnknownNameError, match="unknown task 'specie'; did you mean 'species'"):
        store.task("specie")
    with pytest.raises(UnknownNameError, match="unknown task '../../etc'"):
        store.task("../../etc")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "path,kind,size\n1.jpg,a,3\n",
            r"which column holds the class .*: kind \(1\), size \(1\); name it with --label-column",
        ),
        ("path,split\n1.jpg,test\n", "no column is left that could say the class; name it with --label-column"),
        (
            "where,label\nx1,a\n",
            "a column that names the samples, .*; it has: where, label; name it with --path",
        ),
        ("path:label\n1.jpg:a\n", "it has one column, 'path:label', .*; if something unusual .* with --delimiter"),
        ("path,label,label\n1.jpg,a,b\n", "2 columns are called 'label'; give them names of their own"),
        ("path,label\n", "has names of columns but no rows"),
        ("path,label\n1.jpg,\n2.jpg,NA\n", "says nothing in 2 rows of 'label'"),
        ("path,label,is_valid\n1.jpg,a,perhaps\n", "line 2: the is_valid is neither yes nor no: 'perhaps'"),
        ("path,label\n,a\n", "line 2: the path is empty"),
        ("path,label,split\n1.jpg,a,old\n", "line 2: unknown split 'old'; use train, validation or test"),
        ("", "it is empty; its first line names the columns"),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(TaskError, match=message):
        labels_from_csv(tmp_path / "labels.csv")


def test_missing_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="cannot read labels from .*labels.csv"):
        labels_from_csv(tmp_path / "labels.csv")


def test_table_gives_labels_and_splits(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("\ufeffpath,colour,split\n./a/1.jpg,red,train\nb\\2.jpg,blue,val\n")
    labels = labels_from_csv(tmp_path / "labels.csv", label_column="colour").labels
    assert labels == (Label("a/1.jpg", "red", "train"), Label("b/2.jpg", "blue", "validation"))


def test_samples_keep_their_split_when_more_come() -> None:
    rng = np.random.default_rng(0)
    ids, labels = rng.integers(0, 256, (80, 32)).astype(np.uint8), np.repeat([0, 1], 40).astype(np.int32)
    before = stratified_splits(ids[:60], labels[:60], random_state=0)
    kept = np.concatenate([before.astype(np.int64), np.full(20, -1)])
    after = stratified_splits(ids, labels, random_state=0, kept=kept)
    assert np.array_equal(after[:60], before)
    assert np.bincount(after).tolist() == [48, 16, 16]


def test_a_replaced_task_keeps_its_made_splits(tmp_path: Path) -> None:
    files = {f"{c}/{i}.jpg": f"{c}{i}" for c in "ab" for i in range(20)}
    store = make_store(tmp_path, files)
    before = store.add_task("t", labels_from_folders())
    store = make_store(tmp_path, files | {f"{c}/new{i}.jpg": f"{c}new{i}" for c in "ab" for i in range(5)})
    after = store.add_task("t", labels_from_folders(), replace=True)
    split = {row.tobytes(): s for row, s in zip(after.ids, after.splits, strict=True)}
    assert all(split[row.tobytes()] == s for row, s in zip(before.ids, before.splits, strict=True))
    assert after.counts() == {"train": 30, "validation": 10, "test": 10}


def test_of_two_sources_the_later_one_has_the_word(tmp_path: Path) -> None:
    store = make_store(tmp_path, {f"{c}/{i}.jpg": f"{c}{i}" for c in "ab" for i in range(4)})
    ids = np.stack([content_id(f"a{i}") for i in range(4)])
    rows = store.samples.append(ids, ["x"] * 4, np.ones(4))
    moved = ["b/0.jpg", "a/1.jpg", "a/2.jpg", "a/3.jpg"]  # the folder was renamed and one photo sorted anew
    store.listings.save(Listing(str(tmp_path / "src2"), TextColumn.pack(moved), np.zeros((4, 4), np.int64), rows, {}))
    task = store.add_task("t", labels_from_folders())
    assert task.about["num_conflicts"] == 0
    place = task.ids.tolist().index(content_id("a0").tolist())
    assert task.classes[task.labels[place]] == "b"


def test_a_folder_is_found_however_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path, {f"{c}/{i}.jpg": f"{c}{i}" for c in "ab" for i in range(4)})
    monkeypatch.chdir(tmp_path)
    roots = ["src", "src/", "./src", Path("src"), tmp_path / "src", str(tmp_path / "src")]
    assert [len(store.add_task("t", labels_from_folders(root), replace=True).labels) for root in roots] == [8] * 6
    with pytest.raises(StoreError, match="no samples from elsewhere"):
        store.add_task("t", labels_from_folders("elsewhere"), replace=True)


def test_labels_of_which_none_is_left(tmp_path):
    store = make_store(tmp_path, {"a.jpg": "one", "b.jpg": "one"})
    with pytest.raises(
        TaskError, match=r"by 2 labels of test: 1 sample has several that differ, first a.jpg is cat, b.jpg is dog"
    ):
        store.add_task("t", table(**{"a.jpg": "cat", "b.jpg": "dog"}))
    with pytest.raises(TaskError, match=r"none is of an input in the cache"):
        store.add_task("t", table(**{"x.jpg": "cat", "y.jpg": "dog"}), allow_missing=True)
