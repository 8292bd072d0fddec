"""Samples as a map to look around in: a table of what a cache knows of each, opened by Embedding Atlas in a browser."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featurecache.advice.axes import MapName, plane_of
from featurecache.atomic import published
from featurecache.errors import InputError, MissingExtraError, RequestError
from featurecache.evaluation.near_copies import near_copies
from featurecache.heads.preparation import unit_rows
from featurecache.machine import num_cores
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.labels import SPLITS
from featurecache.store.store import FeatureStore
from featurecache.wording import counted

if TYPE_CHECKING:
    from featurecache.sources.source import Source
    from featurecache.store.samples import Rows

MAX_ROWS = 20_000
"""More are sampled: neighbours are found by comparing all with all, which takes a minute from about there."""
NUM_NEIGHBOURS = 20
_BLOCK = 1024
_ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+")


@dataclass(frozen=True, slots=True)
class ExplorerTable:
    """A written table of samples.

    Attributes
    ----------
    num_samples, num_left_out : int
        In the table, and beyond `MAX_ROWS`.
    num_pictures : int
        Samples with a thumbnail.
    columns : tuple of str
    """

    num_samples: int
    num_left_out: int
    num_pictures: int
    columns: tuple[str, ...]


def write_explorer_table(
    path: Path,
    store: FeatureStore,
    feature_set: FeatureSet,
    *,
    task: str | None = None,
    source: Source | None = None,
    map_by: MapName = "pca",
    max_rows: int = MAX_ROWS,
    replace: bool = False,
    random_state: int = 0,
) -> ExplorerTable:
    """Write a Parquet table with a row for each sample, as explorers of embeddings read it.

    Columns are ``image`` (a small JPEG; with a source); ``name``; with a task its ``label`` and ``split``, and of a
    training on it ``prediction``, ``right`` and ``judged``; ``near_copies`` (a number that near-copies share); ``x``
    and ``y`` in a plane; and ``neighbors`` (the most alike by cosine).

    Parameters
    ----------
    path : Path
        Where to.
    store : FeatureStore
    feature_set : FeatureSet
        Plain and pooled.
    task : str, optional
        Only its samples.
    source : Source, optional
        Where the cached images are read from, for thumbnails. A cache names paths, but they are not opened unless the
        caller names the source: the cache may be a stranger's.
    map_by : {"pca", "umap"}
    max_rows : int
    replace : bool
        Replace a table that is there.
    random_state : int
        Of UMAP, and of which samples are taken where there are more than ``max_rows``.

    Raises
    ------
    RequestError
        Features of views or activations; fewer than two samples.
    MissingExtraError
        Without pyarrow.
    """
    if find_spec("pyarrow") is None:
        raise MissingExtraError("pyarrow, which writes the table,", "explore")
    if feature_set.num_views is not None or not feature_set.is_pooled:
        raise RequestError(f"a map is made of plain, pooled features; {feature_set.tap} is not that")
    rows, num_left_out = _rows(store, feature_set, task, max_rows, random_state)
    images = [] if source is None else list(_thumbnails(store, source, rows))
    columns: dict[str, Any] = {}
    if any(images):  # as Parquet's explorers read them
        columns["image"] = [None if image is None else {"bytes": image} for image in images]
    columns["name"] = [name.encode("utf-8", "replace").decode() for name in store.samples.uris_of(rows)]
    if task is not None:
        columns |= _columns_of_task(store, task, rows)
    X = feature_set.open().read(rows).astype(np.float32).reshape(len(rows), -1)
    columns |= _columns_of_features(X, map_by, random_state)
    arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    with published(path, replace=replace) as partial:
        parquet.write_table(arrow.table(columns), partial)
    num_pictures = sum(image is not None for image in images or ())
    return ExplorerTable(len(rows), num_left_out, num_pictures, tuple(columns))


def _rows(
    store: FeatureStore, feature_set: FeatureSet, task: str | None, max_rows: int, random_state: int
) -> tuple[Rows, int]:
    features = feature_set.open()
    rows = features.rows if task is None else np.sort(store.samples.rows_of(store.task(task).ids))
    rows = rows[features.usable(rows)]
    if len(rows) < 2:
        raise RequestError(f"{feature_set.tap} holds {counted(len(rows), 'sample')} to show; two are needed")
    if len(rows) <= max_rows:
        return rows, 0
    some = np.random.default_rng(random_state).choice(rows, max_rows, replace=False)
    return np.sort(some), len(rows) - max_rows


def _columns_of_features(X: NDArray[np.float32], map_by: MapName, random_state: int) -> dict[str, Any]:
    """Return who is near whom: near-copies, places in a plane, and neighbours."""
    group = near_copies(X).group
    num_members = np.bincount(group)[group]
    plane = plane_of(X, map_by, random_state=random_state)
    return {
        "near_copies": [int(g) if m > 1 else None for g, m in zip(group, num_members, strict=True)],
        "x": plane[:, 0],
        "y": plane[:, 1],
        "neighbors": list(_neighbours(X)),
    }


def _columns_of_task(store: FeatureStore, name: str, rows: Rows) -> dict[str, list[Any]]:
    task, samples = store.task(name), store.samples
    labels = task.labels[task.indices_of(rows)]
    columns: dict[str, list[Any]] = {}
    if task.kind == "classification":
        columns["label"] = [task.classes[label] for label in labels]
    elif task.kind == "multilabel":
        columns["label"] = [";".join(np.asarray(task.classes)[row == 1].tolist()) for row in labels]
    else:
        columns |= {column: labels[:, k].astype(float).tolist() for k, column in enumerate(task.classes)}
    columns["split"] = [SPLITS[int(split)] for split in task.splits[task.indices_of(rows)]]
    if store.history(name).last() is not None:
        # Of a sample that the head was fitted on there is no honest prediction.
        by_name = {row["name"]: row for row in store.predictions(name)}
        found = [by_name.get(sample, {}) for sample in samples.uris_of(rows)]
        if task.kind == "regression":
            for column in task.classes:
                columns[f"{column}_prediction"] = [(row.get("prediction") or {}).get(column) for row in found]
        else:
            columns["prediction"] = [row.get("prediction") for row in found]
        if task.kind == "classification":
            columns["right"] = [row.get("right") for row in found]
        columns["judged"] = [row.get("judged") for row in found]
    return columns


def _neighbours(X: NDArray[np.float32]) -> Iterator[dict[str, list[Any]]]:
    """Yield indices and cosine distances of the most alike samples of each, the nearest first."""
    count = min(NUM_NEIGHBOURS, len(X) - 1)
    units = unit_rows(X)
    for start in range(0, len(X), _BLOCK):
        distances = 1 - units[start : start + _BLOCK] @ units.T
        own = np.arange(len(distances))
        distances[own, own + start] = np.inf  # nobody is a neighbour of itself
        nearest = np.argpartition(distances, count - 1, axis=1)[:, :count]
        found = np.take_along_axis(distances, nearest, axis=1)
        order = np.argsort(found, axis=1, kind="stable")
        for indices, values in zip(
            np.take_along_axis(nearest, order, axis=1), np.take_along_axis(found, order, axis=1), strict=True
        ):
            yield {"ids": indices.tolist(), "distances": np.maximum(values, 0).tolist()}


def _thumbnails(store: FeatureStore, source: Source, rows: Rows) -> Iterator[bytes | None]:
    """Yield a small JPEG of each sample; None of what the source does not hold or cannot decode."""
    from featurecache.reporting.pictures import small_jpeg
    from featurecache.sources.decoding.images import pillow_defaults

    if source.modality != "image":
        raise RequestError(f"{source.key} holds {source.modality}s; name a source of images, or leave it out")
    listing = store.listings.load(source.key)
    if listing is None:
        raise RequestError(f"{store.path} holds no samples from {source.key}; name the source that was extracted")
    listed = set(listing.unique_rows.tolist())
    known = [row for row in rows.tolist() if row in listed]
    names = dict(zip(known, listing.paths_of(np.array(known, np.int64)), strict=True))

    def picture(row: int) -> bytes | None:
        try:
            return small_jpeg(source.open(names[row], stamp=None)) if row in names else None
        except InputError:
            return None

    with pillow_defaults(), ThreadPoolExecutor(num_cores()) as pool:
        yield from pool.map(picture, rows.tolist())


def explorer_command(table: Path, columns: Sequence[str], port: int) -> list[str]:
    """Return the command that serves a table to the browser of this machine.

    Parameters
    ----------
    table : Path
        From `write_explorer_table`.
    columns : sequence of str
        Of the table.
    port : int
        On the loopback address; the next free one is taken where it is in use.

    Raises
    ------
    MissingExtraError
        Embedding Atlas is not installed.
    """
    if find_spec("embedding_atlas") is None:
        raise MissingExtraError("embedding-atlas, which shows the map,", "explore")
    # The map is ready: no network is asked for embeddings. DuckDB runs beside the server, since the one for browsers
    # loads extensions from the network.
    shown = ["--x", "x", "--y", "y", "--neighbors", "neighbors", "--disable-projection", "--duckdb", "server"]
    image = ["--image", "image"] if "image" in columns else []
    address = ["--host", "127.0.0.1", "--port", str(port), "--auto-port"]
    state = ["--state", json.dumps(_first_state(columns))]
    return [sys.executable, "-m", "embedding_atlas.cli", str(table), *shown, *image, *state, *address]


def _first_state(columns: Sequence[str]) -> dict[str, Any]:
    """Return what the page shows first: the map in the colours of the labels, the samples, and counts of what is told.

    Where nothing can be counted the page has charts of its own.
    """
    # The server adds the last two: the file that holds the table, and how often a sample is a neighbour of others.
    state: dict[str, Any] = {
        "columnStyles": {name: {"display": "hidden"} for name in ("x", "y", "neighbors", "FILE_NAME", "pagerank")}
    }
    if "label" not in columns:
        return state
    places = {name: name for name in ("x", "y", "image", "neighbors") if name in columns}
    charts: list[dict[str, Any]] = [
        {"type": "embedding", "title": "Map", "data": {**places, "category": "label"}},
        {"type": "instances", "title": "Samples"},
    ]
    counts = [name for name in ("right", "label", "prediction", "split", "judged", "near_copies") if name in columns]
    charts += [{"type": "count-plot", "title": name, "data": {"field": name}} for name in counts]
    charts.append({"type": "predicates", "title": "SQL Predicates"})
    return {**state, "charts": {str(number): chart for number, chart in enumerate(charts, start=1)}}


def serve(command: Sequence[str], say_address: Callable[[str], None]) -> int:
    """Run the server until it ends or this process is stopped; return its exit status.

    Parameters
    ----------
    command : sequence of str
        From `explorer_command`.
    say_address : callable
        Gets the address once the server has one; the other lines that it prints say nothing of the cache.
    """
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", "PYTHONWARNINGS": "ignore"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8", env=environment) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if address := _ADDRESS.search(line):
                    say_address(address[0])
            return process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(2)
                except subprocess.TimeoutExpired:
                    process.kill()
