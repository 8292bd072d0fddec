"""``featurecache export-features``: cached features with ids, names, targets and splits as one table."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.cli.options import features_of, verb_parser
from featurecache.cli.output import print_json, print_line
from featurecache.cli.output_files import add_raw_cells_option, check_outputs, write_table_at
from featurecache.errors import RequestError
from featurecache.wording import counted

if TYPE_CHECKING:
    from featurecache.store.features import Features
    from featurecache.store.samples import SampleTable
    from featurecache.store.tasks import Task


def add_parser(verbs: Any) -> None:
    """Describe the verb."""
    parser = verb_parser(
        verbs,
        "export-features",
        help="write features with ids, names, labels and splits as a table, for other programs",
        example="""
          featurecache export-features flowers.cache --out flowers.parquet
          featurecache export-features flowers.cache --task species --tap pre_logits:none --out flowers.csv
        """,
    )
    parser.add_argument("cache", type=Path, metavar="DIR", help="folder of the cache")
    parser.add_argument("--task", metavar="T", help="only its samples, with labels and splits")
    parser.add_argument("--tap", metavar="T", help="cached tap, where there are several")
    parser.add_argument("--backbone", metavar="B", help="only features of this backbone")
    parser.add_argument("--fingerprint", metavar="F", help="only features with this fingerprint")
    parser.add_argument("--dtype", metavar="D", help="only features stored as this type (default: the widest)")
    parser.add_argument("--views", type=int, metavar="K", help="the K cached views of each sample; 0: plain features")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=".parquet, .csv or .tsv")
    add_raw_cells_option(parser)
    parser.add_argument("--replace", action="store_true", help="replace FILE if it is there")


def run(args: argparse.Namespace) -> int:
    """Write the table, some rows at a time."""
    from featurecache.store.store import FeatureStore
    from featurecache.table_output import TABLE_SUFFIXES

    # Before the cache is opened and read: a file that cannot be written must not cost that.
    check_outputs({"--out": (args.out, TABLE_SUFFIXES)}, replace=args.replace)
    store = FeatureStore.open(args.cache)
    features = store.find(tap=args.tap, **features_of(args)).open()
    task = None if args.task is None else store.task(args.task)
    count = _write(args, features, store.samples, task)
    if args.json:
        print_json({"out": str(args.out), "rows": count, "tap": features.tap, "shape": list(features.sample_shape)})
    else:
        print_line(f"{counted(count, 'sample')} x {features.tap} {features.sample_shape} in {args.out}")
    return 0


def _write(args: argparse.Namespace, features: Features, samples: SampleTable, task: Task | None) -> int:
    from featurecache.interop.arrow_tables import feature_batches, features_schema

    schema, count = features_schema(features, task), 0
    if args.out.suffix.lower() == ".parquet":
        from importlib import import_module

        from featurecache.atomic import published

        try:
            with (
                published(args.out, replace=args.replace) as partial,
                import_module("pyarrow.parquet").ParquetWriter(partial, schema) as writer,
            ):
                for batch in feature_batches(features, samples, task):
                    writer.write_batch(batch)
                    count += batch.num_rows
        except OSError as error:
            raise RequestError(f"--out {args.out}: it cannot be written ({error.strerror or error})") from None
        return count
    # A table of text has no lists: each number of the features gets a column.
    own = [name for name in schema.names if name != "features"]
    numbers = [f"f{index}" for index in range(schema.field("features").type.list_size)]

    # A generator, so that a cache larger than memory can be written.
    def rows() -> Iterator[dict[str, Any]]:
        nonlocal count
        for batch in feature_batches(features, samples, task):
            for row in batch.to_pylist():
                count += 1
                yield {name: row[name] for name in own} | dict(zip(numbers, row["features"], strict=True))

    write_table_at(
        "--out", args.out, [*own, *numbers], rows(), replace=args.replace, numbers=numbers, raw=args.raw_cells
    )
    return count
