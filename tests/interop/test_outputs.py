"""What goes out: Arrow, pandas, torch and Hugging Face hold what the cache holds, and nothing else."""

from __future__ import annotations

import csv
import json
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import COLOURS, RUNTIME, TINY, write_cache
from torch.utils.data import DataLoader

import featurecache as fc
from featurecache import plugins
from featurecache.cli import main
from featurecache.errors import MissingExtraError, RequestError, StoreError, UnknownNameError

pytestmark = pytest.mark.usefixtures("few_settings")
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = write_cache(tmp_path_factory.mktemp("outputs"), per_class=12)
    photos = cache.parent / "photos"
    lines = []
    for path in sorted(photos.rglob("*/*.png")):
        number = int(path.stem)
        b = "" if number % 3 == 0 else number % 2
        lines.append(f"{path.relative_to(photos).as_posix()},{int(number > 5)},{b},{'old' if number % 4 else 'new'}")
    (cache.parent / "t.csv").write_text("\n".join(["path,a,b,camera", *lines]))
    (photos / "bad.png").write_bytes(b"no image")
    extract = ["extract", str(photos), "--cache", str(cache), "--backbone", TINY, *RUNTIME]
    assert main([*extract, "--max-bad", "1"]) == 0
    columns = ["--label-column", "a", "--label-column", "b", "--domain-column", "camera"]
    add = ["task", "add", str(cache), "several", str(cache.parent / "t.csv"), "--kind", "multilabel", *columns]
    assert main(add) == 0
    assert main(["train", str(cache), "--task", "colour", "--head", "logistic", "--save", "h", "--quiet"]) == 0
    return cache


def test_arrow_and_pandas_hold_what_the_cache_holds(cache: Path) -> None:
    store = fc.FeatureStore.open(cache)
    features, task = store.features(), store.task("colour")
    table = features.to_arrow(task)
    assert table.column_names == ["id", "name", "label", "split", "features"]
    rows = store.samples.rows_of(np.array([list(bytes.fromhex(text)) for text in table["id"].to_pylist()], np.uint8))
    np.testing.assert_array_equal(np.array(table["features"].to_pylist(), np.float32), features.read(rows).astype("f4"))
    assert [name.split("/")[0] for name in table["name"].to_pylist()] == table["label"].to_pylist()
    assert dict(Counter(table["split"].to_pylist())) == task.counts()
    every = features.to_arrow()
    assert every.num_rows == len(features) - len(features.bad) == 36
    frame = features.to_pandas(task)
    assert list(frame.columns[:5]) == ["id", "name", "label", "split", "f0"]
    numbers = frame.filter(regex=r"^f\d+$").to_numpy()
    np.testing.assert_array_equal(numbers, np.array(table["features"].to_pylist(), "f4"))
    several = features.to_arrow(store.task("several"))
    assert several.column_names == ["id", "name", "a", "b", "split", "domain", "features"]
    by_name = dict(zip(several["name"].to_pylist(), several["b"].to_pylist(), strict=True))
    assert all((value is None) == (int(Path(name).stem) % 3 == 0) for name, value in by_name.items())


def test_hugging_face_holds_the_same(cache: Path) -> None:
    pytest.importorskip("datasets")
    store = fc.FeatureStore.open(cache)
    dataset = store.features().to_hf(store.task("colour"))
    assert dataset.num_rows == 36
    assert set(dataset["label"]) == set(COLOURS)


def test_torch_data_sets_equal_numpy_by_index_in_batches_and_as_a_stream(cache: Path) -> None:
    store = fc.FeatureStore.open(cache)
    features, task = store.features(), store.task("colour")
    rows, y = task.rows(features, "train")
    order = np.argsort(rows)
    X, y = features.read(rows[order]).astype(np.float32), y[order]
    dataset = features.to_torch(task, "train")
    assert len(dataset) == len(rows)
    one, target = dataset[3]
    np.testing.assert_array_equal(one.numpy(), X[3])
    assert int(target) == y[3]
    loader = DataLoader(dataset, batch_size=5)
    np.testing.assert_array_equal(np.concatenate([batch.numpy() for batch, _ in loader]), X)
    np.testing.assert_array_equal(np.concatenate([batch.numpy() for _, batch in loader]), y)
    again = pickle.loads(pickle.dumps(dataset))  # as another process of a loader gets it
    np.testing.assert_array_equal(again[0][0].numpy(), X[0])
    streams = [features.to_torch(task, "train", stream=True, seed=seed) for seed in (None, 1, 1, 2)]
    orders = [[tuple(x.tolist()) for x, _ in stream] for stream in streams]
    assert orders[0] == [tuple(row) for row in X.tolist()]
    assert orders[1] == orders[2] != orders[3]
    assert sorted(orders[1]) == sorted(orders[0])
    assert len(features.to_torch()[0]) == X.shape[1]
    with pytest.raises(RequestError, match="the split 'train' is of a task; name that too"):
        features.to_torch(split="train")


def test_a_stream_gives_each_worker_blocks_of_its_own(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from featurecache.interop import torch_data

    stream = fc.FeatureStore.open(cache).features().to_torch(stream=True)
    stream._block = 5
    seen = []
    for worker in range(3):
        info = type("Info", (), {"id": worker, "num_workers": 3})
        monkeypatch.setattr(torch_data, "get_worker_info", lambda info=info: info)
        seen += [tuple(x.tolist()) for x in stream]
    monkeypatch.undo()
    assert sorted(seen) == sorted(tuple(x.tolist()) for x in stream)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_table_of_features_is_written(cache: Path, tmp_path: Path, call: Call, suffix: str) -> None:
    out = tmp_path / f"f{suffix}"
    status, printed, err = call("export-features", cache, "--task", "colour", "--out", out)
    assert status == 0, err
    assert printed.startswith("36 samples x ")
    store = fc.FeatureStore.open(cache)
    expected = store.features().to_arrow(store.task("colour"))
    if suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        assert parquet.read_table(out).equals(expected)
    else:
        with out.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["label"] for row in rows] == expected["label"].to_pylist()
        assert [float(row["f0"]) for row in rows] == [values[0] for values in expected["features"].to_pylist()]
    status, _, err = call("export-features", cache, "--out", out)
    assert status == 2
    assert "is there already; pass --replace" in err


def test_what_is_not_installed_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="pyarrow is not installed"):
        fc.FeatureStore.open(cache).features().to_arrow()


def test_predictions_are_those_of_samples_that_the_head_was_not_fitted_on(cache: Path) -> None:
    store = fc.FeatureStore.open(cache)
    rows = store.predictions("colour")
    reported = [row for row in rows if row["judged"] == "reported"]
    assert {row["split"] for row in reported} == {"test"}
    assert all(row["label"] == row["name"].split("/")[0] for row in rows)
    assert all(row["right"] == (row["label"] == row["prediction"]) for row in rows)
    last = store.history("colour").abouts()[-1]
    assert np.mean([row["right"] for row in reported]) == pytest.approx(last.scores["accuracy"])
    with pytest.raises(StoreError, match="no head was trained on task 'several'"):
        store.predictions("several")


def test_similar_samples_are_those_of_a_plain_search(cache: Path, call: Call) -> None:
    photo = cache.parent / "photos" / "red" / "001.png"
    status, out, err = call("similar", cache, photo, "--count", "5", "--backbone", TINY, "--json")
    assert status == 0, err
    (found,) = json.loads(out)["similar"].values()
    store = fc.FeatureStore.open(cache)
    features = store.features()
    rows = features.rows[features.usable(features.rows)]
    X = features.read(rows).astype(np.float32)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    mine = store.samples.uris_of(rows).index("red/001.png")
    cosine = X @ X[mine]
    assert found[0]["name"] == "red/001.png"
    assert found[0]["similarity"] == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose([item["similarity"] for item in found], np.sort(cosine)[::-1][:5], atol=2e-3)
    status, _, err = call("similar", cache, photo, "--count", "0", "--backbone", TINY)
    assert status == 2
    assert "ask for one neighbour at least, not 0" in err


def test_what_has_a_name_is_removed_and_nothing_else(cache: Path, tmp_path: Path, call: Call) -> None:
    import shutil

    copy = Path(shutil.copytree(cache, tmp_path / "c"))
    store = fc.FeatureStore.open(copy)
    (feature_set,) = store.feature_sets()
    for kind, name in (("head", "h"), ("task", "colour"), ("features", feature_set.fingerprint[:12])):
        before = sorted(path for path in copy.rglob("*"))
        status, out, _ = call("rm", copy, kind, name, "--dry-run")
        assert status == 0
        assert "would be removed" in out
        assert sorted(path for path in copy.rglob("*")) == before
        status, out, _ = call("rm", copy, kind, name, "--json")
        document = json.loads(out)
        assert document["num_bytes"] > 0
        assert not any((copy / path).exists() for path in document["paths"])
        assert call("verify", copy)[0] == 0
        status, _, err = call("rm", copy, kind, name)
        assert status == 2
        assert f"unknown {'tap or fingerprint' if kind == 'features' else kind}" in err
    assert fc.FeatureStore.open(copy).task_names() == ["several"]
    with pytest.raises(UnknownNameError):
        fc.FeatureStore.open(copy).task("colour")


def test_features_that_somebody_writes_are_not_removed(cache: Path, tmp_path: Path, call: Call) -> None:
    import shutil

    copy = Path(shutil.copytree(cache, tmp_path / "c"))
    (feature_set,) = fc.FeatureStore.open(copy).feature_sets()
    lease = feature_set.folder.path / "leases" / "x.lease"
    lease.parent.mkdir(parents=True, exist_ok=True)
    lease.write_text("{}")
    status, _, err = call("rm", copy, "features", feature_set.tap)
    assert status == 2
    assert "somebody writes to" in err
