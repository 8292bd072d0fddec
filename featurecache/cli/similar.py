"""``featurecache similar``: the cached samples that are most like an image."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from featurecache.cli.options import source_argument, verb_parser
from featurecache.cli.output import print_json, print_table


def add_parser(verbs: Any) -> None:
    """Describe the verb."""
    parser = verb_parser(
        verbs,
        "similar",
        help="find the cached samples that are most like an image",
        example="""
          featurecache similar flowers.cache new.jpg
          featurecache similar flowers.cache new.jpg --count 50 --tap pre_logits:none --json
        """,
    )
    parser.add_argument("cache", type=Path, metavar="DIR", help="folder of the cache")
    parser.add_argument("inputs", type=source_argument, nargs="+", metavar="INPUT", help="image files or folders")
    parser.add_argument("--count", type=int, default=10, metavar="N", help="neighbours of each (default 10)")
    parser.add_argument("--tap", metavar="T", help="cached tap, where there are several")
    parser.add_argument("--fingerprint", metavar="F", help="only features with this fingerprint")
    parser.add_argument(
        "--backbone", metavar="B", help="only features of this backbone; agrees to open it where a name alone does not"
    )
    parser.add_argument("--weights", type=Path, metavar="FILE", help="weights that the features were made with")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Find and print."""
    from featurecache.deployment.similar import similar
    from featurecache.store.store import FeatureStore

    store = FeatureStore.open(args.cache)
    # Plain features: an input is compared as it is, not by its views.
    feature_set = store.find(tap=args.tap, backbone=args.backbone, fingerprint=args.fingerprint, views=0)
    found = similar(store, args.inputs, feature_set, args.count, backbone=args.backbone, weights=args.weights)
    if args.json:
        print_json({"similar": {name: [asdict(item) for item in items] for name, items in found.items()}})
        return 0
    rows = [[name, item.name, f"{item.similarity:.4f}"] for name, items in found.items() for item in items]
    print_table(["of", "is like", "similarity"], rows, numbers=["similarity"])
    return 0
