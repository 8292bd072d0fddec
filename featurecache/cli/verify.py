"""``featurecache verify``: is a cache what it says it is?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from featurecache.cli.options import verb_parser
from featurecache.cli.output import print_json, print_line, print_table, progress_on_stderr

LEVELS = ("structure", "blocks", "digest", "hdf5")


def add_parser(verbs: Any) -> None:
    """Describe the verb."""
    parser = verb_parser(
        verbs,
        "verify",
        help="check a cache without changing it: records, checksums, digests, and that rows belong to their samples",
        example="""
          featurecache verify flowers.cache
          featurecache verify strangers.cache --level hdf5
        """,
        quiet=True,
    )
    parser.add_argument("cache", type=Path, metavar="DIR")
    parser.add_argument("--level", choices=LEVELS, default="digest", help="how deep to look (default: digest)")
    parser.add_argument("--sample", type=float, default=1.0, metavar="SHARE", help="share of the shards to read")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check; status 1 when something is wrong."""
    from featurecache.store.store import FeatureStore
    from featurecache.store.verify import verify

    store = FeatureStore.open(args.cache)
    with progress_on_stderr(quiet=args.quiet) as progress:
        progress.start("verifying shards", 0)
        found = verify(store, level=args.level, sample=args.sample, on_shard=lambda done, total: progress.advance(1))
    if args.json:
        print_json(found.to_json())
    else:
        if found.problems:
            rows = [[problem.where, problem.what, problem.advice] for problem in found.problems]
            print_table(["where", "what", "next"], rows)
        print_line(
            f"{len(found.problems)} problems in {found.num_shards} shards, {found.num_bytes} bytes ({found.level})"
        )
    return 1 if found.problems else 0
