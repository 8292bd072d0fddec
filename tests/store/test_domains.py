"""Domains: where samples come from, stored with a task and named as a target."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import COLOURS, make_store, write_cache

from featurecache.errors import CorruptError, RequestError, TaskError
from featurecache.evaluation.domains import cached_rows_of_domain, rows_of_domain
from featurecache.store.folders import ShardFolder
from featurecache.store.label_tables import labels_from_csv
from featurecache.store.schemas import TASK
from featurecache.store.store import FeatureStore
from featurecache.store.tasks import save_task

Call = Callable[..., tuple[int, str, str]]


def test_domains_come_back_and_are_counted(tmp_path: Path) -> None:
    store = make_store(tmp_path, {f"{k}.jpg": f"content {k // 2}" for k in range(24)})  # two copies of each
    lines = [f"{k}.jpg,{'ab'[k // 2 % 2]},{('phone', 'camera')[k % 2]}" for k in range(24)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,device", *lines]))
    task = store.add_task("t", labels_from_csv(tmp_path / "t.csv", domain_column="Device"))
    assert task.domain_names == ["camera"]  # of copies in two domains the first by name
    lines = [f"{k}.jpg,{'ab'[k // 2 % 2]},{('phone', 'camera')[k // 2 % 3 > 0]}" for k in range(24)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,device", *lines]))
    store.add_task("t", labels_from_csv(tmp_path / "t.csv", domain_column="device"), replace=True)
    again = FeatureStore.open(store.path).task("t")
    assert again.domain_names == ["camera", "phone"]
    assert again.domains is not None
    assert np.bincount(again.domains).tolist() == [8, 4]
    assert len(rows_of_domain(store, again, "phone")) == int((again.splits[again.domains == 1] != 2).sum())
    with pytest.raises(RequestError, match=r"fits 'drone'; name a domain \(camera, phone\), a pattern of paths, such"):
        rows_of_domain(store, again, "drone")
    (tmp_path / "t.csv").write_text("path,label,device\n1.jpg,a,\n2.jpg,b,phone\n")
    with pytest.raises(TaskError, match="line 2: the device is empty; say where the sample comes from"):
        labels_from_csv(tmp_path / "t.csv", domain_column="device")


def test_domains_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path, {f"{k}.jpg": f"content {k}" for k in range(12)})
    lines = [f"{k}.jpg,{'ab'[k % 2]},{'xy'[k % 3 > 0]}" for k in range(12)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,site", *lines]))
    task = store.add_task("t", labels_from_csv(tmp_path / "t.csv", domain_column="site"))
    save_task(ShardFolder(store.path / "tasks" / "t", TASK), replace(task, domain_names=["x"]))
    with pytest.raises(CorruptError, match="has domains that do not exist"):
        FeatureStore.open(store.path).task("t")


def test_a_domain_is_a_target_as_the_paths_of_its_samples_are(tmp_path: Path, call: Call) -> None:
    cache = write_cache(tmp_path, per_class=12)
    store = FeatureStore.open(cache)
    names = store.samples.uris_of(range(len(store.samples)))
    lines = [f"{name},{name.split('/')[0]},{'old' if '/00' in name else 'new'}" for name in names]
    (tmp_path / "t.csv").write_text("\n".join(["file,label,camera", *lines]))
    status, out, err = call("task", "add", cache, "t", tmp_path / "t.csv", "--domain-column", "camera")
    assert status == 0, err
    assert f"domains: {2 * len(COLOURS)} new, {10 * len(COLOURS)} old" in out
    task = FeatureStore.open(cache).task("t")
    features = store.features()
    assert cached_rows_of_domain(store, task, "old", features).tolist() == (
        cached_rows_of_domain(store, task, "*/00*", features).tolist()
    )
    assert rows_of_domain(store, task, "new").tolist() == rows_of_domain(store, task, "*/01*").tolist()
    _, by_name, _ = call("advise", cache, "--task", "t", "--target-domain", "new", "--only", "diagnosis", "--json")
    _, by_path, _ = call("advise", cache, "--task", "t", "--target-domain", "*/01*", "--only", "diagnosis", "--json")
    found = [json.loads(out)["findings"][0]["details"]["gaps"] for out in (by_name, by_path)]
    assert found[0] == found[1]
    document = json.loads(call("info", cache, "--json")[1])
    assert document is not None
