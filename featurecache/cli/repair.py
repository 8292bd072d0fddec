"""``featurecache repair``: set damaged shards aside so that the next extraction computes them again."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from featurecache.cli.options import verb_parser
from featurecache.cli.output import print_json, print_line, print_table


def add_parser(verbs: Any) -> None:
    """Describe the verb."""
    parser = verb_parser(
        verbs,
        "repair",
        help="move damaged shards to quarantine/ (nothing is deleted) and compare those computed again since",
        example="""
          featurecache repair flowers.cache
          featurecache extract flowers/ --cache flowers.cache --backbone efficientnet_lite0
          featurecache repair flowers.cache       says whether the new shards are identical
        """,
    )
    parser.add_argument("cache", type=Path, metavar="DIR")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Repair; status 1 when something was damaged or has come out different."""
    from featurecache.store.repair import repair, summary
    from featurecache.store.store import FeatureStore

    repairs, recomputed = repair(FeatureStore.open(args.cache))
    if args.json:
        print_json(summary(repairs, recomputed))
    else:
        if repairs:
            print_table(["where", "what", "action"], [[r.where, r.what, r.action] for r in repairs])
        if recomputed:
            print_table(["set aside", "now"], [[r.where, r.state] for r in recomputed])
        print_line(f"{len(repairs)} problems found, {len(recomputed)} shards set aside so far")
    return 1 if repairs or any(r.state == "different" for r in recomputed) else 0
