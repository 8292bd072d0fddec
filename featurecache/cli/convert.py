"""``featurecache convert``: cached features in another number type, without the images or the backbone."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from featurecache.cli.ls import print_features
from featurecache.cli.options import verb_parser
from featurecache.cli.output import counting, print_json, progress_on_stderr


def add_parser(verbs: Any) -> None:
    """Describe the verb."""
    parser = verb_parser(
        verbs,
        "convert",
        help="keep cached features in a smaller number type too; the first is not touched",
        example="  featurecache convert flowers.cache --to int8",
        quiet=True,
    )
    parser.add_argument("cache", type=Path, metavar="DIR", help="folder of the cache")
    # No float32: numbers that were rounded once do not come back.
    parser.add_argument(
        "--to",
        required=True,
        choices=("float16", "bfloat16", "int8"),
        metavar="DTYPE",
        help="float16, bfloat16 or int8",
    )
    parser.add_argument("--from", dest="dtype", metavar="DTYPE", help="which stored type (default: the widest)")
    parser.add_argument("--tap", metavar="T", help="only this tap")
    parser.add_argument("--backbone", metavar="B", help="only features of this backbone")
    parser.add_argument("--views", type=int, metavar="K", help="the features of K views; else the plain ones")


def run(args: argparse.Namespace) -> int:
    """Convert and describe the result."""
    from featurecache.store.convert import convert_features
    from featurecache.store.overview import describe_features
    from featurecache.store.store import FeatureStore

    store = FeatureStore.open(args.cache)
    # The type itself is no source, where another is there.
    source = store.find(tap=args.tap, backbone=args.backbone, dtype=args.dtype, views=args.views, but_not=args.to)
    with progress_on_stderr(quiet=args.quiet) as progress:
        converted = convert_features(store, source, args.to, on_shard=counting(progress, "converting shards"))
    described = describe_features(converted)
    if args.json:
        print_json(described)
    else:
        print_features([described])
    return 0
