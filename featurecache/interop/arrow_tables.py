"""Features with ids, names, targets and splits as Arrow tables, on which other tables are built."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from featurecache.errors import RequestError
from featurecache.plugins import import_extra
from featurecache.store.features import Features
from featurecache.store.labels import SPLITS
from featurecache.store.samples import Rows, SampleTable
from featurecache.store.tasks import Task, known_of

ROWS_AT_ONCE = 4096
"""Of a table that is written: what is held in memory."""
_OWN = ("id", "name", "split", "group", "domain", "weight", "features")


def features_schema(features: Features, task: Task | None = None) -> Any:
    """Return the schema of a table of features.

    Parameters
    ----------
    features : Features
    task : Task, optional
        Its target (``label``, or a column for each label or number), ``split``, and ``group``, ``domain`` and
        ``weight`` where it has them.

    Raises
    ------
    MissingExtraError
        Without the extra ``parquet``.
    RequestError
        A label or number is called as a column of ours.
    """
    arrow = import_extra("pyarrow", "parquet")
    fields = [("id", arrow.string()), ("name", arrow.string())]
    if task is not None:
        if task.kind == "classification":
            fields.append(("label", arrow.string()))
        else:
            # Else a label would stand where readers look for our column.
            if twice := set(task.classes) & set(_OWN):
                raise RequestError(f"task {task.name!r} calls a column {twice.pop()!r}, as the table does; rename it")
            kind = arrow.bool_() if task.kind == "multilabel" else arrow.float64()
            fields += [(name, kind) for name in task.classes]
        fields.append(("split", arrow.string()))
        if task.groups is not None:
            fields.append(("group", arrow.int32()))
        if task.domains is not None:
            fields.append(("domain", arrow.string()))
        if task.weights is not None:
            fields.append(("weight", arrow.float64()))
    size = int(np.prod(features.sample_shape))
    return arrow.schema([*fields, ("features", arrow.list_(arrow.float32(), size))])


def feature_batches(features: Features, samples: SampleTable, task: Task | None = None) -> Iterator[Any]:
    """Yield record batches of all usable samples, or of those that have a target.

    Parameters
    ----------
    features : Features
    samples : SampleTable
    task : Task, optional

    Yields
    ------
    pyarrow.RecordBatch
        Features flattened, float32, (n, size).
    """
    arrow, schema = import_extra("pyarrow", "parquet"), features_schema(features, task)
    rows = features.rows if task is None else np.sort(samples.rows_of(task.ids))
    # Bad inputs have no features, and samples of a task may not be cached.
    rows = rows[features.usable(rows)]
    for start in range(0, len(rows), ROWS_AT_ONCE):
        some = rows[start : start + ROWS_AT_ONCE]
        columns = _columns(some, samples, task)
        values = features.read(some).astype(np.float32).reshape(len(some), -1)
        stored = arrow.FixedSizeListArray.from_arrays(arrow.array(values.ravel()), values.shape[1])
        arrays = [arrow.array(columns[field.name], field.type) for field in schema if field.name != "features"]
        yield arrow.RecordBatch.from_arrays([*arrays, stored], schema=schema)


def to_arrow(features: Features, samples: SampleTable, task: Task | None = None) -> Any:
    """Return a table of features; see `feature_batches`."""
    # With the schema: of no samples there is no batch to take it from.
    schema = features_schema(features, task)
    table = import_extra("pyarrow", "parquet").Table
    return table.from_batches(list(feature_batches(features, samples, task)), schema=schema)


def to_pandas(features: Features, samples: SampleTable, task: Task | None = None) -> Any:
    """Return a data frame with a column for each feature, ``f0``, ``f1``, ..., after ids, names and targets."""
    pandas = import_extra("pandas", "parquet")
    table = to_arrow(features, samples, task)
    values = np.asarray(table["features"].combine_chunks().flatten()).reshape(table.num_rows, -1)
    # Apart from the rest: a list for each row would be an object for each row.
    frame = table.drop_columns(["features"]).to_pandas()
    numbers = pandas.DataFrame(values, columns=[f"f{index}" for index in range(values.shape[1])])
    return pandas.concat([frame, numbers], axis=1)


def to_hugging_face(features: Features, samples: SampleTable, task: Task | None = None) -> Any:
    """Return a data set of the library ``datasets``; the extra ``datasets``."""
    datasets = import_extra("datasets", "datasets")
    return datasets.Dataset(to_arrow(features, samples, task))


def _columns(rows: Rows, samples: SampleTable, task: Task | None) -> dict[str, Any]:
    columns: dict[str, Any] = {
        "id": [row.tobytes().hex() for row in samples.ids[rows]],
        # A name of bytes that are no UTF-8 is none to Arrow.
        "name": [name.encode("utf-8", "replace").decode() for name in samples.uris_of(rows)],
    }
    if task is None:
        return columns
    index = task.indices_of(rows)
    labels = task.labels[index]
    if task.kind == "classification":
        columns["label"] = [task.classes[y] for y in labels.tolist()]
    else:
        known = known_of(labels, task.kind)
        for k, name in enumerate(task.classes):
            values = labels[:, k] == 1 if task.kind == "multilabel" else labels[:, k]
            columns[name] = [value if is_known else None for value, is_known in zip(values, known[:, k], strict=True)]
    columns["split"] = [SPLITS[number] for number in task.splits[index].tolist()]
    columns["group"] = None if task.groups is None else task.groups[index]
    columns["weight"] = None if task.weights is None else task.weights[index]
    if task.domains is not None:
        columns["domain"] = [task.domain_names[number] for number in task.domains[index].tolist()]
    return columns
