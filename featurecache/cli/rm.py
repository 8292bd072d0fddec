"""``featurecache rm``: remove one head, task or feature set of a cache."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from featurecache.cli.options import verb_parser
from featurecache.cli.output import print_json, print_line


def add_parser(verbs: Any) -> None:
    """Describe the verb."""
    parser = verb_parser(
        verbs,
        "rm",
        help="remove a head, a task with its history, or features",
        example="""
          featurecache rm flowers.cache head run
          featurecache rm flowers.cache task species --dry-run
          featurecache rm flowers.cache features bc7662ce2db4
        """,
    )
    parser.add_argument("cache", type=Path, metavar="DIR", help="folder of the cache")
    parser.add_argument("kind", choices=("head", "task", "features"), help="what is removed")
    parser.add_argument(
        "name", metavar="NAME", help="of the head or task; of features a tap, or the beginning of a fingerprint"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be removed")


def run(args: argparse.Namespace) -> int:
    """Remove, and say what."""
    from featurecache.store.removal import remove
    from featurecache.store.store import FeatureStore

    found = remove(FeatureStore.open(args.cache), args.kind, args.name, dry_run=args.dry_run)
    if args.json:
        print_json(found.to_json())
        return 0
    # One line each, so that a dry run shows exactly what would go.
    for path in found.paths:
        print_line(str(path))
    verb = "would be removed" if args.dry_run else "removed"
    print_line(f"{found.what} {verb}: {found.num_bytes} bytes")
    return 0
