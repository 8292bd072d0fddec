"""Groups: inputs of one photo or one patient are on one side of every division."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import RUNTIME, TINY, make_store
from hypothesis import given
from hypothesis import strategies as st

import featurecache as fc
from featurecache.cli import main
from featurecache.errors import CorruptError, TaskError
from featurecache.store.label_tables import labels_from_csv
from featurecache.store.labels import Label, TableLabels
from featurecache.store.splits import grouped_splits
from featurecache.store.store import FeatureStore
from featurecache.store.task_builder import build_task
from featurecache.store.tasks import Task

pytestmark = pytest.mark.usefixtures("few_settings")

FILES = {f"{k:03d}.jpg": f"content {k}" for k in range(120)}


def labelled(group: Callable[[int], str | None], split: Callable[[int], str | None] = lambda k: None) -> TableLabels:
    labels = tuple(Label(name, f"class {k % 3}", split(k), group=group(k)) for k, name in enumerate(FILES))
    return TableLabels(labels=labels, origin="test")


def torn(task: Task) -> int:
    """Groups that are in more than one part."""
    assert task.groups is not None
    return sum(len(np.unique(task.splits[task.groups == g])) > 1 for g in np.unique(task.groups))


@given(
    sizes=st.lists(st.integers(1, 30), min_size=8, max_size=60),
    num_classes=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_made_splits_keep_groups_whole_and_shares_near(sizes, num_classes, seed):
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
    labels = rng.integers(0, num_classes, len(groups)).astype(np.int32)
    labels = np.unique(labels, return_inverse=True)[1].astype(np.int32)
    lots = [str(rng.random()) for _ in sizes]
    splits = grouped_splits(groups, labels, lots, kept=np.full(len(groups), -1))
    for group in range(len(sizes)):
        assert len(np.unique(splits[groups == group])) == 1
    share = np.bincount(splits, minlength=3) / len(splits)
    # What is left over cannot be divided finer than by the largest group.
    assert np.all(np.abs(share - [0.6, 0.2, 0.2]) <= max(sizes) / len(splits) + 0.1)


def test_splits_of_a_task_do_not_depend_on_order_and_grow_without_moving(tmp_path):
    store = make_store(tmp_path, FILES)
    labels = labelled(lambda k: f"photo {k // 4}")
    task = store.add_task("t", labels)
    assert torn(task) == 0
    assert set(task.counts()) == {"train", "validation", "test"}
    turned = store.add_task("u", TableLabels(labels=labels.labels[::-1], origin="test"))
    assert np.array_equal(turned.splits, task.splits)
    assert np.array_equal(store.task("t").groups, task.groups)
    fewer = store.add_task("v", TableLabels(labels=labels.labels[:60], origin="test"))
    more = store.add_task("v", labels, replace=True)
    before = dict(zip(map(bytes, fewer.ids), fewer.splits.tolist(), strict=True))
    assert all(part == before.get(bytes(i), part) for i, part in zip(more.ids, more.splits.tolist(), strict=True))
    assert torn(more) == 0


def test_groups_that_share_a_sample_are_one(tmp_path):
    files = FILES | {"copy.jpg": "content 0"}
    store = make_store(tmp_path, files)
    labels = labelled(lambda k: f"photo {k // 4}").labels
    copy = Label("copy.jpg", "class 0", None, group="photo 9")
    task = store.add_task("t", TableLabels(labels=(*labels, copy), origin="test"))
    assert task.groups is not None
    assert task.groups.max() + 1 == 29  # of 30: photo 0 and photo 9 are one
    assert torn(task) == 0


def test_given_splits_that_tear_a_group_are_refused(tmp_path):
    store = make_store(tmp_path, FILES)
    labels = labelled(lambda k: f"photo {k // 4}", lambda k: "test" if k % 8 == 0 else "train")
    with pytest.raises(
        TaskError, match=r"15 groups are in several parts, first 'photo 0' in train and test; give all of a group one"
    ):
        store.add_task("t", labels)
    whole = store.add_task("t", labelled(lambda k: f"photo {k // 4}", lambda k: "test" if k % 8 < 4 else "train"))
    assert torn(whole) == 0


def test_too_few_groups(tmp_path):
    store = make_store(tmp_path, FILES)
    with pytest.raises(TaskError, match="task 't' has 1 group, too few to be divided into train and test; is this"):
        store.add_task("t", labelled(lambda k: "the only one"))


def test_a_group_column(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("path,label,photo\na.jpg,x,p 1\nb.jpg,y,\n")
    with pytest.raises(TaskError, match=r"line 3: the photo is empty; fill it, with a name of its own where alone"):
        labels_from_csv(path, group_column="photo")
    with pytest.raises(TaskError, match="unknown column 'foto'; did you mean 'photo'.*--group-column"):
        labels_from_csv(path, group_column="foto")
    path.write_text("path,label,photo\na.jpg,x,p 1\nb.jpg,y,p 2\n")
    assert [label.group for label in labels_from_csv(path, group_column="photo").labels] == ["p 1", "p 2"]


def test_groups_of_a_strangers_task_are_checked(tmp_path):
    store = make_store(tmp_path, FILES)
    task = build_task("t", labelled(lambda k: f"photo {k // 4}"), samples=store.samples, listings=store.listings.all())
    from dataclasses import replace

    from featurecache.store.folders import ShardFolder
    from featurecache.store.schemas import TASK
    from featurecache.store.tasks import load_task, save_task

    folder = ShardFolder(store.path / "tasks" / "t", TASK)
    for wrong in (task.groups - 1, task.groups + 100):
        save_task(folder, replace(task, groups=wrong))
        with pytest.raises(CorruptError, match="task 't' has groups that do not exist; make it again"):
            load_task("t", folder, store.samples)


def test_the_whole_walk_with_groups(
    labelled_cache: Callable[..., tuple[Path, Path, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    source, cache, table = labelled_cache(photo=lambda number: number // 4)
    add = ["task", "add", str(cache), "colour", str(table), "--group-column", "photo"]
    assert main(add) == 0
    assert "in 5 groups (splits made)" in capsys.readouterr().out
    assert main(["train", str(cache), "--task", "colour", "--quiet", "--json", "--head", "logistic"]) == 0
    trained = json.loads(capsys.readouterr().out)["results"][0]
    # All right, but one group is judged, and says nothing of others.
    assert trained["test"]["accuracy"] == 1.0
    assert trained["test"]["accuracy_low"] is None
    assert main(["train", str(cache), "--task", "colour", "--quiet", "--head", "logistic"]) == 0
    assert "1.000 (no interval" in capsys.readouterr().out
    assert main(["sweep", str(cache), "--head", "knn", "--folds", "3", "--quiet", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 3
    assert main([*add[:3], "other", "--from-folders", "--group-column", "photo"]) == 2
    assert "folders say no groups; give a CSV with --group-column" in capsys.readouterr().err
    assert main(["verify", str(cache)]) == 0
    run = ["run", str(source), "--cache", str(cache), "--backbone", TINY, "--group-column", "photo", *RUNTIME]
    assert main([*run]) == 2
    assert "folders say no groups; give a CSV with --labels and --group-column" in capsys.readouterr().err
    assert main([*run, "--labels", str(table), "--head", "knn"]) == 0
    assert fc.FeatureStore.open(cache).task("run").groups is not None
    assert FeatureStore.open(cache).task("colour").groups is not None
