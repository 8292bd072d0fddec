"""``featurecache ls``: the feature sets, tasks and heads of a cache, a line each."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from featurecache.cli.options import verb_parser
from featurecache.cli.output import print_json, print_line, print_table


def add_parser(verbs: Any) -> None:
    """Describe the verb."""
    parser = verb_parser(
        verbs, "ls", help="list the features, tasks and heads of a cache", example="  featurecache ls flowers.cache"
    )
    parser.add_argument("cache", type=Path, metavar="DIR", help="folder of the cache")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """List."""
    from featurecache.store.overview import describe_features
    from featurecache.store.store import FeatureStore

    store = FeatureStore.open(args.cache)
    features, heads = [describe_features(s) for s in store.feature_sets()], store.head_names()
    if args.json:
        print_json({"samples": len(store.samples), "features": features, "tasks": store.task_names(), "heads": heads})
        return 0
    print_line(f"{args.cache}: {len(store.samples)} samples")
    print_features(features)
    print_line(f"tasks: {', '.join(store.task_names()) or 'none'}")
    print_line(f"heads: {', '.join(heads) or 'none'}")
    return 0


def print_features(features: list[dict[str, Any]]) -> None:
    """Print feature sets as a table."""
    from featurecache.wording import human_bytes

    # A column for what most caches do not have would be empty.
    some_views = any(item["views"] for item in features)
    named = ["backbone", "tap", "views"] if some_views else ["backbone", "tap"]
    print_table(
        [*named, "dtype", "rows", "bad", "features", "on disk", "fingerprint"],
        [
            [
                item["backbone"],
                item["tap"],
                *([item["views"]["count"] if item["views"] else "-"] if some_views else []),
                item["dtype"],
                item["rows"],
                item["bad"],
                # Views have their own column; the rest is the shape of one.
                "x".join(map(str, item["shape"][1:] if item["views"] else item["shape"])),
                human_bytes(item["bytes"]),
                item["fingerprint"][:12],
            ]
            for item in features
        ],
        numbers=["views", "rows", "bad", "features", "on disk"],
    )
