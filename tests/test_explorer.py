"""The table of `featurecache explore`, and the server that shows it."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, RUNTIME, TINY, write_cache, write_image
from PIL import Image

import featurecache as fc
from featurecache import explorer
from featurecache.cli import main
from featurecache.errors import RequestError
from featurecache.explorer import write_explorer_table
from featurecache.sources.opening import open_source

pytestmark = pytest.mark.usefixtures("few_settings")
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = write_cache(tmp_path_factory.mktemp("explorer"), per_class=12)
    photos = cache.parent / "photos"
    # A near-copy: the same picture with one pixel changed.
    image = np.array(Image.open(photos / "red" / "000.png"))
    image[0, 0] = 0
    Image.fromarray(image).save(photos / "red" / "000-again.png")
    assert main(["extract", str(photos), "--cache", str(cache), "--backbone", TINY, *RUNTIME]) == 0
    table = cache.parent / "numbers.csv"
    table.write_text("path,size\n" + "\n".join(f"red/{i:03d}.png,{i}" for i in range(12)) + "\n")
    assert main(["task", "add", str(cache), "size", str(table), "--kind", "regression", "--label-column", "size"]) == 0
    assert main(["train", str(cache), "--task", "colour", "--head", "logistic", "--quiet"]) == 0
    return cache


def rows_of(path: Path) -> list[dict]:
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pylist()


def test_the_table_holds_what_the_cache_and_the_source_hold(cache: Path, tmp_path: Path, call: Call) -> None:
    out = tmp_path / "map.parquet"
    photos = cache.parent / "photos"
    status, text, err = call("explore", cache, "--task", "colour", "--source", photos, "--out", out)
    assert (status, err) == (0, "")
    assert "with a picture" in text
    store = fc.FeatureStore.open(cache)
    task, rows = store.task("colour"), rows_of(out)
    assert len(rows) == len(task.ids)
    predictions = {row["name"]: row for row in store.predictions("colour")}
    for row in rows:
        assert row["label"] == row["name"].split("/")[0]
        assert Image.open(io.BytesIO(row["image"]["bytes"])).format == "JPEG"
        known = predictions.get(row["name"], {})
        assert [row[column] for column in ("prediction", "right", "judged")] == [
            known.get(column) for column in ("prediction", "right", "judged")
        ]
    assert {row["split"] for row in rows} == {"train", "validation", "test"}


def test_neighbours_are_those_of_a_plain_search(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explorer, "_BLOCK", 5)
    monkeypatch.setattr(explorer, "NUM_NEIGHBOURS", 4)
    store = fc.FeatureStore.open(cache)
    (feature_set,) = store.feature_sets()
    done = write_explorer_table(tmp_path / "t.parquet", store, feature_set)
    rows = rows_of(tmp_path / "t.parquet")
    features = feature_set.open()
    X = features.read(features.rows).astype(np.float32)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    distances = 1 - X @ X.T
    np.fill_diagonal(distances, np.inf)
    assert done.num_samples == len(rows) == 37
    assert done.num_pictures == 0
    assert "image" not in done.columns
    for index, row in enumerate(rows):
        assert index not in row["neighbors"]["ids"]
        np.testing.assert_allclose(row["neighbors"]["distances"], np.sort(distances[index])[:4].clip(0), atol=1e-5)
    names = [row["name"] for row in rows]
    first, second = (rows[names.index(name)]["near_copies"] for name in ("red/000.png", "red/000-again.png"))
    assert first is not None
    assert first == second


def test_more_than_can_be_compared_is_sampled_and_said(
    cache: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = fc.FeatureStore.open(cache)
    (feature_set,) = store.feature_sets()
    done = write_explorer_table(tmp_path / "t.parquet", store, feature_set, max_rows=10)
    assert (done.num_samples, done.num_left_out) == (10, 27)
    again = write_explorer_table(tmp_path / "u.parquet", store, feature_set, max_rows=10)
    assert again == done
    assert rows_of(tmp_path / "t.parquet") == rows_of(tmp_path / "u.parquet")


def test_numbers_are_columns(cache: Path, tmp_path: Path, call: Call) -> None:
    status, text, err = call("explore", cache, "--task", "size", "--out", tmp_path / "t.parquet", "--json")
    assert (status, err) == (0, "")
    assert json.loads(text)["num_samples"] == 12
    rows = rows_of(tmp_path / "t.parquet")
    assert [row["size"] for row in rows] == [float(row["name"][4:7]) for row in rows]


def test_pictures_come_from_the_source_that_was_named_alone(cache: Path, tmp_path: Path, call: Call) -> None:
    out = tmp_path / "t.parquet"
    status, text, _ = call("explore", cache, "--out", out)
    assert status == 0
    assert "no pictures: name the folder" in text
    other = tmp_path / "other"
    write_image(other / "red" / "x.png", (1, 2, 3), seed=0)
    status, _, err = call("explore", cache, "--source", other, "--out", out, "--replace")
    assert status == 2
    assert f"holds no samples from {other}; name the source that was extracted" in err
    status, _, err = call("explore", cache, "--out", out)
    assert status == 2
    assert "--replace" in err
    # What is gone or damaged since has no picture, and costs no other's.
    photos = cache.parent / "photos"
    gone = photos / "green" / "003.png"
    data = gone.read_bytes()
    try:
        gone.write_bytes(b"no image")
        (feature_set,) = fc.FeatureStore.open(cache).feature_sets()
        done = write_explorer_table(
            out, fc.FeatureStore.open(cache), feature_set, source=open_source(photos), replace=True
        )
    finally:
        gone.write_bytes(data)
    assert done.num_pictures == done.num_samples - 1


def test_what_cannot_be_shown_is_refused(
    cache: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = fc.FeatureStore.open(cache)
    (feature_set,) = store.feature_sets()
    with pytest.raises(RequestError, match="holds 1 sample to show; two are needed"):
        monkeypatch.setattr(type(feature_set.open()), "usable", lambda self, rows: np.arange(len(rows)) == 0)
        write_explorer_table(tmp_path / "t.parquet", store, feature_set)
    monkeypatch.setattr(explorer, "find_spec", lambda name: None)
    status, _, err = call("explore", cache)
    assert status == 2
    assert "embedding-atlas, which shows the map, is not installed; install it with: pip install" in err
    assert not (tmp_path / "t.parquet").exists()


def test_the_page_begins_with_labels_and_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explorer, "find_spec", lambda name: True)

    def state_of(columns: list[str]) -> dict:
        command = explorer.explorer_command(Path("t.parquet"), columns, 5055)
        return json.loads(command[command.index("--state") + 1])

    charts = state_of(["image", "name", "label", "split", "prediction", "right", "near_copies", "x", "y", "neighbors"])
    shown = list(charts["charts"].values())
    assert shown[0]["data"] == {name: name for name in ("x", "y", "image", "neighbors")} | {"category": "label"}
    assert [chart["title"] for chart in shown[2:-1]] == ["right", "label", "prediction", "split", "near_copies"]
    # Of numbers there is nothing to count: the page chooses.
    assert "charts" not in state_of(["name", "size", "x", "y", "neighbors"])


def test_only_the_address_is_said_of_what_the_server_prints() -> None:
    lines = ["Loading data", "", "  \u279c URL: \x1b[36mhttp://127.0.0.1:5056\x1b[0m", "  Press CTRL+C"]
    said = list[str]()
    program = f"print({chr(10).join(lines)!r}); raise SystemExit(3)"
    assert explorer.serve([sys.executable, "-c", program], said.append) == 3
    assert said == ["http://127.0.0.1:5056"]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("embedding_atlas") is None, reason="needs the extra explore")
def test_the_server_answers_here_and_ends_with_the_command(cache: Path) -> None:
    command = [sys.executable, "-m", "featurecache", "explore", str(cache), "--task", "colour", "--port", "5199"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        ends = time.monotonic() + 120
        while True:
            try:
                page = urllib.request.urlopen("http://127.0.0.1:5199/", timeout=5).read()
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < ends
                time.sleep(0.5)
        assert b"Embedding Atlas" in page
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
    with pytest.raises(OSError):
        urllib.request.urlopen("http://127.0.0.1:5199/", timeout=5)
